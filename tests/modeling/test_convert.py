"""Converted models against transformers' own: every head and loss, both ways, to the last digits."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

import modeling
from modeling.convert import from_native, keel_config, to_native
from modeling.seq2seq import CACHE

TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])


def marian(width: int, heads: int, inner: int, activation: str, **fields) -> dict:
    both = {
        f"{side}_{part}": n
        for side in ("encoder", "decoder")
        for part, n in (("attention_heads", heads), ("ffn_dim", inner))
    }
    return both | {"d_model": width, "activation_function": activation, "scale_embedding": True} | fields


# The same tiny models in both languages, and the base sizes.
TEXT = {"vocab_size": 61, "max_position_embeddings": 16, "eos_token_id": 1}
PAIR = TEXT | {"pad_token_id": 60, "decoder_start_token_id": 60, "encoder_layers": 3, "decoder_layers": 2}
IMAGE = {"image_size": 12, "patch_size": 4, "num_hidden_layers": 2}
SIZES = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
KEEL_TINY = {
    "Bert": SIZES | TEXT | {"num_hidden_layers": 2},
    "Marian": SIZES | PAIR | {"hidden_act": "silu"},
    "ViT": SIZES | IMAGE,
}
TINY = {
    "Bert": KEEL_TINY["Bert"],
    "Marian": marian(16, 4, 24, "silu", **PAIR, forced_eos_token_id=None),
    "ViT": KEEL_TINY["ViT"] | {"encoder_stride": 4},
}
# The base sizes but for depth and vocabulary: a block more, or a word more, is the same again.
BASE = {
    "Bert": {"num_hidden_layers": 3, "vocab_size": 5000},
    "Marian": marian(512, 8, 2048, "relu", encoder_layers=2, decoder_layers=2)
    | {"vocab_size": 5000, "pad_token_id": 4999, "decoder_start_token_id": 4999},
    "ViT": {"num_hidden_layers": 3},
}

# Weights whose gradients are compared: ours, native, and the axis of Marian's that is the residual stream.
GRADIENTS: dict[str, list[tuple[str, str, int | None]]] = {
    "Bert": [
        ("embeddings.tokens.weight", "embeddings.word_embeddings.weight", None),
        ("embeddings.segments.weight", "embeddings.token_type_embeddings.weight", None),
        ("encoder.blocks.1.attention.query.weight", "encoder.layer.1.attention.self.query.weight", None),
        ("encoder.blocks.0.feed_forward_residual.norm.bias", "encoder.layer.0.output.LayerNorm.bias", None),
    ],
    "Marian": [
        ("encoder.embeddings.tokens.weight", "encoder.embed_tokens.weight", 1),
        ("decoder.embeddings.tokens.weight", "decoder.embed_tokens.weight", 1),
        ("encoder.stack.blocks.1.feed_forward.down.weight", "encoder.layers.1.fc2.weight", 0),
        ("decoder.stack.blocks.0.cross_attention.key.weight", "decoder.layers.0.encoder_attn.k_proj.weight", 1),
        ("decoder.stack.blocks.1.attention.output.bias", "decoder.layers.1.self_attn.out_proj.bias", 0),
    ],
    "ViT": [
        ("embeddings.positions", "embeddings.position_embeddings", None),
        ("encoder.blocks.1.attention.value.weight", "layers.1.attention.v_proj.weight", None),
        ("encoder.blocks.0.feed_forward.up.bias", "layers.0.mlp.fc1.bias", None),
    ],
}


def family_of(name: str) -> str:
    return next(family for family in TINY if name.startswith(family))


def keel_class(name: str) -> type[PreTrainedModel]:
    pairs = {"MarianModel": "KeelSeq2SeqModel", "MarianMTModel": "KeelSeq2SeqForConditionalGeneration"}
    return getattr(modeling, pairs.get(name, f"Keel{name}"))


def randomised(model: PreTrainedModel, dtype: torch.dtype) -> Any:
    """Every weight drawn anew, biases and norms too: normal of std 0.2, less for matrices of a wide model."""
    draw = torch.Generator().manual_seed(1)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:  # Marian's sinusoids are fixed
                std = 0.8 * model.config.hidden_size**-0.5 if weight.ndim > 1 else 0.2
                weight.copy_(torch.randn(weight.shape, generator=draw) * std)
                weight += weight.ndim == 1 and name.endswith("weight")  # a norm's: around one
        if "final_logits_bias" in dict(model.named_buffers()):
            model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=draw) * 0.2)
    return model


def native_model(name: str, dtype: torch.dtype, options: dict | None = None, **fields) -> Any:
    target = getattr(transformers, name)
    options = options or {}
    if name == "ViTModel":
        options = {"add_pooling_layer": False} | options
    return randomised(target(target.config_class(**fields), **options), dtype)


def keel_model(name: str, dtype: torch.dtype, options: dict | None = None, **fields) -> Any:
    target = keel_class(name)
    return randomised(target(target.config_class(**fields), **(options or {})), dtype)


def assert_same_weights(one: PreTrainedModel, two: PreTrainedModel) -> None:
    assert type(one) is type(two)
    ones, twos = (dict(model.named_parameters()) | dict(model.named_buffers()) for model in (one, two))
    assert ones.keys() == twos.keys()
    for name in ones.keys() - {"cls.predictions.bias"}:  # forward adds decoder.bias, which this is only where tied
        assert ones[name].dtype == twos[name].dtype
        assert torch.equal(ones[name], twos[name]), name


def stream_order(native: PreTrainedModel) -> Tensor:
    """Marian's residual stream in terms of ours: the even columns, then the odd ones."""
    columns = torch.arange(native.config.hidden_size)
    return torch.cat([columns[::2], columns[1::2]]) if native.config.model_type == "marian" else columns


