"""What our model makes of inputs of every kind, written down for the process that opens its native form.

(rows, tokens) for texts, (rows, channels, height, width) for images.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel, pipeline
from transformers.image_utils import load_image
from transformers.utils import logging as transformers_logging

import modeling
from modeling.convert import sines_then_cosines
from pretraining import files
from pretraining.publish.prove_native import plain
from pretraining.publish.source import Source

# The largest difference of an output, relative where it is above 1. In float32 two orders of the same sums differ by
# some 1e-6; what float64 leaves is no rounding of that kind.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
# Korean in both normal forms, emoji with joiners, accents, another script, white space, and nothing at all.
TEXTS = [
    "Hello, world!",
    "한국어 문장",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "👩\u200d👩\u200d👧 family",
    "naïve café",
]
TEXTS += ["東京 2031年", "a\t b\n\nc ", ""]
IMAGES = ("RGB", "RGBA", "L", "I;16")
# Of each family the tasks of `pipeline()`, and the Auto class that does them; transformers 5 has none that translates.
PIPELINES = {
    "bert": {
        "feature-extraction": "AutoModel",
        "fill-mask": "AutoModelForMaskedLM",
        "text-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
    },
    "seq2seq": {},
    "vit": {"image-feature-extraction": "AutoModel", "image-classification": "AutoModelForImageClassification"},
}
ROWS, LENGTH, GENERATED = 3, 32, 16

Opened = dict[str, tuple[Any, dict[str, Any]]]
"""By Auto class: our model, and what `from_pretrained` of the native class must be told."""


def write_cases(source: Source, folder: Path, dtype: torch.dtype) -> None:
    """Writes cases.json, cases.safetensors and images, which `prove_native` reads."""
    opened = opened_by(source, dtype)
    tensors: dict[str, Tensor] = {}
    max_length = min(GENERATED, getattr(source.config, "max_position_embeddings", GENERATED))
    for auto, (model, _) in opened.items():
        tensors |= {f"{auto}/{name}": x.contiguous() for name, x in outputs_of(model, max_length).items()}
    read = images_read(source, folder, tensors) if source.family == "vit" else texts_read(source)
    answers = []
    for task, auto in PIPELINES[source.family].items():
        if auto in opened:
            answer = pipeline(task, model=opened[auto][0], **read["parts"])(read["given"])  # type: ignore[call-overload]
            answers.append([auto, task, read["given"], plain(answer)])
    own = f".{source.model_class.__name__}"
    content = {
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": TOLERANCE[dtype],
        "max_length": max_length,
        "own": next(auto for auto in opened if source.config.auto_map[auto].endswith(own)),
        "autos": {auto: arguments for auto, (_, arguments) in opened.items()},
        "pipelines": answers,
        "tokenizers": read.get("tokenizers", {}),
        "images": read.get("images", []),
    }
    save_file(tensors, folder / "cases.safetensors")
    files.write_text(folder / "cases.json", files.to_json(content))


def opened_by(source: Source, dtype: torch.dtype) -> Opened:
    """Our model under each Auto class that the checkpoint has all weights of, but for a pooler.

    Beside it stands what the native class must be told: that there is no pooler, where there is none.
    """
    found: Opened = {}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # heads that are not in the checkpoint are no news
    for auto, name in source.config.auto_map.items():
        if auto == "AutoConfig":
            continue
        ours = getattr(modeling, name.rpartition(".")[2])
        options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "eager", "output_loading_info": True}
        options["ignore_mismatched_sizes"] = True  # of a head that is another task's
        with torch.random.fork_rng():
            model, info = ours.from_pretrained(source.folder, **options)
        missing = info["missing_keys"]
        if not info["mismatched_keys"] and all(key.startswith("pooler.") for key in missing):
            without_pooler = auto == "AutoModel" and (bool(missing) or source.family == "vit")
            found[auto] = model.eval(), {"add_pooling_layer": False} if without_pooler else {}
    transformers_logging.set_verbosity(verbosity)
    return found


def make_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs of every kind that the native class knows too: rows of unequal lengths, or images."""
    config: Any = model.config
    draws = torch.Generator().manual_seed(0)
    if config.model_type == "keel-vit":
        size = (ROWS, config.num_channels, config.image_size, config.image_size)
        inputs = {"pixel_values": torch.randn(size, generator=draws).to(model.dtype)}
        if "Masked" in type(model).__name__:
            patches = (config.image_size // config.patch_size) ** 2
            inputs["bool_masked_pos"] = torch.rand(ROWS, patches, generator=draws) < 0.5
        return inputs
    length = min(LENGTH, config.max_position_embeddings)
    choices = (2,) if "MultipleChoice" in type(model).__name__ else ()
    ids = torch.randint(config.vocab_size, (ROWS, *choices, length), generator=draws)
    lengths = torch.linspace(length, 2, ROWS).long()
    mask = (torch.arange(length) < lengths[:, None]).long()  # (rows, tokens)
    mask = mask[:, None].expand(ids.shape).contiguous() if choices else mask
    inputs = {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}
    if config.model_type == "keel-seq2seq":
        return inputs | {"decoder_input_ids": torch.randint(config.vocab_size, (ROWS, length // 2), generator=draws)}
    return inputs | {"token_type_ids": (torch.arange(length) >= length // 2).long().expand(ids.shape).contiguous()}


@torch.no_grad()
def outputs_of(model: Any, max_length: int) -> dict[str, Tensor]:
    """Inputs, outputs, and where the model generates, what it writes with one beam and with four."""
    inputs = make_inputs(model)
    # Without use_cache ours gives padding a logit that other people's losses can bear, not the one it generates by.
    options = {"use_cache": False} if model.can_generate() else {}
    found = {f"input/{name}": x for name, x in inputs.items()}
    found |= {f"output/{name}": x for name, x in comparable(model, model(**inputs, **options)).items()}
    if model.can_generate():
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        for beams in (1, 4):
            found[f"generated/{beams}"] = model.generate(**asked, num_beams=beams, max_length=max_length)
    return found


def comparable(model: PreTrainedModel, outputs: dict[str, Any]) -> dict[str, Tensor]:
    """The outputs that the native class gives too, in its order.

    Marian's vectors hold all sines, then all cosines, where ours alternate: the same numbers in another order.
    """
    found = {name: x for name, x in outputs.items() if isinstance(x, Tensor) and x.ndim}
    if model.config.model_type == "keel-seq2seq":
        order = sines_then_cosines(model.config.hidden_size)
        hidden = ("last_hidden_state", "encoder_last_hidden_state")
        found = {name: x[..., order] if name in hidden else x for name, x in found.items()}
    if model.config.model_type == "keel-vit":
        found.pop("pooler_output", None)  # ours is the class token's vector, which last_hidden_state has too
    return found


def texts_read(source: Source) -> dict[str, Any]:
    """What each tokenizer makes of the texts; the tokenizer and the text of a pipeline."""
    found: dict[str, Any] = {}
    for part in ["", *(["target"] if (source.folder / "target").is_dir() else [])]:
        tokenizer = AutoTokenizer.from_pretrained(source.folder / part)
        found[part] = [[text, tokenizer(text)["input_ids"]] for text in TEXTS]
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    given = f"{TEXTS[0]} {tokenizer.mask_token or ''}"
    return {"tokenizers": found, "parts": {"tokenizer": tokenizer}, "given": given}


def images_read(source: Source, folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Draws the images and adds what the processor makes of them; the processor and the image of a pipeline."""
    processor = AutoImageProcessor.from_pretrained(source.folder)
    names = []
    for mode in IMAGES:
        name = f"{mode.replace(';', '')}.png"
        draw(mode).save(folder / name)
        tensors[f"pixels/{name}"] = processor(load_image(str(folder / name)), return_tensors="pt")["pixel_values"]
        names.append(name)
    return {"images": names, "parts": {"image_processor": processor}, "given": str(folder / names[0])}


def draw(mode: str) -> Image.Image:
    """An image of one mode with a gradient, in no size that a model has."""
    grey = Image.linear_gradient("L").resize((37, 23))
    if mode == "I;16":
        return Image.frombytes("I;16", grey.size, b"".join(bytes([value, value]) for value in grey.tobytes()))
    if mode == "RGBA":
        rgba = grey.convert("RGBA")
        rgba.putalpha(grey)
        return rgba
    return grey.convert(mode)
