"""What is given to publish.py is looked at first: a file that is not what training wrote is one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from faults import edit_json
from mistakes import one_sentence

from pretraining.export import write_native
from pretraining.publish.source import find_source

SETTINGS: dict[str, Any] = {"data": {"source": "files"}, "objective": {}, "train": {}}
HEADS = {"bert": "KeelBertForMaskedLM", "seq2seq": "KeelSeq2SeqForConditionalGeneration", "vit": "KeelViTModel"}


@pytest.fixture
def run(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    tiny(HEADS["bert"]).save_pretrained(tmp_path / "run/model")
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return tmp_path / "run"


CONFIGURATIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a dtype that torch has not": ({"dtype": "floatx"}, ["is no model's configuration", "floatx", "again"]),
    "a field of another type": ({"num_attention_heads": "four"}, ["num_attention_heads", "again"]),
    "another model": ({"model_type": "bert"}, ["none of ours"]),
    "architectures as a text": ({"architectures": "KeelBertModel"}, ["architectures 'KeelBertModel'", "again"]),
    "two architectures": ({"architectures": ["KeelBertModel", "X"]}, ["['KeelBertModel', 'X']", "the one class"]),
    "no architecture": ({"architectures": None}, ["None", "the one class"]),
    "a class of another family": ({"architectures": ["KeelViTModel"]}, ["KeelViTModel", "no class of keel-bert"]),
    "what is no model": ({"architectures": ["KeelBertConfig"]}, ["KeelBertConfig", "no class of keel-bert"]),
    "what is no class": ({"architectures": [["KeelBertModel"]]}, ["no class of keel-bert"]),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_that_was_changed(case: str, run: Path):
    fields, parts = CONFIGURATIONS[case]
    edit_json(run / "model/config.json", lambda config: config.update(fields))
    with one_sentence(str(run), *parts):
        find_source(run)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '\ufeff{"model_type": "keel-bert"}'])
def test_a_configuration_that_is_none(text: str, run: Path):
    (run / "model/config.json").write_text(text, encoding="utf-8")
    with one_sentence("config.json is no model's configuration", "run the command of its training again"):
        find_source(run)


@pytest.mark.parametrize("family", HEADS)
def test_every_family_is_found_by_its_run_and_by_its_model(family: str, run: Path, tiny: Callable[..., Any]):
    tiny(HEADS[family]).save_pretrained(run / "model")
    for folder in (run, run / "model", run / "model/../model"):
        source = find_source(folder)
        assert (source.family, source.name, source.settings()) == (family, "run", SETTINGS)
        assert source.record_of_run("results.json") == {}


RECORDS = {
    "config.yaml": ["", "[1]", "a: b: c", "\ta", "theme: other\n", "data: {}\nobjective: {}\ntrain: 1\n"],
    "results.json": ["", "{", "[]", "null"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in RECORDS.items() for text in texts])
def test_a_record_of_the_run_that_is_damaged(name: str, text: str, run: Path):
    (run / name).write_text(text)
    source = find_source(run)
    with one_sentence(f"{run / name}", "put back what training wrote"):
        source.settings() if name == "config.yaml" else source.record_of_run(name)


def test_a_record_in_other_bytes_than_utf_8(run: Path):
    (run / "results.json").write_bytes(json.dumps({"name": "ä"}, ensure_ascii=False).encode("latin-1"))
    with one_sentence("results.json is damaged"):
        find_source(run).record_of_run("results.json")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_weights_that_are_none(content: bytes | None, run: Path):
    weights = run / "model/model.safetensors"
    weights.unlink() if content is None else weights.write_bytes(content)
    with one_sentence(f"the model in {run / 'model'} cannot be opened", "run the command of its training again"):
        find_source(run).open()
    with one_sentence("no model of ours can be read from", str(run / "model")):
        write_native(run / "model", run / "native")
