"""What self-attention, recurrence and convolution cost over length n and width d (Vaswani 2017, table 1), measured.

    python -m tests.benchmarks.complexity [--out complexity.png] [--threads 1] [--device auto|cpu|cuda] [--rounds 5]

One layer of each kind, one sequence (1, n, d): our own attention (heads of 64, SDPA), torch's GRU, and a convolution
over three neighbours. The table says in a single layer

                     operations           operations that wait for one another
    attention        4 n^2 d + 8 n d^2    the same number for every n
    recurrence       12 n d^2             grows with n
    convolution      6 n d^2              the same number for every n

- operations: counted in the layer's matrix products by torch, so that their exponents are exact; attention's second
  term is its four projections, which the paper's table leaves out.
- waiting: the longest chain in the layer's autograd graph, counted; and the time at d = 8, where a core does nothing
  but wait for the next small operation.
- seconds: forward alone, and forward with backward, over n at one d and over d at one n; all points by turns, round by
  round, and the medians count. An exponent is a least-squares slope between logarithms, with its standard error, over
  the four largest sizes (of attention, those where n is 8 d or more, so that its first term is 80 % of its operations).
  `leading` is the slope of the layer's first term over the same sizes, and `counted` of all its operations: that of the
  time, if every operation took equally long.

The last line is JSON; `--out` draws the times with their fits.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pretraining.pictures.charts import save
from tests.benchmarks.complexity_layers import LAYERS, LEADING_PRODUCT, RATIO, Point, chain, is_led, operations, timer
from tests.benchmarks.rounds import alternate, print_table, spread

Times = dict[str, list[float]]
"""Seconds of each round, by the point."""
LENGTHS, WIDTHS = [256, 512, 1024, 1536, 2048, 3072, 4096], [64, 128, 192, 256, 384, 512, 768]
SHORT, NARROW = [8, 16, 32, 64, 128], 8  # where all of the time is waiting
FITTED = 4  # sizes, the largest ones


class Fit(NamedTuple):
    """y = factor * size ** exponent, by least squares between logarithms."""

    exponent: float
    error: float
    factor: float
    sizes: list[int]

    @classmethod
    def of(cls, sizes: list[int], values: list[float] | list[int]) -> "Fit":
        (exponent, factor), covariance = np.polyfit(np.log(sizes), np.log(values), 1, cov=True)
        error = float(covariance[0, 0] ** 0.5)
        return cls(round(float(exponent), 4) + 0.0, round(error, 4), float(np.exp(factor)), sizes)  # + 0: no -0

    def __str__(self) -> str:
        return f"{self.exponent:.2f} ± {self.error:.2f}"


class Sweep(NamedTuple):
    """Points of which one size varies."""

    title: str
    over: str
    sizes: list[int]
    at: Callable[[str, int, bool], Point]
    """The point of a layer and a size, with or without backward."""

    def points(self, *backward: bool) -> list[Point]:
        points: list[Point] = []
        for layer in LAYERS:
            for size in self.sizes:
                points += [self.at(layer, size, both) for both in backward]
        return points

    def large(self, layer: str) -> list[int]:
        """The sizes at which a layer does what the paper's table says of it."""
        return [size for size in self.sizes if is_led(self.at(layer, size, False))][-FITTED:]

    def medians(self, layer: str, times: Times, sizes: list[int], backward: bool = False) -> list[float]:
        return [spread(times[str(self.at(layer, size, backward))]).median for size in sizes]


def over_lengths(sizes: list[int], width: int) -> Sweep:
    return Sweep(f"over n at d = {width}", "n", sizes, lambda layer, n, backward: Point(layer, n, width, backward))


def over_widths(sizes: list[int], length: int) -> Sweep:
    return Sweep(f"over d at n = {length:,}", "d", sizes, lambda layer, d, backward: Point(layer, length, d, backward))


def fit_large(sweep: Sweep, times: Times, layer: str) -> dict[str, Fit]:
    """Exponents of the layer's leading product, of all its operations, and of its times."""
    sizes = sweep.large(layer)
    counts = [operations(sweep.at(layer, size, False)) for size in sizes]
    return {
        "leading": Fit.of(sizes, [count[LEADING_PRODUCT[layer]] for count in counts]),
        "counted": Fit.of(sizes, [sum(count.values()) for count in counts]),
        "forward": Fit.of(sizes, sweep.medians(layer, times, sizes)),
        "forward_backward": Fit.of(sizes, sweep.medians(layer, times, sizes, backward=True)),
    }


