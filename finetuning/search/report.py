"""What a search has found: the best settings as a command, a table of its trials, and a picture."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetuning.search.space import Choices, Dimension, Range, Space, as_text
from finetuning.summary import to_table
from pretraining import files
from pretraining.pictures.charts import legible, save

if TYPE_CHECKING:
    from finetuning.search.study import Search

COLUMNS = 4  # of panels
ROWS = 20  # of the table, that are printed
ENOUGH = 10  # complete trials, below which importances are mostly chance


@dataclass(frozen=True)
class Outcome:
    """What is known of a trial."""

    number: int
    name: str
    state: str
    """complete, pruned, fail or running."""
    value: float | None
    """The metric: of a pruned trial the last one that it had, None where there is none."""
    parameters: dict[str, Any]
    step: int | None
    """The step that the handed-over weights are of."""
    reason: str
    """Why it failed."""


def ordered(outcomes: list[Outcome], higher: bool) -> list[Outcome]:
    """Complete trials from the best to the worst, then the pruned ones, then the others."""
    states = ["complete", "pruned"]

    def key(outcome: Outcome) -> tuple[int, float, int]:
        place = states.index(outcome.state) if outcome.state in states else len(states)
        value = outcome.value if outcome.value is not None else 0.0
        return place, -value if higher else value, outcome.number

    return sorted(outcomes, key=key)


def cell(value: Any) -> str:
    """A value in a table: numbers short, and no bar of Markdown's."""
    text = f"{value:.4g}" if isinstance(value, float) else as_text(value)
    return text.replace("|", "\\|").replace("\n", " ")


def table(outcomes: list[Outcome], metric: str, space: Space) -> list[str]:
    """The trials as a Markdown table."""
    keys = [dimension.key for dimension in space]
    header = ["trial", metric, *keys, "state"]
    rows = []
    for outcome in outcomes:
        score = "-" if outcome.value is None else f"{outcome.value:.4f}"
        parameters = [cell(outcome.parameters[key]) if key in outcome.parameters else "-" for key in keys]
        state = f"failed: {cell(outcome.reason)}" if outcome.state == "fail" else outcome.state
        rows.append([outcome.name, score, *parameters, state])
    return to_table(header, rows)


def write_report(
    search: "Search", outcomes: list[Outcome], metric: str, higher: bool, importances: dict[str, float]
) -> list[str]:
    """Writes search.md and search.json; returns what is printed."""
    folder, trials = search.folder, ordered(outcomes, higher)
    counts = {state: sum(outcome.state == state for outcome in trials) for state in ("complete", "pruned", "fail")}
    running = [outcome.name for outcome in trials if outcome.state == "running"]
    better = "higher" if higher else "lower"
    title = (
        f"{search.settings.name}: {len(outcomes)} of {search.trials} trials, {counts['complete']} complete, "
        f"{counts['pruned']} pruned, {counts['fail']} failed; {metric}, the {better} the better"
    )
    lines = [title]
    if running:
        names = ", ".join(running)
        lines.append(
            f"not done yet: {names}: another worker trains them, or they go on when the command is given again"
        )
    best = trials[0] if trials and trials[0].state == "complete" else None
    command = shlex.join(search.command(best.parameters)) if best else ""
    if best:
        lines.append(
            f"best: {best.name}, {metric} {best.value:.4f} after {best.step:,} steps: {folder}/{best.name}/model"
        )
    if importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in importances.items())
        few = "" if counts["complete"] >= ENOUGH else ", too few to rely on"
        lines.append(f"what the differences come from (fANOVA of {counts['complete']} complete trials{few}): {shares}")
    rows = table(trials, metric, search.space)
    again = ["To train the best one again:", f"    {command}"] if best else []
    files.write_text(folder / "search.md", "\n\n".join([*lines, "\n".join(rows), *again]) + "\n")
    content = {
        "metric": metric,
        "higher_is_better": higher,
        "best": best.name if best else None,
        "command": command or None,
        "importances": importances,
        "trials": [asdict(outcome) for outcome in outcomes],
    }
    files.write_text(folder / "search.json", files.to_json(content, indent=1))
    shown = rows[: ROWS + 2]
    rest = [f"and {len(rows) - len(shown)} more"] if len(rows) > len(shown) else []
    return [*lines, *shown, *rest, *again, f"  written: {folder}/search.md, search.json, search.png"]


# ---- the picture ----


def draw_points(axes: Axes, places: list[float], outcomes: list[Outcome]) -> None:
    """Complete trials as dots and pruned ones as rings."""
    for state, face in (("complete", "tab:blue"), ("pruned", "none")):
        chosen = [
            (place, outcome.value)
            for place, outcome in zip(places, outcomes, strict=True)
            if outcome.state == state and outcome.value is not None
        ]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axes.scatter(x, y, s=22, facecolors=face, edgecolors="tab:blue", alpha=0.8, label=state)


