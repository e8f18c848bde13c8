"""Many runs of one command, each an ordinary run in a folder of its own, and what their scores say together."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import yaml
from accelerate import PartialState
from matplotlib.figure import Figure

from finetuning.summary import compared, read_metrics, spread, to_table
from pretraining.autotune import AUTOTUNED, as_autotuned
from pretraining.errors import UserError, tell
from pretraining.loop import train
from pretraining.objectives.base import Objective
from pretraining.pictures.charts import save
from pretraining.settings import Settings

CONFIDENCE = 0.95


class Member(NamedTuple):
    """One run among others that it is compared with."""

    variant: str
    """What is compared, in words."""
    at: int | None
    """How much of something that grows the run has, as labels; None: nothing grows."""
    settings: Any
    """A `Settings`."""
    make: Callable[[Any], Objective]
    """The objective, from the settings."""


class Score(NamedTuple):
    """What a run came to."""

    variant: str
    at: int | None
    seed: int
    folder: str
    metrics: dict[str, float]


def is_finished(settings: Settings) -> bool:
    """Whether the folder holds the results of a run of these very settings; what autotune chooses may differ."""
    folder = settings.folder
    config, results = folder / "config.yaml", folder / "results.json"
    if not (config.exists() and results.exists() and (folder / "model" / "config.json").exists()):
        return False
    if results.stat().st_mtime_ns < config.stat().st_mtime_ns:  # begun again since, and not ended
        return False
    before, now = (yaml.safe_load(text) for text in (config.read_text(), settings.resolved))
    for name in AUTOTUNED:
        if now["train"][name] == "auto":
            before["train"][name] = "auto"
    return before == now


def train_members(members: list[Member], metric: str | None = None) -> list[Score]:
    """Trains the runs, one after another; what is finished already is not begun again.

    Runs of one objective compute as the first of them does, so that no seed is faster or more exact than another.

    Args:
        metric: what they are to be compared by; None: it is chosen afterwards.

    Raises:
        UserError: as `pretraining.loop.train`; several runs would push to one repository; or the first run, and so
            every one, has no such metric.
    """
    members[0].settings.hub.check_runs(len(members))
    first: dict[Callable, Path] = {}
    scores: list[Score] = []
    for number, member in enumerate(members):
        settings = member.settings
        alike = first.setdefault(member.make, settings.folder)
        title = f"\n== {settings.folder}: run {number + 1} of {len(members)}"
        if is_finished(settings):
            tell(f"{title}: its results are there; to train it anew, remove its folder ==")
        else:
            tell(f"{title} ==")
            settings = as_autotuned(settings, [alike])  # the first one of all itself has nothing yet to be like
            train(settings, member.make(settings))
        metrics = read_metrics(settings.folder)
        if metric is not None and metric not in metrics:
            raise UserError(f"--metric: {metric} is none of the runs' metrics, which are: {', '.join(metrics)}.")
        scores.append(Score(member.variant, member.at, settings.seed, str(settings.folder), metrics))
    return scores


class Summary(NamedTuple):
    """The scores of one variant at one place, over seeds."""

    values: list[float]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def sd(self) -> float:
        """The standard deviation of the sample; NaN of one value."""
        return spread(self.values)

    @property
    def margin(self) -> float:
        """Half of the interval that holds the true mean with 95 % confidence (Student 1908); NaN of one value."""
        from scipy.stats import t  # half a second

        count = len(self.values)
        if count < 2:
            return math.nan
        return float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * self.sd / math.sqrt(count)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.margin:.4f}" if len(self.values) > 1 else "")


Summaries = dict[int | None, dict[str, Summary]]
"""By place, then by variant."""


def summarise(scores: list[Score], metric: str) -> Summaries:
    values: dict[int | None, dict[str, list[float]]] = {}
    for score in scores:
        values.setdefault(score.at, {}).setdefault(score.variant, []).append(score.metrics[metric])
    return {at: {name: Summary(found) for name, found in row.items()} for at, row in values.items()}


def table(summaries: Summaries, unit: str) -> list[str]:
    """Means with their 95 % intervals: a row for each place, or, where nothing grows, for each variant."""
    if None in summaries:
        return to_table(
            ["", "mean", "95 % interval", "sd", "seeds"],
            [
                [name, f"{each.mean:.4f}", f"± {each.margin:.4f}", f"{each.sd:.4f}", str(len(each.values))]
                if len(each.values) > 1
                else [name, f"{each.mean:.4f}", "-", "-", "1"]
                for name, each in summaries[None].items()
            ],
        )
    names = list(next(iter(summaries.values())))
    lines = (([f"{at:,}"], {name: each.values for name, each in row.items()}) for at, row in summaries.items())
    return compared([unit], lines, names, lambda values: str(Summary(values)))


def to_records(summaries: Summaries) -> list[dict[str, Any]]:
    """The summaries for programs."""
    return [
        {"variant": name, "at": at, "mean": each.mean, "sd": each.sd, "margin": each.margin, "values": each.values}
        for at, row in summaries.items()
        for name, each in row.items()
    ]


def draw_summaries(summaries: Summaries, title: str, metric: str, unit: str, path: Path) -> None:
    """Means and their 95 % intervals, every seed a dot: lines over what grows, or a column for each variant."""
    names = list(next(iter(summaries.values())))
    width = 2 * len(names) if None in summaries else 0  # inches: room for the names
    figure = Figure(figsize=(max(6.5, width), 4.5), layout="constrained")
    axes = figure.subplots()
    if None in summaries:
        for place, each in enumerate(summaries[None].values()):
            axes.plot([place - 0.12] * len(each.values), each.values, "o", color="grey", markersize=4, alpha=0.6)
            margin = each.margin if len(each.values) > 1 else None
            axes.errorbar(place, each.mean, margin, fmt="o", capsize=5, color=f"C{place}")
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    else:
        places = [at for at in summaries if at is not None]
        for number, name in enumerate(names):
            row, color = [summaries[at][name] for at in places], f"C{number}"
            means, margins = ([getattr(each, part) for each in row] for part in ("mean", "margin"))
            axes.plot(places, means, "-o", color=color, label=name)
            if all(len(each.values) > 1 for each in row):
                low, high = zip(*((m - half, m + half) for m, half in zip(means, margins, strict=True)), strict=True)
                axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
            for at, each in zip(places, row, strict=True):
                axes.plot([at] * len(each.values), each.values, ".", color=color, markersize=4, alpha=0.6)
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{at:,}" for at in places])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(unit)
        axes.legend()
    seeds = len(next(iter(next(iter(summaries.values())).values())).values)
    band = f"mean and 95 % interval of {seeds} seeds" if seeds > 1 else "one seed: nothing is known of the spread"
    axes.set_title(f"{title}\n{band}", fontsize=10)
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    save(figure, path)


def is_main() -> bool:
    """Whether this process is the one that writes and tells."""
    return PartialState().is_main_process