def states(output: Any, name: str) -> list[Tensor]:
    return list(output[name]) if isinstance(output[name], tuple) else [output[name]]


def assert_parity(
    native: PreTrainedModel, keel: PreTrainedModel, inputs: dict[str, Any], dtype: torch.dtype, gradients: bool = True
) -> None:
    """The same outputs, hidden states, loss and gradients."""
    tolerance, order = TOLERANCE[dtype], stream_order(native)
    family = family_of(type(native).__name__)
    inputs = {name: x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()}
    native_inputs = dict(inputs)
    if family == "Marian" and "inputs_embeds" in inputs:  # Marian's encoder takes them scaled, its decoder does not
        native_inputs["inputs_embeds"] = inputs["inputs_embeds"][..., order] * native.config.d_model**0.5
        native_inputs["decoder_inputs_embeds"] = inputs["decoder_inputs_embeds"][..., order]
    expected = native(**native_inputs, output_hidden_states=True)
    actual = keel(**inputs, output_hidden_states=True)
    if "reconstruction" in expected and "loss" in expected:
        pixels = inputs["bool_masked_pos"].sum() * native.config.patch_size**2
        actual["loss"] = actual["loss"] * (pixels / (pixels + 1e-5).to(dtype))  # native adds 1e-5, in float32

    names = set(expected) - {CACHE}
    assert names <= set(actual)
    for name in names:
        if "hidden_state" not in name:
            assert_close(actual[name], expected[name], **tolerance)
            continue
        ours, theirs = states(actual, name), states(expected, name)
        assert len(ours) == len(theirs) > 0
        for x, y in zip(ours, theirs, strict=True):
            assert_close(x[..., order], y, **tolerance)

    if not gradients:
        return
    for output in (expected, actual):
        (output["loss"] if "loss" in output else output["last_hidden_state"].tanh().sum()).backward()
    for keel_name, native_name, axis in GRADIENTS[family]:
        gradient, reference = (
            m.base_model.get_parameter(n).grad for m, n in ((keel, keel_name), (native, native_name))
        )
        gradient = gradient if axis is None else gradient.index_select(axis, order)
        assert_close(gradient, reference, rtol=tolerance["rtol"], atol=tolerance["rtol"] * reference.abs().max().item())
        assert reference.any()


# What each head is fed: B = 2 examples of T = 9 source and U = 7 target tokens; -100 where there is no target.

draw = torch.Generator().manual_seed(0)


def ids(*shape: int, below: int = 60) -> Tensor:
    return torch.randint(2, below, shape, generator=draw)


def some(labels: Tensor) -> Tensor:
    return labels.where(torch.rand(labels.shape, generator=draw) < 0.7, -100)


def padded(*shape: int) -> Tensor:
    mask = torch.ones(shape, dtype=torch.long)
    mask[-1, ..., -3:] = 0
    return mask


def text(*shape: int, below: int = 60) -> dict[str, Tensor]:
    return {"input_ids": ids(*shape, below=below), "attention_mask": padded(*shape), "token_type_ids": ids(*shape) % 2}


