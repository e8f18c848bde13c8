"""Small checkpoints of every kind that a page is made of, and what they are shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from pretraining.data.settings import TokenizerSettings
from pretraining.data.text.documents import Documents
from pretraining.data.tokenizer import TARGET, build_tokenizer, load_tokenizer

TEXT = "the cat sat on a mat and Then the dogs ran home because it was late but they found their way"
TEXTS = ["the cat sat on a mat ||| Then they ran home", "dogs found the mat because it was late"]
KINDS = ["uncased", "cased", "sinusoidal", "shared", "separate", "cls", "mean", "masked"]
TEXT_KINDS, VITS = KINDS[:5], KINDS[5:]


def texts_of(kind: str) -> list[str]:
    """An encoder-decoder reads no pairs."""
    return [text.replace(" ||| ", " ") for text in TEXTS] if kind in ("shared", "separate") else TEXTS


def save_texts(
    kind: str, folder: Path, tiny: Callable[..., PreTrainedModel], documents: Documents, cache: Path
) -> None:
    """A checkpoint of a model of texts, with its tokenizers."""
    family = "seq2seq" if kind in ("shared", "separate") else "bert"
    algorithm, size = ("wordpiece", 70) if kind in ("uncased", "cased") else ("bpe", 290)
    settings = TokenizerSettings(kind=algorithm, vocab_size=size, cased=kind == "cased")
    build_tokenizer(settings, documents, cache, family=family).save_pretrained(folder)
    fields: dict[str, Any] = {"vocab_size": size, "max_position_embeddings": 40}
    if family == "bert":
        if kind == "sinusoidal":
            fields |= {"position_embedding_type": "sinusoidal", "pooling": "mean", "type_vocab_size": 0}
        tiny("KeelBertForPreTraining", **fields).float().save_pretrained(folder)
        return
    if kind == "separate":
        load_tokenizer(str(folder)).save_pretrained(folder / TARGET)
    fields |= {"pad_token_id": size - 1, "decoder_start_token_id": size - 1, "decoder_layers": 1}
    model = tiny("KeelSeq2SeqForConditionalGeneration", share_encoder_decoder_embeddings=kind == "shared", **fields)
    model.generation_config.max_new_tokens = 7
    model.float().save_pretrained(folder)


def save_images(kind: str, folder: Path, tiny: Callable[..., PreTrainedModel]) -> list[str]:
    """A checkpoint of a ViT with its processor, and two images for it."""
    name, fields = "KeelViTForImageClassification", {"pooling": "cls" if kind == "cls" else "mean"}
    channels = 1 if kind == "mean" else 3
    if kind == "masked":
        name, fields = "KeelViTForMaskedImageModeling", {"reconstruction_target": "normalized_pixels"}
    tiny(name, num_channels=channels, **fields).float().save_pretrained(folder)
    statistics = {"image_mean": [0.4] * channels, "image_std": [0.2] * channels}
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, do_convert_rgb=channels == 3, **statistics).save_pretrained(folder)
    paths = [folder.parent / f"{name}.png" for name in ("one", "other")]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (9, 12, channels), dtype=np.uint8)
        Image.fromarray(noise[..., 0] if channels == 1 else noise).save(path)
    return list(map(str, paths))
