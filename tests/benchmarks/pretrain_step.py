"""Tokens/s (images/s) of a pretraining step, ours against transformers', by turns in one process.

    python -m tests.benchmarks.pretrain_step --family bert|seq2seq|vit [--threads 1 2] [--rounds 5] [--steps 4]
        [--size mini|base] [--device cpu|cuda] [--dropout 0.1] [--allocator both|system|keep]
        [--section.key value of pretrain.py ...]

bert: MLM and NSP on pairs out of Python's documentation, cut so that 35 to 50 % of a batch padded to 128
(`--sequence-length`) is padding. seq2seq: pairs of random tokens, as long as sentences are: sources lognormal
(2.95, 0.6), 4 to 80 tokens, targets 0.85 to 1.2 times as many; dropout as transformers' Marian has it, with none on the
attention. vit: scikit-learn's digits at 32 x 32 pixels in patches of 4 (mini) or 224 x 224 in patches of 16 (base), no
dropout. The same examples for everybody, on the device beforehand. A round is `--steps` updates (forward, backward,
clipping, AdamW) of

- ours: packed rows, in the precision, attention and linear layers that pretrain.py's own trial finds, dropout by the
  same rate as everybody's; and the same in exact fp32, where that is another;
- stock: `BertForPreTraining`, `MarianMTModel` or `ViTForImageClassification` at its defaults: fp32, SDPA, AdamW, random
  batches padded to their longest;
- best: the fastest of what transformers offers: fp32 or bf16, SDPA or eager attention, as it is or compiled (that in
  the faster precision alone), fused AdamW; seq2seq: on pairs that are alike in length, as many tokens an update as
  ours. The table says which it was: where a CPU has no bf16 products, that is fp32.

Tokens/s do not count padding. Medians and quartiles of the rounds after one that warms up; a ratio is that of
one round. MFU: the operations that the losses need (`useful_flops` of the family; the same for everybody) over those
of a large square matrix product in the contestant's precision. The losses are compared with dropout off, in fp32, on
the weights that the rounds left.

All of that twice, each in a process of its own, for a heap is inherited: with the C library as it comes (`system`), and
with freed memory kept for the next step (`keep`, which is how pretrain.py runs on CPU), for everybody alike.

The last line is JSON: as they come at the top, the first thread count's measures first, and both states in `allocator`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from pretraining.autotune import measure_peak, synchronize
from pretraining.launch import set_allocator
from tests.benchmarks.rounds import alternate, cell, print_table, ratios, spread
from tests.benchmarks.step import Contestant, Family
from tests.benchmarks.step_bert import Bert
from tests.benchmarks.step_seq2seq import Seq2Seq
from tests.benchmarks.step_vit import ViT

FAMILIES: dict[str, type[Any]] = {"bert": Bert, "seq2seq": Seq2Seq, "vit": ViT}
NAMES = {"ours": "ours", "ours_fp32": "ours, fp32", "stock": "transformers, stock", "best": "transformers, best"}


def race(family: Family, threads: int, rounds: int) -> dict[str, Any]:
    """All contestants with this many threads: a table, and its figures."""
    torch.set_num_threads(threads)
    contestants = family.contestants(threads)

    def rate(contestant: Contestant) -> float:
        synchronize(family.device)
        start = time.perf_counter()
        contestant.run()
        synchronize(family.device)
        return family.count / (time.perf_counter() - start)

    runs = {name: lambda contestant=contestant: rate(contestant) for name, contestant in contestants.items()}
    alternate(runs, 1)
    precisions = {contestant.precision for contestant in contestants.values()}
    before = {precision: measure_peak(family.device, precision) for precision in precisions}
    rates = alternate(runs, rounds)
    peaks = {precision: max(peak, measure_peak(family.device, precision)) for precision, peak in before.items()}
    mfu = {
        name: spread(rates[name]).median * family.flops / family.count / peaks[contestant.precision]
        for name, contestant in contestants.items()
    }
    difference = family.loss_difference(contestants)

    rows = [
        [
            NAMES[name],
            cell(rates[name], ",.0f"),
            cell(ratios(rates[name], rates["stock"]), ".2f"),
            f"{mfu[name]:.1%}",
            contestant.how,
        ]
        for name, contestant in contestants.items()
    ]
    print_table([f"threads: {threads}", f"{family.settings.objective.unit}/s", "x stock", "MFU", "how"], *rows)
    exact = "ours_fp32" if "ours_fp32" in contestants else "ours"
    compared = {
        "ratio_stock": ratios(rates["ours"], rates["stock"]),
        "ratio_best": ratios(rates["ours"], rates["best"]),
        "ratio_fp32": ratios(rates[exact], rates["stock"]),
    }
    print_table(
        ["ratios", "median (quartiles)"],
        ["ours / stock", cell(compared["ratio_stock"], ".2f")],
        ["ours / best", cell(compared["ratio_best"], ".2f")],
        ["ours, fp32 / stock", cell(compared["ratio_fp32"], ".2f")],
    )
    print(f"largest difference of a loss: {difference:.1e}\n")
    return {
        **{name: spread(values).median for name, values in compared.items()},
        **{f"{name}_quartiles": spread(values)[::2] for name, values in compared.items()},
        "mfu": mfu["ours"],
        **{f"mfu_{name}": mfu[name if name in mfu else "ours"] for name in ("ours_fp32", "stock", "best")},
        "loss_difference": difference,
        f"{family.settings.objective.unit}_per_second": {name: spread(values).median for name, values in rates.items()},
        "how": {name: contestant.how for name, contestant in contestants.items()},
        "peak_flops": peaks,
        "threads": threads,
    }


def race_apart(allocator: str) -> dict[str, Any]:
    """All of it in a process of its own, in this state; what it prints is printed here, but for its figures."""
    command = [sys.executable, "-m", "tests.benchmarks.pretrain_step", *sys.argv[1:], f"--allocator={allocator}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = f"allocator: {allocator}\n"
        for line in process.stdout:
            print(last, end="", flush=True)
            last = line
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(last)


def compare_states(states: dict[str, dict[str, Any]], threads: int) -> None:
    """A table of everybody's rates in both states."""
    come, tuned = (state.get(str(threads), state) for state in (states["system"], states["keep"]))
    (unit,) = (name for name in come if name.endswith("_per_second"))
    rows = [
        [NAMES[name], f"{rate:,.0f}", f"{tuned[unit][name]:,.0f}", f"{tuned[unit][name] / rate:.2f}"]
        for name, rate in come[unit].items()
        if name in tuned[unit]
    ]
    print_table([f"threads: {threads}, {unit}", "as they come", "freed memory kept", "ratio"], *rows)
    for name in ("ratio_stock", "ratio_best", "ratio_fp32"):
        print(f"{name}: {come[name]:.2f} as they come, {tuned[name]:.2f} with freed memory kept")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--family", choices=list(FAMILIES), default="bert")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="updates of a round; default: bert 4, seq2seq 16, vit 4")
    parser.add_argument("--examples", type=int, help="examples of an update; default: bert 32, seq2seq and vit 64")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--size", choices=["mini", "base"], default="mini")
    parser.add_argument("--sequence-length", type=int, default=128, help="of bert")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="torch.compile in transformers' probe"
    )
    parser.add_argument("--allocator", choices=["both", "system", "keep"], default="both")
    options, more = parser.parse_known_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here.")
    if options.allocator == "both":
        states = {allocator: race_apart(allocator) for allocator in ("system", "keep")}
        for threads in options.threads:
            compare_states(states, threads)
        print(
            "peak resident memory: "
            + ", ".join(f"{name} {state['resident_mib']:,} MiB" for name, state in states.items())
        )
        print(json.dumps({**states["system"], "allocator": states}))
        return
    set_allocator(options.allocator, torch.device(options.device))
    torch.set_num_threads(options.threads[0])
    kind = FAMILIES[options.family]
    options.steps = options.steps or kind.default_steps
    options.examples = options.examples or kind.default_examples
    family = kind(options, more)
    print(family.about)
    results = {str(threads): race(family, threads, options.rounds) for threads in options.threads}
    first = results[str(options.threads[0])]
    facts = {name: getattr(options, name) for name in ("family", "device", "size", "dropout", "rounds", "steps")}
    facts["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({**first, **facts, **family.padding, **(results if len(results) > 1 else {})}))


if __name__ == "__main__":
    main()