def image(side: int, channels: int = 3, batch: int = 2) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, channels, side, side, generator=draw)}


IDS = text(2, 9)
EMBEDS = {"attention_mask": padded(2, 9), "inputs_embeds": torch.randn(2, 9, 16, generator=draw)}
SOURCE = {"input_ids": ids(2, 9), "attention_mask": padded(2, 9)}
TARGET = {"decoder_input_ids": ids(2, 7), "decoder_attention_mask": padded(2, 7)}
EMBEDDED_PAIR = EMBEDS | {"decoder_inputs_embeds": torch.randn(2, 7, 16, generator=draw)}
CLASSES, NUMBERS = torch.tensor([2, 0]), torch.randn(2, 3, generator=draw)
ZEROS_AND_ONES = (NUMBERS > 0).float()
SPAN = {"start_positions": torch.tensor([3, 40]), "end_positions": torch.tensor([8, 9])}  # 9 and 40 are outside
HIDDEN = {"bool_masked_pos": torch.rand(2, 9, generator=draw) < 0.5}

# Native class, what its configuration adds, inputs.
HEADS: list[tuple[str, dict, dict]] = [
    ("BertModel", {}, IDS),
    ("BertModel", {"type_vocab_size": 3}, IDS | {"position_ids": torch.arange(9).flip(0)[None]}),
    ("BertForPreTraining", {}, IDS | {"labels": some(ids(2, 9)), "next_sentence_label": torch.tensor([0, 1])}),
    ("BertForPreTraining", {}, IDS | {"labels": some(ids(2, 9)), "next_sentence_label": torch.tensor([1, -100])}),
    ("BertForMaskedLM", {}, IDS | {"labels": some(ids(2, 9))}),
    ("BertForMaskedLM", {"tie_word_embeddings": False}, IDS | {"labels": some(ids(2, 9))}),
    ("BertForMaskedLM", {"hidden_act": "gelu_new"}, EMBEDS | {"labels": some(ids(2, 9))}),
    ("BertForNextSentencePrediction", {}, IDS | {"labels": torch.tensor([1, 0])}),
    ("BertForSequenceClassification", {"num_labels": 3}, IDS | {"labels": CLASSES}),
    ("BertForSequenceClassification", {"num_labels": 3}, IDS | {"labels": ZEROS_AND_ONES}),
    ("BertForSequenceClassification", {"num_labels": 1}, IDS | {"labels": NUMBERS[:, 0]}),
    ("BertForSequenceClassification", {"num_labels": 3, "problem_type": "regression"}, IDS | {"labels": NUMBERS}),
    ("BertForTokenClassification", {"num_labels": 5}, IDS | {"labels": some(ids(2, 9, below=5))}),
    ("BertForQuestionAnswering", {}, IDS | SPAN),
    ("BertForMultipleChoice", {}, text(2, 3, 9) | {"labels": CLASSES}),
    ("MarianModel", {}, SOURCE | TARGET),
    ("MarianModel", {"scale_embedding": False}, SOURCE | TARGET),
    ("MarianModel", {"share_encoder_decoder_embeddings": False}, SOURCE | TARGET),
    ("MarianMTModel", {}, SOURCE | {"labels": some(ids(2, 7))}),
    ("MarianMTModel", {"share_encoder_decoder_embeddings": False}, SOURCE | {"labels": some(ids(2, 7))}),
    ("MarianMTModel", {}, SOURCE | TARGET | {"labels": some(ids(2, 7))}),
    ("MarianMTModel", {}, EMBEDDED_PAIR | {"labels": some(ids(2, 7))}),
    ("ViTModel", {}, image(12)),
    ("ViTModel", {"qkv_bias": False}, image(20) | {"interpolate_pos_encoding": True}),
    ("ViTForImageClassification", {"num_labels": 3}, image(12) | {"labels": CLASSES}),
    ("ViTForImageClassification", {"num_labels": 3}, image(12) | {"labels": ZEROS_AND_ONES}),
    ("ViTForImageClassification", {"num_labels": 1}, image(12) | {"labels": NUMBERS[:, 0]}),
    ("ViTForMaskedImageModeling", {}, image(12) | HIDDEN),
    ("ViTForMaskedImageModeling", {"num_channels": 1}, image(12, channels=1) | HIDDEN),
]
BASE_HEADS: list[tuple[str, dict, dict]] = [
    ("BertForPreTraining", {}, text(2, 12) | {"labels": some(ids(2, 12)), "next_sentence_label": torch.tensor([0, 1])}),
    ("MarianMTModel", {}, SOURCE | {"labels": some(ids(2, 7))}),
    ("ViTForMaskedImageModeling", {}, image(224, batch=1) | {"bool_masked_pos": torch.arange(196)[None] % 3 == 0}),
]


