"""The three families' configurations: what they share, once, and then each one's own fields."""

import hashlib
import math
from dataclasses import field, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

import transformers

if int(transformers.__version__.split(".")[0]) < 5:  # before an import of what only 5 has: this file is read first
    raise RuntimeError(
        f"this model needs transformers 5, and this is {transformers.__version__}: pip install -U transformers"
    )

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

# Which numbers a field may have, whichever family it is of; a field may also be None, its default.
AT_LEAST_1 = (
    *("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "encoder_layers"),
    *("decoder_layers", "vocab_size", "max_position_embeddings", "image_size", "patch_size", "num_channels"),
    *("position_grid_size", "decoder_hidden_size", "decoder_num_attention_heads", "decoder_intermediate_size"),
)
AT_LEAST_0 = ("type_vocab_size", "alignment_weight", "decoder_num_hidden_layers")
SHARES = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "classifier_dropout"),
    "label_smoothing",
)
ABOVE_0 = ("layer_norm_eps", "initializer_range")
STAMP = "\n# The code beside this file: "


def check_range(config: PreTrainedConfig) -> None:
    """Raises ValueError for the first number that is out of its field's range."""
    for names, rule, holds in (
        (AT_LEAST_1, "at least 1", lambda value: value >= 1),
        (AT_LEAST_0, "at least 0", lambda value: value >= 0),
        (SHARES, "at least 0 and below 1", lambda value: 0 <= value < 1),
        (ABOVE_0, "above 0", lambda value: value > 0),
    ):
        for name in names:
            value = getattr(config, name, None)
            if value is not None and not isinstance(value, int | float):  # ViTConfig takes image_size=(16, 1024)
                raise ValueError(f"{name}={value!r} must be one number.")
            if value is not None and not holds(value):
                raise ValueError(f"{name}={value} must be {rule}.")


def check_choices(config: PreTrainedConfig) -> None:
    """Raises ValueError for the first field whose value is none of those that its Literal names."""
    for each in fields(config):
        choices, value = get_args(each.type), getattr(config, each.name)
        if get_origin(each.type) is Literal and value not in choices:
            raise ValueError(f"{each.name}={value!r} is unknown; there are: {', '.join(map(str, choices))}.")


def check_class_weights(config: PreTrainedConfig) -> None:
    """Raises ValueError for class_weights that are not a number at least 0 for each class."""
    weights: list[float] | None = config.class_weights  # type: ignore[attr-defined]
    if weights is None:
        return
    if config.problem_type == "regression" or config.num_labels == 1:
        raise ValueError(f"class_weights={weights} are for classes, and regression has none: leave them out.")
    if len(weights) != config.num_labels:
        raise ValueError(f"class_weights={weights} are {len(weights)} numbers for {config.num_labels} classes.")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"class_weights={weights} must be at least 0 and finite.")


def check_multiple(config: PreTrainedConfig, name: str, divisor: str, why: str) -> None:
    """Raises ValueError if the one field is no multiple of the other."""
    value, by = getattr(config, name), getattr(config, divisor)
    if value % by:
        raise ValueError(f"{name}={value} is no multiple of {divisor}={by}: {why}.")


class KeelConfig(PreTrainedConfig):
    """Fields that BERT, the encoder-decoder Transformer and ViT have in common.

    Raises:
        ValueError: a number is out of its range, a name is unknown, or two fields do not suit each other.
    """

    hidden_size: int = 768
    """Width of the residual stream."""
    num_attention_heads: int = 12
    """Attention heads of each layer; must divide hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layers."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward layers, by its name in transformers."""
    hidden_dropout_prob: float | int = 0.1
    """Dropout of the embeddings and of every residual branch."""
    attention_probs_dropout_prob: float | int = 0.1
    """Dropout of the attention weights."""
    drop_path_rate: float | int = 0.0
    """Stochastic depth (Huang 2016, 3): share of examples that skip the last layer's residual branches while training.
    It grows linearly from 0 at the first layer."""
    qkv_bias: bool = True
    """Biases in the query, key and value projections."""
    norm_position: Literal["post", "pre"] = "post"
    """LayerNorm after each residual sum (post, as in Vaswani 2017) or before each branch (pre)."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every LayerNorm."""
    initializer: Literal["truncated_normal", "xavier_uniform"] = "truncated_normal"
    """How matrices start: a normal cut at two stds (Devlin 2018), or Glorot's uniform."""
    initializer_range: float | None = 0.02
    """Std of embeddings and of truncated_normal matrices; null: hidden_size ** -0.5."""

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_range(self)
        check_choices(self)
        check_multiple(self, "hidden_size", "num_attention_heads", "every head takes an equal share of the width")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown; there are: {', '.join(ACT2FN)}.")
        if self.initializer_range is None:
            self.initializer_range = self.hidden_size**-0.5

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the copy of this file ends with a hash of the code beside it.

        transformers knows code by this file alone: a second checkpoint of other code would run the first one's.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        own = Path(save_directory, "configuration.py")
        if own.exists():  # not where a subclass is saved, which nobody registered
            others = [path.read_bytes() for path in sorted(own.parent.glob("*.py")) if path != own]
            code = own.read_text(encoding="utf-8").partition(STAMP)[0]
            own.write_text(code + STAMP + hashlib.sha256(b"".join(others)).hexdigest() + "\n", encoding="utf-8")


