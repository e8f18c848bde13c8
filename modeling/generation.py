"""What `generate()` is asked: plain greedy or beam search, which is ours, or anything else, which is transformers'.

B sentences.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from .decoding import Decoder, beam_search, greedy_search
from .inference import encode, kept_weights_of, parts_as_built

# An option that is not named here, and is not at transformers' default, is left to transformers.
OPTIONS = {
    *("max_length", "max_new_tokens", "num_beams", "num_return_sequences", "length_penalty", "early_stopping"),
    *("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version"),
}


def plain_search(
    model: Any, input_ids: Any, generation_config: GenerationConfig | None, kwargs: Mapping[str, Any]
) -> Callable[[], Tensor] | None:
    """The search of ours that `generate()` with these arguments stands for, or None where it is transformers' task.

    That is also where transformers has to warn or to refuse: of lengths that nobody gave, of too many targets.
    """
    defaults: dict[str, Any] = model.generation_config._get_default_generation_params()
    options = {name: None for name in vars(model.generation_config)} | defaults | {"max_length": None}
    for config in (model.generation_config, generation_config):
        if config is not None:
            options |= {name: value for name, value in vars(config).items() if value is not None}
    options |= {name: kwargs[name] for name in kwargs.keys() & options.keys()}
    inputs = {name: value for name, value in kwargs.items() if name not in options and value is not None}
    if inputs.get("synced_gpus") is False:
        del inputs["synced_gpus"]
    if input_ids is None:
        input_ids = inputs.pop("input_ids", None)
    attention_mask = inputs.pop("attention_mask", None)
    special = {name for name, value in options.items() if not name.startswith("_") and value != defaults.get(name)}
    # A model's own configuration says False of what nobody asked for.
    special -= {name for name in special - defaults.keys() if options[name] is False}

    beams, count = options["num_beams"], options["num_return_sequences"]
    start, pad, ends = (options[name] for name in ("decoder_start_token_id", "pad_token_id", "eos_token_id"))
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    length = options["max_length"] if options["max_new_tokens"] is None else options["max_new_tokens"] + 1
    plain = (
        not inputs
        and special <= OPTIONS
        and not vars(model.config).keys() & (defaults.keys() - {"use_cache"})  # options that stand in the wrong place
        and isinstance(input_ids, Tensor)
        and input_ids.ndim == 2
        and (attention_mask is None or attention_mask.ndim == 2)
        and isinstance(ends, list)
        and all(isinstance(number, int) for number in (beams, count, start, length, pad or 0, *ends))
        and length > 1
        and 1 <= count <= beams
        and isinstance(options["length_penalty"], int | float)
        and options["early_stopping"] in (True, False, "never")
    )
    parts = parts_as_built(model) if plain else None
    if parts is None:
        return None

    @torch.inference_mode()
    def search() -> Tensor:
        weights = kept_weights_of(model, parts)
        real = None if attention_mask is None or attention_mask.all() else attention_mask != 0
        decoder = Decoder(weights, encode(weights, input_ids, real), real, beams)
        starts = torch.full((len(input_ids),), start, device=input_ids.device)
        if beams == 1:
            return greedy_search(decoder, starts, ends, ends[0] if ends and pad is None else pad or 0, length)
        # Behind a target's end transformers puts the end again where padding is 0, and -1 where there is no end.
        filler = (pad or ends[0]) if ends else -1
        rules = options["length_penalty"], options["early_stopping"], count
        return beam_search(decoder, starts, ends, filler, length, *rules)[0].flatten(0, 1)

    return lambda: search().clone()  # which autograd may see, as transformers' tokens