def names(heads: list[tuple[str, dict, dict]]) -> list[str]:
    return [f"{name}-{number}" for number, (name, *_) in enumerate(heads)]


@DTYPES
@pytest.mark.parametrize(("name", "fields", "inputs"), HEADS, ids=names(HEADS))
def test_native_to_keel(name, fields, inputs, dtype):
    native = native_model(name, dtype, **TINY[family_of(name)] | fields)
    keel = from_native(native)
    assert type(keel) is keel_class(name)
    assert_same_weights(to_native(keel), native)
    assert_parity(native, keel, inputs, dtype)


@DTYPES
@pytest.mark.parametrize(("name", "fields", "inputs"), HEADS, ids=names(HEADS))
def test_keel_to_native(name, fields, inputs, dtype):
    keel = keel_model(name, dtype, **KEEL_TINY[family_of(name)] | fields)
    native = to_native(keel)
    assert type(native) is getattr(transformers, name)
    assert_same_weights(from_native(native), keel)
    assert_parity(native, keel, inputs, dtype)


@DTYPES
@pytest.mark.parametrize(("name", "fields", "inputs"), BASE_HEADS, ids=names(BASE_HEADS))
def test_base_size(name, fields, inputs, dtype):
    native = native_model(name, dtype, **BASE[family_of(name)] | fields)
    keel = from_native(native)
    assert_same_weights(to_native(keel), native)
    with torch.set_grad_enabled(dtype == torch.float64):
        assert_parity(native, keel, inputs, dtype, gradients=dtype == torch.float64)


@pytest.mark.parametrize("odd", [5, 6, 33])
def test_any_width_and_length_has_the_same_sinusoids(odd):
    fields = SIZES | PAIR | {"hidden_size": odd, "num_attention_heads": 1, "max_position_embeddings": 2000}
    keel = keel_model("MarianModel", torch.float32, **fields)
    native = to_native(keel)
    fresh = type(native)(native.config).encoder.embed_positions.weight
    assert torch.equal(native.encoder.embed_positions.weight, fresh)
    assert_same_weights(from_native(native), keel)


@pytest.mark.parametrize(
    ("name", "options", "inputs"),
    [
        ("BertModel", {"add_pooling_layer": False}, IDS),
        ("ViTModel", {"use_mask_token": True}, image(12) | HIDDEN),
    ],
)
def test_options_of_the_base_models(name, options, inputs):
    native = native_model(name, torch.float64, options, **TINY[family_of(name)])
    keel = keel_model(name, torch.float64, options, **KEEL_TINY[family_of(name)])
    for source, there, back in ((native, from_native, to_native), (keel, to_native, from_native)):
        assert_same_weights(back(there(source)), source)
    assert_parity(native, from_native(native), inputs, torch.float64)


@pytest.mark.parametrize("search", [{"num_beams": 1}, {"num_beams": 4, "length_penalty": 0.6}])
@pytest.mark.parametrize("start", ["native", "keel"])
def test_generation(start, search):
    source = {"input_ids": ids(8, 9), "attention_mask": padded(8, 9)}
    make, fields, convert = {
        "native": (native_model, TINY, from_native),
        "keel": (keel_model, KEEL_TINY, to_native),
    }[start]
    model = make("MarianMTModel", torch.float64, **fields["Marian"])
    model.final_logits_bias[0, 60] = -1e4
    ends = {"eos_token_id": 1, "pad_token_id": 60, "decoder_start_token_id": 60, "forced_eos_token_id": 1}
    model.generation_config = transformers.GenerationConfig(**search, **ends, no_repeat_ngram_size=1, max_new_tokens=12)
    tokens = model.generate(**source)
    assert len(tokens.unique()) > 9
    assert torch.equal(convert(model).generate(**source), tokens)


