"""Curves of a run, as PNG."""

from pathlib import Path

from matplotlib.figure import Figure

PANELS = {"loss": "loss", "accuracy": "accuracy", "learning_rate": "learning rate", "tokens_per_second": "tokens/s"}


def draw_curves(lines: list[dict], path: Path) -> None:
    """One panel for each kind of measure: the names that end alike, over the steps; held-out ones dotted.

    Args:
        lines: the lines of metrics.jsonl.
    """
    panels = {end: sorted({name for line in lines for name in line if name.endswith(end)}) for end in PANELS}
    panels = {end: names for end, names in panels.items() if names}
    if not panels:
        return
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (end, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), "o--" if name.startswith("eval_") else "-", label=name, markersize=3)
        axes.set(xlabel="step", title=PANELS[end])
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize="small")
    unfinished = path.with_suffix(".unfinished")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)
