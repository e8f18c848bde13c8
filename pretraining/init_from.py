"""From which weights does a run start? From those of a checkpoint, ours or native, made to fit the run."""

import copy
import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BertForQuestionAnswering,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from modeling import KeelSeq2SeqConfig, KeelViTConfig
from modeling.convert import FAMILIES, FROM_NATIVE, TO_NATIVE, from_native, keel_config, keel_names
from pretraining.data.tokenizer import load_tokenizer
from pretraining.errors import UserError, one_line
from pretraining.settings import NOT_SET_BY_HAND, Settings

# What changes nothing that the checkpoint has learnt.
FREE = frozenset(
    {
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "classifier_dropout"),
        *("initializer", "initializer_range", "label_smoothing", "window_pooling"),
        *("decoder_num_hidden_layers", "decoder_hidden_size", "decoder_num_attention_heads"),
        *("decoder_intermediate_size", "reconstruction_target"),
    }
)
# What a checkpoint may lack, and what can be made to fit.
HEADS = {"pooler", "mlm", "nsp", "classifier", "span", "pixels", "colors", "decoder", "mask_token"}
BODY = re.compile(r"^(?!decoder\.)(?!.*mask_token$).*(embeddings\.|encoder\.|decoder\.stack)")
RESIZED = {"model.max_position_embeddings", "model.image_size"}


