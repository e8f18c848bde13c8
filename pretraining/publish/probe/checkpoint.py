"""The checkpoint as a stranger's program opens it: every Auto class, the inputs to try it with, what was printed."""

import ast
import inspect
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from .check import Fault, Skip
from .samples import machine

pipeline: Any = transformers.pipeline  # its types know a task by its literal name alone
TOLERANCE = 1e-4  # of each value, or of 1 where the value is smaller
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal
MASKS = ("bool_masked_pos", "ids_keep")  # a base model alone has no token for what they hide


@dataclass
class Opened:
    """What one Auto class made of the checkpoint."""

    model: Any
    missing: set[str]
    """Weights that the class has and the file has not."""
    unexpected: set[str]
    mismatched: set[str]
    printed: str

    @property
    def has_new_head(self) -> bool:
        return bool(self.missing or self.mismatched)


@contextmanager
def printed_text() -> Iterator[list[str]]:
    """The list gets all that is printed inside, by Python and by libraries in C."""
    said: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)
            file.seek(0)
            said.append(" ".join(COLOURS.sub("", file.read().decode(errors="replace")).split()))


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, of each value relative to 1 or to the value, whichever is larger."""
    if a.shape != b.shape:
        return float("inf")
    x, y = a.double(), b.double()
    return ((x - y).abs() / y.abs().clamp(min=1)).nan_to_num(nan=float("inf")).max().item() if x.numel() else 0.0


class Checkpoint:
    """A folder, and the reference that its run left."""

    def __init__(self, folder: Path, reference: Path | None):
        self.folder = folder
        self.fields: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.reference: dict[str, Tensor] = {}
        self.metadata: dict[str, str] = {}
        self.unread = ""
        """Why the reference is none."""
        if reference is None:
            return
        try:
            with safe_open(reference, "pt") as file:
                self.metadata = file.metadata() or {}
                self.reference = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        except Exception as error:  # the library has errors of its own
            self.unread = f"{reference.name} cannot be read: {error}"

    @cached_property
    def config(self) -> PreTrainedConfig:
        return AutoConfig.from_pretrained(self.folder, trust_remote_code=True)

    @property
    def classes(self) -> dict[str, str]:
        """Auto class: `file.Class`."""
        named = self.fields.get("auto_map") or {}
        return {auto: reference for auto, reference in named.items() if auto != "AutoConfig"}

    @property
    def trained(self) -> str:
        """The Auto class of the class that was trained."""
        (name,) = self.fields["architectures"]
        for auto, reference in self.classes.items():
            if reference.endswith(f".{name}"):
                return auto
        raise Fault(f"auto_map names no {name}, which wrote the checkpoint")

    def is_class(self, *endings: str) -> bool:
        """Whether the trained class is for one of these."""
        return self.fields["architectures"][0].endswith(endings)

    def open(self, auto: str) -> Opened:
        """The checkpoint under an Auto class: CPU, float32, the eager kernel."""
        with printed_text() as said:
            model, report = getattr(transformers, auto).from_pretrained(
                self.folder,
                trust_remote_code=True,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
                # The head of another task may have the same name and another shape.
                ignore_mismatched_sizes=auto != self.trained,
            )
        missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
        mismatched = {name for name, *_ in report["mismatched_keys"]}
        return Opened(model.eval(), missing, unexpected, mismatched, said[0])

    @cached_property
    def model(self) -> Any:
        """The model under the class that was trained."""
        try:
            return self.open(self.trained).model
        except Exception as error:
            raise Skip("the model does not open") from error

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Inputs of the trained class: those of the reference, or, where there are none, drawn."""
        recorded = {name[6:]: value for name, value in self.reference.items() if name.startswith("input.")}
        return recorded if self.model.main_input_name in recorded else self.draw_inputs(2)

    def draw_inputs(self, batch: int) -> dict[str, Tensor]:
        """Plain inputs, not packed: tokens or images of `batch` examples."""
        config: Any = self.config
        random = torch.Generator().manual_seed(0)
        if hasattr(config, "image_size"):
            shape = (batch, config.num_channels, config.image_size, config.image_size)
            inputs = {"pixel_values": torch.randn(shape, generator=random)}
            if self.is_class("ForMaskedImageModeling"):
                masked = (torch.arange((config.image_size // config.patch_size) ** 2) % 2 == 0).expand(batch, -1)
                if config.decoder_num_hidden_layers:  # what is visible, as indices: ONNX cannot count what is masked
                    inputs["ids_keep"] = (~masked).nonzero()[:, 1].view(batch, -1)
                else:
                    inputs["bool_masked_pos"] = masked.contiguous()
            return inputs
        tokens = min(7, config.max_position_embeddings)
        size = (batch, 2, tokens) if self.is_class("ForMultipleChoice") else (batch, tokens)
        ids = torch.randint(config.vocab_size, size, generator=random)
        # Padding would be masked by some and not by others.
        ids = ids.where(ids != config.pad_token_id, (ids + 1) % config.vocab_size)
        return {"input_ids": ids, "decoder_input_ids": ids} if config.is_encoder_decoder else {"input_ids": ids}

    @property
    def demands_bits(self) -> bool:
        """Whether this machine is one on which the recorded bits must come back."""
        return bool(self.metadata) and all(self.metadata.get(name) == value for name, value in machine().items())

    def modules_of(self, reference: str) -> tuple[str, set[str]]:
        """The file of `file.Class`, and the classes that it defines."""
        name = f"{reference.rpartition('.')[0]}.py"
        path = self.folder / name
        if not path.exists():
            raise Fault(f"auto_map leads to {name}, which is not there")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return name, {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


@torch.no_grad()
def outputs_of(model: Any, inputs: dict[str, Tensor], **more: Any) -> dict[str, Tensor]:
    """The tensors that a model makes of those inputs that it takes."""
    known = inspect.signature(model.forward).parameters
    outputs = model(**{name: x for name, x in inputs.items() if name in known}, **more)
    return {name: x for name, x in outputs.items() if isinstance(x, Tensor) and x.ndim}


def base_outputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model without its head makes of them."""
    return outputs_of(model.base_model, {name: x for name, x in inputs.items() if name not in MASKS})
