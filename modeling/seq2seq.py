"""The encoder-decoder Transformer (Vaswani 2017).

B batch, S source tokens, T target tokens, D hidden size, V vocabulary.
"""

import warnings
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import MultiHeadAttention
from .base import ForwardKwargs, KeelTextPreTrainedModel, strict
from .configuration import KeelSeq2SeqConfig
from .embeddings import TokenEmbeddings
from .layers import DecoderBlock, EncoderBlock, Stack
from .losses import Counts, mean_over_step, smoothed_loss
from .packing import cross_attention_mask, packed_positions, self_attention_kwargs, self_attention_mask

# transformers calls the cache `past_key_values` up to 5.23 and `cache` since. `forward` takes both; outputs use CACHE.
CACHE = "cache" if "cache" in Seq2SeqLMOutput.__dataclass_fields__ else "past_key_values"

# Added to the logit of padding, which is never a target: its probability is then exactly zero in every dtype, and its
# row of the tied table gets no gradient. Not -inf: arithmetic on it gives nan.
PADDING_BIAS = -1e4


def level_padding(logits: Tensor, bias: Tensor) -> Tensor:
    """Logits (B, T, V) for a loss of somebody else's, in which padding's is the mean of the others less 20.

    Its probability vanishes, a mean over V hardly moves, and its row of the table gets no gradient.
    """
    low = bias < PADDING_BIAS / 2  # (1, V): padding, unless the weights come from a model that trained its row
    others = logits.masked_fill(low, 0.0)
    mean = others.mean(-1, keepdim=True) * (low.numel() / (~low).sum())
    return others.where(~low, mean - 20)


