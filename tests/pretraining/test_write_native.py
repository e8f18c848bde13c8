"""A run's model as transformers' own, in one call, with all that lies beside its weights."""

from pathlib import Path

import pytest
import torch
from mistakes import one_sentence
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
)

from modeling.convert import to_native
from pretraining.export import write_native
from pretraining.files import SUMS

HEADS = {
    "KeelBertForPreTraining": AutoModelForPreTraining,
    "KeelSeq2SeqForConditionalGeneration": AutoModelForSeq2SeqLM,
    "KeelViTForImageClassification": AutoModelForImageClassification,
}


@pytest.mark.parametrize("head", HEADS)
def test_native_with_its_inputs(head: str, tiny, tmp_path: Path):
    model = tiny(head).float()
    if model.can_generate():
        model.generation_config.max_length = 7
    model.save_pretrained(tmp_path / "model")
    if "ViT" in head:
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    else:
        words = Tokenizer(models.WordLevel({"one": 0, "two": 1, "<unk>": 2}, unk_token="<unk>"))
        for part in ("", "target"):
            PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model" / part)
    write_native(tmp_path / "model", tmp_path / "native")
    opened = HEADS[head].from_pretrained(tmp_path / "native")
    expected = to_native(model)
    assert type(opened) is type(expected)
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in opened.state_dict().items())
    files = {str(path.relative_to(tmp_path / "native")) for path in (tmp_path / "native").rglob("*") if path.is_file()}
    listed = (tmp_path / "native" / SUMS).read_text().splitlines()
    assert {line.partition("  ")[2] for line in listed} == files - {SUMS}
    assert not list((tmp_path / "native").glob("*.py")) and load_file(tmp_path / "native/model.safetensors")
    if model.can_generate():
        assert opened.generation_config.max_length == 7
    if "ViT" in head:
        assert AutoImageProcessor.from_pretrained(tmp_path / "native").size["height"] == 8
    else:
        for part in ("", "target"):
            assert len(AutoTokenizer.from_pretrained(tmp_path / "native", subfolder=part)) == 3


def test_what_is_no_model_of_ours_is_one_sentence(tiny, tmp_path: Path):
    to_native(tiny("KeelBertForPreTraining")).save_pretrained(tmp_path / "native")
    for folder in ("nowhere", "native"):
        with one_sentence(folder, "give a run's model/"):
            write_native(tmp_path / folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()
