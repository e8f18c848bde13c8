"""Keel's models as transformers' own bert, marian and vit, and back: the same function of the same weights.

Marian's sinusoids are all sines, then all cosines; ours alternate. So the residual stream (every vector that a block
reads or adds to) is permuted: the columns of matrices that read it, the rows of matrices that write it.

Not converted, since they matter in training alone: `label_smoothing`, `class_weights`, `drop_path_rate`, `initializer`
and the fields of alignments. Nor is `window_pooling`: native bert classifies one sequence at a time.
Fixed positions of patches become a learned table of the same numbers.
Native `ViTModel` pools by a dense layer, ours by the class token alone: it becomes `ViTModel(add_pooling_layer=False)`,
whose pooler_output is None and whose last_hidden_state[:, 0] is our pooler_output.
"""

import re
import warnings
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from .bert import (
    KeelBertForMaskedLM,
    KeelBertForMultipleChoice,
    KeelBertForNextSentencePrediction,
    KeelBertForPreTraining,
    KeelBertForQuestionAnswering,
    KeelBertForSequenceClassification,
    KeelBertForTokenClassification,
    KeelBertModel,
)
from .configuration import KeelBertConfig, KeelSeq2SeqConfig, KeelViTConfig
from .seq2seq import KeelSeq2SeqForConditionalGeneration, KeelSeq2SeqModel
from .vit import KeelViTForImageClassification, KeelViTForMaskedImageModeling, KeelViTModel

Weights = dict[str, Tensor]
Fixed = dict[str, tuple[Any, str]]


class Family(NamedTuple):
    """How one family of ours and its native counterpart correspond."""

    config: type[PreTrainedConfig]
    native_config: type[PreTrainedConfig]
    models: dict[type[PreTrainedModel], type[PreTrainedModel]]
    fields: dict[str, tuple[str, ...]]
    """Our field: the native fields with its value."""
    ours: Fixed
    """Where native models give no choice: our field: (the only value, why)."""
    native: Fixed
    """Where our models give no choice: native field: (the only value, why). Without a why other values are ignored."""
    names: dict[str, str]
    """Whole words in the names of our weights: the native words. Other words are the same on both sides."""
    copies: dict[str, str]
    """Native weights that are copies: the end of their names: the end of the original's name."""
    options: dict[str, str]
    """Arguments of the base models, on both sides: the weight that exists if the argument is True."""


def same(names: str) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names.split()}


LABELS = same("id2label label2id problem_type output_hidden_states return_dict")
SIZES = same(
    "hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act hidden_dropout_prob "
    "attention_probs_dropout_prob layer_norm_eps initializer_range"
)
TOKENS = same("vocab_size max_position_embeddings pad_token_id bos_token_id eos_token_id tie_word_embeddings")

BERT = Family(
    config=KeelBertConfig,
    native_config=transformers.BertConfig,
    models={
        KeelBertModel: transformers.BertModel,
        KeelBertForPreTraining: transformers.BertForPreTraining,
        KeelBertForMaskedLM: transformers.BertForMaskedLM,
        KeelBertForNextSentencePrediction: transformers.BertForNextSentencePrediction,
        KeelBertForSequenceClassification: transformers.BertForSequenceClassification,
        KeelBertForTokenClassification: transformers.BertForTokenClassification,
        KeelBertForQuestionAnswering: transformers.BertForQuestionAnswering,
        KeelBertForMultipleChoice: transformers.BertForMultipleChoice,
    },
    fields=LABELS | SIZES | TOKENS | same("type_vocab_size classifier_dropout"),
    ours={
        "norm_position": ("post", "bert normalises after each residual sum"),
        "position_embedding_type": ("learned", "bert learns its positions"),
        "pooling": ("cls", "bert pools the first token"),
        "embedding_norm": (True, "bert normalises the sum of its embeddings"),
        "scale_embedding": (False, "bert does not scale its token embeddings"),
        "qkv_bias": (True, "bert's query, key and value projections have biases"),
    },
    native={"is_decoder": (False, "keel-bert is an encoder")},  # without it bert has no cross-attention either
    names={
        "embeddings.tokens": "embeddings.word_embeddings",
        "embeddings.positions": "embeddings.position_embeddings",
        "embeddings.segments": "embeddings.token_type_embeddings",
        "embeddings.norm": "embeddings.LayerNorm",
        "encoder.blocks": "encoder.layer",
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_residual.norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward_residual.norm": "output.LayerNorm",
        "mlm.dense": "cls.predictions.transform.dense",
        "mlm.norm": "cls.predictions.transform.LayerNorm",
        "mlm.decoder": "cls.predictions.decoder",
        "nsp": "cls.seq_relationship",
        "classifier.dense": "classifier",
        "span": "qa_outputs",
    },
    # Forward adds decoder.bias; predictions.bias is the name that older checkpoints keep it under.
    copies={"cls.predictions.bias": "cls.predictions.decoder.bias"},
    options={"add_pooling_layer": "pooler.dense.weight"},
)

