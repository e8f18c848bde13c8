"""GLUE: its tasks' data, official scores, tables and submissions, from tiny files."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from finetuning import series
from finetuning.glue import (
    TaskResult,
    averages,
    choose_best,
    class_number,
    main,
    score_split,
    to_rows,
)
from finetuning.glue_data import find_data
from finetuning.glue_tasks import GLUE
from pretraining.errors import UserError
from tests.finetuning.reviews import QUICK, draw_texts, write_lines

SHORT = ["--objective.sequence_length=64", "--objective.stride=16"]


def write_tasks(folder: Path) -> Path:
    """SST-2 and STS-B with their test splits, and MNLI with both held-out ones and one of its test splits."""
    for split, count, seed in (("train", 40, 0), ("validation", 12, 1), ("test", 9, 2)):
        texts, labels = draw_texts(count, seed)
        pairs, others = draw_texts(count, seed + 10)
        known = split != "test"
        rows = zip(texts, pairs, labels, others, strict=True)
        write_lines(
            folder / f"sst2/{split}.jsonl",
            [{"sentence": a, "label": x if known else -1, "idx": i} for i, (a, _, x, _) in enumerate(rows)],
        )
        rows = zip(texts, pairs, labels, others, strict=True)
        scores = [(a, b, 5.0 * (x == y) + i % 3 / 4) for i, (a, b, x, y) in enumerate(rows)][:12]
        write_lines(
            folder / f"glue_stsb/{split}.jsonl",
            [{"sentence1": a, "sentence2": b, **({"label": score} if known else {})} for a, b, score in scores],
        )
        rows = zip(texts, pairs, labels, others, strict=True)
        names = GLUE["mnli"].classes
        inferences = [
            {"premise": a, "hypothesis": b, **({"label": names[(x + y) % 3]} if known else {})} for a, b, x, y in rows
        ][:12]
        parts = {"train": ["train"], "test": ["test_mismatched"]}
        for name in parts.get(split, ["validation_matched", "validation_mismatched"]):
            write_lines(folder / f"mnli/{name}.jsonl", inferences[:8] if name.endswith("mismatched") else inferences)
        if not known:
            write_lines(folder / "ax/test.jsonl", inferences[:5])
    return folder


def test_tasks_are_trained_scored_and_predicted(here: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_tasks(here / "data")
    command = [
        *("--model", str(checkpoint), "--data", str(data), "--tasks", "sst2,stsb,mnli", "--seeds", "1"),
        *("--start", "both", "--epochs", "10", f"--cache={here}/cache", "--optim.learning_rate=3e-3", *QUICK),
        *("--train.rows_per_step=1", "--train.micro_batch=1", "--evaluation.every=0", *SHORT),
    ]
    main(command)
    found = json.loads((here / "runs/glue/results.json").read_text())
    assert found["average"] == {}  # six tasks are not there
    for name, start, seed in (("sst2", "pretrained", 0), ("sst2", "scratch", 0), ("mnli", "pretrained", 0)):
        # What is scored is what the run itself found at its end.
        results = json.loads((here / f"runs/glue/{name}/{start}-{seed}/results.json").read_text())
        metric = "accuracy" if name == "sst2" else "accuracy, matched"
        assert found["tasks"][name]["scores"][start][metric][seed] == pytest.approx(100 * results["eval_accuracy"])
    assert set(found["tasks"]["stsb"]["scores"]["scratch"]) == {"pearson", "spearman"}
    assert set(found["tasks"]["mnli"]["scores"]["scratch"]) == {"accuracy, matched", "accuracy, mismatched"}
    assert max(found["tasks"]["sst2"]["scores"]["pretrained"]["accuracy"]) > 80, "a word tells the class"

    folder = here / "runs/glue/submission"
    assert {path.name for path in folder.iterdir()} == {"SST-2.tsv", "STS-B.tsv", "MNLI-mm.tsv", "AX.tsv"}
    for name, count, values in (
        ("SST-2", 9, {"0", "1"}),
        ("MNLI-mm", 8, set(GLUE["mnli"].classes)),
        ("AX", 5, set(GLUE["mnli"].classes)),
        ("STS-B", 9, None),
    ):
        header, *rows = [line.split("\t") for line in (folder / f"{name}.tsv").read_text().splitlines()]
        assert header == ["index", "prediction"] and [row[0] for row in rows] == list(map(str, range(count)))
        assert all(row[1] in values if values else 0 <= float(row[1]) <= 5 for row in rows)
    table = (here / "runs/glue/results.md").read_text()
    assert "| sst2 | accuracy |" in table and "difference" in table

    def refuse(*arguments: object) -> None:
        raise AssertionError("a finished run is not begun again")

    monkeypatch.setattr(series, "train", refuse)
    main(command)
    assert json.loads((here / "runs/glue/results.json").read_text()) == found


@pytest.mark.parametrize("name", sorted(GLUE))
def test_scores_are_those_of_scikit_learn_in_hundredths(name: str) -> None:
    task, random = GLUE[name], np.random.default_rng(0)
    if not task.classes:
        predicted, true = random.random(50), random.random(50)
        expected = {"pearson": np.corrcoef(predicted, true)[0, 1]}
    else:
        predicted, true = random.integers(len(task.classes), size=(2, 50))
        reference = {
            "accuracy": accuracy_score(true, predicted),
            "matthews": matthews_corrcoef(true, predicted),
            "f1": f1_score(true, predicted) if len(task.classes) == 2 else math.nan,
        }
        expected = {metric: reference[metric] for metric in task.metrics}
    found = score_split(task, predicted.tolist(), true.tolist())
    assert set(found) == set(task.metrics)
    for metric, value in expected.items():
        assert found[metric] == pytest.approx(100 * value)


def results_of(values: dict[str, float]) -> dict[str, TaskResult]:
    """Results of two seeds, every metric of a task alike: its value, and one more."""
    found = {}
    for name, value in values.items():
        task = GLUE[name]
        metrics = [f"{metric} {split}" for split in task.validation for metric in task.metrics]
        found[name] = TaskResult({"pretrained": {metric: [value, value + 1] for metric in metrics}}, [], "")
    return found


def test_the_average_is_of_all_nine_tasks_or_is_not_there() -> None:
    values = {name: 10.0 * number for number, name in enumerate(GLUE)}
    whole = results_of(values)
    expected = sum(values.values()) / 9
    assert averages(whole)["pretrained"] == pytest.approx([expected, expected + 1])
    assert any("average" in row and f"{expected + 0.5:.2f} ± 0.71" in row for row in to_rows(whole))
    del whole["mnli"].scores["pretrained"]["accuracy validation_mismatched"]
    assert averages(whole) == {} == averages(results_of({"cola": 1.0}))


def test_the_best_seed_is_never_one_without_a_number() -> None:
    runs = [SimpleNamespace(name=name) for name in "abc"]
    assert choose_best(runs, {"a": math.nan, "b": 1.0, "c": 2.0}).name == "c"
    assert choose_best(runs, {"a": math.nan, "b": -1.0, "c": math.nan}).name == "b"


def test_classes_are_taken_by_name_or_number() -> None:
    assert [class_number(GLUE["rte"], name, "x") for name in ("entailment", "1")] == [0, 1]
    for name in ("2", "-1", "neutral"):
        with pytest.raises(UserError, match="x has the class"):
            class_number(GLUE["rte"], name, "x")


def test_splits_may_be_in_parts_as_the_hub_has_them(tmp_path: Path) -> None:
    for part in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        (tmp_path / "rte").mkdir(exist_ok=True)
        (tmp_path / f"rte/{part}.parquet").touch()
    data = find_data(str(tmp_path), "rte")
    assert "train-00001" in data.train[1] and set(data.splits) == {"train", "validation", "test"}
    hub = find_data("nyu-mll/glue", "mnli")
    assert "--data.validation_split=validation_matched" in hub.train
    assert hub.splits["test_mismatched"] == ["--data.test_split=test_mismatched"]


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ("sst3", "none of GLUE's tasks"),
        ("qnli", "has no folder qnli or glue_qnli"),
        ("rte", "has no train.parquet"),
        ("sst2 --seeds 0", "at least 1"),
        ("sst2 --data ./dat", "there is no folder ./dat"),
        ("sst2 --optim.learning_rat 1", "no setting optim.learning_rat"),
    ],
)
def test_mistakes_are_told_before_any_training(
    tasks: str, says: str, here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tasks(here / "data")
    (here / "data/rte").mkdir()
    with pytest.raises(SystemExit):
        main(["--model", str(checkpoint), "--data", "data", "--tasks", *tasks.split()])
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (here / "runs").exists()


def test_tasks_do_not_overwrite_one_another_on_the_hub(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for options in (["--tasks=sst2,cola"], ["--tasks=sst2", "--seeds=2"]):
        with pytest.raises(SystemExit):
            main(["--model=scratch", "--tokenizer.path=x", f"--runs={tmp_path}", "--hub.repo=me/glue", *options])
        assert "would overwrite one another" in capsys.readouterr().err
