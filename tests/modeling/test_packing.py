"""Packed = alone: an example's outputs, loss and gradients do not depend on what shares its row or its batch."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest
import torch
from compare import close, equal, gradients, some
from torch import Tensor

# Rows of examples, each so many (source, target) tokens; BERT reads the source. One row is empty.
ROWS = [[(5, 3), (3, 6), (4, 2)], [(9, 4)], [], [(2, 7), (6, 1)]]
SOURCE, TARGET, MOST = 14, 12, 3  # tokens in a row of sources, in a row of targets; the most examples in a row

POSITIONS = [{"position_embedding_type": "learned"}, {"position_embedding_type": "sinusoidal"}]
NORMS = [{"norm_position": "post"}, {"norm_position": "pre"}]
POOLINGS = [{"pooling": "cls"}, {"pooling": "mean"}]
LAYOUTS = [position | norm for position in POSITIONS for norm in NORMS]
TOKENS = ["KeelBertForMaskedLM", "KeelBertForTokenClassification", "KeelSeq2SeqForConditionalGeneration"]
POOLED = ["KeelBertForPreTraining", "KeelBertForNextSentencePrediction", "KeelBertForSequenceClassification"]
LOSSES = [
    *((head, layout) for head in TOKENS for layout in LAYOUTS),
    *((head, layout | pooling) for head in POOLED for layout in LAYOUTS for pooling in POOLINGS),
    ("KeelBertForSequenceClassification", {"num_labels": 1}),
    ("KeelSeq2SeqForConditionalGeneration", {"label_smoothing": 0.1}),
]
HEADS = [*LOSSES, ("KeelBertModel", {}), ("KeelSeq2SeqModel", {})]
CLASSES = {  # by argument of forward: how many values it can take
    "KeelBertForPreTraining": {"labels": 40, "next_sentence_label": 2},
    "KeelBertForMaskedLM": {"labels": 40},
    "KeelBertForNextSentencePrediction": {"labels": 2},
    "KeelBertForSequenceClassification": {"labels": 2},
    "KeelBertForTokenClassification": {"labels": 2},
    "KeelSeq2SeqForConditionalGeneration": {"labels": 39},
}


def named(cases: list[tuple[str, dict]]) -> dict:
    """The arguments of `parametrize` for (class, fields of its configuration)."""
    ids = ["-".join([head.removeprefix("Keel"), *map(str, fields.values())]) for head, fields in cases]
    return {"argnames": "head, fields", "argvalues": cases, "ids": ids}


class Example(NamedTuple):
    """Arguments of forward: (source tokens,), (target tokens,), and one for the whole example, ()."""

    source: dict[str, Tensor]
    target: dict[str, Tensor]
    whole: dict[str, Tensor]


def example(head: str, source: int, target: int) -> Example:
    ids = {"input_ids": torch.randint(2, 39, (source,))}
    if head == "KeelSeq2SeqModel":
        return Example(ids, {"decoder_input_ids": torch.randint(2, 39, (target,))}, {})
    if head == "KeelSeq2SeqForConditionalGeneration":
        return Example(ids, {"labels": torch.randint(2, 39, (target,))}, {})
    ids["token_type_ids"] = torch.randint(2, (source,))
    classes = CLASSES.get(head, {})
    each = {"labels"} if head in [*TOKENS, "KeelBertForPreTraining"] else set()
    return Example(
        ids | {name: some(classes[name], source) for name in classes if name in each},
        {},
        {name: some(classes[name]) for name in classes if name not in each},
    )


def rows_of(head: str) -> list[list[Example]]:
    torch.manual_seed(0)
    return [[example(head, *lengths) for lengths in row] for row in ROWS]


def pack(rows: list[list[Example]], seed: int = 0) -> dict[str, Tensor]:
    """The rows as one batch; the content of the padding is drawn from `seed`."""
    torch.manual_seed(seed)
    first, batch = rows[0][0], {}
    for part, width, ids in ((0, SOURCE, "sequence_ids"), (1, TARGET, "decoder_sequence_ids")):
        if first[part]:
            batch[ids] = torch.zeros(len(rows), width, dtype=torch.long)
        for name in first[part]:
            classes = {"labels": 1, "token_type_ids": 2}.get(name, 40)
            batch[name] = torch.randint(classes, (len(rows), width)) - 100 * (name == "labels")
        for row, examples in enumerate(rows):
            start = 0
            for index, given in enumerate(examples, 1):
                for name, value in given[part].items():
                    batch[name][row, start : start + len(value)] = value
                    batch[ids][row, start : start + len(value)] = index
                start += len(value)
    for name in first.whole:
        batch[name] = torch.full((len(rows), MOST), -100)
        for row, examples in enumerate(rows):
            for index, given in enumerate(examples):
                batch[name][row, index] = given.whole[name]
    return batch


def alone(given: Example) -> dict[str, Tensor]:
    """A batch of this example and nothing else."""
    return {name: value[None] for part in given for name, value in part.items()}


def shares(rows: list[list[Example]], output: dict) -> Iterator[tuple[Example, dict[str, Tensor]]]:
    """Every example, and its share of a packed batch's output."""
    for row, examples in enumerate(rows):
        starts = Counter()
        for index, given in enumerate(examples):
            where = {MOST: index}
            for part, width in ((given.source, SOURCE), (given.target, TARGET)):
                length = len(next(iter(part.values()), ()))
                where[width] = slice(starts[width], starts[width] + length)
                starts[width] += length
            yield given, {name: value[row, where[value.shape[1]]] for name, value in tensors(output).items()}