MARIAN = Family(
    config=KeelSeq2SeqConfig,
    native_config=transformers.MarianConfig,
    models={
        KeelSeq2SeqModel: transformers.MarianModel,
        KeelSeq2SeqForConditionalGeneration: transformers.MarianMTModel,
    },
    fields=LABELS
    | TOKENS
    | same("encoder_layers decoder_layers scale_embedding is_encoder_decoder use_cache decoder_start_token_id")
    | same("share_encoder_decoder_embeddings")
    | {
        "vocab_size": ("vocab_size", "decoder_vocab_size"),
        "hidden_size": ("d_model",),
        "num_attention_heads": ("encoder_attention_heads", "decoder_attention_heads"),
        "intermediate_size": ("encoder_ffn_dim", "decoder_ffn_dim"),
        "hidden_act": ("activation_function",),
        "hidden_dropout_prob": ("dropout",),
        "attention_probs_dropout_prob": ("attention_dropout",),
        "initializer_range": ("init_std",),
    },
    ours={
        "norm_position": ("post", "marian normalises after each residual sum"),
        "position_embedding_type": ("sinusoidal", "marian's positions are sinusoids"),
        "embedding_norm": (False, "marian does not normalise its embeddings"),
        "type_vocab_size": (0, "marian has no segments"),
        "layer_norm_eps": (1e-5, "marian's LayerNorm adds 1e-05"),
        "qkv_bias": (True, "marian's query, key and value projections have biases"),
        "tie_word_embeddings": (True, "marian's target and output share one table"),
    },
    native={
        "tie_word_embeddings": (True, "keel-seq2seq has one table for target and output"),
        "activation_dropout": (0, "keel-seq2seq has no dropout inside its feed-forward layers"),
        "encoder_layerdrop": (0, "keel-seq2seq drops no layers"),
        "decoder_layerdrop": (0, "keel-seq2seq drops no layers"),
        "forced_eos_token_id": (None, ""),  # the generation config has it, and is handed over whole
    },
    names={
        "embeddings.tokens": "embed_tokens",
        "embeddings.positions": "embed_positions",
        "stack.blocks": "layers",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj",
        "attention_residual.norm": "self_attn_layer_norm",
        "cross_attention.query": "encoder_attn.q_proj",
        "cross_attention.key": "encoder_attn.k_proj",
        "cross_attention.value": "encoder_attn.v_proj",
        "cross_attention.output": "encoder_attn.out_proj",
        "cross_attention_residual.norm": "encoder_attn_layer_norm",
        "feed_forward.up": "fc1",
        "feed_forward.down": "fc2",
        "feed_forward_residual.norm": "final_layer_norm",
    },
    copies={"shared.weight": "encoder.embed_tokens.weight"},
    options={},
)

VIT = Family(
    config=KeelViTConfig,
    native_config=transformers.ViTConfig,
    models={
        KeelViTModel: transformers.ViTModel,
        KeelViTForImageClassification: transformers.ViTForImageClassification,
        KeelViTForMaskedImageModeling: transformers.ViTForMaskedImageModeling,
    },
    fields=LABELS | SIZES | same("image_size num_channels qkv_bias") | {"patch_size": ("patch_size", "encoder_stride")},
    ours={
        "norm_position": ("pre", "vit normalises before each branch"),
        "pooling": ("cls", "vit has a class token and classifies by it"),
    },
    native={},
    names={
        "embeddings.projection": "embeddings.patch_embeddings.projection",
        "embeddings.positions": "embeddings.position_embeddings",
        "encoder.blocks": "layers",
        "encoder.norm": "layernorm",
        "attention.query": "attention.q_proj",
        "attention.key": "attention.k_proj",
        "attention.value": "attention.v_proj",
        "attention.output": "attention.o_proj",
        "attention_residual.norm": "layernorm_before",
        "feed_forward.up": "mlp.fc1",
        "feed_forward.down": "mlp.fc2",
        "feed_forward_residual.norm": "layernorm_after",
        "pixels": "decoder.0",  # a convolution of one pixel: (C, D, 1, 1) instead of (C, D)
    },
    copies={},
    options={"use_mask_token": "embeddings.mask_token"},
)

