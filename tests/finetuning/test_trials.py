"""A search: what its space may say, trials that are killed and shared, pruning, failures, and the report."""

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

pytest.importorskip("optuna")

import optuna
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetuning.cli import parse_finetune
from finetuning.search import study as study_module
from finetuning.search import trials
from finetuning.search.__main__ import main, make_parser
from finetuning.search.report import Outcome, ordered
from finetuning.search.space import Choices, Loader, Range, as_text, check_space, options, parse, points, read_space
from finetuning.search.study import make_sampler
from finetuning.settings import FinetuneSettings
from pretraining import loop
from pretraining.errors import UserError
from pretraining.step import NotFinite
from tests.pretraining.runs import FIXED, WIDTHS, fork, wait, weights

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPACE = "optim.learning_rate: {low: 1e-4, high: 1e-1, log: true}\ntrain.rows_per_step: [2, 4]\n"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of runs that learn whether a text begins with an even number: each takes a second."""
    folder = tmp_path_factory.mktemp("task")
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *NUMBERS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "tokenizer")
    rows = []
    for number in range(120):
        digits = [(number * factor + 3 * factor) // 7 % 10 for factor in (7, 3, 5, 11)]
        text = " ".join(NUMBERS[digit] for digit in digits)
        rows.append({"text": text, "label": ["even", "odd"][digits[0] % 2]})
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("--model=scratch", f"--tokenizer.path={folder}/tokenizer", f"--data.files={folder}/texts.jsonl"),
        *("--data.processes=1", f"--cache={folder}/cache", "--model.num_hidden_layers=2"),
        *WIDTHS,
        *FIXED,
        *("--train.threads=1", "--train.micro_batch=4", "--train.steps=12", "--objective.metric=loss"),
        *("--evaluation.every=4", "--evaluation.samples=0", "--checkpoint.every=4"),
    ]


@pytest.fixture(scope="module")
def settings(arguments: list[str]) -> FinetuneSettings:
    return parse_finetune(arguments)


def write_space(folder: Path, text: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "space.yaml").write_text(text)
    return str(folder / "space.yaml")


def told(folder: Path) -> dict[str, Any]:
    """What search.json says."""
    return json.loads((folder / "search.json").read_text())


def values(folder: Path) -> list[tuple[dict[str, Any], float | None, str]]:
    return [(trial["parameters"], trial["value"], trial["state"]) for trial in told(folder)["trials"]]


# ---- the space ----


def test_a_space_is_read(tmp_path: Path, settings: FinetuneSettings):
    text = (
        "seed: [0, 1]\noptim.learning_rate: {low: 1e-5, high: 1, log: true}\ntrain.rows_per_step: {low: 2, high: 8}\n"
        "optim.weight_decay: {low: 0, high: 0.3, step: 0.1}\nobjective.lora_targets: [[query], [query, value]]\n"
        "optim.warmup: [1e-1, 0.2]\n"
    )
    assert read_space(write_space(tmp_path, text), settings) == [
        Choices("objective.lora_targets", ('["query"]', '["query", "value"]')),
        Range("optim.learning_rate", 1e-5, 1.0, True, None, False),
        Choices("optim.warmup", (0.1, 0.2)),
        Range("optim.weight_decay", 0.0, 0.3, False, 0.1, False),
        Choices("seed", (0, 1)),
        Range("train.rows_per_step", 2, 8, False, None, True),
    ]


def test_what_the_space_says_is_what_a_run_gets(arguments: list[str]):
    point = {"optim.learning_rate": 1.2345678901234567e-5, "model.pooling": "mean", "train.compile": True, "seed": 3}
    point |= {"objective.metric": None, "objective.lora_targets": as_text(["query"])}
    parsed = parse([*arguments, *options(point)])
    assert (parsed.optim.learning_rate, parsed.model.pooling, parsed.seed) == (1.2345678901234567e-5, "mean", 3)
    assert parsed.train.compile is True
    assert parsed.objective.metric is None and parsed.objective.lora_targets == ["query"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no settings"),
        ("- 1", "holds no settings"),
        ("seed: [0", "is no YAML"),
        ("seed: [0]\nseed: [1]", "seed stands twice"),
        ("seed: 3", "seed is 3: give it a list of values, or a range"),
        ("seed: []", "seed has an empty list"),
        ("seed: [1, 2, 1]", "seed has 1 twice"),
        ("optim: {learning_rate: [1]}", "write each of its settings whole, as optim.learning_rate"),
        ("name: [a, b]", "name cannot be searched: each trial has its own folder"),
        ("seeds: [1, 2]", "search over seed"),
        ("start: [scratch, both]", "start lists both, and a trial is one run"),
        ("optim: [1]", "write each of its settings whole, as optim.key"),
        ("optim.weight_decay: {low: 0, high: 1" + "0" * 400 + "}", "which is no number"),
        ("objective.metric: [loss, accuracy]", "all trials are judged alike"),
        ("train.precision: [fp32, bf16]", "how fast a trial is"),
        ("optim.learning_rate: {low: 1}", "has no high"),
        (
            "optim.learning_rate: {low: 1, high: 2, scale: log}",
            "has 'scale': what a range takes is low, high, log, step",
        ),
        ("optim.learning_rate: {low: a, high: 2}", "low: 'a', which is no number"),
        ("optim.learning_rate: {low: 2, high: 1}", "low must be below high"),
        ("optim.learning_rate: {low: 0, high: 1, log: true}", "begins at 0"),
        ("optim.learning_rate: {low: 1, high: 2, log: 10}", "log: 10: it is true or false"),
        ("optim.learning_rate: {low: 1, high: 8, log: true, step: 1}", "step: 1: evenly spaced"),
        ("optim.learning_rate: {low: 0, high: 1, step: 2}", "it must fit between 0 and 1"),
        ("train.rows_per_step: {low: 1.5, high: 4}", "it is a whole number"),
        ("model.pooling: {low: 0, high: 1}", "model.pooling is 'cls' without a search"),
        ("train.compile: {low: 0, high: 1}", "train.compile is False without a search"),
    ],
)
def test_what_is_no_space_is_one_sentence(text: str, says: str, tmp_path: Path, settings: FinetuneSettings):
    with pytest.raises(UserError) as caught:
        read_space(write_space(tmp_path, text), settings)
    assert says in str(caught.value) and "space.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim.learning_rat: [1, 2]", "there is no setting optim.learning_rat; the nearest is optim.learning_rate"),
        ("optim.learning_rate: [0.1, fast]", "optim.learning_rate cannot be 'fast'"),
        ("optim.learning_rate: [0.1, 2020-01-01]", "it takes: float, null"),
        ("optim.learning_rate: {low: -1, high: 1}", "--optim.learning_rate=-1.0: optim.learning_rate is -1.0"),
        ("train.epochs: [1, 2]", "exactly one budget"),
        ("objective.stride: [8, 60]\nobjective.sequence_length: [128, 32]", "objective.stride is 60"),
    ],
)
def test_every_corner_of_the_space_is_checked(
    text: str, says: str, arguments: list[str], settings: FinetuneSettings, tmp_path: Path
):
    path = write_space(tmp_path, text)
    with pytest.raises(UserError) as caught:
        check_space(path, arguments, read_space(path, settings))
    assert says in str(caught.value) and "space.yaml" in str(caught.value)


def test_settings_that_need_one_another_are_checked_together(
    arguments: list[str], settings: FinetuneSettings, tmp_path: Path
):
    path = write_space(tmp_path, "train.rows_at_start: [1, 2]\ntrain.batch_warmup: [5, 10]\n")
    first = check_space(path, arguments, read_space(path, settings))
    assert (first.train.rows_at_start, first.train.batch_warmup) == (1, 5)


def test_a_grid_is_every_combination(tmp_path: Path, settings: FinetuneSettings):
    text = "optim.weight_decay: {low: 0, high: 0.3, step: 0.1}\ntrain.rows_per_step: {low: 2, high: 4}\n"
    grid = points(read_space(write_space(tmp_path, text), settings))
    pairs = [(point["optim.weight_decay"], point["train.rows_per_step"]) for point in grid]
    assert sorted(pairs) == [(decay, rows) for decay in (0.0, 0.1, 0.2, 0.3) for rows in (2, 3, 4)]
    with pytest.raises(UserError, match="a range without a step"):
        points(read_space(write_space(tmp_path, SPACE), settings))


# ---- what is drawn ----


def drawn(numbers: list[int], seed: int, space: list, grid: list) -> dict[int, dict[str, Any]]:
    """The parameters of trials that are asked for in order, but drawn in the order of `numbers`."""
    search = SimpleNamespace(sampler="random", grid=grid, settings=SimpleNamespace(seed=seed), space=space)
    study = optuna.create_study()
    asked = [study.ask() for _ in numbers]
    found = {}
    for number in numbers:
        found[number] = {}
        for place, dimension in enumerate(space):
            study.sampler = make_sampler(search, number, place)
            found[number][dimension.key] = dimension.suggest(asked[number])
    return found


@pytest.mark.parametrize("kind", ["random", "grid"])
def test_parameters_are_a_function_of_seed_and_number(kind: str):
    space = [Choices("a", (1, 2, 3)), Range("b", 1, 4, False, None, True)]
    grid = points(space) if kind == "grid" else []
    one = drawn(list(range(12)), 5, space, grid)
    assert one == drawn([3, 1, 0, 2, *range(11, 3, -1)], 5, space, grid)
    assert one != drawn(list(range(12)), 6, space, grid)
    if kind == "grid":
        assert sorted(map(str, one.values())) == sorted(map(str, grid))


def test_tpe_learns_from_earlier_trials():
    search = SimpleNamespace(sampler="tpe", grid=[], settings=SimpleNamespace(seed=0))
    study, dimension, distances = optuna.create_study(), Range("a", 0.0, 1.0, False, None, False), []
    for number in range(60):
        trial = study.ask()
        study.sampler = make_sampler(search, number, 0)
        distances.append(abs(dimension.suggest(trial) - 0.7))
        study.tell(trial, distances[-1])
    assert sum(distances[40:]) / 20 < 0.6 * sum(distances[:10]) / 10


# ---- real trials ----


def search_here(arguments: list[str], folder: Path, name: str, *more: str) -> Path:
    AcceleratorState._reset_state(True)
    main([*arguments, f"--space={write_space(folder, SPACE)}", f"--runs={folder}", f"--name={name}", *more])
    return folder / name


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of three trials that nothing interrupts."""
    return search_here(arguments, tmp_path_factory.mktemp("whole"), "one", "--trials=3")


