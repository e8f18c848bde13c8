"""A program that knows transformers alone: does a repository's model compute what a folder's does?

    python -I stranger.py FOLDER REPO COMMIT

Prints JSON: of each form of the model the largest difference of an output, 0 where all are equal bit by bit.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

TOKENS = 16


def open_model(place: str, own: bool, **where: Any) -> Any:
    """Our own form, with the code that lies beside it, or the native one, without any: each as its class wrote it."""
    where |= {"trust_remote_code": True} if own else {"subfolder": "native"}
    config = transformers.AutoConfig.from_pretrained(place, **where)
    (wrote,) = config.architectures
    auto = next(auto for auto, name in config.auto_map.items() if name.endswith(f".{wrote}")) if own else wrote
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32, **where}
    return getattr(transformers, auto).from_pretrained(place, **options).eval()


def make_inputs(config: Any, name: str, choices: bool) -> dict[str, Tensor]:
    """Two images, or two texts; `choices`: two questions of one choice each."""
    generator = torch.Generator().manual_seed(0)
    if name == "pixel_values":
        return {name: torch.rand(2, config.num_channels, config.image_size, config.image_size, generator=generator)}
    length = min(TOKENS, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    if config.is_encoder_decoder:
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids[:, None] if choices else ids}


@torch.no_grad()
def outputs(model: Any) -> dict[str, Tensor]:
    choices = type(model).__name__.endswith("ForMultipleChoice")
    torch.manual_seed(0)  # a model of masked images may draw its masks
    found = model(**make_inputs(model.config, model.main_input_name, choices))
    return {name: x for name, x in found.items() if isinstance(x, Tensor)}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys() and one, f"outputs {sorted(one)} and {sorted(other)}"
    if all(torch.equal(x, other[name]) for name, x in one.items()):
        return 0.0
    return max(float((x - other[name]).abs().max()) for name, x in one.items()) or float("nan")


def main(folder: str, repo: str, commit: str) -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    found = {}
    for form, own in {"the model": True, "native/": False}.items():
        if own or Path(folder, "native").exists():
            here, there = open_model(folder, own), open_model(repo, own, revision=commit)
            found[form] = difference(outputs(here), outputs(there))
    ours = {"modeling", "pretraining", "finetuning"} & set(sys.modules)
    assert not ours, f"{ours} are imported: this process is to know nothing of them"
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