MASKED_IMAGES: Fixed = {  # where the head of masked images gives no choice either
    "decoder_num_hidden_layers": (0, "vit has mask tokens in its encoder and no decoder"),
    "reconstruction_target": ("pixels", "vit's head predicts pixels"),
}

# The last words of our modules' names, by whether their weights read the residual stream (columns) or write it (rows).
READS = {"tokens", "positions", "query", "key", "value", "up", "lm_head"}
WRITES = {"output", "down", "norm"}

FAMILIES = (BERT, MARIAN, VIT)
TO_NATIVE = {ours: (family, native) for family in FAMILIES for ours, native in family.models.items()}
FROM_NATIVE = {native: (family, ours) for ours, (family, native) in TO_NATIVE.items()}


def counterpart(model: PreTrainedModel, table: dict) -> tuple[Family, type[PreTrainedModel]]:
    if type(model) not in table:
        known = ", ".join(known.__name__ for known in table)
        raise ValueError(f"{type(model).__name__} has no counterpart; these have one: {known}.")
    return table[type(model)]


def refuse(config: PreTrainedConfig, fixed: Fixed, form: str) -> None:
    """Raises ValueError for the first field whose value has no such form."""
    for field, (only, why) in fixed.items():
        value = getattr(config, field)
        if why and value != only:
            raise ValueError(f"{field}={value!r} has no {form} form: {why}.")


def one_value(config: PreTrainedConfig, field: str, names: tuple[str, ...]) -> Any:
    """The value that all these native fields have; (height, width) of images and patches must be a square."""
    values = [getattr(config, name) for name in names]
    sides = values
    if field in ("image_size", "patch_size"):
        sides = [side for value in values for side in ([value] if isinstance(value, int) else value)]
    if any(side != sides[0] for side in sides):
        given = ", ".join(f"{name}={value!r}" for name, value in zip(names, values, strict=True))
        raise ValueError(f"{given} has no keel form: {field} is one number there.")
    return sides[0]


def renamed(weights: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    words = re.compile(rf"(?<![^.])({longest_first})(?![^.])")
    return {words.sub(lambda match: names[match[0]], name): weight for name, weight in weights.items()}


def permuted(weights: Weights, order: Tensor) -> Weights:
    """Weights, by our names, whose residual stream is in another order."""
    changed = {}
    for name, weight in weights.items():
        module, kind = name.split(".")[-2:] if "." in name else ("", name)
        if module in READS and kind == "weight":
            changed[name] = weight[:, order]
        elif module in WRITES:
            changed[name] = weight[order]
    return weights | changed


def sines_then_cosines(width: int) -> Tensor:
    return torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])


def built(
    target: type[PreTrainedModel], config: PreTrainedConfig, options: dict[str, bool], weights: Weights, model: Any
) -> PreTrainedModel:
    """A `target` with `weights`, in the dtype and on the device of `model`, with its generation config.

    Raises:
        ValueError: two weights differ that the configuration ties.
    """
    with no_init_weights():
        new: Any = target(config, **options)
    new.to(device=model.device, dtype=model.dtype)
    new.tie_weights()
    for name, source in new.all_tied_weights_keys.items():
        if not torch.equal(weights[name], weights[source]):
            raise ValueError(
                f"tie_word_embeddings=True, but {name} differs from {source}: load the model with "
                "tie_word_embeddings=False."
            )
    new.load_state_dict(weights)
    if model.can_generate():
        new.generation_config = deepcopy(model.generation_config)
    return new.eval()


