"""The settings of every objective; nothing heavy is imported here, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pretraining.data.images.settings import AugmentSettings, MixingSettings
from pretraining.data.settings import between
from pretraining.errors import UserError

if TYPE_CHECKING:
    from pretraining.settings import Settings


class ObjectiveSettings:
    """What the settings of every objective have in common; the fields are each objective's own."""

    name: str
    unit: ClassVar[str] = "tokens"
    """What is counted: of an example's length, a row's and the run's speed."""
    resume_exempt: ClassVar[tuple[str, ...]] = ()
    """Settings that change no step, only what is told or handed over at the end: a resumed run may change them."""

    @property
    def row_size(self) -> int:
        """Units in a row, on the side that has more of them."""
        raise NotImplementedError

    def check(self, run: "Settings") -> None:
        """Raises UserError where these settings and the run's others do not go together."""

    def searches(self, run: "Settings") -> str:
        """The setting by which texts are generated during a run; empty: none, and no search needs whole weights."""
        return ""


class TokenObjectiveSettings(ObjectiveSettings):
    """What objectives of tokens have in common."""

    sequence_length: int
    row_length: int | None

    @property
    def row_size(self) -> int:
        return self.row_length or self.sequence_length

    def check(self, run: "Settings") -> None:
        if self.sequence_length > run.model.max_position_embeddings:  # type: ignore[attr-defined]
            raise UserError(
                f"objective.sequence_length is {self.sequence_length}, beyond the model's position table: set "
                f"model.max_position_embeddings to at least {self.sequence_length}."
            )
        if run.tokenizer.separate and self.name != "translation":
            raise UserError(
                f"tokenizer.separate is for pairs, and objective.name is {self.name}, which reads and writes one kind "
                "of text: leave it out, and start from no checkpoint that has it."
            )


@dataclass(frozen=True)
class SentencePairsSettings(TokenObjectiveSettings):
    """MLM and NSP on pairs of sentences (Devlin 2018, 3.1)."""

    name: Literal["sentence_pairs"] = "sentence_pairs"
    """The objective."""
    next_sentence: Literal["nsp", "sop", "none"] = "nsp"
    """Second loss: `nsp` (B follows A, or comes from another document), `sop` (the whole sentences of A and B in
    order, or exchanged: Lan 2019, 3.1) or `none` (one segment, masked tokens alone)."""
    sequence_length: int = 128
    """Longest example in tokens, special tokens included."""
    row_length: int | None = None
    """Tokens in a packed row; null: sequence_length."""
    short_sequence_rate: float = 0.1
    """Share of the chunks cut to a random shorter length (Devlin 2018, released code)."""
    mask_rate: float = 0.15
    """Share of the tokens to predict."""
    mask_rate_end: float | None = None
    """Masking rate that the run ends with, on a line from `mask_rate` (Yang 2022); null: `mask_rate` throughout."""
    mask_token_rate: float = 0.8
    """Of the tokens to predict, the share that is replaced by [MASK]."""
    random_token_rate: float = 0.1
    """Of the tokens to predict, the share that is replaced by a random token; the rest is kept."""
    whole_words: bool = False
    """Mask whole words instead of single tokens."""
    unigram_bias: bool = True
    """Start the output biases at the logarithm of each token's frequency, so that no step is spent on learning it."""

    def __post_init__(self) -> None:
        for name in ("short_sequence_rate", "mask_rate", "mask_token_rate", "random_token_rate"):
            between(f"objective.{name}", getattr(self, name), 0, 1)
        between("objective.mask_rate_end", self.mask_rate_end or 0, 0, 1)
        between(
            "objective.mask_token_rate + objective.random_token_rate",
            self.mask_token_rate + self.random_token_rate,
            0,
            1,
        )
        between("objective.sequence_length", self.sequence_length, 8)
        between("objective.row_length", self.row_size, self.sequence_length)
        object.__setattr__(self, "row_length", self.row_size)  # what null stands for, in the contract too


@dataclass(frozen=True)
class Seq2SeqSettings(TokenObjectiveSettings):
    """Lengths, and how the texts that a model generates are scored."""

    resume_exempt = ("beams", "length_penalty")

    sequence_length: int = 128
    """Longest source or target in tokens, their end token included."""
    row_length: int | None = None
    """Tokens in a packed row, on the side that has more of them; null: as the data's lengths ask for."""
    metric: Literal["loss", "bleu", "chrf", "exact_match"] = "loss"
    """The metric that decides which checkpoint is best."""
    bleu_tokenize: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char"] = "13a"
    """How sacreBLEU cuts the targets into words: zh, ja-mecab, ko-mecab or char for those without spaces."""
    generate_examples: int = 256
    """Number of held-out examples whose target the model generates at each evaluation, greedily; 0: none."""
    beams: int = 4
    """Number of beams with which the exported model generates the held-out targets at the end, and by default ever
    after."""
    length_penalty: float = 1.0
    """Exponent of its length by which a beam's log-probability is divided."""

    def __post_init__(self) -> None:
        between("objective.sequence_length", self.sequence_length, 4)
        between("objective.row_length", self.row_size, self.sequence_length)
        between("objective.generate_examples", self.generate_examples, 0)
        between("objective.beams", self.beams, 1)
        if self.metric != "loss" and not self.generate_examples:
            raise UserError(
                f"objective.metric is {self.metric}, which is of generated texts: set objective.generate_examples."
            )

    def searches(self, run: "Settings") -> str:
        counts = {
            "objective.generate_examples": self.generate_examples,
            "evaluation.samples": run.evaluation.samples,
        }
        return next((f"{name} above 0" for name, count in counts.items() if count), "")


