"""What of a model learns: all of it, what is not frozen, or LoRA's matrices beside it (Hu 2021)."""

import re
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from finetuning.settings import RecipeSettings
from pretraining.errors import UserError

LORA = ".lora_"  # in the name of each of LoRA's weights
BASE = ".base_layer"  # what LoRA puts between a layer's name and its weights


def freeze(model: PreTrainedModel, layers: int) -> None:
    """Makes the embeddings and the first `layers` - 1 layers learn nothing; all but the head for -1."""
    for name, parameter in model.base_model.named_parameters():
        block = re.search(r"blocks\.(\d+)\.", name)
        below = int(block[1]) + 2 <= layers if block else name.startswith("embeddings.")
        if layers == -1 or below:
            parameter.requires_grad_(False)


def adapt(model: PreTrainedModel, settings: RecipeSettings) -> None:
    """Freezes what shall not learn, and puts LoRA's matrices into the model.

    Raises:
        UserError: peft is not installed, or no layer has a name of `objective.lora_targets`.
    """
    if settings.freeze:
        freeze(model, settings.freeze)
    if settings.adapter == "none":
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("objective.adapter is lora, which needs peft: pip install 'keel[adapters]'.") from error
    body = {id(parameter) for parameter in model.base_model.parameters()}
    learns = {name for name, parameter in model.named_parameters() if id(parameter) not in body}
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in settings.lora_targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            raise UserError(
                f"objective.lora_targets names {target!r}, and no linear layer of the model has such a name: query, "
                "key, value, output, up and down do."
            )
    options: dict[str, Any] = {"r": settings.lora_rank, "lora_alpha": settings.lora_alpha}
    inject_adapter_in_model(LoraConfig(target_modules=settings.lora_targets, **options), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(LORA in name or name in learns)


def merge(weights: dict[str, Tensor], settings: RecipeSettings) -> dict[str, Tensor]:
    """The weights of a plain model: to each adapted matrix W is added alpha / r * B A (Hu 2021, 4.1)."""
    if settings.adapter == "none":
        return weights
    scale = settings.lora_alpha / settings.lora_rank
    merged = {name.replace(BASE, ""): weight for name, weight in weights.items() if LORA not in name}
    for name, down in weights.items():
        if not name.endswith(".lora_A.default.weight"):
            continue
        up = weights[name.replace(".lora_A.", ".lora_B.")]
        matrix = name.replace(".lora_A.default", "")
        merged[matrix] = merged[matrix] + scale * (up @ down)
    return merged
