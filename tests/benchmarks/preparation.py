"""Tokens/s and memory of preparing a text: reading, near-duplicates, tokenising; with 1 and more processes.

    python -m tests.benchmarks.preparation --data FILES... [--column text] [--copies 10] [--processes 1 2]

The corpus is the files' documents `--copies` times. A copy is changed so that it is no near-duplicate: its paragraphs
are shuffled, and in each stretch of 200 words neighbours are exchanged at every third, fifth or seventh place, drawn
for (copy, document). Each measurement is a fresh process with empty caches, once for one copy and once for all:
flat memory is a ratio near 1. The tokenizer, which is trained on a sample, is made beforehand. Linux only: memory is
read from /proc while it happens. What counts is the anonymous part, since mapped files are the kernel's to drop; a
worker is a fork, so its part begins with all that the parent has. Where others use the machine, tokens per second of
core time tell what tokens per second do not.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pretraining.cli import parse
from pretraining.data.settings import TokenizerSettings
from pretraining.data.text.documents import Documents, load_text
from pretraining.data.text.settings import TextSettings
from pretraining.data.tokenizer import build_tokenizer
from pretraining.objectives import make_objective

STRETCH = 200  # words
MIB = 1024  # kB, which /proc counts in


def changed(text: str, key: str) -> str:
    """The text with its paragraphs and words in another order."""
    draw = random.Random(key)
    paragraphs = text.split("\n\n")
    draw.shuffle(paragraphs)
    for i, paragraph in enumerate(paragraphs):
        words = paragraph.split(" ")
        for start in range(0, len(words), STRETCH):
            every = draw.choice((3, 5, 7))
            for left in range(start + draw.randrange(every), min(start + STRETCH, len(words)) - 1, every):
                words[left], words[left + 1] = words[left + 1], words[left]
        paragraphs[i] = " ".join(words)
    return "\n\n".join(paragraphs)


def write_copies(documents: Documents, copies: int, folder: Path) -> list[str]:
    """A file for each copy, written document by document."""
    schema = pa.schema({"text": pa.string()})
    for copy in range(copies):
        with pq.ParquetWriter(folder / f"{copy}.parquet", schema) as file:
            for number, text in enumerate(documents.texts()):
                text = changed(text, f"{copy} {number}") if copy else text
                file.write_table(pa.table({"text": [text]}, schema))
    return [str(folder / f"{copy}.parquet") for copy in range(copies)]


def memory(process: int) -> dict[str, int]:
    """Anonymous memory now, and the most resident memory so far, in kB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "VmHWM"))}
    return {name: int(value) for name, value in values.items()}


def measure(files: list[str], processes: int, tokenizer: Path) -> dict[str, float]:
    """Prepares the files in a fresh process, and watches it and its workers."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "tests.benchmarks.preparation", "--prepare", json.dumps(files), cache]
        command += [str(processes), str(tokenizer)]
        run = subprocess.Popen(
            command, stdout=subprocess.PIPE, env={**os.environ, "HF_DATASETS_CACHE": f"{cache}/datasets"}
        )
        peaks = dict.fromkeys(("parent", "worker", "together", "parent_rss", "worker_rss"), 0)
        while run.poll() is None:
            together = 0
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            for name, process in [("parent", run.pid), *(("worker", int(child)) for child in children)]:
                try:
                    now = memory(process)
                except OSError:  # it has just ended
                    continue
                if now:
                    together += now["RssAnon"]
                    peaks[name] = max(peaks[name], now["RssAnon"])
                    peaks[f"{name}_rss"] = max(peaks[f"{name}_rss"], now["VmHWM"])
            peaks["together"] = max(peaks["together"], together)
            time.sleep(0.02)
        assert run.stdout is not None
        result = json.loads(run.stdout.read().splitlines()[-1])
    return {**result, **{f"{name}_mib": value / MIB for name, value in peaks.items()}}


def prepare(files: str, cache: str, processes: str, tokenizer: str) -> None:
    """What is measured."""
    settings = parse(
        [
            "--train.steps=1",
            f"--cache={cache}",
            "--data.source=files",
            f"--data.files={files}",
            f"--data.processes={processes}",
            f"--tokenizer.path={tokenizer}",
            "--objective.next_sentence=none",  # NSP asks for more documents than some test may give
        ]
    )
    objective = make_objective(settings)
    started, spent = time.perf_counter(), sum(os.times()[:4])
    lines = objective.examples.prepare(is_builder=True)
    seconds, spent = time.perf_counter() - started, sum(os.times()[:4]) - spent
    print("\n".join(lines), file=sys.stderr)
    tokens = sum(len(data.tokens) for data in objective.examples.data.values())
    rates = {"tokens_per_second": tokens / seconds, "tokens_per_core_second": tokens / spent}
    print(json.dumps({"tokens": tokens, "seconds": seconds, "core_seconds": spent, **rates}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[], help="files or globs, as data.files takes them")
    parser.add_argument("--column", default="text")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prepare", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        return prepare(*options.prepare)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = TextSettings(source="files", files=options.data, column=options.column, validation_fraction=0)
        documents = load_text(source)["train"]
        build_tokenizer(TokenizerSettings(sample_characters=5_000_000), documents, folder)
        (tokenizer,) = folder.glob("tokenizer-*")
        files = write_copies(documents, options.copies, folder)
        print(f"{'copies':>6}{'processes':>11}{'tokens':>14}{'seconds':>9}{'tokens/s':>11}{'/core s':>10}", end="")
        print(f"{'anonymous MiB: parent':>23}{'worker':>8}{'all':>7}{'resident MiB: parent':>22}{'worker':>8}")
        for processes in options.processes:
            for copies in sorted({1, options.copies}):
                found = measure(files[:copies], processes, tokenizer)
                results.append({"copies": copies, "processes": processes, **found})
                print(
                    f"{copies:6}{processes:11}{found['tokens']:14,}{found['seconds']:9.1f}"
                    f"{found['tokens_per_second']:11,.0f}{found['tokens_per_core_second']:10,.0f}"
                    f"{found['parent_mib']:23.0f}{found['worker_mib']:8.0f}"
                    f"{found['together_mib']:7.0f}{found['parent_rss_mib']:22.0f}{found['worker_rss_mib']:8.0f}",
                    flush=True,
                )
    ratios = {}
    for processes in options.processes:
        sizes = {run["copies"]: run["together_mib"] for run in results if run["processes"] == processes}
        ratios[processes] = sizes[options.copies] / sizes[1]
        print(f"{processes} processes: peak memory of {options.copies} copies / of one: {ratios[processes]:.3f}")
    print(json.dumps({"runs": results, "memory_ratio": ratios}))


if __name__ == "__main__":
    main()