def fit_waiting(sweep: Sweep, times: Times, layer: str) -> dict[str, Fit]:
    """Exponents of the layer's longest chain, and of its time where it computes next to nothing."""
    sizes = sweep.sizes[-FITTED:]
    return {
        "chain": Fit.of(sizes, [chain(sweep.at(layer, size, False)) for size in sizes]),
        "narrow": Fit.of(sizes, sweep.medians(layer, times, sizes)),
    }


def draw_times(axes: Axes, sweep: Sweep, times: Times, fits: dict[str, Fit]) -> None:
    """Each layer's medians between their quartiles, and its fit over the sizes that it is of."""
    for number, (layer, fit) in enumerate(fits.items()):
        quartiles = [spread(times[str(sweep.at(layer, size, False))]) for size in sweep.sizes]
        low, median, high = (1000 * np.array(values) for values in zip(*quartiles, strict=True))
        line = 1000 * fit.factor * np.array(fit.sizes) ** fit.exponent
        label = f"{layer}: {sweep.over} to the {fit}"
        axes.fill_between(sweep.sizes, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        axes.plot(sweep.sizes, median, "o", color=f"C{number}", markersize=4)
        axes.plot(fit.sizes, line, color=f"C{number}", label=label)
    axes.set(ylabel="milliseconds", title=f"forward, {sweep.title}")


def draw_chains(axes: Axes, sweep: Sweep, fits: dict[str, Fit]) -> None:
    for layer, fit in fits.items():
        lengths = [chain(sweep.at(layer, size, False)) for size in sweep.sizes]
        axes.plot(sweep.sizes, lengths, "o-", markersize=4, label=f"{layer}: n to the {fit.exponent:.2f}")
    axes.set(ylabel="operations", title="the longest chain of operations")


def draw(sweeps: list[Sweep], times: Times, fits: dict[str, list[dict[str, Fit]]], path: Path) -> None:
    """Times over n, times over d, times where all is waiting, and the chains."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for place, name in enumerate(("forward", "forward", "narrow")):
        draw_times(panels[place], sweeps[place], times, {layer: fits[layer][place][name] for layer in LAYERS})
    draw_chains(panels[3], sweeps[2], {layer: fits[layer][2]["chain"] for layer in LAYERS})
    for axes, sweep in zip(panels, [*sweeps, sweeps[2]], strict=True):
        axes.set(xscale="log", yscale="log", xlabel=sweep.over)
        axes.set_xticks(sweep.sizes, [f"{size:,}" for size in sweep.sizes], fontsize=8, rotation=45)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("complexity.png"), help="the picture")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="n, at the d of --width")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="d, at the n of --length")
    parser.add_argument("--length", type=int, default=2048)
    options = parser.parse_args(arguments)
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here.")
    device = torch.device(name)
    torch.set_num_threads(options.threads)

    sweeps = [
        over_lengths(sorted(options.lengths), options.width),
        over_widths(sorted(options.widths), options.length),
        over_lengths(SHORT, NARROW),
    ]
    for sweep in sweeps[:2]:
        if len(sweep.large("attention")) < 3:  # two points leave nothing to estimate an error from
            parser.error(f"{sweep.title}: name three sizes or more at which n is {RATIO} d or more.")
    points = sweeps[0].points(False, True) + sweeps[1].points(False, True) + sweeps[2].points(False)
    times = alternate({str(point): timer(point, device) for point in points}, options.rounds)
    fits = {
        layer: [*(fit_large(sweep, times, layer) for sweep in sweeps[:2]), fit_waiting(sweeps[2], times, layer)]
        for layer in LAYERS
    }
    result: dict[str, Any] = {layer: {} for layer in LAYERS}
    for place, sweep in enumerate(sweeps):
        rows: list[list[str]] = []
        for layer in LAYERS:
            fit = fits[layer][place]
            sizes = next(iter(fit.values())).sizes
            rows.append([layer, *map(str, fit.values()), f"{sweep.over} {sizes[0]:,} - {sizes[-1]:,}"])
            result[layer][sweep.title] = {name: [one.exponent, one.error] for name, one in fit.items()}
        heads = [head.replace("_", " + ") for head in fits["attention"][place]]
        print_table([f"exponents {sweep.title}", *heads, "fitted"], *rows)
    draw(sweeps, times, fits, options.out)
    print(f"\n{options.out}")
    print(json.dumps({**result, "device": name, "threads": options.threads, "rounds": options.rounds}))


if __name__ == "__main__":
    main()
