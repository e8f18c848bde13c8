"""How texts become windows of tokens: several rows at once as each one by itself."""

from pathlib import Path

import numpy as np
import pytest

from finetuning.cli import parse_finetune
from finetuning.settings import SequenceClassificationSettings
from finetuning.tasks import make_task
from finetuning.windows import Windows
from tests.finetuning.data import arguments_of


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("cut_second", [False, True])
def test_the_windows_of_several_texts_are_those_of_each(pairs: bool, cut_second: bool):
    settings = SequenceClassificationSettings(sequence_length=16, stride=3, windows=4)
    lengths = np.random.default_rng(0).integers(0, 60, size=(50, 2))
    if not pairs:
        lengths[:, 1] = 0
    windows = Windows.of(lengths, pairs, settings, cut_second and pairs)
    examples = np.random.default_rng(1).permutation(50)[:20]
    first, sizes = windows.spans(examples)
    found = [
        tuple(slice(start, start + size) for start, size in zip(*of_window, strict=True))
        for of_window in zip(first.tolist(), sizes.tolist(), strict=True)
    ]
    assert found == [parts for example in examples.tolist() for parts in windows.cut(example)]


@pytest.mark.parametrize("kind", ["text", "long", "pair", "spans"])
def test_a_window_is_cls_text_sep(kind: str, labelled: Path, checkpoint: Path):
    """Each window, and the segment of each of its tokens, from the texts' tokens by hand."""
    objective = make_task(parse_finetune(arguments_of(kind, labelled, checkpoint)))
    examples = objective.examples
    examples.prepare(is_builder=True)
    data, windows, index = examples.data["train"], examples.windows["train"], examples.index("train", 0)[::-1]
    cls, sep = examples.tokenizer.cls_token_id, examples.tokenizer.sep_token_id
    for number, example in zip(index.tolist(), examples.examples("train", 0, index), strict=True):
        ids: list[int] = []
        segments: list[int] = []
        sizes: list[int] = []
        for parts in windows.cut(number):
            sides = [data.tokens[data.span(number, side)][parts[side]].tolist() for side in range(data.sides)]
            window = [cls, *(token for side in sides for token in (*side, sep))]
            ids += window
            first = len(sides[0]) + 2
            segments += [0] * first + [1] * (len(window) - first)
            sizes.append(len(window))
        assert example["input_ids"].tolist() == ids and example["token_type_ids"].tolist() == segments
        assert example["window_lengths"].tolist() == sizes and int(example["index"]) == number
