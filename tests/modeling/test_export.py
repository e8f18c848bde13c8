"""Every class leaves for other runtimes: what is exported with one batch size gives eager's outputs at another."""

import pytest
import torch
from torch import Tensor, nn

import modeling
from modeling import KeelBertConfig, KeelSeq2SeqConfig, KeelViTConfig

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SIZES, "vocab_size": 30, "pad_token_id": 0, "max_position_embeddings": 16}
IMAGE = {**SIZES, "image_size": 8, "patch_size": 4, "num_hidden_layers": 2}
DECODER = {
    "decoder_num_hidden_layers": 1,
    "decoder_hidden_size": 8,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
BERT = KeelBertConfig(**TEXT, num_hidden_layers=2)
SEQ2SEQ = KeelSeq2SeqConfig(
    **TEXT, encoder_layers=2, decoder_layers=2, decoder_start_token_id=0, use_cache=False, eos_token_id=1
)


def ids(batch: int, *shape: int) -> Tensor:
    return torch.randint(2, 30, (batch, *shape), generator=torch.Generator().manual_seed(batch))


def text(batch: int, *shape: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, *shape, dtype=torch.long)
    mask[0, ..., -2:] = 0
    return {"input_ids": ids(batch, *shape), "attention_mask": mask}


def pairs(batch: int) -> dict[str, Tensor]:
    return text(batch, 7) | {"decoder_input_ids": ids(batch, 5)}


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


BERT_CLASSES = [
    name for name in modeling.__all__ if name.startswith("KeelBert") and not name.endswith(("Config", "Output"))
]
CASES = {
    **{
        name: (name, BERT, (lambda batch: text(batch, 3, 7)) if "Choice" in name else (lambda batch: text(batch, 7)))
        for name in BERT_CLASSES
    },
    "KeelBertModel, mean": (
        "KeelBertModel",
        KeelBertConfig(**TEXT, num_hidden_layers=2, pooling="mean"),
        lambda batch: text(batch, 7),
    ),
    "KeelSeq2SeqModel": ("KeelSeq2SeqModel", SEQ2SEQ, pairs),
    "KeelSeq2SeqForConditionalGeneration": ("KeelSeq2SeqForConditionalGeneration", SEQ2SEQ, pairs),
    "KeelViTModel": ("KeelViTModel", vit(), images),
    "KeelViTModel, mean": ("KeelViTModel", vit(pooling="mean", position_embedding_type="sincos2d"), images),
    "KeelViTForImageClassification": ("KeelViTForImageClassification", vit(num_labels=3), images),
    "KeelViTForImageClassification, post-norm": (
        "KeelViTForImageClassification",
        vit(num_labels=3, norm_position="post"),
        images,
    ),
    "SimMIM": ("KeelViTForMaskedImageModeling", vit(), masked),
    "colors": ("KeelViTForMaskedImageModeling", vit(reconstruction_target="mean_color"), masked),
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


def check(model: nn.Module, inputs: dict[str, Tensor], found) -> None:
    expected = tensors(model(**inputs))
    assert len(expected) == len(found)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.as_tensor(theirs), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_torch_export(case: str, kernel: str):
    model, inputs, others = make(case)
    model.set_attn_implementation(kernel)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {name: {0: batch} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    check(model, others, tensors(program.module()(**others)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_jit_trace(case: str):
    model, inputs, others = make(case)
    model.config.return_dict = False
    traced = torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False)
    found = traced(**others)
    model.config.return_dict = True
    check(model, others, tensors(found))
