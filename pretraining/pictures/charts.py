"""Curves of a run, maps of attention, and what images show of a model, as PNG."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps, font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

rcParams["text.parse_math"] = False  # names of files, classes and tokens may hold a $, and are no formulas

PANELS = {"loss": "loss", "accuracy": "accuracy", "learning_rate": "learning rate", "_per_second": "speed"}


def draw_curves(lines: list[dict], path: Path) -> None:
    """Metrics over the steps: one panel for those whose names end alike, those of held-out data dotted.

    Args:
        lines: the lines of metrics.jsonl.
    """
    panels = {end: sorted({name for line in lines for name in line if name.endswith(end)}) for end in PANELS}
    panels = {end: names for end, names in panels.items() if names}
    if not panels:
        return
    figure = Figure(figsize=(5 * len(panels), 4))
    # Fixed margins: to fit them takes as long as all the drawing, at the end of every run.
    figure.subplots_adjust(left=0.14 / len(panels), right=1 - 0.03 / len(panels), bottom=0.12, top=0.92, wspace=0.25)
    for axes, (end, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            steps, values = zip(*((line["step"], line[name]) for line in lines if name in line), strict=True)
            style = "o--" if name.startswith("eval_") else "-"
            axes.plot(steps, np.array(values, dtype=float), style, label=name, markersize=3)  # null is a gap
        axes.set(xlabel="step", title=PANELS[end])
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize="small")
    save(figure, path)


def fonts_for(text: str) -> tuple[list[str], set[str]]:
    """Installed font families that have the characters of a text, and the characters that none of them has."""
    families, missing = ["DejaVu Sans"], set(text)  # matplotlib's own font comes first
    entries = sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name != families[0], entry.name))
    for entry in entries:
        if not missing:
            break
        if entry.name.startswith("Last Resort"):  # matplotlib's own: a box for every character
            continue
        characters = font_manager.get_font(entry.fname).get_charmap()
        if present := {c for c in missing if ord(c) in characters}:
            families.append(entry.name)
            missing -= present
    return list(dict.fromkeys(families)), missing


def legible(texts: list[str]) -> tuple[list[str], list[str]]:
    """Texts whose characters all have a font, and the font families; the others are spelt as their code points."""
    families, missing = fonts_for("".join(texts))
    code_points = str.maketrans({c: f"U+{ord(c):04X}" for c in missing})
    return [text.translate(code_points) for text in texts], families


def draw_attention(layers: list[np.ndarray], queries: list[str], keys: list[str], title: str, path: Path) -> None:
    """One panel for each layer (rows) and head (columns): dark where a query looks at a key.

    Args:
        layers: attention weights of each layer (H, T, S).
        queries, keys: the T and S tokens.
    """
    tokens, families = legible(queries + keys)
    queries, keys = tokens[: len(queries)], tokens[len(queries) :]
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


def draw_confusion(confusion: np.ndarray, classes: list[str], path: Path, unit: str = "images") -> None:
    """Rows are true classes, columns predicted ones; dark where a share of the row is large.

    Args:
        confusion: (N, N), how many of each true class were predicted to be of each class.
        unit: what is counted, in the plural.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    legibly_few = len(classes) <= 40
    side = max(3.5, 2 + 0.35 * len(classes)) if legibly_few else 10
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=f"{int(confusion.sum()):,} held-out {unit}")
    if legibly_few:
        classes, families = legible(classes)
        axes.set_xticks(range(len(classes)), classes, rotation=90, family=families)
        axes.set_yticks(range(len(classes)), classes, family=families)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    save(figure, path)


def tiled(tiles: np.ndarray) -> np.ndarray:
    """Rows of tiles (R, K, h, w) as one picture, a line of nan about each: (R (h + 1) + 1, K (w + 1) + 1)."""
    rows, columns, height, width = tiles.shape
    bordered = np.pad(tiles, ((0, 0), (0, 0), (1, 0), (1, 0)), constant_values=np.nan)  # above and left of each
    picture = bordered.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1))
    return np.pad(picture, ((0, 1), (0, 1)), constant_values=np.nan)


def draw_similarities(similarities: np.ndarray, path: Path) -> None:
    """A small map for each patch, in its place: how alike its position and every other's are (H, W, H, W).

    A position's likeness to itself is always 1, and left out of the scale of the colours.
    """
    height, width = similarities.shape[:2]
    others = similarities[similarities < 1 - 1e-6]
    side = max(7.0, 0.03 * width * (width + 1))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    low, high = (others.min(), others.max()) if len(others) else (0, 1)
    drawn = axes.imshow(tiled(similarities), cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
    axes.set_xticks((np.arange(width) + 0.5) * (width + 1), list(map(str, range(width))), fontsize=8)
    axes.set_yticks((np.arange(height) + 0.5) * (height + 1), list(map(str, range(height))), fontsize=8)
    axes.set(xlabel="patch's column", ylabel="patch's row", title="positions: each patch's likeness to all others")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(drawn, label="cosine similarity (its own is 1)", extend="max", shrink=0.8)
    save(figure, path)


def overlaid(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A picture (h, w, 1 or 3) without its colours, under a map (H, W) that is bright where weights are large."""
    patch_height, patch_width = picture.shape[0] // weights.shape[0], picture.shape[1] // weights.shape[1]
    bright = colormaps["inferno"](weights / weights.max())[..., :3]  # (H, W, 3)
    grey = picture.clip(0, 1).mean(2, keepdims=True)
    return 0.25 * grey + 0.75 * bright.repeat(patch_height, 0).repeat(patch_width, 1)


def draw_gallery(rows: list[list[tuple[str, np.ndarray]]], title: str, path: Path) -> None:
    """Rows of pictures (h, w, 1 or 3), from 0 to 1, each below its caption."""
    captions, families = legible([caption for row in rows for caption, _ in row])
    captions.reverse()  # popped in order
    columns, side, caption_height = max(map(len, rows)), 1.5, 0.22  # inches
    width, height = max(columns * (side + 0.1) + 0.1, 6.5), len(rows) * (side + caption_height) + 0.5
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all pictures: hundreds of axes would take minutes
    axes.set_axis_off()
    axes.text(0.1, 0.25, title, va="center", fontsize=8)
    for row, cells in enumerate(rows):
        for column, (_, picture) in enumerate(cells):
            left, top = 0.1 + column * (side + 0.1), 0.4 + row * (side + caption_height)
            axes.text(left, top + 0.12, captions.pop(), va="center", fontsize=7, family=families)
            right, bottom = left + side, top + caption_height + side
            colors = np.broadcast_to(picture.clip(0, 1), (*picture.shape[:2], 3))
            axes.imshow(colors, extent=(left, right, bottom, bottom - side), interpolation="nearest", aspect="auto")
            axes.add_patch(Rectangle((left, bottom - side), side, side, fill=False, edgecolor="grey", linewidth=0.5))
    axes.set(xlim=(0, width), ylim=(height, 0))  # y grows downwards
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    figure.savefig(unfinished, format="png", dpi=110)
    unfinished.replace(path)