@pytest.mark.parametrize(
    ("name", "autos", "inputs"),
    [
        ("BertForPreTraining", ["AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModel"], IDS),
        ("BertForSequenceClassification", ["AutoModelForSequenceClassification"], IDS),
        ("MarianMTModel", ["AutoModelForSeq2SeqLM", "AutoModel"], SOURCE | TARGET),
        ("ViTForImageClassification", ["AutoModelForImageClassification", "AutoModel"], image(12)),
        ("ViTForMaskedImageModeling", ["AutoModelForMaskedImageModeling"], image(12) | HIDDEN),
    ],
)
def test_saved_native_checkpoint_opens_under_plain_auto_classes(name, autos, inputs, tmp_path):
    """The same states to the last bit. Bare ViTModel adds a pooler that no head has; sinusoids are never saved."""
    keel = keel_model(name, torch.float32, **KEEL_TINY[family_of(name)])
    native = to_native(keel)
    native.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    expected = native.base_model(**inputs)["last_hidden_state"]
    for auto in autos:
        loaded, report = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
        assert all(key.startswith("pooler.") or "embed_positions" in key for key in report["missing_keys"])
        assert torch.equal(loaded.base_model(**inputs)["last_hidden_state"], expected)
        if type(loaded) is type(native):
            assert_same_weights(loaded, native)
            assert_same_weights(from_native(loaded), keel)
    from_native(native).save_pretrained(tmp_path / "keel")
    assert_same_weights(type(keel).from_pretrained(tmp_path / "keel"), keel)