def test_each_trial_is_a_run_that_its_command_repeats(whole: Path, arguments: list[str], tmp_path: Path):
    best = min(told(whole)["trials"], key=lambda trial: trial["value"])
    assert told(whole)["best"] == best["name"] and told(whole)["metric"] == "loss"
    results = json.loads((whole / best["name"] / "results.json").read_text())
    assert results["eval_loss"] == best["value"]
    command = shlex.split(told(whole)["command"])
    assert command[:3] == ["accelerate", "launch", "finetune.py"]
    settings = parse_finetune([*command[3:], f"--runs={tmp_path}"])
    AcceleratorState._reset_state(True)
    loop.train(settings, trials.make_task(settings))
    assert settings.name == "one-best"
    repeated = weights(settings.folder)
    assert all((weight == repeated[name]).all() for name, weight in weights(whole / best["name"]).items())


def test_a_finished_search_only_reports(
    whole: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    before = told(whole)
    (whole / "search.md").unlink()
    monkeypatch.setattr(trials, "train", None)
    search_here(arguments, whole.parent, "one", "--trials=2")
    assert told(whole) == before and "| trial-0002 |" in (whole / "search.md").read_text()
    assert "    accelerate launch finetune.py" in capsys.readouterr().out


def kill_at(moment: str, patch: pytest.MonkeyPatch) -> None:
    """Makes the process end itself by SIGKILL, in its second trial."""

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    save, suggest = loop.save, Choices.suggest

    def save_and_die(run: Any) -> None:
        save(run)
        if run.settings.name == "trial-0001" and run.state.step == 4:
            kill()

    def die_between_parameters(dimension: Any, trial: Any) -> Any:
        return kill() if trial.number == 1 else suggest(dimension, trial)

    def die_before_telling(study: Any, number: int, *more: Any, **named: Any) -> None:
        return kill() if number == 1 else tell(study, number, *more, **named)

    tell = optuna.Study.tell
    if moment == "while it trains":
        patch.setattr(loop, "save", save_and_die)
    elif moment == "when it is chosen":
        patch.setattr(Choices, "suggest", die_between_parameters)
    else:
        patch.setattr(optuna.Study, "tell", die_before_telling)


@pytest.mark.parametrize("moment", ["while it trains", "when it is chosen", "before it is told"])
def test_a_killed_search_goes_on_and_is_equal(
    moment: str, whole: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    def begin() -> None:
        with pytest.MonkeyPatch.context() as patch:
            kill_at(moment, patch)
            search_here(arguments, tmp_path, "one", "--trials=3")

    assert wait(fork(begin, tmp_path / "output")) == [-signal.SIGKILL]
    search_here(arguments, tmp_path, "one", "--trials=3")
    said = capsys.readouterr().out
    if moment == "while it trains":
        assert f"resumed from {tmp_path}/one/trial-0001/checkpoints/step-4" in said
    assert "== trial-0000" not in said and "== trial-0001, 2 of 3" in said
    assert values(tmp_path / "one") == values(whole)
    for name in ("trial-0001", "trial-0002"):
        again = weights(tmp_path / "one" / name)
        assert all((weight == again[key]).all() for key, weight in weights(whole / name).items())


def test_workers_share_the_trials(whole: Path, arguments: list[str], tmp_path: Path):
    def work() -> None:
        search_here(arguments, tmp_path, "one", "--trials=3")

    outputs = [tmp_path / "output-0", tmp_path / "output-1"]
    assert wait(*(fork(work, output) for output in outputs)) == [0, 0]
    said = [output.read_text() for output in outputs]
    for number in range(3):
        assert sum(text.count(f"== trial-000{number}, ") for text in said) == 1
    assert values(tmp_path / "one") == values(whole)


class PruneSecond(optuna.pruners.BasePruner):
    """Ends trial 1 at step 8."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number == 1 and trial.last_step == 8


def test_a_pruned_run_stays_and_the_search_goes_on(
    whole: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(study_module, "make_pruner", lambda search: PruneSecond())
    folder = search_here(arguments, tmp_path, "one", "--trials=3")
    found = told(folder)["trials"]
    assert [trial["state"] for trial in found] == ["complete", "pruned", "complete"]
    steps = [json.loads(line) for line in (folder / "trial-0001/metrics.jsonl").read_text().splitlines()]
    assert [line["eval_loss"] for line in steps if line["step"] == 8 and "eval_loss" in line] == [found[1]["value"]]
    assert steps[-1]["step"] == 8 and (folder / "trial-0001/checkpoints/step-4").exists()
    assert found[2]["value"] == values(whole)[2][1]


# ---- trials that are only told of ----


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, arguments: list[str], tmp_path: Path) -> Callable[..., Path]:
    """A search whose trials have the scores that a function of their settings gives, with evaluations at 4, 8, 12."""

    def search(score: Callable[[FinetuneSettings, int], float], *more: str, space: str = SPACE) -> Path:
        def train(settings: FinetuneSettings, objective: Any) -> None:
            settings.folder.mkdir(exist_ok=True)
            for step in (4, 8, 12):
                loss = score(settings, step)
                with (settings.folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps({"step": step, "eval_loss": loss}) + "\n")
                objective.scoring.rank({"loss": loss})
            results = {"step": 12, "eval_loss": None if loss != loss else loss}
            (settings.folder / "results.json").write_text(json.dumps(results))

        def parse_again(given: list[str]) -> FinetuneSettings:
            """The parser's work, which the tests of real trials leave to it."""
            point = dict(argument[2:].split("=", 1) for argument in given[len(rest) :])
            return base.changed({key: yaml.load(value, Loader) for key, value in point.items()})

        _, rest = make_parser().parse_known_args(["--space=", *arguments, *more])
        base = parse_finetune(rest)
        monkeypatch.setattr(trials, "train", train)
        monkeypatch.setattr(trials, "parse", parse_again)
        path = write_space(tmp_path, space)
        main([*arguments, f"--space={path}", f"--runs={tmp_path}", "--name=one", *more])
        return tmp_path / "one"

    return search


def number_of(settings: FinetuneSettings) -> int:
    return int(settings.name.removeprefix("trial-"))


def test_a_score_that_is_no_number_is_never_best(pretend: Callable[..., Path], capsys: pytest.CaptureFixture):
    def score(settings: FinetuneSettings, step: int) -> float:
        if number_of(settings) == 1:
            raise NotFinite("Step 3 is not finite.")
        return float("nan") if number_of(settings) == 0 else 1.0

    folder = pretend(score, "--trials=3")
    assert [trial["state"] for trial in told(folder)["trials"]] == ["fail", "fail", "complete"]
    assert told(folder)["best"] == "trial-0002"
    table = (folder / "search.md").read_text()
    assert "failed: its loss is no number" in table and "failed: Step 3 is not finite." in table
    assert "trial-0001 failed: Step 3 is not finite." in capsys.readouterr().out


def test_trials_that_all_fail_alike_end_the_search(pretend: Callable[..., Path], capsys: pytest.CaptureFixture):
    def score(settings: FinetuneSettings, step: int) -> float:
        raise UserError(f"{settings.folder} needs what nobody has.")

    with pytest.raises(SystemExit):
        pretend(score, "--trials=20")
    errors = capsys.readouterr().err
    assert "all 3 trials have failed alike" in errors and errors.count("\n") == 1


def test_a_bug_ends_the_search_and_not_every_later_start(pretend: Callable[..., Path]):
    def score(settings: FinetuneSettings, step: int) -> float:
        if number_of(settings) == 0:
            raise KeyError("a bug")
        return 1.0

    with pytest.raises(KeyError):
        pretend(score, "--trials=2")
    folder = pretend(score, "--trials=2")
    assert [trial["state"] for trial in told(folder)["trials"]] == ["fail", "complete"]


def test_a_full_disk_leaves_the_trial_to_the_next_start(pretend: Callable[..., Path]):
    full = [True]

    def score(settings: FinetuneSettings, step: int) -> float:
        if full:
            full.pop()
            raise OSError(28, "No space left on device")
        return 1.0

    with pytest.raises(OSError):
        pretend(score, "--trials=1")
    assert [trial["state"] for trial in told(pretend(score, "--trials=1"))["trials"]] == ["complete"]


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_worse_trials_are_pruned(pruner: str, pretend: Callable[..., Path]):
    def score(settings: FinetuneSettings, step: int) -> float:
        return number_of(settings) + 1 / step  # each is worse than all before

    folder = pretend(score, "--trials=7", f"--pruner={pruner}")
    states = [trial["state"] for trial in told(folder)["trials"]]
    first = 5 if pruner == "median" else 1  # the median pruner looks at five trials first
    assert states == ["complete"] * first + ["pruned"] * (7 - first)
    pruned = told(folder)["trials"][-1]
    assert pruned["value"] == 6.25  # at its first evaluation
    assert told(folder)["best"] == "trial-0000"


def test_nothing_is_pruned_unasked(pretend: Callable[..., Path]):
    folder = pretend(lambda settings, step: number_of(settings) + 1 / step, "--trials=7")
    assert {trial["state"] for trial in told(folder)["trials"]} == {"complete"}


def test_a_grid_ends_by_itself(pretend: Callable[..., Path]):
    space = "optim.weight_decay: {low: 0, high: 0.2, step: 0.1}\nmodel.pooling: [cls, mean]\n"
    folder = pretend(lambda settings, step: settings.optim.weight_decay, "--sampler=grid", space=space)
    tried = [tuple(trial["parameters"].values()) for trial in told(folder)["trials"]]
    assert sorted(tried) == [(pooling, decay) for pooling in ("cls", "mean") for decay in (0.0, 0.1, 0.2)]


@pytest.mark.usefixtures("pictures")
def test_importances_picture_and_table(pretend: Callable[..., Path]):
    space = "optim.weight_decay: {low: 0, high: 1}\noptim.warmup: {low: 0, high: 0.5}\nmodel.pooling: [cls, mean]\n"
    folder = pretend(lambda settings, step: settings.optim.weight_decay, "--trials=12", space=space)
    importances = told(folder)["importances"]
    assert sum(importances.values()) == pytest.approx(1)
    assert (
        max(importances, key=importances.__getitem__) == "optim.weight_decay"
        and importances["optim.weight_decay"] > 0.7
    )
    rows = [line for line in (folder / "search.md").read_text().splitlines() if line.startswith("| trial-")]
    scores = [float(row.split("|")[2]) for row in rows]
    assert len(rows) == 12 and scores == sorted(scores)
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_comes_first_whatever_is_better():
    outcomes = [
        Outcome(0, "a", "fail", None, {}, None, "why"),
        Outcome(1, "b", "pruned", 0.9, {}, None, ""),
        Outcome(2, "c", "complete", 0.2, {}, 3, ""),
        Outcome(3, "d", "complete", 0.4, {}, 3, ""),
        Outcome(4, "e", "complete", 0.4, {}, 3, ""),
    ]
    assert [outcome.name for outcome in ordered(outcomes, higher=True)] == ["d", "e", "c", "b", "a"]
    assert [outcome.name for outcome in ordered(outcomes, higher=False)] == ["c", "d", "e", "b", "a"]


# ---- what does not fit ----


def test_another_search_in_the_same_folder_is_refused(pretend: Callable[..., Path], capsys: pytest.CaptureFixture):
    pretend(lambda settings, step: 1.0, "--trials=1")
    for more, space, says in (
        ("--sampler=tpe", SPACE, "begun with --sampler random, now it is tpe"),
        ("--train.steps=13", SPACE, "begun with train.steps 12, now it is 13"),
        (
            "--trials=2",
            SPACE.replace("4]", "8]"),
            "begun with the space's train.rows_per_step [2, 4], now it is [2, 8]",
        ),
        ("--trials=2", "seed: [0, 1]", "the space's optim.learning_rate 0.0001 to 0.1, log, now it is left out"),
    ):
        with pytest.raises(SystemExit):
            pretend(lambda settings, step: 1.0, "--trials=2", more, space=space)
        assert says in capsys.readouterr().err
    # More trials, other pruning, and whatever changes no score.
    folder = pretend(
        lambda settings, step: 1.0, "--trials=2", "--log.every=5", "--pruner=median", "--train.micro_batch=2"
    )
    assert len(told(folder)["trials"]) == 2


def test_a_journal_that_was_cut_short_is_mended(pretend: Callable[..., Path]):
    folder = pretend(lambda settings, step: 1.0, "--trials=1")
    with (folder / "journal.log").open("a") as file:
        file.write('{"op_code":4,"wor')
    assert len(told(pretend(lambda settings, step: 1.0, "--trials=2"))["trials"]) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--trials=0"], "--trials is 0"),
        ([], "say how many trials"),
        (["--trials=many"], "--trials: invalid int value: 'many'"),
        (["--trials=1", "--sampler=best"], "--sampler: invalid choice: 'best'"),
        (["--trials=1", "--seeds=2"], "a trial is one run"),
        (["--trials=1", "--resume=none"], "leave it out"),
        (["--trials=1", "--pruner=median", "--evaluation.every=0"], "set evaluation.every"),
        (["--trials=1", "--data.files=/nowhere/x.jsonl"], "/nowhere/x.jsonl"),
        (["--trials=1", "--objective.metric=bleu"], "objective.metric is 'bleu'"),
    ],
)
def test_mistakes_are_one_sentence_before_any_trial(
    more: list[str], says: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = write_space(tmp_path, SPACE)
    with pytest.raises(SystemExit):
        main([*arguments, f"--space={path}", f"--runs={tmp_path}/runs", *more])
    errors = capsys.readouterr().err
    assert says in errors and errors.count("\n") == 1 and errors.startswith("finetuning.search: error: ")
    assert not (tmp_path / "runs").exists()


def test_a_search_without_a_space_or_in_a_runs_folder_is_refused(
    whole: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit):
        main([*arguments, "--trials=1"])
    assert "--space" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        search_here(
            arguments,
            tmp_path,
            f"{whole}/trial-0000"[1:].replace("/", "."),
            "--trials=1",
            f"--runs={whole}",
            "--name=trial-0000",
        )
    assert "holds a run of finetune.py" in capsys.readouterr().err


def test_several_processes_are_workers_and_no_launch(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main([*arguments, "--trials=1", f"--space={write_space(tmp_path, SPACE)}"])
    assert "start the search by python, once for each worker" in capsys.readouterr().err


def test_trials_compute_as_the_first_one_did(whole: Path, settings: FinetuneSettings):
    open_ended = settings.changed({"train.precision": "auto", "train.kernel": "auto"})
    alike = trials.as_autotuned(open_ended, [whole / "nothing", whole / "trial-0001"], trials.COMPUTED)
    assert (alike.train.precision, alike.train.kernel) == ("fp32", "sdpa")
    assert trials.as_autotuned(open_ended, []) == open_ended