def draw_history(axes: Axes, outcomes: list[Outcome], metric: str, higher: bool) -> None:
    """The metric of each trial, the best one so far, and a cross where one failed."""
    draw_points(axes, [outcome.number for outcome in outcomes], outcomes)
    complete = [outcome for outcome in outcomes if outcome.state == "complete"]
    if complete:
        values = np.array([outcome.value for outcome in complete], dtype=float)
        best = np.maximum.accumulate(values) if higher else np.minimum.accumulate(values)
        numbers = [
            *(outcome.number for outcome in complete),
            outcomes[-1].number,
        ]  # up to the last one, whatever it gave
        axes.step(numbers, [*best, best[-1]], where="post", color="tab:red", label="best so far")
    failed = [outcome.number for outcome in outcomes if outcome.state == "fail"]
    if failed:  # at the lower edge, whatever the values are
        axes.plot(
            failed, [0.03] * len(failed), "x", color="black", transform=axes.get_xaxis_transform(), label="failed"
        )
    axes.set(xlabel="trial", title="history")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")


def draw_dimension(axes: Axes, dimension: Dimension, outcomes: list[Outcome]) -> None:
    """The metric against a parameter."""
    known = [outcome for outcome in outcomes if dimension.key in outcome.parameters]
    values = [outcome.parameters[dimension.key] for outcome in known]
    if isinstance(dimension, Range):
        draw_points(axes, [float(value) for value in values], known)
        label_range(axes, dimension)
    else:
        # Equal values side by side: most points would hide one another. By the golden ratio, which spreads any number.
        aside = [(outcome.number * 0.618034) % 1 - 0.5 for outcome in known]
        places = [dimension.values.index(value) + 0.4 * x for value, x in zip(values, aside, strict=True)]
        draw_points(axes, places, known)
        label_choices(axes, dimension)


def label_range(axes: Axes, dimension: Range) -> None:
    """All of a range, in plain numbers."""
    low, high = dimension.low, dimension.high
    if dimension.log:
        axes.set_xscale("log")
        # Matplotlib's own labels are formulas, which no picture of ours has.
        places = np.geomspace(low, high, 4)
        axes.set_xticks(places, [f"{place:.2g}" for place in places])
        axes.set_xticks([], minor=True)
        margin = (high / low) ** 0.04
        axes.set_xlim(low / margin, high * margin)
    else:
        margin = 0.04 * (high - low)
        axes.set_xlim(low - margin, high + margin)


def label_choices(axes: Axes, dimension: Choices) -> None:
    """The values of a list, side by side."""
    labels, families = legible([as_text(value) for value in dimension.values])
    labels = [label if len(label) <= 16 else f"{label[:6]}…{label[-9:]}" for label in labels]
    long = sum(map(len, labels)) > 24
    axes.set_xticks(range(len(labels)), labels, rotation=30 if long else 0, family=families, fontsize=8)
    axes.set_xlim(-0.5, len(labels) - 0.5)


def draw_search(
    outcomes: list[Outcome], space: Space, metric: str, higher: bool, importances: dict[str, float], path: Path
) -> None:
    """A panel of the history, and one of each parameter, the most important first."""
    dimensions = sorted(space, key=lambda dimension: -importances.get(dimension.key, 0.0))
    columns = min(COLUMNS, 1 + len(dimensions))
    rows = -(-(1 + len(dimensions)) // columns)
    width, height = 4 * columns, 3.2 * rows + 0.4
    figure = Figure(figsize=(width, height))
    # Fixed margins: to fit them takes longer than all the drawing.
    figure.subplots_adjust(0.7 / width, 0.6 / height, 1 - 0.2 / width, 1 - 0.7 / height, wspace=0.12, hspace=0.45)
    shares = "; in brackets: the share of the differences that it explains (fANOVA)" if importances else ""
    better = "higher" if higher else "lower"
    title = f"{metric} of each trial (the {better} the better), and against each setting{shares}"
    figure.suptitle(title, fontsize=10, x=0.7 / width, ha="left", y=1 - 0.1 / height, va="top")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    draw_history(panels[0], outcomes, metric, higher)
    for axes, dimension in zip(panels[1:], dimensions, strict=False):
        draw_dimension(axes, dimension, outcomes)
        share = f" ({importances[dimension.key]:.0%})" if dimension.key in importances else ""
        axes.set(title=f"{dimension.key}{share}")
    for axes in panels[::columns]:
        axes.set_ylabel(metric)
    for axes in panels[: 1 + len(dimensions)]:
        axes.grid(alpha=0.3)
    for axes in panels[1 + len(dimensions) :]:
        axes.set_axis_off()
    save(figure, path)
