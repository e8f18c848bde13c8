"""BERT (Devlin 2018): an encoder over one or two segments, and its heads.

B batch, T tokens, D hidden size, V vocabulary, C classes, E the most sequences in a packed row, M tokens to predict.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .base import ForwardKwargs, KeelTextPreTrainedModel, strict
from .configuration import KeelBertConfig
from .embeddings import TokenEmbeddings
from .heads import ClassificationHead, MaskedLanguageModelHead, Pooler, pool, pool_windows
from .layers import EncoderBlock, Stack
from .losses import Counts, classification_loss, grouped_loss, labels_loss, training_targets
from .packing import first_tokens, flat_indices, self_attention_mask, takes_queries


class KeelBertPreTrainedModel(KeelTextPreTrainedModel):
    """What all BERT classes have in common.

    Their `forward` takes transformers' arguments and, for packed rows, `sequence_ids` (B, T) and optionally
    `sequence_starts` (B, E), as packing.py says; what is (B, ...) for sequences is then (B, E, ...). The loss is
    divided by `num_items_in_batch` as `losses.mean_over_step` says.
    """

    config_class = KeelBertConfig
    base_model_prefix = "bert"
    mlm: MaskedLanguageModelHead  # of the heads that predict tokens
    _can_record_outputs = {"hidden_states": EncoderBlock, "attentions": MultiHeadAttention}
    # A checkpoint of one head opens under every other class of the family.
    _keys_to_ignore_on_load_unexpected = [r"^mlm\.", r"^nsp\.", r"pooler\."]

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.mlm.decoder if hasattr(self, "mlm") else None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.mlm.decoder = new_embeddings


class KeelBertModel(KeelBertPreTrainedModel):
    """The encoder, and the pooled vector of each sequence."""

    def __init__(self, config: KeelBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = TokenEmbeddings(config)
        self.encoder = Stack(config, EncoderBlock, config.num_hidden_layers)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.post_init()

    @strict
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        sequence_starts: Tensor | None = None,
        logits_to_keep: Tensor | None = None,
        pooler_only: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state` (B, T, D) and `pooler_output` (B, D), or of packed rows (B, E, D).

        Args:
            logits_to_keep: (M,), as `Stack.forward` says: `last_hidden_state` is then (M, D).
            pooler_only: compute `pooler_output` alone; `last_hidden_state` is then unspecified.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, sequence_ids)
        mask = self_attention_mask(self.config, x, attention_mask, sequence_ids, kwargs)
        if self.pooler is None:
            x = self.encoder(x, mask, logits_to_keep=logits_to_keep, **kwargs)
            return BaseModelOutputWithPooling(last_hidden_state=x)
        if self.config.pooling == "cls" and (pooler_only or logits_to_keep is not None):
            # The pooler reads the first tokens: the encoder keeps these states too, or them alone.
            first = first_tokens(x, sequence_ids, sequence_starts)  # (B, 1) or (B, E)
            keep = x.new_empty(0, dtype=torch.long) if logits_to_keep is None else logits_to_keep
            if pooler_only and takes_queries(mask, kwargs):
                x = pooled = self.encoder(x, mask, queries=first, **kwargs)
            else:
                indices = torch.cat([keep, flat_indices(first, x.shape[1]).flatten()])
                x, pooled = self.encoder(x, mask, logits_to_keep=indices, **kwargs).tensor_split([len(keep)])
                pooled = pooled.unflatten(0, first.shape)  # (B, 1, D) or (B, E, D)
            pooled = pooled[:, 0] if sequence_ids is None else pooled
        else:
            x = self.encoder(x, mask, **kwargs)  # (B, T, D)
            pooled = pool(x, self.config.pooling, attention_mask, sequence_ids, sequence_starts)
            x = x if logits_to_keep is None else x.flatten(0, 1)[logits_to_keep]
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.pooler(pooled))


@dataclass
class KeelBertForPreTrainingOutput(ModelOutput):
    """Names of transformers' `BertForPreTrainingOutput`, and the two parts of the loss."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    mlm_loss: Tensor | None = None
    nsp_loss: Tensor | None = None


