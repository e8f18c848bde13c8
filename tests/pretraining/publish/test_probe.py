"""What verification says of files that training did not write so: each check finds its fault by itself."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import WEIGHTS, edit_json, edit_weights
from safetensors.torch import save_file

from pretraining.export import write_reference
from pretraining.files import REFERENCE, SUMS, write_sums
from pretraining.publish.probe.check import Fault, Skip, run_check
from pretraining.publish.probe.checkpoint import Checkpoint, printed_text
from pretraining.publish.probe.files import check_auto_map, check_sums, check_weights_file
from pretraining.publish.probe.weights import check_logits

IDS = torch.arange(14).view(2, 7)
INPUTS: dict[str, dict[str, torch.Tensor]] = {
    "KeelBertForMaskedLM": {"input_ids": IDS},
    "KeelSeq2SeqForConditionalGeneration": {"input_ids": IDS, "decoder_input_ids": IDS.clone()},
    "KeelViTForImageClassification": {"pixel_values": torch.rand(2, 3, 8, 8)},
}
Change = Callable[[Path], object]


@pytest.fixture(params=INPUTS)
def folder(request: pytest.FixtureRequest, tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """The model of a run, and what training recorded of it."""
    model = tiny(request.param).float()
    model.save_pretrained(tmp_path / "model")
    write_sums(tmp_path / "model")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        write_reference(model, INPUTS[request.param], tmp_path / "model", tmp_path / REFERENCE)
    return tmp_path / "model"


def checkpoint_of(folder: Path) -> Checkpoint:
    return Checkpoint(folder, folder.parent / REFERENCE)


def edit_sums(edit: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / SUMS).write_bytes(edit((folder / SUMS).read_bytes()))


def hides(folder: Path) -> None:
    """A file is another one, and the line about it is left out."""
    edit_json(folder / "config.json", lambda config: config.update(layer_norm_eps=1e-3))
    edit_sums(lambda sums: b"".join(line for line in sums.splitlines(True) if b"config.json" not in line))(folder)


SUMS_FAULTS: dict[str, tuple[Change, str]] = {
    "none": (lambda folder: (folder / SUMS).unlink(), "SHA256SUMS is missing"),
    "empty": (lambda folder: (folder / SUMS).write_text(""), "line 1 of SHA256SUMS is no SHA-256 and path"),
    "garbled": (edit_sums(lambda sums: sums + b"hello\n"), r"line \d+ of SHA256SUMS is no SHA-256 and path"),
    "other bytes": (edit_sums(lambda _: bytes(range(256))), "line 1 of SHA256SUMS is no"),
    "carriage returns": (edit_sums(lambda sums: sums.replace(b"\n", b"\r\n")), "line 1 of SHA256SUMS is no"),
    "a path upwards": (edit_sums(lambda sums: sums + b"0" * 64 + b"  a/../../b\n"), "is no file of the model's folder"),
    "a path at the root": (edit_sums(lambda sums: sums + b"0" * 64 + b"  /b\n"), "is no file of the model's folder"),
    "a line less": (hides, "config.json is listed nowhere: training did not write it"),
    "settings more": (lambda folder: (folder / "chat_template.jinja").touch(), "is listed nowhere"),
    "weights more": (lambda folder: torch.save({}, folder / "optimizer.pt"), "optimizer.pt is listed nowhere"),
}


@pytest.mark.parametrize("case", SUMS_FAULTS)
def test_sums_that_are_not_trainings(case: str, folder: Path):
    plant, said = SUMS_FAULTS[case]
    check_sums(checkpoint_of(folder))
    plant(folder)
    with pytest.raises(Fault, match=said):
        check_sums(Checkpoint(folder, None))


def test_sums_that_were_written_anew(folder: Path):
    """Whatever was changed: those of training are recorded beside what the model computed."""
    edit_json(folder / "config.json", lambda config: config.update(hidden_dropout_prob=0.5))
    write_sums(folder)
    check_sums(Checkpoint(folder, None))
    with pytest.raises(Fault, match="SHA256SUMS is another one than training's"):
        check_sums(checkpoint_of(folder))


def test_weights_of_another_dtype(folder: Path):
    check_weights_file(checkpoint_of(folder))
    edit_json(folder / "config.json", lambda config: config.update(dtype="bfloat16"))
    with pytest.raises(Fault, match=r"float32, and the dtype in config\.json bfloat16"):
        check_weights_file(checkpoint_of(folder))
    edit_json(folder / "config.json", lambda config: config.update(dtype="float32"))
    edit_weights(folder, lambda weights: weights.update({min(weights): weights[min(weights)].double()}))
    with pytest.raises(Fault, match=r"is torch\.float64, and the dtype in config\.json float32"):
        check_weights_file(checkpoint_of(folder))


@pytest.mark.parametrize("entry", [["bert.KeelBertModel", None], "KeelBertModel", "me/other--bert.KeelBertModel", 1])
def test_an_entry_of_auto_map_that_names_no_code_here(entry: Any, folder: Path):
    edit_json(folder / "config.json", lambda config: config["auto_map"].update(AutoModel=entry))
    with pytest.raises(Fault, match=rf"AutoModel in auto_map is {re.escape(repr(entry))}, not the file and the class"):
        check_auto_map(checkpoint_of(folder))


def test_an_auto_map_that_is_no_table(folder: Path):
    edit_json(folder / "config.json", lambda config: config.update(auto_map=["bert.KeelBertModel"]))
    with pytest.raises(Fault, match="not a class of code for each Auto class"):
        check_auto_map(checkpoint_of(folder))


def test_a_reference_that_is_none(folder: Path):
    reference = folder.parent / REFERENCE
    with pytest.raises(Skip, match="the model lies in no run's folder"):
        check_logits(Checkpoint(folder, None))
    save_file({"input.other": IDS}, reference)
    with pytest.raises(Fault, match=r"reference\.safetensors is of another model"):
        check_logits(checkpoint_of(folder))
    reference.write_bytes((folder / WEIGHTS).read_bytes()[:100])
    with pytest.raises(Fault, match=r"reference\.safetensors cannot be read"):
        check_logits(checkpoint_of(folder))
    reference.unlink()
    with pytest.raises(
        Fault, match=r"reference\.safetensors cannot be read: .*; training leaves it in the run's folder"
    ):
        check_logits(checkpoint_of(folder))


def test_code_that_ends_the_process_is_a_failed_check():
    assert run_check("opens", lambda: exit(3)).result == "failed"


def test_colours_of_a_terminal_are_not_told():
    with printed_text() as said:
        os.write(1, b"\x1b[1mLOAD REPORT\x1b[0m\n")
    assert said == ["LOAD REPORT"]
