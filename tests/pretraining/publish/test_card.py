"""The model card: what the Hub reads of it, what it tells, examples that run, and nothing of the machine."""

import contextlib
import getpass
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from families import FAMILIES, compare, train_family
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, parse_eval_result_entries
from mistakes import one_sentence
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil

from pretraining.export import write_native
from pretraining.publish.card import pin, write_card
from pretraining.publish.card_data import hub_name, write_eval_results
from pretraining.publish.places import shown_command, without_places
from pretraining.publish.snippets import TASKS, Snippet, localised, make_snippets, run_snippets
from pretraining.publish.source import Source, find_source

SECTIONS = ["Use", "The model", "Data", "Training", "Results", "Limits", "Verified", "Reproduce", "Files of code"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOKEN = "hf_abcdefghijklmnop"


class Published(NamedTuple):
    source: Source
    folder: Path
    text: str
    """README.md."""


@pytest.fixture(scope="module")
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Published]:
    """What is pushed of a family's run: the model, its native form and its card."""
    made: dict[str, Published] = {}

    def make(family: str) -> Published:
        if family not in made:
            place = tmp_path_factory.mktemp(family)
            source = train_family(family, request, place)
            assert source.run is not None
            (source.run / "curves.png").write_bytes(b"a picture")  # no curves are drawn in tests
            folder = place / "repo"
            shutil.copytree(source.folder, folder)
            write_native(source.folder, folder / "native")
            native = compare(source, folder / "native", place / "cases") | {"notes": []}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HF_TOKEN", TOKEN)
                readme = write_card(
                    source, folder, repo=f"me/{family}", report=None, native=native, license="apache-2.0",
                    command=f"publish.py {source.run} --native --repo me/{family}",
                )  # fmt: skip
            made[family] = Published(source, folder, readme.read_text(encoding="utf-8"))
        return made[family]

    return make


def results_of(source: Source) -> dict[str, Any]:
    assert source.run is not None
    return json.loads((source.run / "results.json").read_text())