class KeelBertForPreTraining(KeelBertPreTrainedModel):
    """Masked tokens and next sentence together (Devlin 2018, 3.1): the sum of both losses."""

    _tied_weights_keys = {"mlm.decoder.weight": "bert.embeddings.tokens.weight"}

    def __init__(self, config: KeelBertConfig):
        super().__init__(config)
        self.bert = KeelBertModel(config)
        self.mlm = MaskedLanguageModelHead(config)
        self.nsp = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @strict
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        sequence_starts: Tensor | None = None,
        num_items_in_batch: Counts = None,
        logits_to_keep: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> KeelBertForPreTrainingOutput:
        """
        Args:
            labels: (B, T), the token to predict, -100 for none.
            next_sentence_label: (B,) or (B, E); 0: B follows A, 1: it does not, -100: no pair.
            logits_to_keep: (M,), the flat indices of all labels: `prediction_logits` are (M, V), not (B, T, V).
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, sequence_ids, sequence_starts, logits_to_keep, return_dict=True, **kwargs)
        targets = labels if labels is None or logits_to_keep is None else labels.flatten()[logits_to_keep]
        prediction_logits = self.mlm(outputs.last_hidden_state)
        relationship_logits = self.nsp(outputs.pooler_output)
        mlm_loss = nsp_loss = loss = None
        if targets is not None:
            loss = mlm_loss = classification_loss(prediction_logits, targets, "labels", num_items_in_batch)
        if next_sentence_label is not None:
            nsp_loss = classification_loss(
                relationship_logits, next_sentence_label, "next_sentence_label", num_items_in_batch, targets
            )
            loss = nsp_loss if loss is None else loss + nsp_loss
        return KeelBertForPreTrainingOutput(
            loss=loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            mlm_loss=mlm_loss,
            nsp_loss=nsp_loss,
        )


class KeelBertForMaskedLM(KeelBertPreTrainedModel):
    """Masked tokens alone."""

    _tied_weights_keys = {"mlm.decoder.weight": "bert.embeddings.tokens.weight"}

    def __init__(self, config: KeelBertConfig):
        super().__init__(config)
        self.bert = KeelBertModel(config, add_pooling_layer=False)
        self.mlm = MaskedLanguageModelHead(config)
        self.post_init()

    @strict
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        sequence_starts: Tensor | None = None,
        num_items_in_batch: Counts = None,
        logits_to_keep: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> MaskedLMOutput:
        """`labels` (B, T), -100 for none; `logits_to_keep` (M,) as for `KeelBertForPreTraining`."""
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, sequence_ids, sequence_starts, logits_to_keep, return_dict=True, **kwargs)
        targets = labels if labels is None or logits_to_keep is None else labels.flatten()[logits_to_keep]
        logits = self.mlm(outputs.last_hidden_state)
        loss = None
        if targets is not None:
            loss = classification_loss(logits, targets, "labels", num_items_in_batch)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Heads for fine-tuning, and next sentence alone


def check_packed(sequence_ids: Tensor | None, example_ids: Tensor | None) -> None:
    """Raises ValueError for `example_ids` (B, E) where no sequences share a row."""
    if sequence_ids is None and example_ids is not None:
        raise ValueError("example_ids number the sequences of packed rows: give sequence_ids too, or drop them.")


def records(config: PreTrainedConfig, kwargs: Mapping) -> bool:
    """Whether somebody asks for states or attentions: those are of all tokens, also where a head reads few."""
    return any(kwargs.get(name, getattr(config, name)) for name in ("output_hidden_states", "output_attentions"))


class KeelBertForLabels(KeelBertPreTrainedModel):
    """What the heads of `labels` alone have in common: how inputs become logits, and labels a loss."""

    output_class: type[ModelOutput]
    reads_pooled: ClassVar[bool] = False
    """The head reads the pooled states alone."""
    bert: KeelBertModel

    def compute_logits(self, outputs: BaseModelOutputWithPooling) -> Tensor:
        raise NotImplementedError

    def pool_windows(self, logits: Tensor, example_ids: Tensor) -> Tensor:
        raise ValueError(f"{type(self).__name__} does not bring windows of one text together: drop example_ids.")

    def compute_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Counts) -> Tensor:
        return classification_loss(logits, labels, "labels", num_items_in_batch)

    @strict
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        sequence_starts: Tensor | None = None,
        num_items_in_batch: Counts = None,
        example_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Any:
        """`labels` and `example_ids` as the class says; the output has `loss`, `logits`, `hidden_states`, `attentions`.

        Raises:
            ValueError: `example_ids` of rows that are not packed, or of a class that does not say what they mean.
        """
        check_packed(sequence_ids, example_ids)
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        pooler_only = self.reads_pooled and not records(self.config, kwargs)
        outputs = self.bert(*inputs, sequence_ids, sequence_starts, pooler_only=pooler_only, return_dict=True, **kwargs)
        logits = self.compute_logits(outputs)
        if example_ids is not None:
            logits = self.pool_windows(logits, example_ids)
            logits = logits if labels is None else logits[: len(labels)]
        loss = None if labels is None else self.compute_loss(logits, labels, num_items_in_batch)
        return self.output_class(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class KeelBertForNextSentencePrediction(KeelBertForLabels):
    """Next sentence alone. `labels` (B,) or (B, E); 0: B follows A, 1: it does not, -100: no pair."""

    output_class = NextSentencePredictorOutput
    reads_pooled = True

    def __init__(self, config: KeelBertConfig):
        super().__init__(config)
        self.bert = KeelBertModel(config)
        self.nsp = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def compute_logits(self, outputs: BaseModelOutputWithPooling) -> Tensor:
        return self.nsp(outputs.pooler_output)


class KeelBertForSequenceClassification(KeelBertForLabels):
    """A class, several classes or a number for each sequence, or for each text of several sequences.

    `labels` (B,) or (B, E) of classes or numbers, (B, C) or (B, E, C) of zeros and ones for several classes at once;
    -100 for none. `example_ids` (B, E) of packed rows: sequences of the batch that bear one number 1, 2, ... G are
    windows of one text, 0 for none. Their logits are brought together as `config.window_pooling` says: `logits` (G, C)
    have text g in row g - 1, and `labels` are (G,) or (G, C). Without labels `logits` have B * E rows, the last empty.
    """

    output_class = SequenceClassifierOutput
    reads_pooled = True

    def __init__(self, config: KeelBertConfig):
        super().__init__(config)
        self.bert = KeelBertModel(config)
        self.classifier = ClassificationHead(config)
        self.post_init()

    def compute_logits(self, outputs: BaseModelOutputWithPooling) -> Tensor:
        return self.classifier(outputs.pooler_output)

    def pool_windows(self, logits: Tensor, example_ids: Tensor) -> Tensor:
        return pool_windows(logits, example_ids, self.config.window_pooling)

    def compute_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Counts) -> Tensor:
        return labels_loss(
            self.config, logits, labels, num_items_in_batch, **training_targets(self.config, self.training)
        )


class KeelBertForTokenClassification(KeelBertForLabels):
    """A class for each token. `labels` (B, T), -100 for none."""

    output_class = TokenClassifierOutput

    def __init__(self, config: KeelBertConfig):
        super().__init__(config)
        self.bert = KeelBertModel(config, add_pooling_layer=False)
        self.classifier = ClassificationHead(config)
        self.post_init()

    def compute_logits(self, outputs: BaseModelOutputWithPooling) -> Tensor:
        return self.classifier(outputs.last_hidden_state)

    def compute_loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Counts) -> Tensor:
        return classification_loss(
            logits, labels, "labels", num_items_in_batch, **training_targets(self.config, self.training)
        )


class KeelBertForQuestionAnswering(KeelBertPreTrainedModel):
    """Where the answer starts and ends (Devlin 2018, 4.2)."""

    def __init__(self, config: KeelBertConfig):
        super().__init__(config)
        self.bert = KeelBertModel(config, add_pooling_layer=False)
        self.span = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @strict
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        num_items_in_batch: Counts = None,
        sequence_ids: Tensor | None = None,
        sequence_starts: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> QuestionAnsweringModelOutput:
        """
        Args:
            start_positions, end_positions: (B,); a position outside the tokens is left out of the loss. Of packed rows
                (B, E): places in the row, each inside its own sequence, -100 for none. The softmax runs over the tokens
                of that sequence alone.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        outputs = self.bert(*inputs, sequence_ids, sequence_starts, return_dict=True, **kwargs)
        start_logits, end_logits = self.span(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            targets = {"start_positions": start_positions, "end_positions": end_positions}
            losses = []
            for (name, target), logits in zip(targets.items(), (start_logits, end_logits), strict=True):
                if sequence_ids is None:
                    inside = (target >= 0) & (target < logits.shape[1])
                    losses.append(classification_loss(logits, target.where(inside, -100), name, num_items_in_batch))
                else:
                    losses.append(grouped_loss(logits, sequence_ids, target, name, num_items_in_batch))
            loss = torch.stack(losses).mean()
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class KeelBertForMultipleChoice(KeelBertPreTrainedModel):
    """The best of several continuations, each of which is scored by itself."""

    def __init__(self, config: KeelBertConfig):
        super().__init__(config)
        self.bert = KeelBertModel(config)
        self.classifier = ClassificationHead(config, 1)
        self.post_init()

    @strict
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Counts = None,
        sequence_ids: Tensor | None = None,
        sequence_starts: Tensor | None = None,
        example_ids: Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> MultipleChoiceModelOutput:
        """Inputs (B, choices, T) instead of (B, T), or packed rows (B, T), a sequence for each choice.

        Args:
            labels: (B,), the index of the right choice. Of packed rows (G,): for question g in place g - 1 the place of
                its right choice among all B * E sequences, a row after another; -100 for none.
            example_ids: (B, E), the number 1, 2, ... G of the question of the batch that a sequence is a choice of, 0
                for none; the softmax runs over the choices of one question. `logits` are (B, E).

        Raises:
            ValueError: labels of packed rows without `example_ids`, or `example_ids` of rows that are not packed.
        """
        check_packed(sequence_ids, example_ids)
        inputs = [input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds]
        if sequence_ids is None:
            inputs = [None if x is None else x.flatten(0, 1) for x in inputs]  # (B, choices, T) -> (B * choices, T)
        pooler_only = not records(self.config, kwargs)
        outputs = self.bert(*inputs, sequence_ids, sequence_starts, pooler_only=pooler_only, return_dict=True, **kwargs)
        logits = self.classifier(outputs.pooler_output).squeeze(-1)  # (B * choices,) or (B, E)
        if sequence_ids is None:
            tokens = inputs_embeds if input_ids is None else input_ids
            assert tokens is not None  # the embeddings take one of them
            logits = logits.view(tokens.shape[:2])  # (B, choices)
        loss = None
        if labels is not None and sequence_ids is None:
            loss = classification_loss(logits, labels, "labels", num_items_in_batch)
        elif labels is not None:
            if example_ids is None:
                raise ValueError("labels of packed choices need example_ids: which sequences are of one question.")
            scores, questions = logits.flatten()[None], example_ids.flatten()[None]  # (1, B * E)
            loss = grouped_loss(scores, questions, labels[None], "labels", num_items_in_batch)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