class KeelTextConfig(KeelConfig):
    """Fields of the families that read tokens."""

    vocab_size: int = 30522
    """Entries of each token table."""
    max_position_embeddings: int = 512
    """Positions in the table: the longest sequence."""
    position_embedding_type: Literal["learned", "sinusoidal"] = "learned"
    """Positions learned (Devlin 2018) or fixed sinusoids (Vaswani 2017, 3.5)."""
    type_vocab_size: int = 0
    """Segments (sentence A, sentence B); 0: none."""
    embedding_norm: bool = False
    """LayerNorm after the sum of the embeddings."""
    scale_embedding: bool = False
    """Multiply token embeddings by sqrt(hidden_size) (Vaswani 2017, 3.4)."""


class KeelBertConfig(KeelTextConfig):
    """BERT (Devlin 2018): the defaults are its base size."""

    model_type = "keel-bert"
    # The parts of the loss are for logging: Trainer must not gather them as predictions.
    keys_to_ignore_at_inference = ["mlm_loss", "nsp_loss"]

    num_hidden_layers: int = 12
    """Encoder layers."""
    type_vocab_size: int = 2
    embedding_norm: bool = True
    pooling: Literal["cls", "mean"] = "cls"
    """What stands for the whole sequence: its first token, or the mean of its tokens."""
    classifier_dropout: float | int | None = None
    """Dropout before a fine-tuning head; null: hidden_dropout_prob."""
    window_pooling: Literal["mean", "max"] = "mean"
    """What stands for a text of several windows, when it is classified: the mean of their logits, or the largest."""
    label_smoothing: float | int = 0.0
    """Share of the class's target spread over all classes while training (Szegedy 2015, 7), of texts and of tokens."""
    class_weights: list[float | int] | None = None
    """Weight of each class's targets in the loss of training, of texts and of tokens. The weighted sum is divided by
    the number of targets, not by the sum of their weights; the balanced weights of scikit-learn sum to that number over
    the training data. Where a text has several classes: the weight of a present class, beside 1 of an absent one."""
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    tie_word_embeddings: bool = True
    auto_map: dict = field(
        default_factory=lambda: {
            "AutoConfig": "configuration.KeelBertConfig",
            "AutoModel": "bert.KeelBertModel",
            "AutoModelForPreTraining": "bert.KeelBertForPreTraining",
            "AutoModelForMaskedLM": "bert.KeelBertForMaskedLM",
            "AutoModelForNextSentencePrediction": "bert.KeelBertForNextSentencePrediction",
            "AutoModelForSequenceClassification": "bert.KeelBertForSequenceClassification",
            "AutoModelForTokenClassification": "bert.KeelBertForTokenClassification",
            "AutoModelForQuestionAnswering": "bert.KeelBertForQuestionAnswering",
            "AutoModelForMultipleChoice": "bert.KeelBertForMultipleChoice",
        }
    )

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_class_weights(self)