def run(code: str) -> str:
    """What a program prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {"__name__": "__main__"})
    return output.getvalue()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hub_reads_its_head(family: str, published: Callable[[str], Published]):
    source, folder, _ = published(family)
    data = ModelCard.load(folder / "README.md").data
    assert isinstance(data, ModelCardData)
    assert data.license == "apache-2.0" and data.library_name == "transformers"
    tasks = {"bert": "fill-mask", "seq2seq": "translation", "vit": "image-classification"}
    assert data.pipeline_tag == tasks[family]
    assert {"keel", family} <= set(data.tags)
    assert data.language == (["en"] if family == "bert" else None)
    results = results_of(source)
    wanted = {name[5:]: value for name, value in results.items() if name.startswith("eval_") and " " not in name}
    assert {each.metric_type: each.metric_value for each in data.eval_results} == wanted
    assert not (folder / ".eval_results").exists()  # the data is no data set of the Hub
    assert "not in `.eval_results`" in published(family).text


@pytest.mark.parametrize("family", FAMILIES)
def test_it_tells_all(family: str, published: Callable[[str], Published]):
    source, folder, text = published(family)
    titles = re.findall("^## (.*)$", text, re.MULTILINE)
    assert [title for title in titles if title not in ("Tokenizer", "Images")] == SECTIONS
    for path in sorted(source.folder.glob("*.py")):
        assert re.search(rf"\| {path.name} \| `[0-9a-f]{{64}}` \|", text)
    recorded = json.loads((source.folder.parent / "environment.json").read_text())
    assert recorded["fingerprint"] in text and recorded["data"][-1] in text
    assert recorded["starts"][0]["versions"]["transformers"] in text
    assert f"{recorded['starts'][0]['commit']}" in text
    assert "![Training's curves](curves.png)" in text and (folder / "curves.png").exists()
    (settings,) = re.findall("```yaml\n(.*?)```", text, re.DOTALL)
    assert yaml.safe_load(settings) == without_places(source.settings())


@pytest.mark.parametrize("family", FAMILIES)
def test_its_numbers_are_those_of_the_run(family: str, published: Callable[[str], Published]):
    source, _, text = published(family)
    results = results_of(source)
    rows = dict(re.findall(r"^\| (\w+) \| validation \| (\S+) \|", text, re.MULTILINE))
    wanted = {name[5:]: value for name, value in results.items() if name.startswith("eval_") and " " not in name}
    assert rows == {name: f"{value:.4f}" for name, value in wanted.items()}
    assert f"step {results['step']:,}, on {results['examples']:,} held-out examples" in text
    recorded = json.loads((source.run / "environment.json").read_text())
    assert f"{recorded['trained']['steps']:,} steps" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_every_example_runs_and_prints_what_is_shown(family: str, published: Callable[[str], Published]):
    _, folder, text = published(family)
    blocks = BLOCK.findall(text)
    assert 'subfolder="native"' in blocks[0] and "trust_remote_code" not in blocks[0]
    assert any("trust_remote_code=True, revision=" in block for block in blocks)
    assert all(block.count("revision=") == block.count("from_pretrained(") for block in blocks)
    for block in blocks:
        shown = re.findall("^# (.*)$", block, re.MULTILINE)
        assert shown and run(localised(block, f"me/{family}", folder)).splitlines() == shown


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_of_the_machine_or_its_user(family: str, published: Callable[[str], Published], tmp_path: Path):
    source, _, text = published(family)
    assert family != "seq2seq" or str(source.folder.parents[1]) in source.settings()["data"]["files"][0]
    places = [str(Path.home()) + "/", str(Path.cwd()), str(tmp_path.parents[1]), str(source.folder.parents[1])]
    assert not [place for place in places if place in text]
    assert not re.search(r"(?<![\w.:/*`])/(?:tmp|home|root|Users)/", text)
    assert TOKEN not in text
    if getpass.getuser() != "root":  # a word of many texts
        assert getpass.getuser() not in text


def test_paths_become_names():
    command = "pretrain.py --data.files '[\"/home/al ice/a.txt\", b.txt]' --data.files=[ab]*.txt --runs ~/x --name n"
    assert shown_command(command) == (
        "python pretrain.py --data.files '[\"a.txt\", \"b.txt\"]' '--data.files=[ab]*.txt' --runs x --name n"
    )
    settings = {"files": ["/a b/c/*.gz", "laws/**/*.txt"], "init_from": "../me/run/model", "source": "nyu-mll/glue"}
    assert without_places(settings) == {
        "files": ["*.gz", "laws/**/*.txt"], "init_from": "run/model", "source": "nyu-mll/glue"
    }  # fmt: skip
    assert without_places("read /home/me/x.txt and ~/y/z; https://huggingface.co/a") == (
        "read x.txt and z; https://huggingface.co/a"
    )


def test_pinned_examples_open_one_commit(published: Callable[[str], Published], tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text(published("vit").text, encoding="utf-8")
    pin(readme, "0123abcd" * 5, None)
    text = readme.read_text(encoding="utf-8")
    assert 'revision="main"' not in text
    assert text.count(f'revision="{"0123abcd" * 5}"') == published("vit").text.count('revision="main"') > 0
    readme.write_text(published("vit").text, encoding="utf-8")
    pin(readme, "f" * 40, text)
    assert readme.read_text(encoding="utf-8") == text, "the same card: it names the commit that it named"
    readme.write_text(published("vit").text + "more", encoding="utf-8")
    pin(readme, "f" * 40, text)
    assert "f" * 40 in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize(("license", "said"), [(None, "has no license"), ("Apache 2", "'Apache 2'")])
def test_a_license_that_is_missing_or_none_is_one_sentence(license: str | None, said: str, tiny, tmp_path: Path):
    tiny("KeelViTModel").float().save_pretrained(tmp_path / "model")
    with one_sentence("--license", said, "apache-2.0"):
        write_card(
            find_source(tmp_path / "model"),
            tmp_path,
            repo="me/x",
            report=None,
            native=None,
            command="",
            license=license,
        )


def save_inputs(family: str, folder: Path) -> None:
    """A tokenizer of a few words, or an image processor."""
    if family == "vit":
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
        return
    words = ["[UNK]", "[MASK]", "[SEP]", *(f"{one}{other}" for one in "abcdefgh" for other in "aeiou")][:40]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"mask_token": "[MASK]", "sep_token": "[SEP]", "pad_token": "[UNK]", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


@pytest.mark.parametrize("head", [*TASKS, "KeelViTForMaskedImageModeling", "KeelSeq2Seq with two vocabularies"])
def test_the_examples_of_every_head_run(head: str, tiny, tmp_path: Path):
    """By the native form, and by ours; the texts are of the vocabulary's own words."""
    two = head not in TASKS and "Seq2Seq" in head
    model = tiny("KeelSeq2SeqForConditionalGeneration" if two else head).float()
    if model.can_generate():
        model.generation_config.max_length = 5
    model.save_pretrained(tmp_path)
    source = find_source(tmp_path)
    save_inputs(source.family, tmp_path)
    if two:
        save_inputs(source.family, tmp_path / "target")
    write_native(tmp_path, tmp_path / "native")
    native = compare(source, tmp_path / "native", tmp_path / "cases")
    snippets = make_snippets(source, "me/x", native)
    assert len(snippets) == (2 if source.family == "seq2seq" or "MaskedImage" in head else 4)
    for snippet in snippets:
        assert run(localised(snippet.code, "me/x", tmp_path)).strip() or source.family == "seq2seq", snippet.code
        assert ("target.decode" in snippet.code) == two


def test_an_example_that_fails_is_one_sentence(tmp_path: Path):
    good = Snippet("", 'print("me/x", revision="main")')
    with one_sentence("an example of the model card fails", "KeyError", str(tmp_path)):
        run_snippets([good._replace(code="print(1)"), good._replace(code="{}['no']")], "me/x", tmp_path)


