"""What fine-tuning shows of a model, as PNG."""

from pathlib import Path

from matplotlib.figure import Figure

from finetuning.metrics.calibration import Bin
from pretraining.pictures.charts import save


def draw_reliability(bins: list[Bin], path: Path) -> None:
    """How often a model is right (above), and how many examples there are (below), by its confidence (Guo 2017).

    Args:
        bins: from `reliability_bins`, at least one of them with examples.
    """
    total = sum(each.examples for each in bins)
    filled = [each for each in bins if each.examples]
    error = sum(each.examples * abs(each.accuracy - each.confidence) for each in filled) / total
    lows, widths = [each.low for each in filled], [each.high - each.low for each in filled]
    accuracies, confidences = [each.accuracy for each in filled], [each.confidence for each in filled]
    figure = Figure(figsize=(5.5, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(lows, accuracies, widths, align="edge", edgecolor="white", label="accuracy of a bin")
    above.plot([0, 1], [0, 1], "--", color="grey", label="as confident as right")
    above.plot(confidences, accuracies, "o", color="black", markersize=4, label="at its mean confidence")
    above.set(ylabel="accuracy of a bin", ylim=(-0.02, 1.02), title=f"expected calibration error {error:.3f}")
    below.bar(lows, [each.examples / total for each in filled], widths, align="edge", edgecolor="white", color="grey")
    below.set(xlabel="confidence", ylabel=f"share of {total:,}", xlim=(0, 1))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    save(figure, path)