@pytest.mark.parametrize("kept", [["cls.predictions.bias"], ["cls.predictions.bias", "cls.predictions.decoder.bias"]])
def test_released_bert_checkpoints(kept, tmp_path):
    """They have no output matrix and the bias under its old name, or two biases of which forward adds decoder.bias."""
    native = native_model("BertForMaskedLM", torch.float64, **TINY["Bert"])
    native.save_pretrained(tmp_path)
    tensors = {name: x.clone() for name, x in native.state_dict().items() if "predictions.decoder" not in name}
    tensors |= {name: torch.arange(61.0).double() + number for number, name in enumerate(kept)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert set(kept) <= set(load_file(tmp_path / "model.safetensors"))
    native = transformers.BertForMaskedLM.from_pretrained(tmp_path, dtype=torch.float64)
    keel = from_native(native)
    assert torch.equal(keel.mlm.decoder.bias, tensors[kept[-1]])
    assert_parity(native, keel, IDS | {"labels": ids(2, 9)}, torch.float64)
    assert torch.equal(to_native(keel).cls.predictions.bias, tensors[kept[-1]])


def test_ties_are_kept_and_memory_is_not_shared():
    for name, tied in {
        "BertForMaskedLM": ["bert.embeddings.tokens.weight", "mlm.decoder.weight"],
        "MarianMTModel": [f"model.{side}.embeddings.tokens.weight" for side in ("encoder", "decoder")]
        + ["lm_head.weight"],
    }.items():
        keel = keel_model(name, torch.float32, **KEEL_TINY[family_of(name)])
        native = to_native(keel)
        again = from_native(native)
        assert len({id(again.get_parameter(name)) for name in tied}) == 1
        table = native.get_input_embeddings().weight
        assert native.get_output_embeddings().weight is table
        models = (keel, native, again)
        assert len({x.data_ptr() for m in models for x in m.parameters()}) == sum(
            len(list(m.parameters())) for m in models
        )
    assert native.model.shared.weight is native.model.decoder.embed_tokens.weight is table
    bert = to_native(keel_model("BertForPreTraining", torch.float32, **KEEL_TINY["Bert"]))
    assert bert.cls.predictions.bias is bert.cls.predictions.decoder.bias


@pytest.mark.parametrize("family", TINY)
def test_configuration(family):
    name = {"Bert": "BertForSequenceClassification", "Marian": "MarianMTModel", "ViT": "ViTForImageClassification"}
    fields = KEEL_TINY[family] | {
        "hidden_dropout_prob": 0.3,
        "attention_probs_dropout_prob": 0.4,
        "initializer_range": 0.5,
        "hidden_act": "tanh",
        "problem_type": "multi_label_classification",
        "id2label": {0: "law", 1: "art", 2: "sea"},
        "label2id": {"law": 0, "art": 1, "sea": 2},
    }
    fields |= {"pad_token_id": 7, "bos_token_id": 8, "eos_token_id": 9} if family != "ViT" else {"num_channels": 1}
    fields |= {"classifier_dropout": 0.6, "type_vocab_size": 3} if family == "Bert" else {}
    more = {"decoder_start_token_id": 5, "use_cache": False, "share_encoder_decoder_embeddings": False}
    fields |= more if family == "Marian" else {}
    keel = keel_model(name[family], torch.bfloat16, **fields).train()
    native = to_native(keel)
    again = from_native(native)
    assert not native.training and not again.training
    assert native.dtype == again.dtype == torch.bfloat16
    marian = {
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "init_std",
        "hidden_act": "activation_function",
        "intermediate_size": "decoder_ffn_dim",
    }
    for field, value in fields.items():
        assert getattr(again.config, field) == value
        native_field = marian.get(field, field) if family == "Marian" else field
        assert getattr(native.config, native_field) == value
    assert again.config.to_dict() == keel.config.to_dict()
    assert family != "Marian" or native.config.forced_eos_token_id is None  # a default of Marian's, 0
    native.config.id2label[0] = "another"
    assert keel.config.id2label[0] == again.config.id2label[0] == "law"


def test_question_answering_takes_no_labels_along():
    """Native scores as many ends of a span as the configuration has labels: two, whatever was fine-tuned before."""
    keel = keel_model("BertForQuestionAnswering", torch.float64, **KEEL_TINY["Bert"], num_labels=5)
    assert_parity(to_native(keel), keel, IDS | SPAN, torch.float64)


def test_square_pairs():
    fields = TINY["ViT"] | {"image_size": [12, 12], "patch_size": (4, 4)}
    keel = from_native(native_model("ViTForImageClassification", torch.float32, **fields))
    assert (keel.config.image_size, keel.config.patch_size) == (12, 4)


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"])
def test_fixed_positions_become_a_learned_table(name):
    keel = keel_model(name, torch.float64, **KEEL_TINY["ViT"] | {"position_embedding_type": "sincos2d"})
    native = to_native(keel)
    table = keel.base_model.embeddings.positions.weight
    assert torch.equal(native.base_model.embeddings.position_embeddings, table) and not table[:, 0].any()
    assert_parity(native, keel, image(12), torch.float64, gradients=False)


def test_encoder_of_a_masked_autoencoder_converts():
    keel = keel_model("ViTForMaskedImageModeling", torch.float64, **KEEL_TINY["ViT"] | {"decoder_num_hidden_layers": 1})
    assert_parity(to_native(keel.vit), keel.vit, image(12), torch.float64)


def test_encoder_stride_matters_to_masked_images_alone():
    fields = TINY["ViT"] | {"encoder_stride": 16}
    native = native_model("ViTForImageClassification", torch.float64, **fields)
    assert_parity(native, from_native(native), image(12) | {"labels": torch.tensor([1, 0])}, torch.float64)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("BertForMaskedLM", "norm_position", "pre"),
        ("BertForMaskedLM", "position_embedding_type", "sinusoidal"),
        ("BertModel", "pooling", "mean"),
        ("BertForMaskedLM", "embedding_norm", False),
        ("BertForMaskedLM", "scale_embedding", True),
        ("BertForMaskedLM", "qkv_bias", False),
        ("BertForMaskedLM", "type_vocab_size", 0),
        ("MarianMTModel", "norm_position", "pre"),
        ("MarianMTModel", "position_embedding_type", "learned"),
        ("MarianMTModel", "embedding_norm", True),
        ("MarianMTModel", "type_vocab_size", 2),
        ("MarianMTModel", "layer_norm_eps", 1e-12),
        ("MarianMTModel", "qkv_bias", False),
        ("MarianMTModel", "tie_word_embeddings", False),
        ("ViTForImageClassification", "norm_position", "post"),
        ("ViTModel", "pooling", "mean"),
        ("ViTForMaskedImageModeling", "decoder_num_hidden_layers", 1),
        ("ViTForMaskedImageModeling", "reconstruction_target", "mean_color"),
    ],
)
def test_what_has_no_native_form_is_refused(name, field, value):
    keel = keel_model(name, torch.float32, **KEEL_TINY[family_of(name)] | {field: value})
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{field}={value!r}')} has no native form: [^.]+\.$"):
        to_native(keel)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("BertForMaskedLM", "is_decoder", True),
        ("MarianMTModel", "decoder_vocab_size", 70),
        ("MarianMTModel", "tie_word_embeddings", False),
        ("MarianMTModel", "activation_dropout", 0.1),
        ("MarianMTModel", "encoder_layerdrop", 0.1),
        ("MarianMTModel", "decoder_layerdrop", 0.1),
        ("MarianMTModel", "encoder_attention_heads", 2),
        ("MarianMTModel", "decoder_attention_heads", 2),
        ("MarianMTModel", "encoder_ffn_dim", 12),
        ("MarianMTModel", "decoder_ffn_dim", 12),
        ("ViTForImageClassification", "image_size", [12, 24]),
        ("ViTForImageClassification", "patch_size", (4, 6)),
        ("ViTForMaskedImageModeling", "encoder_stride", 2),
    ],
)
def test_what_has_no_keel_form_is_refused(name, field, value):
    native = native_model(name, torch.float32, **TINY[family_of(name)] | {field: value})
    with pytest.raises(ValueError, match=rf"{re.escape(f'{field}={value!r}')}.* has no keel form: .+\.$"):
        from_native(native)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "MarianMTModel", "ViTForImageClassification"])