def tensors(output: dict) -> dict[str, Tensor]:
    """Without the losses and the cache."""
    return {name: value for name, value in output.items() if isinstance(value, Tensor) and value.ndim}


def counts(head: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Targets of the batch, by argument of forward, as the training loop counts them."""
    return {name: (batch[name] != -100).sum() for name in CLASSES[head]}


@contextmanager
def kernel(model, name: str):
    """FlexAttention: no CPU backward, and its mask can be judged without compiling a kernel."""
    model.set_attn_implementation(name)
    flex = name == "flex_attention"
    with torch.compiler.set_stance("force_eager") if flex else nullcontext(), torch.set_grad_enabled(not flex):
        yield model


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize(**named(HEADS))
def test_outputs_are_those_of_the_example_alone(tiny, head, fields, attention):
    model, rows = tiny(head, **fields), rows_of(head)
    with kernel(model, attention):
        packed = model(**pack(rows))
    model.set_attn_implementation("eager")
    for given, share in shares(rows, packed):
        close(share, {name: value[0] for name, value in tensors(model(**alone(given))).items()})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(**named(LOSSES))
def test_loss_and_gradients_are_the_sums_over_examples(tiny, head, fields, attention):
    rows = rows_of(head)
    batch = pack(rows)
    count = {"num_items_in_batch": counts(head, batch)}
    with kernel(tiny(head, **fields).train(), attention) as model:
        packed = gradients(model, [batch | count])
        close(packed, gradients(model, [alone(given) | count for row in rows for given in row]))
        close(packed, gradients(model, [batch]))  # by default a loss is the mean over its own targets


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(**named(HEADS))
def test_content_of_padding_does_not_matter(tiny, head, fields, attention):
    rows = rows_of(head)
    with kernel(tiny(head, **fields), attention) as model:
        one, other = (pack(rows, seed) for seed in (1, 2))
        assert not one["input_ids"].equal(other["input_ids"])
        for (_, share), (_, same) in zip(shares(rows, model(**one)), shares(rows, model(**other)), strict=True):
            close(share, same)
        if head in CLASSES:
            close(gradients(model, [one]), gradients(model, [other]))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_starts_may_be_given(tiny, pooling):
    model, rows = tiny("KeelBertForPreTraining", pooling=pooling), rows_of("KeelBertForPreTraining")
    batch = pack(rows)
    starts = torch.tensor([[0, 5, 8], [0, 0, 0], [0, 0, 0], [0, 2, 0]])
    for (_, share), (_, same) in zip(
        shares(rows, model(**batch)), shares(rows, model(**batch, sequence_starts=starts)), strict=True
    ):
        equal(share, same)
    close(gradients(model, [batch]), gradients(model, [batch | {"sequence_starts": starts}]))


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    **named(
        [
            ("KeelBertForMaskedLM", {}),
            ("KeelBertForMaskedLM", {"norm_position": "pre"}),
            ("KeelBertForPreTraining", {}),
            ("KeelBertForPreTraining", {"pooling": "mean"}),
        ]
    )
)
def test_reading_at_labels_alone_changes_no_loss(tiny, head, fields, counted):
    model, batch = tiny(head, **fields).train(), pack(rows_of(head))
    if counted:
        batch["num_items_in_batch"] = {name: 3 * count for name, count in counts(head, batch).items()}
    few = batch | {"logits_to_keep": torch.nonzero(batch["labels"].flatten() != -100).flatten()}
    close(gradients(model, [batch]), gradients(model, [few]))
    logits = next(iter(tensors(model(**few)).values()))
    assert logits.shape == (int((batch["labels"] != -100).sum()), 40)


def test_what_cannot_be_packed_is_refused(tiny):
    with pytest.raises(ValueError, match="drop sequence_ids"):
        tiny("KeelBertForQuestionAnswering")(**pack(rows_of("KeelBertModel")))
    batch = pack(rows_of("KeelSeq2SeqModel"))
    for name in ("sequence_ids", "decoder_sequence_ids"):
        with pytest.raises(ValueError, match="go together"):
            tiny("KeelSeq2SeqModel")(**{key: value[:, :10] for key, value in batch.items() if key != name})
