"""What every model inherits: the features it supports, how its weights start, and a strict `forward`."""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .embeddings import DecoderPatchEmbeddings, PatchEmbeddings, SincosPositions, SinusoidalPositions, TokenEmbeddings
from .heads import ZeroLinear


class ForwardKwargs(TypedDict, total=False):
    """Keyword arguments that every `forward` takes besides those that it names."""

    return_dict: bool | None
    output_hidden_states: bool | list[int] | None
    output_attentions: bool | None
    """With the `eager` kernel alone."""
    cu_seq_lens_q: Tensor | None
    """Packed rows with a flash or varlen kernel: the bounds of the examples in the flattened batch, int32."""
    cu_seq_lens_k: Tensor | None
    """The same for the keys: in an encoder-decoder `_q` is for the target and `_k` for the source."""
    max_length_q: int | None
    """The longest example."""
    max_length_k: int | None


Arguments = ParamSpec("Arguments")
Output = TypeVar("Output")


def strict(forward: Callable[Arguments, Output]) -> Callable[Arguments, Output]:
    """Decorates a model's `forward`: an unknown keyword is an error, as in every Python function.

    `**kwargs` of `forward` are `ForwardKwargs`, which kernels and transformers' decorators read; a misspelt argument
    would vanish among them. The signature, too, names what is known, so `generate()` and `Trainer` pass on no more.

    Raises:
        TypeError: a keyword that neither `forward` nor `ForwardKwargs` names.
    """
    signature = inspect.signature(forward)
    known = {name: p for name, p in signature.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    for name, kind in ForwardKwargs.__annotations__.items():
        known.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

    @wraps(forward)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Output:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{type(args[0]).__name__}.forward() got an unexpected keyword argument {name!r}")
        return forward(*args, **kwargs)

    checked.__signature__ = signature.replace(parameters=list(known.values()))  # type: ignore[attr-defined]
    return checked


class KeelPreTrainedModel(PreTrainedModel):
    """Flags of transformers, and initialisation as in the papers."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    accepts_loss_kwargs = True  # forward takes num_items_in_batch: `Trainer` would look for **kwargs
    _no_split_modules = ["EncoderBlock"]  # FSDP shards these

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """How a module's weights start, in a new model and where a checkpoint lacks them.

        All goes through `transformers.initialization`, which leaves loaded weights alone. A module fills its own
        weights and never a child's: transformers skips modules that have none, or whose own are all loaded.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if isinstance(module, ZeroLinear):
                init.zeros_(module.weight)
            elif self.config.initializer == "xavier_uniform":
                init.xavier_uniform_(module.weight)
            else:
                init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            # transformers marks loaded weights by a flag, which the slice lacks: its row would be zeroed.
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (SinusoidalPositions, SincosPositions)):
            init.copy_(module.weight, module.table())
        elif isinstance(module, nn.Conv2d):
            init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            assert module.bias is not None
            init.zeros_(module.bias)
        elif isinstance(module, PatchEmbeddings):
            if isinstance(module.positions, nn.Parameter):
                init.trunc_normal_(module.positions, std=std)
            for token in (module.cls_token, module.mask_token):
                if token is not None:
                    init.zeros_(token)
        elif isinstance(module, DecoderPatchEmbeddings):
            init.trunc_normal_(module.mask_token, std=std)


class KeelTextPreTrainedModel(KeelPreTrainedModel):
    """What the families that read tokens have in common."""

    _input_embed_layer = "tokens"

    def token_embeddings(self) -> Iterator[TokenEmbeddings]:
        """The embeddings of tokens: one module in BERT, two in an encoder-decoder."""
        return (module for module in self.modules() if isinstance(module, TokenEmbeddings))

    def get_position_embeddings(self) -> Any:
        """The table of positions, learned or sinusoidal; two of them in an encoder-decoder."""
        tables = tuple(embeddings.positions for embeddings in self.token_embeddings())
        return tables if self.config.is_encoder_decoder else tables[0]

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Makes the position table longer or shorter: old rows stay, new ones start as in a new model."""
        self.config.max_position_embeddings = new_num_position_embeddings
        for embeddings in self.token_embeddings():
            old = embeddings.positions
            new = type(old)(new_num_position_embeddings, self.config.hidden_size).to(old.weight)
            self._init_weights(new)
            shared = min(new_num_position_embeddings, old.num_embeddings)
            with torch.no_grad():
                new.weight[:shared] = old.weight[:shared]
            embeddings.positions = new
            embeddings.max_position_embeddings = new_num_position_embeddings
