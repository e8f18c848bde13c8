"""GLUE's nine tasks (Wang 2018): columns, classes, official metrics, and what its site wants to be handed in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GlueTask:
    """One task, as the Hub's `nyu-mll/glue` names its parts."""

    columns: tuple[str, ...]
    """The text's column, or those of the two texts, in their order."""
    classes: tuple[str, ...]
    """The classes by number; none where a number is to be predicted."""
    metrics: tuple[str, ...]
    """The official metrics; the task's score is their mean."""
    submissions: dict[str, str]
    """The file that the site wants for each test split; `ax` is the diagnostic set, which MNLI's model answers."""
    validation: tuple[str, ...] = ("validation",)
    """Held-out splits with labels; training data is always `train`."""
    words: bool = False
    """Whether a submission bears the classes' names rather than their numbers."""

    def written(self, prediction: float) -> str:
        """A prediction, the number of a class or STS-B's likeness, as a submission bears it."""
        if not self.classes:
            return f"{min(max(prediction, 0.0), 5.0):.3f}"  # likeness is rated from 0 to 5
        return self.classes[int(prediction)] if self.words else str(int(prediction))

    def submission(self, predictions: list[float]) -> str:
        """The text of the file for one test split, predictions in the split's order."""
        lines = [f"{index}\t{self.written(prediction)}" for index, prediction in enumerate(predictions)]
        return "\n".join(["index\tprediction", *lines, ""])


SENTENCES = ("sentence1", "sentence2")
ENTAILED = ("entailment", "not_entailment")

GLUE = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews",), {"test": "CoLA.tsv"}),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), ("accuracy",), {"test": "SST-2.tsv"}),
    "mrpc": GlueTask(SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "f1"), {"test": "MRPC.tsv"}),
    "stsb": GlueTask(SENTENCES, (), ("pearson", "spearman"), {"test": "STS-B.tsv"}),
    "qqp": GlueTask(
        ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), {"test": "QQP.tsv"}
    ),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"},
        validation=("validation_matched", "validation_mismatched"),
        words=True,
    ),
    "qnli": GlueTask(("question", "sentence"), ENTAILED, ("accuracy",), {"test": "QNLI.tsv"}, words=True),
    "rte": GlueTask(SENTENCES, ENTAILED, ("accuracy",), {"test": "RTE.tsv"}, words=True),
    "wnli": GlueTask(SENTENCES, ("not_entailment", "entailment"), ("accuracy",), {"test": "WNLI.tsv"}),
}
