"""Do the tools that people use take the checkpoint: pipeline(), generate(), ONNX?"""

import contextlib
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .check import Fault, Skip
from .checkpoint import TOLERANCE, Checkpoint, distance, outputs_of, pipeline, printed_text
from .inputs import tokenizers_of
from .samples import TEXTS, sample_image

STEPS = 8  # tokens that are written
TASKS = {
    "fill-mask": ("ForPreTraining", "ForMaskedLM"),
    "text-classification": ("ForSequenceClassification",),
    "token-classification": ("ForTokenClassification",),
    "image-classification": ("ForImageClassification",),
}
"""A task of `pipeline()`, and the classes that are for it."""


def check_pipelines(checkpoint: Checkpoint) -> str:
    """`pipeline()` answers every task that the checkpoint is for, with finite numbers, silently."""
    reads_images = hasattr(checkpoint.config, "image_size")
    if checkpoint.config.is_encoder_decoder:
        raise Skip("transformers 5 has no pipeline() for encoder-decoders")
    if reads_images and checkpoint.config.num_channels != 3:
        raise Skip("the model reads grey images, and pipeline() gives three channels")
    features = "image-feature-extraction" if reads_images else "feature-extraction"
    tasks = [features, *(task for task, endings in TASKS.items() if checkpoint.is_class(*endings))]
    for task in tasks:
        question: Any = sample_image() if reads_images else TEXTS[0]
        with printed_text() as said:
            pipe = pipeline(task, model=str(checkpoint.folder), trust_remote_code=True, device="cpu")
            if task == "fill-mask":
                question = f"{TEXTS[0]} {pipe.tokenizer.mask_token}"
            answer = pipe(question)
        if said[0] and task != features:  # of features transformers tells which head it leaves out
            raise Fault(f"{task} prints: {said[0][:300]}")
        numbers = np.asarray(answer) if task == features else [each["score"] for each in answer]
        if not np.isfinite(numbers).all():
            raise Fault(f"{task} gives numbers that are not finite")
        if task == "fill-mask" and len(answer) != 5:
            raise Fault(f"fill-mask gives {len(answer)} answers of 5")
    return ", ".join(tasks)


class Watch:
    """What `generate()` feeds the model, step by step, and what its cache holds afterwards."""

    def __init__(self, model: Any):
        self.fed: list[int] = []
        self.cached: list[int] = []
        self.handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    @staticmethod
    def _cache(kwargs: dict[str, Any]) -> Any:
        """Under its name of transformers 5.24, or that of before."""
        given = [kwargs[name] for name in ("cache", "past_key_values") if kwargs.get(name) is not None]
        return given[0] if given else None

    def _before(self, model: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.fed.append(kwargs["decoder_input_ids"].shape[1])

    def _after(self, model: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = self._cache(kwargs)
        self.cached.append(0 if cache is None else cache.get_seq_length())

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def check_generation(checkpoint: Checkpoint) -> str:
    """`generate()` writes the same with a cache and without one, and the cache is really used."""
    model = checkpoint.model
    if not model.can_generate():
        raise Skip("the model does not generate")
    tokenizer = tokenizers_of(checkpoint)[""]
    longest = min(24, model.config.max_position_embeddings)
    inputs = tokenizer(list(TEXTS[:3]), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for beams in (1, 2):
        written = {}
        for use_cache in (True, False):
            watch = Watch(model)
            with printed_text() as said, contextlib.closing(watch):
                written[use_cache] = model.generate(
                    **kept, num_beams=beams, use_cache=use_cache, do_sample=False, min_length=STEPS + 1,
                    max_length=STEPS + 1, return_dict_in_generate=True, output_logits=True,
                )  # fmt: skip
            if said[0]:
                raise Fault(f"generate() prints: {said[0][:300]}")
            if use_cache and set(watch.fed[1:]) != {1}:
                raise Fault(f"with a cache generate() feeds {watch.fed} tokens, not one at a time")
            if use_cache and watch.cached != list(range(1, STEPS + 1)):
                raise Fault(f"the cache that generate() hands over holds {watch.cached} tokens after each step")
        with_cache, without = written[True], written[False]
        if not torch.equal(with_cache.sequences, without.sequences):
            raise Fault(f"with a cache other tokens are written, by {beams} beam{'s' * (beams > 1)}")
        apart = max(distance(a, b) for a, b in zip(with_cache.logits, without.logits, strict=True))
        if apart > TOLERANCE:
            raise Fault(f"with a cache the logits differ by {apart:.1e}")
    return f"{STEPS} tokens each greedily and by 2 beams: the same without a cache, one token fed at a time with it"


def check_onnx(checkpoint: Checkpoint) -> str:
    """Exported by transformers and run by ONNX Runtime on another batch size: the same numbers."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise Skip(f"{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed")
    from transformers.exporters import OnnxConfig, OnnxExporter

    model = checkpoint.model
    inputs, sample = checkpoint.draw_inputs(3), dict[str, Any](checkpoint.draw_inputs(2))
    expected = outputs_of(model, inputs)
    with printed_text(), tempfile.TemporaryDirectory() as place:  # torch tells what it does
        exported = OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True))
        exported.save_pretrained(place)
        import onnxruntime

        session = onnxruntime.InferenceSession(next(Path(place).glob("*.onnx")), providers=["CPUExecutionProvider"])
        fed = {value.name: inputs[value.name].numpy() for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        values = dict(zip(names, map(torch.from_numpy, session.run(names, fed)), strict=True))
    if lacking := expected.keys() - values:
        raise Fault(f"ONNX Runtime gives no {', '.join(sorted(lacking))}")
    apart = max(distance(values[name], value) for name, value in expected.items())
    if apart > TOLERANCE:
        raise Fault(f"ONNX Runtime's outputs differ by up to {apart:.1e}")
    return f"exported with a batch of 2, run with one of 3: within {apart:.1e}"
