"""Every class leaves for other runtimes: what is exported with one batch size gives eager's outputs at another.

The tests of ONNX run where `pip install onnx onnxscript onnxruntime` was done; they take five seconds each.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedConfig

import modeling
from modeling import KeelBertConfig, KeelSeq2SeqConfig, KeelViTConfig

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SIZES, "vocab_size": 30, "pad_token_id": 0, "max_position_embeddings": 16}
IMAGE = {**SIZES, "image_size": 8, "patch_size": 4, "num_hidden_layers": 1}
DECODER = {
    "decoder_num_hidden_layers": 1,
    "decoder_hidden_size": 8,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
BERT = KeelBertConfig(**TEXT, num_hidden_layers=1)
SEQ2SEQ = KeelSeq2SeqConfig(
    **TEXT, encoder_layers=1, decoder_layers=1, decoder_start_token_id=0, use_cache=False, eos_token_id=1
)


def ids(batch: int, *shape: int) -> Tensor:
    return torch.randint(2, 30, (batch, *shape), generator=torch.Generator().manual_seed(batch))


def text(batch: int, *choices: int) -> dict[str, Tensor]:
    """As many more tokens in a larger batch; some are padding."""
    shape = (batch, *choices, batch + 5)
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, ..., -2:] = 0
    return {"input_ids": ids(*shape), "attention_mask": mask}


def pairs(batch: int) -> dict[str, Tensor]:
    return text(batch) | {"decoder_input_ids": ids(batch, batch + 3)}


def images(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))}


def masked(batch: int) -> dict[str, Tensor]:
    hidden = torch.arange(4) == torch.arange(batch)[:, None] % 4
    return images(batch) | {"bool_masked_pos": hidden}


def visible(batch: int) -> dict[str, Tensor]:
    """For a decoder: `ids_keep` too, or the number of visible patches is read from values."""
    batch_of = masked(batch)
    return batch_of | {"ids_keep": batch_of["bool_masked_pos"].int().argsort(stable=True, dim=1)[:, :3]}


def vit(**fields) -> KeelViTConfig:
    return KeelViTConfig(**{**IMAGE, **fields})


BERT_CLASSES = [name for name in modeling.__all__ if name.startswith("KeelBert") and "Config" not in name]
CASES: dict[str, tuple[str, PreTrainedConfig, Callable[[int], dict[str, Tensor]]]] = {
    **{name: (name, BERT, text) for name in BERT_CLASSES if "Output" not in name},
    "KeelBertForMultipleChoice": ("KeelBertForMultipleChoice", BERT, lambda batch: text(batch, 3)),
    "KeelBertModel, mean": ("KeelBertModel", KeelBertConfig(**TEXT, num_hidden_layers=1, pooling="mean"), text),
    "KeelSeq2SeqModel": ("KeelSeq2SeqModel", SEQ2SEQ, pairs),
    "KeelSeq2SeqForConditionalGeneration": ("KeelSeq2SeqForConditionalGeneration", SEQ2SEQ, pairs),
    "KeelViTModel": ("KeelViTModel", vit(), images),
    "KeelViTModel, mean": ("KeelViTModel", vit(pooling="mean", position_embedding_type="sincos2d"), images),
    "KeelViTForImageClassification": ("KeelViTForImageClassification", vit(num_labels=3), images),
    "SimMIM": ("KeelViTForMaskedImageModeling", vit(), masked),
    "mean colors": ("KeelViTForMaskedImageModeling", vit(reconstruction_target="mean_color"), masked),
    "MAE": ("KeelViTForMaskedImageModeling", vit(reconstruction_target="normalized_pixels", **DECODER), visible),
    "MAE, nothing masked": ("KeelViTForMaskedImageModeling", vit(**DECODER), images),
}


def make(case: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A model, the inputs that it is exported with, and others of another batch size."""
    name, config, inputs = CASES[case]
    torch.manual_seed(0)
    model = getattr(modeling, name)(config).eval()
    for parameter in model.parameters():  # a head that starts at zero would hide every mistake
        nn.init.normal_(parameter, std=0.2)
    return model, inputs(2), inputs(5)


def tensors(outputs) -> list[Tensor]:
    return [x for x in (outputs.values() if isinstance(outputs, dict) else outputs) if isinstance(x, Tensor)]


def check(model: nn.Module, inputs: dict[str, Tensor], found: list[Tensor]) -> None:
    expected = tensors(model(**inputs))
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def export(model: nn.Module, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    """Every number of examples and, of text, of tokens."""
    batch, lengths = Dim("batch", max=64), {name: Dim(name, min=2, max=16) for name in ("source", "target")}
    shapes: dict[str, dict[int, Dim]] = {name: {0: batch} for name in inputs}
    for name in shapes.keys() & {"input_ids", "attention_mask", "decoder_input_ids"}:
        shapes[name][inputs[name].ndim - 1] = lengths["target" if "decoder" in name else "source"]
    return torch.export.export(model, (), inputs, dynamic_shapes=shapes)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_torch_export(case: str):
    model, inputs, others = make(case)
    check(model, others, tensors(export(model, inputs).module()(**others)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_jit_trace(case: str):
    model, inputs, others = make(case)
    check(model, others, tensors(torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False)(**others)))


@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs the packages of ONNX")
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_onnx(case: str, tmp_path: Path):
    import onnxruntime

    model, inputs, others = make(case)
    torch.onnx.export(export(model, inputs), f=tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    read = {each.name for each in session.get_inputs()}
    found = session.run(None, {name: x.numpy() for name, x in others.items() if name in read})
    check(model, others, list(map(torch.from_numpy, found)))


@pytest.mark.parametrize("case", ["KeelBertForMaskedLM", "KeelSeq2SeqForConditionalGeneration", "SimMIM"])
@torch.no_grad()
def test_outputs_are_tuples_where_the_configuration_says_so(case: str):
    model, inputs, _ = make(case)
    expected = tensors(model(**inputs))
    model.config.return_dict = False
    found = model(**inputs)
    assert isinstance(found, tuple)
    assert all(map(torch.equal, expected, tensors(found)))
