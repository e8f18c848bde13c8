"""Lines/s of classifying a file, ours against transformers' `pipeline()` on the converted model, by turns.

    python -m tests.benchmarks.predict --model runs/sst2/model --file validation.parquet [--column sentence]
        [--native DIR] [--lines 100000] [--rounds 3] [--threads 2] [--batch 64]

The whole job of each, imports apart: open the model, read the lines, predict, write one line of JSON for each, in the
file's order.

- ours: `finetuning.predict` at its defaults, and in fp32;
- transformers: `pipeline("text-classification")` on the native form of the same weights (`--native`, or made here), in
  batches of texts sorted by length, in fp32 and, where the processor has units for it, in bf16.

A file with fewer lines is read again and again, each time with another number behind its texts. `equal` is the share of
lines whose label is that of transformers in fp32. The last line is JSON.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from transformers import AutoTokenizer, pipeline

from finetuning.prediction.lines import open_source
from finetuning.prediction.run import predict
from finetuning.prediction.settings import PredictSettings
from pretraining.autotune import has_bf16_units
from pretraining.export import write_native
from tests.benchmarks.rounds import alternate, cell, print_table, ratios, spread

STOCK = "transformers, fp32"
BLOCK = 4096


def texts_of(file: Path, column: str | None, count: int) -> list[str]:
    """So many texts, those of the file over again where it has fewer."""
    source = open_source(str(file), [column] if column else [])
    name = column or next(name for name in ("text", "sentence") if name in source.columns)
    found = [line.row[name] for block in source.blocks([name], 0, BLOCK) for line in block]
    again = (f"{text} {turn}" if turn else text for turn in itertools.count() for text in found)
    return list(itertools.islice(again, count))


def run_pipeline(native: Path, file: Path, out: Path, dtype: torch.dtype, batch: int) -> None:
    """What a user of transformers writes for this job."""
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    ask = pipeline(
        "text-classification", model=str(native), tokenizer=AutoTokenizer.from_pretrained(native), dtype=dtype
    )
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    found = ask([texts[number] for number in order], batch_size=batch, truncation=True)
    rows: list[dict] = [{}] * len(texts)
    for number, row in zip(order, found, strict=True):
        rows[number] = row
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def race(options: argparse.Namespace, folder: Path) -> dict:
    """The table, and its figures."""
    file, native = folder / "in.jsonl", options.native
    texts = texts_of(options.file, options.column, options.lines)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    if native is None:
        native = folder / "native"
        write_native(options.model, native)

    def ours(out: Path, precision: str) -> None:
        settings = PredictSettings(precision=precision, threads=options.threads)  # type: ignore[arg-type]
        with redirect_stdout(StringIO()):
            predict(str(options.model), str(file), str(out), settings)

    jobs: dict[str, Callable[[Path], None]] = {
        "ours": lambda out: ours(out, "auto"),
        "ours, fp32": lambda out: ours(out, "fp32"),
        STOCK: lambda out: run_pipeline(native, file, out, torch.float32, options.batch),
    }
    if has_bf16_units(torch.device("cpu")):
        jobs["transformers, bf16"] = lambda out: run_pipeline(native, file, out, torch.bfloat16, options.batch)
    labels: dict[str, list[str]] = {}

    def timed(name: str) -> float:
        out = folder / "out.jsonl"
        out.unlink(missing_ok=True)
        torch.set_num_threads(options.threads)
        start = time.perf_counter()
        jobs[name](out)
        taken = time.perf_counter() - start
        labels[name] = [json.loads(line)["label"] for line in out.read_text(encoding="utf-8").splitlines()]
        return taken

    seconds = alternate({name: lambda name=name: timed(name) for name in jobs}, options.rounds)
    rates = {name: [len(texts) / taken for taken in values] for name, values in seconds.items()}
    faster = {name: ratios(seconds[STOCK], values) for name, values in seconds.items()}
    equal = {name: sum(map(str.__eq__, found, labels[STOCK])) / len(texts) for name, found in labels.items()}
    print_table(
        [f"{len(texts):,} lines", "lines/s", "x transformers, fp32", "equal"],
        *([name, cell(rates[name], ",.0f"), cell(faster[name], ".2f"), f"{equal[name]:.2%}"] for name in jobs),
    )
    return {
        "lines_per_second": {name: spread(values).median for name, values in rates.items()},
        "ratio": {name: spread(values).median for name, values in faster.items()},
        "ratio_quartiles": {name: spread(values)[::2] for name, values in faster.items()},
        "equal": equal,
        "lines": len(texts),
        "rounds": options.rounds,
        "threads": options.threads,
        "batch": options.batch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, required=True, help="the model/ of a fine-tuned classifier of texts")
    parser.add_argument("--native", type=Path, help="its native form; made here if it is not given")
    parser.add_argument("--file", type=Path, required=True, help="texts: .jsonl, .csv, .tsv, .txt or .parquet")
    parser.add_argument("--column", help="the column of the text; text or sentence if it is not given")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=64, help="texts of a batch of the pipeline")
    options = parser.parse_args()
    for name in ("model", "file"):
        if not getattr(options, name).exists():
            parser.error(f"--{name} {getattr(options, name)}: there is no such thing.")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(race(options, Path(folder))))


if __name__ == "__main__":
    main()
