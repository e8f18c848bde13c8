"""Tokens/s of translating, ours against transformers' and CTranslate2's, by turns in one process.

    python -m tests.benchmarks.generate --model runs/seq2seq-multi30k/model --data FILES... [--source en --target de]
        [--threads 2] [--rounds 5] [--sentences 128] [--batches 1 32] [--beams 1 4] [--max-new-tokens 100]

The same weights and the same sentences, tokenised and cut into batches beforehand, in the order of the file, go to

- ours: `Search` of the checkpoint, its weights laid out once beforehand;
- transformers: `generate()` of the Marian that it is converted to, at its defaults;
- ctranslate2, in fp32 and in int8, where it is installed (`pip install ctranslate2`), by its converter from the same
  Marian: padding gets no probability, the end closes every source, and targets have no least length.

`--data` are parquet files with a column `translation` of {source: text, target: text}. Batches of one get an eighth of
the sentences. A round is all of them once; tokens/s are each one's own tokens, ends included; ratios are of seconds,
round by round. `equal` is the share of sentences whose tokens are transformers'. The last line is JSON, its measures
by cell: `greedy_1` is greedy search of batches of one, `beam4_32` four beams and batches of 32.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import sacrebleu
import torch
from torch import Tensor
from transformers import AutoTokenizer, BatchEncoding

from modeling import KeelSeq2SeqForConditionalGeneration
from modeling.convert import to_native
from modeling.search import Search
from tests.benchmarks.rounds import alternate, cell, print_table, ratios, spread

try:
    import ctranslate2
except ImportError:
    ctranslate2 = None

Targets = list[list[int]]  # tokens of each sentence, the end included
STOCK = "transformers"


class Contestants:
    """One checkpoint in everybody's hands."""

    def __init__(self, options: argparse.Namespace):
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.model = KeelSeq2SeqForConditionalGeneration.from_pretrained(options.model).eval()
        self.search = Search(self.model)
        self.native = to_native(self.model)
        self.most = options.max_new_tokens
        self.translators: dict[str, Any] = {}
        if ctranslate2 is None:
            print("ctranslate2 is not installed: its columns are left out.")
            return
        native = to_native(self.model)
        native.final_logits_bias[0, self.tokenizer.pad_token_id] = torch.finfo(torch.float32).min
        with tempfile.TemporaryDirectory() as folder:
            for part in (native, self.tokenizer):
                part.save_pretrained(f"{folder}/native")
            ctranslate2.converters.TransformersConverter(f"{folder}/native").convert(f"{folder}/ctranslate2")
            for name, kind in (("ctranslate2, fp32", "float32"), ("ctranslate2, int8", "int8")):
                self.translators[name] = ctranslate2.Translator(
                    f"{folder}/ctranslate2", compute_type=kind, inter_threads=1, intra_threads=options.threads
                )

    def sources(self, texts: list[str], batch: int) -> list[BatchEncoding]:
        batches = [texts[start : start + batch] for start in range(0, len(texts), batch)]
        return [self.tokenizer(batch, padding=True, return_tensors="pt") for batch in batches]

    def searches(self, sources: list[BatchEncoding], beams: int) -> dict[str, Callable[[], Targets]]:
        """What each one does with all these batches."""
        settings = {"num_beams": beams, "max_length": self.most + 1}  # the start token is one
        tokens = [
            [self.tokenizer.convert_ids_to_tokens(ids[mask == 1]) for ids, mask in zip(*pair, strict=True)]
            for pair in ((source["input_ids"], source["attention_mask"]) for source in sources)
        ]

        def write(search: Callable[..., Tensor]) -> Targets:
            ids = (
                search(source["input_ids"], attention_mask=source["attention_mask"], **settings) for source in sources
            )
            return [self.upto_end(row) for found in ids for row in found[:, 1:].tolist()]

        def translate(translator: Any) -> Targets:
            results = (
                translator.translate_batch(
                    batch, beam_size=beams, max_decoding_length=self.most, min_decoding_length=0, return_end_token=True
                )
                for batch in tokens
            )
            return [self.tokenizer.convert_tokens_to_ids(row.hypotheses[0]) for found in results for row in found]

        return {
            "ours": lambda: write(self.search),
            STOCK: lambda: write(self.native.generate),
            **{name: lambda one=one: translate(one) for name, one in self.translators.items()},
        }

    def upto_end(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids


def race(contestants: Contestants, pairs: list[dict], batch: int, beams: int, rounds: int, options: Any) -> dict:
    """One cell: a table, and its figures."""
    sources = contestants.sources([pair[options.source] for pair in pairs], batch)
    found: dict[str, Targets] = {}

    def timed(name: str, search: Callable[[], Targets]) -> float:
        start = time.perf_counter()
        found[name] = search()
        return time.perf_counter() - start

    searches = contestants.searches(sources, beams)
    runs = {name: lambda name=name, search=search: timed(name, search) for name, search in searches.items()}
    alternate(runs, 1)
    seconds = alternate(runs, rounds)
    references = [[pair[options.target] for pair in pairs]]
    texts = {name: contestants.tokenizer.batch_decode(ids, skip_special_tokens=True) for name, ids in found.items()}
    counts = {name: sum(map(len, ids)) for name, ids in found.items()}
    faster = {name: ratios(seconds[STOCK], taken) for name, taken in seconds.items()}
    rates = {name: [counts[name] / one for one in taken] for name, taken in seconds.items()}
    bleu = {name: sacrebleu.corpus_bleu(text, references).score for name, text in texts.items()}
    equal = {
        name: sum(a == b for a, b in zip(ids, found[STOCK], strict=True)) / len(pairs) for name, ids in found.items()
    }
    head = f"{'greedy' if beams == 1 else f'{beams} beams'}, batches of {batch}"
    print_table(
        [head, "tokens/s", "x transformers", "sacreBLEU", "equal"],
        *(
            [name, cell(rates[name], ",.0f"), cell(faster[name], ".2f"), f"{bleu[name]:.1f}", f"{equal[name]:.1%}"]
            for name in searches
        ),
    )
    return {
        "tokens_per_second": {name: spread(values).median for name, values in rates.items()},
        "ratio": {name: spread(values).median for name, values in faster.items()},
        "ratio_quartiles": {name: spread(values)[::2] for name, values in faster.items()},
        "bleu": bleu,
        "equal": equal,
        "sentences": len(pairs),
        "mean_tokens": counts[STOCK] / len(pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, help="a trained Keel checkpoint with its tokenizer")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="de")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sentences", type=int, default=128)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--max-new-tokens", type=int, default=100)
    options = parser.parse_args()
    if options.model is None or not (options.model / "config.json").is_file():
        parser.error(
            f"--model {options.model}: no checkpoint there; give the folder of a trained one, such as "
            "runs/seq2seq-multi30k/model, which `pretrain.py` writes."
        )
    for file in options.data:
        if not file.is_file():
            parser.error(f"--data {file}: no such file; give parquet files of translations.")
    torch.set_num_threads(options.threads)
    pairs = [pair for file in options.data for pair in pq.read_table(file)["translation"].to_pylist()]
    pairs = pairs[: options.sentences]
    contestants = Contestants(options)
    config = contestants.model.config
    print(
        f"{options.model}: {config.encoder_layers} + {config.decoder_layers} layers, hidden {config.hidden_size}, "
        f"vocabulary {config.vocab_size:,}; threads: {options.threads}"
    )
    cells = {}
    for batch in options.batches:
        few = pairs[: max(1, len(pairs) // 8)] if batch == 1 else pairs
        for beams in options.beams:
            name = f"{'greedy' if beams == 1 else f'beam{beams}'}_{batch}"
            cells[name] = race(contestants, few, batch, beams, options.rounds, options)
    facts = {name: getattr(options, name) for name in ("threads", "rounds", "max_new_tokens")}
    print(json.dumps({**cells, **facts}))


if __name__ == "__main__":
    main()