@dataclass(frozen=True)
class TranslationSettings(Seq2SeqSettings):
    """Pairs: a source, and the target to be written for it."""

    name: Literal["translation"] = "translation"
    """The objective."""
    max_ratio: float = 9.0
    """Pairs of which one side has more than so many times the other's tokens are left out; 0: none are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        between("objective.max_ratio", self.max_ratio, 0)


@dataclass(frozen=True)
class DenoisingSettings(Seq2SeqSettings):
    """Plain text, damaged; the model writes what it was."""

    name: Literal["denoising"] = "denoising"
    """The objective."""
    generate_examples: int = 0
    noise_rate: float = 0.3
    """Share of the tokens that are hidden (BART 0.3, T5 0.15)."""
    mean_span: float = 3.0
    """Tokens of a hidden span in the mean; each span becomes one mask."""
    permute_sentences: bool = True
    """Shuffle the sentences of the damaged text."""
    target: Literal["text", "spans"] = "text"
    """What is to be written: the whole text (BART), or the hidden spans, each behind a mask (T5)."""
    short_sequence_rate: float = 0.1
    """Share of the chunks cut to a random shorter length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise_rate", "short_sequence_rate"):
            between(f"objective.{name}", getattr(self, name), 0, 1)
        between("objective.mean_span", self.mean_span, 1)


@dataclass(frozen=True)
class ImageObjectiveSettings(ObjectiveSettings):
    """How pixels become the model's input."""

    unit = "images"

    resample: Literal["bilinear", "bicubic"] = "bicubic"
    """How an image is resized."""
    image_mean: list[float] = field(default_factory=list)
    """What is subtracted from each channel's pixels, which are from 0 to 1; empty: the training images' mean, or what
    the checkpoint of init_from was trained with."""
    image_std: list[float] = field(default_factory=list)
    """What they are divided by; empty: their std, likewise."""

    @property
    def row_size(self) -> int:
        return 1

    def check(self, run: "Settings") -> None:
        if run.train.tokens is not None:
            raise UserError(
                f"train.tokens is {run.train.tokens}, and images have no tokens: give the run its budget by "
                "train.epochs, train.steps or train.minutes."
            )
        for name in ("image_mean", "image_std"):
            given, channels = getattr(self, name), run.model.num_channels  # type: ignore[attr-defined]
            if given and len(given) != channels:
                raise UserError(
                    f"objective.{name} has {len(given)} numbers, and model.num_channels is {channels}: give one for "
                    "each."
                )
        if self.image_std and min(self.image_std) <= 0:
            raise UserError(f"objective.image_std is {self.image_std}: each must be above 0.")


@dataclass(frozen=True)
class ClassificationSettings(MixingSettings, ImageObjectiveSettings):
    """Images and their classes; beside these, model.label_smoothing, model.drop_path_rate and optim.ema."""

    name: Literal["classification"] = "classification"
    """The objective."""
    metric: Literal["accuracy", "loss"] = "accuracy"
    """The metric that decides which checkpoint is best."""


@dataclass(frozen=True)
class MaskedImagesSettings(AugmentSettings, ImageObjectiveSettings):
    """Images, parts of which are hidden and predicted."""

    name: Literal["masked_images"] = "masked_images"
    """The objective."""
    mask_ratio: float = 0.6
    """Share of the patches that are hidden (SimMIM 0.6, MAE 0.75)."""
    mask_size: int = 1
    """Patches on each side of a square that is hidden as one (SimMIM: 32 pixels' worth)."""
    probe_examples: int = 0
    """Number of training images on whose classes a linear probe and a nearest-neighbour classifier are fitted at the
    end, to score the frozen features; 0: no labels are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"objective.mask_ratio is {self.mask_ratio}: it must be above 0 and below 1.")
        between("objective.mask_size", self.mask_size, 1)
        between("objective.probe_examples", self.probe_examples, 0)

    def check(self, run: "Settings") -> None:
        super().check(run)
        model: Any = run.model
        side = model.image_size // model.patch_size
        if side % self.mask_size or side == self.mask_size:
            raise UserError(
                f"objective.mask_size is {self.mask_size}, and an image is {side} patches on each side: it must divide "
                "them, and be fewer, so that some are seen."
            )
