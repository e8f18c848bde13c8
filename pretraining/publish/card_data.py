"""The metadata of a model card, as the Hub reads them: README.md's head and .eval_results."""

import math
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from pretraining.errors import UserError
from pretraining.publish.source import Source

EMBEDDED = {
    "pydocs": "the English documentation that Python itself carries",
    "dates": "dates as people write them in twenty languages, by CLDR, with their ISO 8601 form",
    "digits": "scikit-learn's 1,797 handwritten digits",
}
LOCAL = {*EMBEDDED, "files", "folder"}
# What the Hub calls the task of each class of ours.
TASKS = {
    "KeelBertForPreTraining": "fill-mask",
    "KeelBertForMaskedLM": "fill-mask",
    "KeelBertForSequenceClassification": "text-classification",
    "KeelBertForTokenClassification": "token-classification",
    "KeelBertForQuestionAnswering": "question-answering",
    "KeelBertForMultipleChoice": "multiple-choice",
    "KeelSeq2SeqForConditionalGeneration": "translation",
    "KeelViTForImageClassification": "image-classification",
    "KeelViTForMaskedImageModeling": "image-feature-extraction",
}
REPO = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+", re.ASCII)


def check_license(license: str | None) -> str:
    """The licence that the card names.

    Raises:
        UserError: there is none, or what is given is no identifier of the Hub's form.
    """
    if license is None:
        raise UserError("the model card has no license: give --license and one of the Hub's names, as in apache-2.0.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise UserError(f"--license is {license!r}: give one of the Hub's names, as in apache-2.0 or cc-by-4.0.")
    return license


def hub_name(name: Any) -> str | None:
    """The name where it is one on the Hub: not one of our sources, and no folder here."""
    text = str(name or "")
    return text if REPO.fullmatch(text) and text not in LOCAL and not Path(text).exists() else None


def data_sources(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's sources of data, those of a mixture too."""
    data = settings.get("data", {})
    return [each for each in [data, *data.get("mixture", [])] if each.get("source")]


def languages(settings: dict[str, Any]) -> list[str]:
    """The codes of the languages that the settings name; of dates those of its locales."""
    found: list[str] = []
    for each in data_sources(settings):
        found += [each.get(key) or "" for key in ("language", "source_language", "target_language")]
        if each["source"] == "dates":
            from pretraining.data.pairs.dates import LOCALES

            found += [locale.partition("_")[0] for locale in LOCALES]
    return sorted({code for code in found if re.fullmatch("[a-z]{2,3}", code)})


def read_metrics(results: dict[str, Any]) -> dict[str, float]:
    """The held-out and tested metrics of a results.json that are numbers, those of single classes left out."""
    names = (name for name in results if name.startswith(("eval_", "test_")) and " " not in name)
    return {name: results[name] for name in names if is_number(results[name])}


def is_number(value: Any) -> bool:
    """Whether a card can show it: a number that is finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def split_of(settings: dict[str, Any], name: str) -> str:
    """The data set's split that a metric is of."""
    split = "test_split" if name.startswith("test_") else "validation_split"
    return settings.get("data", {}).get(split) or split.removesuffix("_split")


def make_data(source: Source, results: dict[str, Any], license: str) -> ModelCardData:
    """The head of README.md."""
    settings = source.settings()
    datasets = [name for each in data_sources(settings) if (name := hub_name(each["source"]))]
    task = TASKS.get(source.model_class.__name__)
    if settings.get("objective", {}).get("name") == "denoising":
        task = None  # what is pretrained has no task yet
    evaluated = []
    data = settings.get("data", {})
    for name, value in read_metrics(results).items():
        plain = name.partition("_")[2]
        signature = results["signatures"].get(plain)
        evaluated.append(
            EvalResult(
                task_type=task or "feature-extraction",
                dataset_type=datasets[0] if datasets else data["source"],
                dataset_name=datasets[0] if datasets else f"{data['source']}, held out",
                dataset_config=data.get("subset"),
                dataset_split=split_of(settings, name),
                metric_type=plain,
                metric_name=plain.replace("_", " "),
                metric_value=value,
                metric_args={"signature": signature} if signature else None,
            )
        )
    tags = ["keel", source.family, "pretrained" if "start" not in settings else "fine-tuned"]
    return ModelCardData(
        license=license,
        language=languages(settings) or None,
        library_name="transformers",
        pipeline_tag=task,
        tags=tags,
        datasets=datasets or None,
        base_model=hub_name(settings.get("init_from")),
        model_name=source.name,
        eval_results=evaluated or None,
    )


def write_eval_results(source: Source, results: dict[str, Any], folder: Path) -> list[Path]:
    """`.eval_results/*.yaml`: the results on a data set of the Hub, whose name an entry must bear.

    Results on local data can be none: they stand in the card's model-index and table alone.
    """
    settings = source.settings()
    data = settings.get("data", {})
    name = hub_name(data.get("source"))
    if name is None:
        return []
    metrics = read_metrics(results)
    good = [metric for metric in metrics if not metric.endswith("loss")]
    # The data set's page shows one number a task: of the test split, if it was scored, and the one that chose the best.
    chosen = settings.get("objective", {}).get("metric")
    order = [f"test_{chosen}", *[metric for metric in good if metric.startswith("test_")], f"eval_{chosen}", *good]
    metric = next((metric for metric in order if metric in good), None)
    if metric is None:
        return []
    entry = EvalResultEntry(
        dataset_id=name,
        task_id=data.get("subset") or "default",
        value=metrics[metric],
        notes=f"{metric.partition('_')[2]}, split {split_of(settings, metric)}",
    )
    path = folder / ".eval_results" / f"{name.replace('/', '--')}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")
    return [path]
