"""Curves of a run and maps of attention, as PNG."""

from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

PANELS = {"loss": "loss", "accuracy": "accuracy", "learning_rate": "learning rate", "_per_second": "speed"}


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
    save(figure, path)


def fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Installed font families that have the characters of a text, and the characters that none of them has."""
    families, missing = ["DejaVu Sans"], set(text)  # matplotlib's own font comes first, and then whatever helps
    entries = sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name != families[0], entry.name))
    for entry in entries:
        if not missing:
            break
        if entry.name.startswith("Last Resort"):  # matplotlib's own: a box for every character
            continue
        has = font_manager.get_font(entry.fname).get_charmap()
        if found := {c for c in missing if ord(c) in has}:
            families.append(entry.name)
            missing -= found
    return list(dict.fromkeys(families)), missing


def draw_attention(layers: list[np.ndarray], queries: list[str], keys: list[str], title: str, path: Path) -> None:
    """One panel for each layer (rows) and head (columns): dark where a query looks at a key.

    Args:
        layers: attention weights of each layer (H, T, S).
        queries, keys: the T and S tokens.
    """
    families, missing = fonts_for("".join(queries + keys))
    spelt = str.maketrans({c: f"U+{ord(c):04X}" for c in missing})
    queries, keys = ([token.translate(spelt) for token in tokens] for tokens in (queries, keys))
    heads = len(layers[0])
    width, height = 1.0 + 0.16 * len(keys), 1.0 + 0.16 * len(queries)
    figure = Figure(figsize=(width * heads + 1, height * len(layers) + 0.6), layout="constrained")
    figure.suptitle(f"{title}: each row says where its token looks")
    panels = figure.subplots(len(layers), heads, squeeze=False, sharex=True, sharey=True)
    for layer, (row, weights) in enumerate(zip(panels, layers, strict=True)):
        for head, (axes, map_) in enumerate(zip(row, weights, strict=True)):
            axes.imshow(map_, cmap="Blues", vmin=0, vmax=1, aspect="equal")
            axes.set_title(f"layer {layer}, head {head}", fontsize=8)
            axes.set_xticks(range(len(keys)), keys, rotation=90, fontsize=7, family=families)
            axes.set_yticks(range(len(queries)), queries, fontsize=7, family=families)
    save(figure, path)


def draw_confusion(confusion: np.ndarray, classes: list[str], path: Path) -> None:
    """Rows are right classes, columns guessed ones; dark where a share of the row is large.

    Args:
        confusion: (N, N), how many of each class were taken for each.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    named = len(classes) <= 40  # more would not be legible
    side = 2 + 0.35 * len(classes) if named else 10
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="guessed", ylabel="right", title=f"{int(confusion.sum()):,} held-out images")
    if named:
        families, _ = fonts_for("".join(classes))
        axes.set_xticks(range(len(classes)), classes, rotation=90, family=families)
        axes.set_yticks(range(len(classes)), classes, family=families)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)