def test_a_configuration_converts_without_its_model(name):
    native = native_model(name, torch.float32, **TINY[family_of(name)])
    assert keel_config(native.config).to_diff_dict() == {
        field: value for field, value in from_native(native).config.to_diff_dict().items() if field != "architectures"
    }
    with pytest.raises(ValueError, match=r"^gpt2 has no keel form; these have one: bert, marian, vit\.$"):
        keel_config(transformers.GPT2Config())


def test_pooler_of_native_vit_is_refused():
    native = native_model("ViTModel", torch.float32, {"add_pooling_layer": True}, **TINY["ViT"])
    with pytest.raises(ValueError, match=r"^add_pooling_layer=True has no keel form: .*add_pooling_layer=False\.$"):
        from_native(native)


def test_broken_tie_is_refused():
    """A checkpoint may bear two tables though its configuration ties them: transformers then leaves them apart."""
    native = native_model("BertForMaskedLM", torch.float32, **TINY["Bert"])
    native.cls.predictions.decoder.weight = nn.Parameter(native.cls.predictions.decoder.weight + 1)
    with pytest.raises(ValueError, match=r"^tie_word_embeddings=True, but .* tie_word_embeddings=False\.$"):
        from_native(native)
    native.config.tie_word_embeddings = False
    assert_parity(native, from_native(native), IDS | {"labels": ids(2, 9)}, torch.float32)


def test_other_classes_are_refused():
    marian = native_model("MarianMTModel", torch.float32, **TINY["Marian"])
    keel = from_native(marian)
    for convert, model in ((to_native, keel.model.encoder), (to_native, marian), (from_native, keel)):
        with pytest.raises(ValueError, match=f"^{type(model).__name__} has no counterpart"):
            convert(model)


def test_checkpoints_do_not_drag_the_converter_along():
    for path in Path(modeling.__file__).parent.glob("*.py"):
        assert path.name == "convert.py" or not re.search(r"import.*\bconvert\b|\.convert\b", path.read_text())


@pytest.mark.parametrize("pad", [58, 59])
def test_padding_that_ctranslate2_would_not_take_is_told(pad):
    model = modeling.KeelSeq2SeqForConditionalGeneration(
        modeling.KeelSeq2SeqConfig(vocab_size=60, hidden_size=8, num_attention_heads=2, pad_token_id=pad)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        to_native(model)
    assert ["is not the last of 60 entries" in str(warning.message) for warning in caught] == [True] * (pad != 59)


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "BertForTokenClassification", "BertForMultipleChoice"]
)
def test_what_matters_in_training_alone_is_left_behind(name):
    """The native loss is that of evaluation; native bert has no windows."""
    fine_tuned = {"class_weights": [0.5, 2.0, 1.0], "label_smoothing": 0.1, "window_pooling": "max", "num_labels": 3}
    keel = keel_model(name, torch.float64, **KEEL_TINY["Bert"], **fine_tuned)
    inputs = {
        "BertForSequenceClassification": IDS | {"labels": CLASSES},
        "BertForTokenClassification": IDS | {"labels": some(ids(2, 9, below=3))},
        "BertForMultipleChoice": text(2, 3, 9) | {"labels": CLASSES},
    }
    native = to_native(keel)
    assert_parity(native, keel, inputs[name], torch.float64)
    assert not set(fine_tuned) - {"num_labels"} & set(native.config.to_dict())