def to_native(model: PreTrainedModel) -> PreTrainedModel:
    """Our model as the native one with the same head: a copy, of the same dtype and device, in eval mode.

    Raises:
        ValueError: the model has no native form.
    """
    family, target = counterpart(model, TO_NATIVE)
    config, weights = model.config, dict(model.state_dict())
    refuse(config, family.ours, "native")
    if isinstance(model, KeelViTForMaskedImageModeling):
        refuse(config, MASKED_IMAGES, "native")
    if family is BERT and not config.type_vocab_size:
        raise ValueError("type_vocab_size=0 has no native form: bert adds a segment to every token.")
    values = {name: deepcopy(getattr(config, field)) for field, names in family.fields.items() for name in names}
    values |= {name: value for name, (value, _) in family.native.items()}
    if isinstance(model, KeelBertForQuestionAnswering):
        values["id2label"] = values["label2id"] = None  # bert's head has as many outputs as labels, and a span has two
    options = {name: weight in weights for name, weight in family.options.items() if model.base_model is model}
    if isinstance(model, KeelViTModel):
        options["add_pooling_layer"] = False

    if family is MARIAN and config.pad_token_id != config.vocab_size - 1:
        warnings.warn(
            f"pad_token_id={config.pad_token_id} is not the last of {config.vocab_size} entries, where CTranslate2 "
            "expects a Marian's padding: that engine will not take this model, or translate otherwise.",
            stacklevel=2,
        )
    if family is MARIAN:  # its sinusoids are weights, ours are not
        weights |= {name: table for name, table in model.named_buffers() if name.endswith("positions.weight")}
        weights = permuted(weights, sines_then_cosines(config.hidden_size))
    if family is VIT and config.position_embedding_type == "sincos2d":
        table = next(name for name, _ in model.named_buffers() if name.endswith("embeddings.positions.weight"))
        weights[table.removesuffix(".weight")] = model.get_buffer(table)
    weights = renamed(weights, family.names)
    if family is not MARIAN or config.share_encoder_decoder_embeddings:  # a Marian of two tables has no `shared`
        for copy, original in family.copies.items():
            originals = [name for name in weights if name.endswith(original)]
            weights |= {name.removesuffix(original) + copy: weights[name] for name in originals}
    if isinstance(model, KeelViTForMaskedImageModeling):
        weights["decoder.0.weight"] = weights["decoder.0.weight"][..., None, None]  # a convolution of one pixel
    return built(target, family.native_config(**values), options, weights, model)


def keel_config(config: PreTrainedConfig, masked_images: bool = False) -> PreTrainedConfig:
    """A native configuration as ours.

    Args:
        masked_images: it is a `ViTForMaskedImageModeling`'s, whose head alone reads `encoder_stride`.

    Raises:
        ValueError: it is of another family, or has a value that ours cannot have.
    """
    families = {family.native_config: family for family in FAMILIES}
    if type(config) not in families:
        known = ", ".join(native.model_type for native in families)
        raise ValueError(f"{config.model_type} has no keel form; these have one: {known}.")
    family = families[type(config)]
    refuse(config, family.native, "keel")
    fields = family.fields
    if family is VIT and not masked_images:
        fields = fields | {"patch_size": ("patch_size",)}
    values = {field: deepcopy(one_value(config, field, names)) for field, names in fields.items()}
    return family.config(**values | {name: value for name, (value, _) in family.ours.items()})


def keel_names(family: Family, weights: dict[str, Any]) -> dict[str, Any]:
    """A native model's weights by our names, without copies and without sinusoids, which are not weights of ours."""
    dropped = (*family.copies, "embed_positions.weight")
    weights = {name: weight for name, weight in weights.items() if not name.endswith(dropped)}
    return renamed(weights, {native: ours for ours, native in family.names.items()})


def from_native(model: PreTrainedModel) -> PreTrainedModel:
    """A native bert, marian or vit model as ours with the same head: the reverse of `to_native`.

    Raises:
        ValueError: the model computes something that ours cannot.
    """
    family, target = counterpart(model, FROM_NATIVE)
    masked_images = isinstance(model, transformers.ViTForMaskedImageModeling)
    config = keel_config(model.config, masked_images)
    if isinstance(model, transformers.ViTModel) and model.pooler is not None:
        raise ValueError(
            "add_pooling_layer=True has no keel form: keel-vit pools by the class token alone; load the model with "
            "add_pooling_layer=False."
        )
    weights = dict(model.state_dict())
    options = {name: weight in weights for name, weight in family.options.items() if model.base_model is model}
    if masked_images:
        weights["decoder.0.weight"] = weights["decoder.0.weight"][..., 0, 0]
    weights = keel_names(family, weights)
    if family is MARIAN:
        weights = permuted(weights, sines_then_cosines(config.hidden_size).argsort())
    return built(target, config, options, weights, model)