def read_config(checkpoint: str, ours: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The configuration of a checkpoint, as one of `ours`.

    Raises:
        UserError: there is none, it is another family's, or it has no keel form.
    """
    if Path(checkpoint, "model", "config.json").exists():
        raise UserError(f"init_from: {checkpoint} is a run's folder: give {Path(checkpoint, 'model')}.")
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # there are dozens, from missing files to a missing network
        raise UserError(
            f"init_from: no checkpoint can be read from {checkpoint!r} ({one_line(error)}): it must be a folder with "
            "config.json and weights, or a Hub name."
        ) from error
    if getattr(config, "quantization_config", None):
        raise UserError(f"init_from: the weights of {checkpoint} are quantised: give those from before.")
    if isinstance(config, ours):
        return config
    (native,) = (family.native_config for family in FAMILIES if family.config is ours)
    if type(config) is not native:
        raise UserError(
            f"init_from: {checkpoint} is a checkpoint of {config.model_type}: this run starts from "
            f"{ours.model_type} or {native.model_type}."
        )
    try:
        return keel_config(config)
    except ValueError as error:
        raise UserError(f"init_from: {checkpoint}: {error}") from error


def architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration as the settings model.*, but class_weights: they belong to the labels, which are no settings."""
    names = (field.name for field in dataclasses.fields(type(config)))
    left_out = NOT_SET_BY_HAND | {"class_weights"}
    return {f"model.{name}": getattr(config, name) for name in names if name not in left_out}


def is_separate(config: PreTrainedConfig) -> bool:
    """Whether source and target have a vocabulary each."""
    return isinstance(config, KeelSeq2SeqConfig) and not config.share_encoder_decoder_embeddings


def resolve(settings: Settings, start: PreTrainedConfig, free: frozenset[str] = FREE) -> Settings:
    """The settings with what no setting names taken from the checkpoint's configuration `start`.

    Args:
        free: fields of the model that may differ from the checkpoint's.

    Raises:
        UserError: the settings ask for another tokenizer, or for another architecture than the checkpoint's; or its
            weights do not fit its configuration or its tokenizer, are none, or are no numbers.
    """
    if not isinstance(start, KeelViTConfig):
        check_tokenizer(settings, start)
    theirs = architecture(start)
    for name, value in architecture(settings.model).items():
        fits = name.removeprefix("model.") in free or (name in RESIZED and value > theirs[name])
        if value != theirs[name] and not fits:
            raise UserError(
                f"{name} is {value}, but {theirs[name]} in the checkpoint {settings.init_from}: leave it out, the "
                "checkpoint decides."
            )
    model: Any = copy.deepcopy(settings.model)
    if isinstance(start, KeelViTConfig):
        model.position_grid_size = start.position_grid_size or start.image_size // start.patch_size
    else:
        model.tie_word_embeddings = start.tie_word_embeddings
    assert settings.init_from
    with quietly():
        read_weights(settings.init_from, own_class(settings.init_from))  # before any data is prepared
    return dataclasses.replace(settings, model=model)


def check_tokenizer(settings: Settings, start: PreTrainedConfig) -> None:
    """Raises UserError where the settings ask for another tokenizer than the checkpoint's."""
    assert settings.tokenizer.path and settings.init_from
    if Path(settings.tokenizer.path) != Path(settings.init_from):
        raise UserError(
            f"tokenizer.path is {settings.tokenizer.path}, but the weights of {settings.init_from} know their own "
            "tokenizer alone: leave tokenizer.path out."
        )
    if settings.family == "seq2seq" and (settings.tokenizer.new_words or settings.tokenizer.words):
        raise UserError(
            "tokenizer.new_words and tokenizer.words would come behind <pad>, with which the tokenizer of an "
            "encoder-decoder ends: leave them out."
        )
    if settings.tokenizer.separate != is_separate(start):
        raise UserError(
            f"tokenizer.separate is {settings.tokenizer.separate}, but {settings.init_from} has "
            f"{'two vocabularies' if is_separate(start) else 'one vocabulary'}: leave it out, the checkpoint decides."
        )
    entries = len(load_tokenizer(settings.init_from))
    if entries > start.vocab_size:
        raise UserError(
            f"init_from: the tokenizer of {settings.init_from} has {entries} entries, its model {start.vocab_size}: "
            "give them a checkpoint in which they fit each other."
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' tables of what is missing: we say it in a line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def own_class(checkpoint: str) -> type[PreTrainedModel]:
    """The class that wrote a checkpoint, ours or native; where it does not tell, its family's base model."""
    config: Any = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    classes = [known for known in (*TO_NATIVE, *FROM_NATIVE) if known.config_class is type(config)]
    named = [known for known in classes if config.architectures == [known.__name__]]
    return (named or classes)[0]


def classifier(model: PreTrainedModel) -> set[str]:
    """The names of the weights of a model's classifier, by our names and by the native ones."""
    return {name for name in model.state_dict() if name.startswith("classifier.")}


def read_weights(checkpoint: str, opener: type[PreTrainedModel]) -> tuple[PreTrainedModel, set[str]]:
    """A checkpoint as a model of a class that reads its kind, in fp32, and the names of the weights that it lacks.

    The heads of texts, of tokens and of choices all name theirs `classifier`: that of another head than the opener's
    counts as lacking.

    Raises:
        UserError: it has no weights, others than its configuration says, or weights that are no numbers.
    """
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # we say it ourselves
    if opener is BertForQuestionAnswering:  # it has as many outputs as labels, whatever these are, and a span has two
        options["id2label"] = {0: "start", 1: "end"}
    try:
        loaded: Any = opener.from_pretrained(checkpoint, dtype=torch.float32, **options)
    except Exception as error:
        raise UserError(
            f"init_from: no weights can be read from {checkpoint!r} ({one_line(error)}): give whole weights."
        ) from error
    opened, found = loaded
    missing = set(found["missing_keys"])
    if own_class(checkpoint) is not opener:
        missing |= classifier(opened)
    if mismatched := sorted(key for key in found["mismatched_keys"] if key[0] not in missing):
        name, has, wants = mismatched[0]
        raise UserError(
            f"init_from: {name} is {tuple(has)} in the weights of {checkpoint}, but {tuple(wants)} by its config.json: "
            "give the config.json that was saved with these weights."
        )
    for state, keys in (("lacks", "missing_keys"), ("has", "unexpected_keys")):
        body = [name for name in found[keys] if BODY.search(name)]
        if body:
            raise UserError(
                f"init_from: {checkpoint} {state} {min(body)}, unlike any {opener.__name__}: give a checkpoint whose "
                "weights are those of its config.json."
            )
    for name, weight in opened.state_dict().items():
        if bad := int((~weight.isfinite()).sum()):
            raise UserError(
                f"init_from: {bad:,} of {weight.numel():,} numbers of {name} in the weights of {checkpoint} are NaN or "
                "infinite: give a checkpoint from before its training diverged."
            )
    return opened, missing


def open_checkpoint(checkpoint: str, ours: type[PreTrainedModel]) -> tuple[PreTrainedModel, set[str]]:
    """A checkpoint as a model of class `ours`, in fp32, and the names of the weights that it lacks.

    Raises:
        UserError: as `read_weights`.
    """
    family, native = TO_NATIVE[ours]
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if isinstance(config, family.config):
        return read_weights(checkpoint, ours)
    opened, missing = read_weights(checkpoint, native)
    return from_native(opened), set(keel_names(family, dict.fromkeys(missing)))


@torch.no_grad()
def extend_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, extended: PreTrainedTokenizerBase
) -> list[str]:
    """Gives every entry that only the extended tokenizer has the mean of the pieces that the other makes of it.

    That holds for its row in the input table, in the decoder and in the decoder's bias; no other row changes. Rows that
    no entry had are taken first.

    Returns:
        The new entries.
    """
    ids = extended.get_vocab()
    words = sorted(ids.keys() - tokenizer.get_vocab().keys(), key=lambda word: ids[word])
    rows = max(model.config.vocab_size, len(extended))
    if rows > model.config.vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)
    embeddings: Any = model.get_input_embeddings()
    decoder: Any = model.get_output_embeddings()  # None where the head predicts no tokens
    tables = [embeddings.weight] if decoder is None else [embeddings.weight, decoder.weight, decoder.bias]
    for word in words:
        pieces = [piece.id for piece in tokenizer.backend_tokenizer.model.tokenize(word)]
        for table in tables:
            table[ids[word]] = table[pieces].mean(0)
    return words


