"""The native form of a model (bert, marian or vit), handed over only when a stranger's process has proven it equal."""

import json
import shutil
import subprocess
import sys
import tempfile
import warnings
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
from pretraining.errors import UserError, one_line
from pretraining.export import write_native
from pretraining.publish import prove_native
from pretraining.publish.source import Source

# The largest difference of an output, relative where it is above 1. In float32 two orders of the same sums differ by
# some 1e-6; what float64 leaves is no rounding of that kind.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
# Korean in both normal forms, joined emoji, accents, other scripts, white space, and nothing at all.
TEXTS = ["Hello, world!", "안녕하세요 세계", "안녕", "👩‍👩‍👧 family", "naïve café", "東京 2031年", "a\t b\n\nc ", ""]
# Those of a family that one Auto class each is enough for; transformers 5 has none that translates.
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
ROWS, LENGTH, MAX_LENGTH = 3, 32, 16


def write_proven_native(source: Source, folder: Path) -> dict[str, Any]:
    """Writes the native form with all its heads, and with what lies beside the weights; a folder of before is replaced.

    Returns:
        The figures of its proof, as `prove` gives them.

    Raises:
        UserError: the model has no native form, or the native one was not equal in everything.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with warnings.catch_warnings(record=True) as notes:
        try:
            write_native(source.folder, unfinished)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{source.folder} cannot be published as a native model: {one_line(error)}") from error
    found = prove(source, unfinished)
    if failed := [check for check in found["checks"] if not check["passed"]]:
        told = "; ".join(f"{check['name']}: {check['detail']}" for check in failed)
        raise UserError(
            f"the native form in {unfinished} is not the model in {source.folder} ({told}): it is not handed over; "
            "publish without --native, and report this."
        )
    shutil.rmtree(folder, ignore_errors=True)
    files.publish(unfinished, folder)
    return found | {"notes": [str(note.message) for note in notes]}


def prove(source: Source, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What a fresh process, which has nothing of ours, finds when it compares a native form with our model.

    Returns:
        The native class and model_type, the Auto classes that open it with the arguments they need, the tolerance, the
        largest difference of any output, and `checks`, each with name, passed and detail.
    """
    with tempfile.TemporaryDirectory() as name:
        cases = Path(name)
        write_cases(source, cases, dtype)
        # -I: neither PYTHONPATH nor the working folder, so that a clone of ours cannot be imported from there.
        command = [sys.executable, "-I", prove_native.__file__, str(folder.absolute()), name]
        ended = subprocess.run(command, cwd=name, capture_output=True, text=True)
        if ended.returncode:
            raise UserError(
                f"the native form in {folder} cannot be opened without our code: {ended.stderr.strip()[-400:]}"
            )
    return json.loads(ended.stdout.splitlines()[-1])


def write_cases(source: Source, cases: Path, dtype: torch.dtype) -> None:
    """Inputs, and what our model makes of them, for `prove_native`: cases.json, cases.safetensors and images."""
    tensors: dict[str, Tensor] = {}
    opened = opened_by(source, dtype)
    max_length = min(MAX_LENGTH, getattr(source.config, "max_position_embeddings", MAX_LENGTH))
    for auto, (ours, _) in opened.items():
        inputs = make_inputs(ours)
        # Without use_cache ours gives padding a logit that other people's losses can bear, not the one it generates by.
        plain = {"use_cache": False} if ours.can_generate() else {}
        with torch.no_grad():
            outputs = comparable(ours, ours(**inputs, **plain))
        tensors |= {f"{auto}/input/{name}": x for name, x in inputs.items()}
        tensors |= {f"{auto}/output/{name}": x.contiguous() for name, x in outputs.items()}
        if ours.can_generate():
            asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            for beams in (1, 4):
                written = ours.generate(**asked, num_beams=beams, max_length=max_length)
                tensors[f"{auto}/generated/{beams}"] = written.contiguous()
    inputs_of: dict[str, Any] = {"tokenizers": {}, "images": []}
    parts: dict[str, Any] = {}
    if source.family == "vit":
        parts["image_processor"] = processor = AutoImageProcessor.from_pretrained(source.folder)
        for mode in ("RGB", "RGBA", "L", "I;16"):
            file = f"{mode.replace(';', '')}.png"
            draw(mode).save(cases / file)
            tensors[f"pixels/{file}"] = processor(load_image(str(cases / file)), return_tensors="pt")["pixel_values"]
            inputs_of["images"].append(file)
        given = str(cases / inputs_of["images"][0])
    else:
        for part in ["", *(["target"] if (source.folder / "target").is_dir() else [])]:
            tokenizer = AutoTokenizer.from_pretrained(source.folder / part)
            inputs_of["tokenizers"][part] = [[text, tokenizer(text)["input_ids"]] for text in TEXTS]
        parts["tokenizer"] = tokenizer = AutoTokenizer.from_pretrained(source.folder)
        given = f"{TEXTS[0]} {tokenizer.mask_token or ''}"
    answers = []
    for task, auto in PIPELINES[source.family].items():
        if auto in opened:
            answer = pipeline(task, model=opened[auto][0], **parts)(given)  # type: ignore[call-overload]
            answers.append([auto, task, given, prove_native.plain(answer)])
    meta = {
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": TOLERANCE[dtype],
        "max_length": max_length,
        "own": next(auto for auto in opened if names_class(source, auto)),
        "autos": {auto: arguments for auto, (_, arguments) in opened.items()},
        "pipelines": answers,
        **inputs_of,
    }
    save_file(tensors, cases / "cases.safetensors")
    files.write_text(cases / "cases.json", files.to_json(meta))


def names_class(source: Source, auto: str) -> bool:
    """Whether the Auto class opens the class that wrote the model."""
    return str(source.config.auto_map[auto]).endswith(f".{source.model_class.__name__}")


def opened_by(source: Source, dtype: torch.dtype) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Our model under each Auto class that the checkpoint has all weights of, but for a pooler.

    Beside it stands what the native class must be told: that there is no pooler, where there is none.
    """
    found: dict[str, tuple[Any, dict[str, Any]]] = {}
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