class KeelSeq2SeqPreTrainedModel(KeelTextPreTrainedModel):
    """What all seq2seq classes have in common.

    Packed rows come with `sequence_ids` (B, S) and `decoder_sequence_ids` (B, T), as packing.py says: a source and its
    target have the same id in the same row.
    """

    config_class = KeelSeq2SeqConfig
    base_model_prefix = "model"
    _no_split_modules = ["EncoderBlock", "DecoderBlock"]
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^final_logits_bias$"]

    def _resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Resizes every table; transformers would resize the encoder's alone."""
        for embeddings in self.token_embeddings():
            self._get_resized_embeddings(embeddings.tokens, *args, **kwargs)
        return super()._resize_token_embeddings(*args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KeelSeq2SeqForConditionalGeneration):
            init.copy_(module.final_logits_bias, module.padding_bias())

    def prepare_decoder_input_ids_from_labels(
        self, labels: Tensor, decoder_sequence_ids: Tensor | None = None
    ) -> Tensor:
        """Labels (B, T) shifted right by one, each example beginning with the start token (Vaswani 2017, 3)."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        shifted = labels.roll(1, 1)
        if decoder_sequence_ids is None:
            shifted[:, 0] = start
        else:
            shifted = shifted.where(packed_positions(decoder_sequence_ids) != 0, start)
            shifted = shifted.where(decoder_sequence_ids != 0, pad)
        return shifted.masked_fill(shifted == -100, pad)


class KeelSeq2SeqEncoder(KeelSeq2SeqPreTrainedModel):
    """Source tokens to memory: the states that the decoder attends to."""

    _can_record_outputs = {"hidden_states": EncoderBlock, "attentions": MultiHeadAttention}

    def __init__(self, config: KeelSeq2SeqConfig):
        super().__init__(config)
        self.embeddings = TokenEmbeddings(config)
        self.stack = Stack(config, EncoderBlock, config.encoder_layers)
        self.post_init()

    @strict
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutput:
        places = {"sequence_ids": sequence_ids, "attention_mask": attention_mask}
        x = self.embeddings(input_ids, inputs_embeds=inputs_embeds, **places)
        mask = self_attention_mask(self.config, x, attention_mask, sequence_ids, kwargs)
        return BaseModelOutput(last_hidden_state=self.stack(x, mask, **kwargs))


class KeelSeq2SeqDecoder(KeelSeq2SeqPreTrainedModel):
    """Target tokens and memory to the states of the next tokens."""

    _can_record_outputs = {
        "hidden_states": OutputRecorder(DecoderBlock, num_hidden_layers_key="decoder_layers"),
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="attention"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: KeelSeq2SeqConfig):
        super().__init__(config)
        self.embeddings = TokenEmbeddings(config)
        self.stack = Stack(config, DecoderBlock, config.decoder_layers)
        self.gradient_checkpointing = False  # transformers sets it, and then defaults to use_cache=False
        self.post_init()

    @strict
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        sequence_ids: Tensor | None = None,
        decoder_sequence_ids: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """`sequence_ids` (B, S) are the source's; `decoder_sequence_ids` (B, T), or (B, past + T) with a cache.

        Raises:
            ValueError: two caches; or a cache with gradient checkpointing, whose second pass would write keys twice.
        """
        if past_key_values is not None:
            if CACHE == "cache":
                warnings.warn("`past_key_values` is deprecated: pass it as `cache`.", FutureWarning, stacklevel=2)
            if cache is not None and cache is not past_key_values:
                raise ValueError("cache and past_key_values are two names of one argument: give one of them.")
            cache = past_key_values
        if cache is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            raise ValueError("Gradient checkpointing computes every layer twice, so it takes no cache: leave it out.")
        if use_cache and cache is None:
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        assert encoder_hidden_states is not None
        past = 0 if cache is None else cache.get_seq_length()
        places = {"sequence_ids": decoder_sequence_ids, "attention_mask": attention_mask, "past_length": past}
        x = self.embeddings(input_ids, inputs_embeds=inputs_embeds, **places)
        mask = self_attention_mask(self.config, x, attention_mask, decoder_sequence_ids, kwargs, True, cache)
        memory_mask = cross_attention_mask(
            self.config, x, encoder_hidden_states, encoder_attention_mask, sequence_ids, decoder_sequence_ids, kwargs
        )
        x = self.stack(x, mask, encoder_hidden_states, memory_mask, cache=cache, **kwargs)
        output: dict[str, Any] = {"last_hidden_state": x, CACHE: cache}
        return BaseModelOutputWithPastAndCrossAttentions(**output)


class KeelSeq2SeqModel(KeelSeq2SeqPreTrainedModel):
    """Encoder and decoder, with one token table or two."""

    _tied_weights_keys = {"decoder.embeddings.tokens.weight": "encoder.embeddings.tokens.weight"}

    def __init__(self, config: KeelSeq2SeqConfig):
        super().__init__(config)
        if not config.share_encoder_decoder_embeddings:
            self._tied_weights_keys = {}
        self.encoder = KeelSeq2SeqEncoder(config)
        self.decoder = KeelSeq2SeqDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embeddings.tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.encoder.embeddings.tokens = value
        if self.config.share_encoder_decoder_embeddings:
            self.decoder.embeddings.tokens = value

    @strict
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        sequence_ids: Tensor | None = None,
        decoder_sequence_ids: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Seq2SeqModelOutput:
        if encoder_outputs is None:
            inputs = (input_ids, attention_mask, inputs_embeds, sequence_ids)
            encoder_outputs = self.encoder(*inputs, return_dict=True, **self_attention_kwargs(kwargs, "k"))
        if isinstance(encoder_outputs, tuple):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        outputs = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs.last_hidden_state,
            attention_mask,
            cache,
            decoder_inputs_embeds,
            use_cache=use_cache,  # by name, or transformers' decorator would not see it
            sequence_ids=sequence_ids,
            decoder_sequence_ids=decoder_sequence_ids,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )


class KeelSeq2SeqForConditionalGeneration(KeelSeq2SeqPreTrainedModel, GenerationMixin):
    """Predicts the next target token; the output matrix is the decoder's token table (Vaswani 2017, 3.4)."""

    final_logits_bias: Tensor
    _tied_weights_keys = {
        "lm_head.weight": "model.encoder.embeddings.tokens.weight",
        "model.decoder.embeddings.tokens.weight": "model.encoder.embeddings.tokens.weight",
    }

    def __init__(self, config: KeelSeq2SeqConfig):
        super().__init__(config)
        if not config.share_encoder_decoder_embeddings:
            self._tied_weights_keys = {"lm_head.weight": "model.decoder.embeddings.tokens.weight"}
        self.model = KeelSeq2SeqModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("final_logits_bias", self.padding_bias())
        self.post_init()

    def padding_bias(self) -> Tensor:
        """(1, V): PADDING_BIAS for padding, 0 for every other token."""
        bias = torch.zeros(1, self.config.vocab_size)
        if self.config.pad_token_id is not None:
            bias[0, self.config.pad_token_id] = PADDING_BIAS
        return bias

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in transformers; the bias of new tokens is 0."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        old, size = self.final_logits_bias, embeddings.weight.shape[0]
        self.final_logits_bias = nn.functional.pad(old[:, :size], (0, max(0, size - old.shape[1])))
        return embeddings

    def alignment_weights(self, outputs: Seq2SeqModelOutput) -> Tensor:
        """(B, T, S): the attention weights of the head that learns word alignments (Garg 2019, 3.2).

        Raises:
            ValueError: the model has no such head, or the kernel gives no attention weights.
        """
        if self.config.alignment_layer is None:
            raise ValueError("alignment_layer is null: this model has no head that learns word alignments.")
        if not outputs.cross_attentions:
            raise ValueError(
                f"attn_implementation {self.config._attn_implementation} gives no attention weights, which alignments "
                "are: choose eager."
            )
        return outputs.cross_attentions[self.config.alignment_layer][:, 0]

    @torch.no_grad()
    def align(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Soft alignments (B, T, S) of sources (B, S) and targets (B, T), -100 for padding.

        Row t is a distribution over the source tokens that target token t translates.
        """
        start = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids, attention_mask, start, output_attentions=True, use_cache=False, return_dict=True
        )
        return self.alignment_weights(outputs)

    @strict
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: EncoderDecoderCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        alignment_labels: Tensor | None = None,
        use_cache: bool | None = None,
        sequence_ids: Tensor | None = None,
        decoder_sequence_ids: Tensor | None = None,
        num_items_in_batch: Counts = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Seq2SeqLMOutput:
        """
        Args:
            labels: (B, T), the target tokens, -100 for none; without `decoder_input_ids` these are made of them.
            alignment_labels: (B, T), the index of the source token that each target token is aligned with, -100 for
                none; with the `eager` kernel alone, which gives the attention weights that learn.
            num_items_in_batch: what the losses are divided by, as `losses.mean_over_step` says.

        Returns:
            Logits (B, T, V). Without `labels` and `use_cache` (which `generate` gives) somebody else may make a loss of
            them, with label smoothing too, as `Trainer` does: `level_padding` was applied.
        """
        if alignment_labels is not None:
            kwargs["output_attentions"] = True
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels, decoder_sequence_ids)
        outputs = self.model(  # in the order of KeelSeq2SeqModel.forward
            *(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, cache),
            *(inputs_embeds, decoder_inputs_embeds, use_cache, sequence_ids, decoder_sequence_ids, past_key_values),
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state) + self.final_logits_bias
        loss = None
        if labels is not None:
            smoothing = self.config.label_smoothing if self.training else 0.0
            loss = smoothed_loss(logits, labels, self.config.pad_token_id, smoothing, num_items_in_batch)
        if loss is not None and alignment_labels is not None:
            logprobs = self.alignment_weights(outputs).clamp(min=torch.finfo(logits.dtype).tiny).log()  # (B, T, S)
            total = nll_loss(logprobs.flatten(0, 1), alignment_labels.flatten(), reduction="sum")
            aligned = mean_over_step(total, alignment_labels, "alignment_labels", num_items_in_batch, labels)
            loss = loss + self.config.alignment_weight * aligned
        if use_cache is None:  # nor labels
            logits = level_padding(logits, self.final_logits_bias)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}  # under equal names
        return Seq2SeqLMOutput(loss=loss, logits=logits, **others)