@pytest.fixture
def fine_tuned(tiny, tmp_path: Path) -> Source:
    """A run of finetune.py on a data set of the Hub, which an older version left."""
    run = tmp_path / "reviews"
    model = tiny("KeelBertForSequenceClassification", id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    model.float().save_pretrained(run / "model")
    save_inputs("bert", run / "model")
    settings = {
        "init_from": "google-bert/bert-base-uncased",
        "start": "pretrained",
        "data": {"source": "nyu-mll/glue", "subset": "sst2", "validation_split": "validation"},
        "objective": {"metric": None},
        "tokenizer": {"path": "google-bert/bert-base-uncased"},
        "train": {"precision": "fp32", "kernel": "sdpa", "threads": 1, "minutes": None},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    results = {"step": 7, "examples": 5, "eval_loss": 0.5, "eval_accuracy": 0.8, "eval_f1": 0.75, "signatures": {}}
    (run / "results.json").write_text(json.dumps(results))
    (run / "classes.md").write_text("| class | f1 |\n|---|---|\n| good | 0.7 |\n")
    return find_source(run)


def test_a_fine_tuned_model_names_its_base_its_labels_and_its_data_set(fine_tuned: Source, tmp_path: Path):
    torch.manual_seed(0)
    readme = write_card(
        fine_tuned, fine_tuned.folder, repo="me/reviews", report=None, native=None, command="publish.py x",
        license="mit", example="one two three",
    )  # fmt: skip
    card = ModelCard.load(readme)
    assert card.data.base_model == "google-bert/bert-base-uncased" and card.data.datasets == ["nyu-mll/glue"]
    assert "fine-tuned" in card.data.tags
    assert "Labels: bad, good." in card.text and "| good | 0.7 |" in card.text
    assert 'tokenizer("one two three"' in card.text
    assert card.text.lower().count("the run left no record of it") == 3  # of data, machine and command
    (path,) = (fine_tuned.folder / ".eval_results").glob("*.yaml")
    wanted = EvalResultEntry(dataset_id="nyu-mll/glue", task_id="sst2", value=0.8, notes="accuracy, split validation")
    assert parse_eval_result_entries(yaml.safe_load(path.read_text())) == [wanted]


def test_the_page_of_a_data_set_shows_the_test_split(fine_tuned: Source, tmp_path: Path):
    results = {"eval_accuracy": 0.8, "test_loss": 0.1, "test_f1": 0.6, "test_accuracy": 0.7, "signatures": {}}
    (path,) = write_eval_results(fine_tuned, results, tmp_path)
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (entry.value, entry.notes) == (0.6, "f1, split test")


def test_names_on_the_hub(here: Path):
    (here / "mine/data").mkdir(parents=True)
    names = {"nyu-mll/glue": True, "imdb": True, "files": False, "/a/b": False, "mine/data": False, "a/b/c": False}
    assert {name: hub_name(name) is not None for name in names} == names


DAMAGED = {
    "results.json": ['{"eval_loss": 1.0, "signatures": {}}', "{", "[]"],
    "environment.json": ["{", "[]"],
    "emissions.csv": ["a,b\n1,2\n", "energy_consumed,emissions,country_name,codecarbon_version\nmuch,1,KOR,3\n"],
    "classes.md": [b"\xff"],
}


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, contents in DAMAGED.items() for each in contents])
def test_a_record_that_is_damaged_is_one_sentence(name: str, content: str | bytes, fine_tuned: Source, monkeypatch):
    monkeypatch.setattr("pretraining.publish.card.run_snippets", lambda snippets, *_: [""] * len(snippets))
    assert fine_tuned.run is not None
    (fine_tuned.run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with one_sentence(f"{fine_tuned.run / name} is damaged"):
        write_card(
            fine_tuned, fine_tuned.folder, repo="me/x", report=None, native=None, command="publish.py x", license="mit"
        )


def test_what_is_no_number_and_what_is_no_picture_is_not_shown(fine_tuned: Source, monkeypatch):
    monkeypatch.setattr("pretraining.publish.card.run_snippets", lambda snippets, *_: [""] * len(snippets))
    assert fine_tuned.run is not None
    text = '{"step": 7, "examples": 5, "eval_loss": NaN, "eval_f1": "high", "eval_accuracy": 0.8, "eval_f1 a": null}'
    (fine_tuned.run / "results.json").write_text(text)
    (fine_tuned.run / "emissions.csv").write_text("energy_consumed,emissions,country_name,codecarbon_version\n")
    (fine_tuned.run / "curves.png").mkdir()
    readme = write_card(
        fine_tuned, fine_tuned.folder, repo="me/x", report=None, native=None, command="publish.py x", license="mit"
    )
    data = ModelCard.load(readme).data
    assert [(each.metric_type, each.metric_value) for each in data.eval_results] == [("accuracy", 0.8)]
    assert not {"nan", "high", "curves.png", "kWh"} & set(re.findall(r"[\w.]+", readme.read_text()))


@pytest.mark.parametrize("example", ["{", "{x} {mask}", '"quoted" \\ $x', "a\nb", "👩\u200d👧"])
def test_an_example_is_any_text(example: str, published: Callable[[str], Published]):
    source, folder, _ = published("bert")
    code = make_snippets(source, "me/it's", None, example)[0].code
    assert run(localised(code, "me/it's", folder)).strip()
