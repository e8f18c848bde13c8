"""What training's end records of a checkpoint beside its logits, computed again by whoever verifies it."""

import json
import platform
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig

# Hangul composed and decomposed, an emoji of several joined ones, accents both ways, white space, a script without
# spaces: what tokenizers disagree about.
TEXTS = (
    "The model reads 12,345 words.",
    "대한민국 헌법 제1조",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "👩\u200d👩\u200d👧 👍🏽",
    "café cafe\u0301 naïve Ünïcödé",
    "  two  spaces,\ttabs\nand lines  ",
    "ภาษาไทย 漢字かな",
)


def processor() -> str:
    """The processor's name."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []  # Linux alone has it
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    """What the bits of an output depend on beside weights and code."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "capability": capability, "processor": processor()}


def labels(config: PreTrainedConfig) -> str:
    """The label map, as a line."""
    return json.dumps(
        {str(number): name for number, name in sorted((config.id2label or {}).items())}, ensure_ascii=False
    )


def sample_image() -> Image.Image:
    """An image of every colour, always the same."""
    rows, columns = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([rows * 5, columns * 4, (rows * columns) % 256], -1).astype(np.uint8))


def samples(folder: Path) -> dict[str, Tensor]:
    """What a checkpoint's tokenizers make of `TEXTS`, and its image processor of `sample_image`."""
    found: dict[str, Tensor] = {}
    for name, place in (("sample.input_ids", folder), ("sample.target_ids", folder / "target")):
        if (place / "tokenizer_config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=True)
            ids = [number for text in TEXTS for number in tokenizer(text).input_ids]
            found[name] = torch.tensor(ids)
    if (folder / "preprocessor_config.json").exists():
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        image = sample_image().convert("L" if len(processor.image_mean) == 1 else "RGB")  # a mean for each channel
        found["sample.pixel_values"] = processor(image, return_tensors="pt").pixel_values
    return found
