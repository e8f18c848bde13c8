"""Do texts and images come in as they did in training?"""

import unicodedata
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer

from .check import Fault, Skip
from .checkpoint import Checkpoint, pipeline, printed_text
from .samples import TEXTS, sample_image, samples

SPECIAL = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")


def tokenizers_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizer by its folder in the model's; an encoder-decoder may have another one for targets."""
    places = [place for place in ("", "target") if (checkpoint.folder / place / "tokenizer_config.json").exists()]
    return {place: AutoTokenizer.from_pretrained(checkpoint.folder / place, trust_remote_code=True) for place in places}


def check_tokenizer(checkpoint: Checkpoint) -> str:
    """It is training's: as many entries, the same special ids, the same ids of texts, and texts come back."""
    if hasattr(checkpoint.config, "image_size"):
        raise Skip("the model reads images")
    with printed_text() as said:
        tokenizers = tokenizers_of(checkpoint)
    if "" not in tokenizers:
        raise Fault("there is no tokenizer beside the model")
    if said[0]:
        raise Fault(f"AutoTokenizer prints: {said[0][:300]}")
    config: Any = checkpoint.config
    # Where sources have a vocabulary of their own, the configuration is about the targets'.
    tokenizer = tokenizers.get("target", tokenizers[""])
    if len(tokenizer) > config.vocab_size:
        raise Fault(f"it has {len(tokenizer)} entries, and the model's table {config.vocab_size}")
    for name in SPECIAL:
        expected = getattr(config, f"{name}_token_id", None)
        if expected is not None and getattr(tokenizer, f"{name}_token_id") != expected:
            raise Fault(f"its {name}_token_id is {getattr(tokenizer, f'{name}_token_id')}, and the model's {expected}")
    for name, ids in samples(checkpoint.folder).items():
        if name in checkpoint.reference and not torch.equal(ids, checkpoint.reference[name]):
            raise Fault("it makes other ids of the texts that training recorded: it is not training's tokenizer")
    told = [f"{len(tokenizer)} entries"]
    if "sample.input_ids" in checkpoint.reference:
        told.append("ids as in training")
    told += [_round_trips(each) for each in tokenizers.values()]
    if len(tokenizer) < config.vocab_size:
        told.append(f"{config.vocab_size - len(tokenizer)} rows of the model's table have no entry")
    return "; ".join(told)


def _round_trips(tokenizer: Any) -> str:
    """Words come back as the tokenizer's own normaliser leaves them; the share of words that are unknown to it."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    words = [word for text in TEXTS for word in text.split()]
    unknown = 0
    for word in words:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if tokenizer.unk_token_id in ids:
            unknown += 1
            continue
        back = "".join(tokenizer.decode(ids).split())
        expected = "".join((normalizer.normalize_str(word) if normalizer else word).split())
        if back != expected:
            raise Fault(f"{word!r} ({unicodedata.name(word[0], '?')} ...) comes back as {back!r}")
    return f"{len(words) - unknown} of {len(words)} words come back, {unknown} have an unknown part"


def check_images(checkpoint: Checkpoint) -> str:
    """The image processor is training's, makes the model's size, and takes transparent and 16-bit images."""
    config: Any = checkpoint.config
    if not hasattr(config, "image_size"):
        raise Skip("the model reads text")
    if not (checkpoint.folder / "preprocessor_config.json").exists():
        raise Fault("there is no image processor beside the model")
    with printed_text() as said:
        processor = AutoImageProcessor.from_pretrained(checkpoint.folder, trust_remote_code=True)
    if said[0]:
        raise Fault(f"AutoImageProcessor prints: {said[0][:300]}")
    found, recorded = samples(checkpoint.folder)["sample.pixel_values"], checkpoint.reference.get("sample.pixel_values")
    if recorded is not None and (found.shape != recorded.shape or not torch.allclose(found, recorded, atol=1e-6)):
        raise Fault("it makes other pixels of the image that training recorded: it is not training's processor")
    if found.shape[-2:] != (config.image_size, config.image_size):
        raise Fault(f"it makes images of {tuple(found.shape[-2:])}, and the model reads {config.image_size}")
    as_then = "pixels as in training; " if recorded is not None else ""
    if config.num_channels != 3:
        return f"{as_then}no pipeline, which gives three channels to a model of grey images"
    classifies = checkpoint.is_class("ForImageClassification")
    task = "image-classification" if classifies else "image-feature-extraction"
    model = checkpoint.model if classifies else checkpoint.open("AutoModel").model
    pipe = pipeline(task, model=model, image_processor=processor)
    for name, image in _odd_images().items():
        answers = pipe(image)
        numbers = [answer["score"] for answer in answers] if classifies else np.asarray(answers)
        if not np.isfinite(numbers).all():
            raise Fault(f"an image that is {name} gives numbers that are not finite")
    return f"{as_then}{', '.join(_odd_images())} images go through {task}"


def _odd_images() -> dict[str, Image.Image]:
    transparent = sample_image().convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    deep = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21)
    return {"transparent": transparent, "16-bit": deep, "black-and-white": sample_image().convert("1")}