class KeelSeq2SeqConfig(KeelTextConfig):
    """The encoder-decoder Transformer (Vaswani 2017): the defaults are its base size."""

    model_type = "keel-seq2seq"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # two names of one output
    attribute_map = {"num_hidden_layers": "encoder_layers"}

    vocab_size: int = 37000
    share_encoder_decoder_embeddings: bool = True
    """One token table for encoder, decoder and output; False: the encoder has a table and a vocabulary of its own."""
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    encoder_layers: int = 6
    """Encoder layers."""
    decoder_layers: int = 6
    """Decoder layers."""
    hidden_act: str = "relu"
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-5
    initializer: Literal["truncated_normal", "xavier_uniform"] = "xavier_uniform"
    initializer_range: float | None = None
    max_position_embeddings: int = 1024
    position_embedding_type: Literal["learned", "sinusoidal"] = "sinusoidal"
    scale_embedding: bool = True
    label_smoothing: float | int = 0.0
    """Share of the target spread over the vocabulary while training (Vaswani 2017, 5.4)."""
    alignment_layer: int | None = None
    """Decoder layer (the first is 0) whose first cross-attention head learns word alignments (Garg 2019, 3.2)."""
    alignment_weight: float | int = 0.05
    """Weight of the alignment loss beside the tokens' (Garg 2019, 4.2)."""
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 36999
    bos_token_id: int | None = None
    eos_token_id: int | None = 0
    decoder_start_token_id: int | None = 36999
    tie_word_embeddings: bool = True
    auto_map: dict = field(
        default_factory=lambda: {
            "AutoConfig": "configuration.KeelSeq2SeqConfig",
            "AutoModel": "seq2seq.KeelSeq2SeqModel",
            "AutoModelForSeq2SeqLM": "seq2seq.KeelSeq2SeqForConditionalGeneration",
        }
    )

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.alignment_layer is not None and not 0 <= self.alignment_layer < self.decoder_layers:
            raise ValueError(
                f"alignment_layer={self.alignment_layer}, but the decoder's layers are 0 to {self.decoder_layers - 1}."
            )


class KeelViTConfig(KeelConfig):
    """ViT (Dosovitskiy 2020): the defaults are its base size with patches of 16."""

    model_type = "keel-vit"

    image_size: int = 224
    """Height and width of the images, in pixels."""
    patch_size: int = 16
    """Height and width of a patch, in pixels; must divide image_size."""
    num_channels: int = 3
    """Channels of the images: 3 (RGB) or 1 (grey; transformers' pipelines always give 3)."""
    num_hidden_layers: int = 12
    """Encoder layers."""
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    norm_position: Literal["post", "pre"] = "pre"
    initializer: Literal["truncated_normal", "xavier_uniform"] = "xavier_uniform"
    position_embedding_type: Literal["learned", "sincos2d"] = "learned"
    """Positions learned (Dosovitskiy 2020) or fixed sines and cosines of both coordinates (Chen 2021; He 2021)."""
    position_grid_size: int | None = None
    """Patches on a side of the grid that sincos2d positions span; null: image_size / patch_size. It stays when
    `resize_position_embeddings` changes the image's size: a larger image spans the same square more finely."""
    pooling: Literal["cls", "mean"] = "cls"
    """What stands for the image: a class token, or (with no such token) the mean of its patches."""
    label_smoothing: float | int = 0.0
    """Share of the class's target spread over all classes while training (Szegedy 2015, 7)."""
    class_weights: list[float | int] | None = None
    """Weight of each class's targets in the loss of training, which is divided as keel-bert's is."""
    reconstruction_target: Literal["pixels", "normalized_pixels", "mean_color"] = "pixels"
    """What is predicted of a masked patch: its pixels (SimMIM: Xie 2021, 3.4), its pixels normalised by their mean and
    std (MAE: He 2021, 3), or the class of its mean color, three bits a channel (Dosovitskiy 2020, B.1.2)."""
    decoder_num_hidden_layers: int = 0
    """Layers of the decoder for masked images; the encoder then sees the visible patches alone (MAE: He 2021, 3).
    0: no decoder, and the encoder sees mask tokens (SimMIM: Xie 2021)."""
    decoder_hidden_size: int = 512
    """Width of the decoder."""
    decoder_num_attention_heads: int = 16
    """Attention heads of the decoder; must divide decoder_hidden_size."""
    decoder_intermediate_size: int = 2048
    """Width of the decoder's feed-forward layers."""
    auto_map: dict = field(
        default_factory=lambda: {
            "AutoConfig": "configuration.KeelViTConfig",
            "AutoModel": "vit.KeelViTModel",
            "AutoModelForImageClassification": "vit.KeelViTForImageClassification",
            "AutoModelForMaskedImageModeling": "vit.KeelViTForMaskedImageModeling",
        }
    )

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_class_weights(self)
        check_multiple(self, "image_size", "patch_size", "the patches must cover the image")
        sincos2d = ["hidden_size"] if self.position_embedding_type == "sincos2d" else []
        if self.decoder_num_hidden_layers:
            check_multiple(
                self, "decoder_hidden_size", "decoder_num_attention_heads", "every head takes an equal share"
            )
            sincos2d.append("decoder_hidden_size")  # the decoder's positions are always fixed
        for name in sincos2d:
            if getattr(self, name) % 4:
                raise ValueError(
                    f"{name}={getattr(self, name)} is no multiple of 4: sincos2d positions are the sine and the cosine "
                    "of each of two coordinates."
                )
