"""What a model has written, compared with what it should have: `evaluate`'s interface, with no download."""

from collections.abc import Sequence

import evaluate
from datasets import Features, Value
from sacrebleu.metrics import BLEU, CHRF

from pretraining.errors import UserError, one_line


class TextMetric(evaluate.Metric):
    """A measure of predicted against reference texts, one reference each."""

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("string"), "references": Value("string")})
        return evaluate.MetricInfo(description=type(self).__doc__ or "", citation="", features=features)

    def signature(self) -> str:
        """By what rules it is computed, as papers print it."""
        return ""

    def score(self, predictions: Sequence[str], references: Sequence[str]) -> float:
        """The measure as a number."""
        return float(self.compute(predictions=predictions, references=references)["score"])


def signature_of(metric: BLEU | CHRF) -> str:
    metric.corpus_score([""], [[""]])  # only then does it know the number of references
    return str(metric.get_signature())


class Bleu(TextMetric):
    """SacreBLEU of the corpus (Post 2018), 0 to 100: cased.

    Args:
        tokenize: sacreBLEU's name of how texts are cut into what is counted.

    Raises:
        UserError: that way needs a package which is not installed.
    """

    def __init__(self, tokenize: str = "13a"):
        super().__init__()
        try:
            self.rules = BLEU(tokenize=tokenize)
        except (ImportError, RuntimeError) as error:
            package = tokenize.removesuffix("-mecab")
            raise UserError(
                f"sacreBLEU cannot tokenise by {tokenize} ({one_line(error)}): pip install 'sacrebleu[{package}]'."
            ) from error

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"score": self.rules.corpus_score(predictions, [references]).score}

    def signature(self) -> str:
        return signature_of(self.rules)


class ChrF(TextMetric):
    """Character n-gram F-score of the corpus (Popovic 2015), 0 to 100."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"score": CHRF().corpus_score(predictions, [references]).score}

    def signature(self) -> str:
        return signature_of(CHRF())


class ExactMatch(TextMetric):
    """Share of the texts that are equal to their reference, 0 to 1."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        equal = [one == other for one, other in zip(predictions, references, strict=True)]
        return {"score": sum(equal) / len(equal)}
