"""Whether a native checkpoint is the model it was made from: a program that has transformers and nothing of ours.

    python -I prove_native.py FOLDER CASES

CASES holds what `native.write_cases` wrote. The last line of the output is the findings as JSON.
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any


def main(folder: str, cases: Path) -> dict[str, Any]:
    import torch
    import transformers
    from safetensors.torch import load_file
    from transformers import AutoImageProcessor, AutoTokenizer, pipeline
    from transformers.image_utils import load_image

    transformers.logging.disable_progress_bar()
    said = Said()
    logging.getLogger("transformers").addHandler(said)
    meta = json.loads((cases / "cases.json").read_text(encoding="utf-8"))
    tensors = load_file(cases / "cases.safetensors")
    dtype, tolerance = getattr(torch, meta["dtype"]), meta["tolerance"]
    largest, checks, models = 0.0, [], {}

    def check(name: str, passed: bool, detail: str) -> None:
        checks.append({"name": name, "passed": bool(passed), "detail": detail})

    for auto, arguments in meta["autos"].items():
        said.lines.clear()
        options = {"dtype": dtype, "output_loading_info": True, **arguments}
        model, info = getattr(transformers, auto).from_pretrained(folder, **options)
        models[auto] = model.eval()
        # Marian's sinusoids are computed, not read; only the whole model says so.
        missing = [key for key in info["missing_keys"] if not key.endswith("embed_positions.weight")]
        check(f"{auto} opens", not (missing or info["mismatched_keys"]), f"{type(model).__name__}, new: {missing}")
        if auto == meta["own"]:  # the others list the weights of heads that they have no place for
            check("no warning when it opens", not said.lines, "; ".join(said.lines) or "none")
        inputs = {name.split("/")[2]: x for name, x in tensors.items() if name.startswith(f"{auto}/input/")}
        with torch.no_grad():
            outputs = model(**inputs)
        worst, compared = 0.0, []
        for name, expected in tensors.items():
            if name.startswith(f"{auto}/output/") and outputs.get(name.split("/")[2]) is not None:
                compared.append(name.split("/")[2])
                found = outputs[compared[-1]]
                if found.shape != expected.shape:
                    worst = float("inf")
                    continue
                worst = max(worst, ((found - expected).abs() / expected.abs().clamp(min=1)).max().item())
        largest = max(largest, worst)
        equal = bool(compared) and worst <= tolerance
        check(f"{auto} gives equal outputs", equal, f"{', '.join(compared)}: {worst:.1e}, allowed {tolerance:.0e}")
        for beams in (1, 4):
            if f"{auto}/generated/{beams}" not in tensors:
                continue
            expected = tensors[f"{auto}/generated/{beams}"]
            asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            written = model.generate(**asked, num_beams=beams, max_length=meta["max_length"])
            check(f"{auto} generates the same, {beams} beams", torch.equal(written, expected), f"{len(written)} rows")

    for part, texts in meta["tokenizers"].items():
        tokenizer = AutoTokenizer.from_pretrained(folder, subfolder=part)
        unlike = [text for text, ids in texts if tokenizer(text)["input_ids"] != ids]
        name = f"tokenizer {part}".strip()
        check(f"{name} gives the same ids", not unlike, f"{len(texts)} texts, unlike: {unlike}")
    for file in meta["images"]:
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = processor(load_image(str(cases / file)), return_tensors="pt")["pixel_values"]
        check(f"image processor, {file}", torch.equal(pixels, tensors[f"pixels/{file}"]), str(tuple(pixels.shape)))
    for auto, task, given, expected in meta["pipelines"]:
        if meta["images"]:
            parts = {"image_processor": AutoImageProcessor.from_pretrained(folder)}
        else:
            parts = {"tokenizer": AutoTokenizer.from_pretrained(folder)}
        answer = plain(pipeline(task, model=models[auto], **parts)(given))
        check(f"pipeline {task}", alike(answer, expected, 10 * tolerance), f"{json.dumps(expected)[:60]} ...")

    ours = sorted({name.partition(".")[0] for name in sys.modules} & {"modeling", "pretraining", "finetuning"})
    check("nothing of ours is imported", not ours, ", ".join(ours) or "none")
    own = models[meta["own"]]
    return {
        "class": type(own).__name__,
        "model_type": own.config.model_type,
        "own": meta["own"],
        "autos": meta["autos"],
        "dtype": meta["dtype"],
        "tolerance": tolerance,
        "difference": largest,
        "transformers": transformers.__version__,
        "checks": checks,
    }


def plain(answer: Any) -> Any:
    """A pipeline's answer without numpy's numbers."""
    return json.loads(json.dumps(answer, default=float))


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two answers of a pipeline are the same, numbers within the tolerance."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(alike(*pair, tolerance) for pair in zip(one, other, strict=True))
    return abs(one - other) <= tolerance * max(1, abs(one)) if isinstance(one, float) else one == other


class Said(logging.Handler):
    """What transformers and Python have warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        warnings.showwarning = lambda message, *_, **__: self.lines.append(str(message))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
