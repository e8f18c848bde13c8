"""What is learnt in equal minutes: pretrain.py against transformers' own model, trained as its examples do it.

    python -m tests.benchmarks.equal_minutes --task bert-pydocs [--minutes 4] [--threads 2] [--only ours|peer]
        [--peer-precision auto|bf16|fp32] [--peer-learning-rate 5e-4] [--peer-dropout 0.1] [--section.key value ...]
    python -m tests.benchmarks.equal_minutes --task bert-novels --data FILES --validation-data FILES [...]
    python -m tests.benchmarks.equal_minutes --task multi30k --data TRAIN --validation-data VALIDATION --test-data TEST
        [...]
    python -m tests.benchmarks.equal_minutes --task cifar10 --data FILES --validation-data FILES [...]

Ours is the product: pretrain.py with the task's config and this budget; where its exported model has a native form, it
is compared as that. The peer has the same data, tokenizer and size, and transformers' usual dropout unless told
otherwise; fused AdamW, linear decay after 10 % of warm-up, clipping to 1, in a plain loop, which is not slower than
Trainer. Its precision is bf16 or fp32: `auto` takes what a short probe finds faster. The minutes are those of training,
data included, by each one's own clock; evaluation, saving and probes are outside. Both are then asked the same by one
evaluator. What a family's peer and evaluator do is told in minutes_bert.py, minutes_seq2seq.py and minutes_vit.py. The
last line is JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pretraining.cli import parse
from pretraining.data.shards import count_processes
from pretraining.settings import Settings
from tests.benchmarks import minutes_bert, minutes_seq2seq, minutes_vit


class Task(NamedTuple):
    """What is pretrained, for how long unless told otherwise, and how it is compared."""

    config: str
    minutes: float
    compare: Callable[[list[str], Settings, argparse.Namespace], dict[str, Any]]
    peer_dropout: float = 0.1
    """transformers' own."""


TASKS = {
    "bert-pydocs": Task("configs/pretrain/bert-pydocs.yaml", 4, minutes_bert.compare),
    "bert-novels": Task("configs/pretrain/bert-mini-novels.yaml", 20, minutes_bert.compare),
    "multi30k": Task("configs/pretrain/seq2seq-multi30k.yaml", 10, minutes_seq2seq.compare),
    "cifar10": Task("configs/pretrain/vit-cifar10.yaml", 8, minutes_vit.compare, peer_dropout=0.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--task", choices=list(TASKS), default="bert-pydocs")
    parser.add_argument("--config", help="instead of the task's own")
    parser.add_argument("--data", nargs="+", default=[], help="files to train on, instead of the config's")
    parser.add_argument("--validation-data", nargs="+", default=[], help="held-out files; none: a share of --data")
    parser.add_argument("--test-data", nargs="+", default=[], help="multi30k: files of pairs that are translated")
    parser.add_argument("--minutes", type=float, help="of training, each; default: the task's")
    parser.add_argument("--threads", type=int, default=count_processes(0))
    parser.add_argument("--only", choices=["ours", "peer"])
    parser.add_argument("--peer-dropout", type=float, help="default: transformers' own, 0.1, of a ViT 0")
    parser.add_argument("--peer-precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--peer-learning-rate", type=float, default=5e-4)
    parser.add_argument(
        "--evaluation-examples",
        type=int,
        help="at most so many; bert: of each form, and of each epoch's pairs, default 1024; multi30k: of the test "
        "file's pairs, default: all",
    )
    options, more = parser.parse_known_args()
    task = TASKS[options.task]
    options.minutes = options.minutes or task.minutes
    if options.peer_dropout is None:
        options.peer_dropout = task.peer_dropout
    if task.compare is minutes_seq2seq.compare and not options.test_data:
        parser.error(f"--task {options.task} asks for --test-data, which are translated at the end.")
    if options.data:
        more += ["--data.source=files", f"--data.files={json.dumps(options.data)}"]
        more += [f"--data.validation_files={json.dumps(options.validation_data)}"]

    with tempfile.TemporaryDirectory() as runs:
        arguments = [
            f"--config={options.config or task.config}",
            "--train.steps=null",
            "--train.epochs=null",
            "--train.tokens=null",
            f"--train.minutes={options.minutes}",
            f"--train.threads={options.threads}",
            "--log.trackers=[]",
            f"--runs={runs}",
            *more,
        ]
        settings = parse(arguments)
        torch.set_num_threads(options.threads)
        result = task.compare(arguments, settings, options)
    facts = {"task": options.task, "minutes": options.minutes, "threads": options.threads}
    print(json.dumps({**facts, **result}))


if __name__ == "__main__":
    main()