def copy_weights(model: PreTrainedModel, source: PreTrainedModel, missing: set[str], checkpoint: str) -> str:
    """All of the source's weights but those that its checkpoint lacked; returns a line that tells what is fresh.

    A classifier of other classes is not taken.
    """
    if source.config.id2label != model.config.id2label:
        missing = missing | classifier(source)
    own = model.state_dict()
    weights = {name: weight for name, weight in source.state_dict().items() if name not in missing}
    model.load_state_dict(own | weights)
    new = ([part for part in name.split(".") if part in HEADS] for name in own.keys() - weights.keys())
    fresh = sorted({parts[0] for parts in new if parts})
    return f"weights of {checkpoint}, fresh: {', '.join(fresh) or 'nothing'}"


def image_statistics(checkpoint: str) -> tuple[list[float], list[float]] | None:
    """Each channel's mean and std, by which a checkpoint's images were normalised; None where it does not say."""
    try:
        processor: Any = AutoImageProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError):  # it has no processor, or none that transformers knows
        return None
    if not (processor.do_normalize and processor.image_mean and processor.image_std):
        return None
    return list(processor.image_mean), list(processor.image_std)


def load_image_weights(model: PreTrainedModel, checkpoint: str) -> str:
    """Gives a fresh ViT the weights of a checkpoint; what the checkpoint lacks stays fresh.

    Positions are interpolated to the model's image size; a classifier of other classes is not taken.

    Returns:
        A line that tells what came from where.

    Raises:
        UserError: the checkpoint is not whole.
    """
    with quietly():
        source, missing = open_checkpoint(checkpoint, type(model))
    sizes = source.config.image_size, model.config.image_size
    source.resize_position_embeddings(sizes[1])
    own, theirs = model.state_dict(), source.state_dict()  # heads for masked images may be of another kind
    missing |= {name for name in theirs if name not in own or own[name].shape != theirs[name].shape}
    line = copy_weights(model, source, missing, checkpoint)
    return line if sizes[0] == sizes[1] else f"{line}; positions interpolated from {sizes[0]} pixels to {sizes[1]}"


def load_weights(model: PreTrainedModel, checkpoint: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Gives a fresh model that reads tokens the weights of a checkpoint; what the checkpoint lacks stays fresh.

    A classifier of other classes is not taken.

    Args:
        model: its table may be smaller than the checkpoint's, which may have more rows than the tokenizer has entries:
            it gets as many.
        tokenizer: the checkpoint's, perhaps with new words.

    Returns:
        A line that tells what came from where.

    Raises:
        UserError: the checkpoint is not whole.
    """
    own = load_tokenizer(checkpoint)
    with quietly():
        source, missing = open_checkpoint(checkpoint, type(model))
        words = extend_vocabulary(source, own, tokenizer)
        positions = model.config.max_position_embeddings
        if positions != source.config.max_position_embeddings:
            source.resize_position_embeddings(positions)
        if source.config.vocab_size != model.config.vocab_size:
            model.resize_token_embeddings(source.config.vocab_size, mean_resizing=False)
    line = copy_weights(model, source, missing, checkpoint)
    if words:
        line += f"; {len(words)} new words, each the mean of its pieces: {', '.join(words[:5])}"
        line += ", ..." if len(words) > 5 else ""
    return line
