"""The test split, by which nothing was chosen: scored once, with the model that a run hands over."""

from accelerate import Accelerator

from pretraining.evaluate import evaluate, make_evaluation_plan
from pretraining.export import open_exported
from pretraining.objectives.base import Objective
from pretraining.settings import Settings


def score_test(settings: Settings, objective: Objective) -> dict[str, float]:
    """The metrics of the test split, by the exported model, on this process alone.

    Args:
        settings: of a run that has ended.
        objective: the run's, its data prepared, with a labelled test split.
    """
    examples = objective.examples.of_test()
    tested = Objective.of(examples, type(objective.head), type(objective.scoring))
    settings = settings.changed({"evaluation.examples": 0, "train.micro_batch": settings.train.rows_per_step})
    model = open_exported(settings.folder / "model", objective.head.model_class)
    plan = make_evaluation_plan(examples, settings)
    found = evaluate(model, tested, plan, settings.train, Accelerator())
    return {f"test_{name}": value for name, value in found.items()}
