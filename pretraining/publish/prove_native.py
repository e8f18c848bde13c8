"""Whether a native checkpoint is the model it was made from: a program that has transformers and nothing of ours.

    python -I prove_native.py FOLDER CASES

CASES holds what `native_cases.write_cases` wrote. The last line of the output is the findings as JSON.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Check = dict[str, Any]


def main(folder: str, cases: Path) -> dict[str, Any]:
    import torch
    import transformers
    from safetensors.torch import load_file

    transformers.logging.disable_progress_bar()
    said = Said()
    meta = json.loads((cases / "cases.json").read_text(encoding="utf-8"))
    tensors = load_file(cases / "cases.safetensors")
    checks: list[Check] = []
    models = {}
    for auto, arguments in meta["autos"].items():
        options = {"dtype": getattr(torch, meta["dtype"]), "output_loading_info": True, **arguments}
        model, info = getattr(transformers, auto).from_pretrained(folder, **options)
        if auto != meta["own"]:  # transformers lists the weights of heads that this class has no place for
            said.lines = [line for line in said.lines if "LOAD REPORT" not in line]
        # Marian's sinusoids are computed, not read; only the whole model says so.
        missing = [key for key in info["missing_keys"] if not key.endswith("embed_positions.weight")]
        whole = not (missing or info["mismatched_keys"])
        checks.append(check(f"{auto} opens", whole, f"{type(model).__name__}, new: {missing}"))
        models[auto] = model.eval()
        case = {name.removeprefix(f"{auto}/"): x for name, x in tensors.items() if name.startswith(f"{auto}/")}
        checks += compare_model(auto, model, case, meta)
    checks += compare_inputs(folder, cases, meta, tensors)
    checks += compare_pipelines(folder, models, meta)
    checks.append(check("no warning is printed", not said.lines, "; ".join(said.lines) or "none"))
    ours = sorted({name.partition(".")[0] for name in sys.modules} & {"modeling", "pretraining", "finetuning"})
    checks.append(check("nothing of ours is imported", not ours, ", ".join(ours) or "none"))
    own = models[meta["own"]]
    return {
        "class": type(own).__name__,
        "model_type": own.config.model_type,
        "difference": max(each.get("difference", 0.0) for each in checks),
        "transformers": transformers.__version__,
        "checks": checks,
        **{name: meta[name] for name in ("own", "autos", "dtype", "tolerance")},
    }


def check(name: str, passed: bool, detail: str, **more: float) -> Check:
    return {"name": name, "passed": passed, "detail": detail, **more}


def compare_model(auto: str, model: Any, case: dict[str, Any], meta: dict[str, Any]) -> Iterator[Check]:
    """Every output that the native class gives too, and what is generated."""
    import torch

    inputs = {name.removeprefix("input/"): x for name, x in case.items() if name.startswith("input/")}
    with torch.no_grad():
        outputs = model(**inputs)
    worst, compared = 0.0, []
    for name, expected in case.items():
        found = outputs.get(name.removeprefix("output/"))
        if name.startswith("output/") and found is not None:
            compared.append(name.removeprefix("output/"))
            apart = torch.full((1,), torch.inf)
            if found.shape == expected.shape:
                apart = (found - expected).abs() / expected.abs().clamp(min=1)
            worst = max(worst, apart.nan_to_num(nan=torch.inf).max().item())  # max() takes no NaN for larger
    equal = bool(compared) and worst <= meta["tolerance"]
    detail = f"{', '.join(compared)}: {worst:.1e}, allowed {meta['tolerance']:.0e}"
    yield check(f"{auto} gives equal outputs", equal, detail, difference=worst)
    for name, expected in case.items():
        if name.startswith("generated/"):
            beams = int(name.removeprefix("generated/"))
            asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            written = model.generate(**asked, num_beams=beams, max_length=meta["max_length"])
            same = torch.equal(written, expected)
            yield check(f"{auto} generates the same, {beams} beams", same, f"{len(written)} rows")


def compare_inputs(folder: str, cases: Path, meta: dict[str, Any], tensors: dict[str, Any]) -> Iterator[Check]:
    """What tokenizers make of texts, and the image processor of images."""
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.image_utils import load_image

    for part, texts in meta["tokenizers"].items():
        tokenizer = AutoTokenizer.from_pretrained(folder, subfolder=part)
        unlike = [text for text, ids in texts if tokenizer(text)["input_ids"] != ids]
        name = f"tokenizer {part}".strip()
        yield check(f"{name} gives the same ids", not unlike, f"{len(texts)} texts, unlike: {unlike}")
    for file in meta["images"]:
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = processor(load_image(str(cases / file)), return_tensors="pt")["pixel_values"]
        same = torch.equal(pixels, tensors[f"pixels/{file}"])
        yield check(f"image processor, {file}", same, str(tuple(pixels.shape)))


def compare_pipelines(folder: str, models: dict[str, Any], meta: dict[str, Any]) -> Iterator[Check]:
    from transformers import AutoImageProcessor, AutoTokenizer, pipeline

    for auto, task, given, expected in meta["pipelines"]:
        if meta["images"]:
            parts = {"image_processor": AutoImageProcessor.from_pretrained(folder)}
        else:
            parts = {"tokenizer": AutoTokenizer.from_pretrained(folder)}
        answer = plain(pipeline(task, model=models[auto], **parts)(given))
        same = alike(answer, expected, 10 * meta["tolerance"])
        yield check(f"pipeline {task}", same, f"{json.dumps(expected)[:60]} ...")


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
        logging.getLogger("transformers").addHandler(self)
        warnings.showwarning = lambda message, *_, **__: self.lines.append(str(message))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
