"""Packed = alone: an example's outputs, loss and gradients do not depend on what shares its row or its batch."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import pytest
import torch
from compare import close, equal, gradients, some
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.nn.utils.rnn import pad_sequence

# Rows of examples, each so many (source, target) tokens; BERT reads the source. One row is empty.
ROWS = [[(5, 3), (3, 6), (4, 2)], [(9, 4)], [], [(2, 7), (6, 1)]]
SOURCE, TARGET, MOST = 14, 12, 3  # tokens in a row of sources, in a row of targets; the most examples in a row

POSITIONS = [{"position_embedding_type": "learned"}, {"position_embedding_type": "sinusoidal"}]
NORMS = [{"norm_position": "post"}, {"norm_position": "pre"}]
POOLINGS = [{"pooling": "cls"}, {"pooling": "mean"}]
LAYOUTS = [position | norm for position in POSITIONS for norm in NORMS]
TOKENS = ["KeelBertForMaskedLM", "KeelBertForTokenClassification", "KeelSeq2SeqForConditionalGeneration"]
SPANS = ["KeelBertForQuestionAnswering"]
POOLED = ["KeelBertForPreTraining", "KeelBertForNextSentencePrediction", "KeelBertForSequenceClassification"]
LOSSES = [
    *((head, layout) for head in [*TOKENS, *SPANS] for layout in LAYOUTS),
    *((head, layout | pooling) for head in POOLED for layout in LAYOUTS for pooling in POOLINGS),
    ("KeelBertForSequenceClassification", {"num_labels": 1}),
    *(
        (head, {"class_weights": [0.5, 3.0], "label_smoothing": 0.1})
        for head in ("KeelBertForSequenceClassification", "KeelBertForTokenClassification")
    ),
    ("KeelSeq2SeqForConditionalGeneration", {"label_smoothing": 0.1}),
]
HEADS = [*LOSSES, ("KeelBertModel", {}), ("KeelSeq2SeqModel", {})]
PLACES = {"start_positions": None, "end_positions": None}  # as many as the example has tokens
CLASSES = {  # by argument of forward: how many values it can take
    "KeelBertForPreTraining": {"labels": 40, "next_sentence_label": 2},
    "KeelBertForMaskedLM": {"labels": 40},
    "KeelBertForNextSentencePrediction": {"labels": 2},
    "KeelBertForSequenceClassification": {"labels": 2},
    "KeelBertForTokenClassification": {"labels": 2},
    "KeelBertForQuestionAnswering": PLACES,
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
        {name: some(classes[name] or source) for name in classes if name not in each},
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
            start = 0
            for index, given in enumerate(examples):
                value = given.whole[name]
                batch[name][row, index] = value + start * (name in PLACES and value != -100)  # a place in the row
                start += len(given.source["input_ids"])
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


# Sequences that belong together: the choices of a question, the windows of a text


SEQUENCES = [[5, 3, 4], [2, 6, 1], [], [7, 6]]  # tokens of each sequence of each row
EXAMPLES = torch.tensor([[1, 2, 1], [3, 3, 2], [0, 0, 0], [4, 3, 0]])  # the question or the text that it belongs to
MEMBERS = {1: [(0, 0), (0, 2)], 2: [(0, 1), (1, 2)], 3: [(1, 0), (1, 1), (3, 1)], 4: [(3, 0)]}  # by number: row, column
FIRST = torch.tensor([[0, 5, 8], [0, 2, 8], [0, 0, 0], [0, 7, 0]])


def sequences() -> list[list[Example]]:
    torch.manual_seed(0)
    return [[example("KeelBertModel", length, 0) for length in row] for row in SEQUENCES]


def padded(examples: list[Example]) -> dict[str, Tensor]:
    """A batch of these sequences (N, T) below one another."""
    batch = {name: pad_sequence([given.source[name] for given in examples], True) for name in examples[0].source}
    mask = pad_sequence([torch.ones_like(given.source["input_ids"]) for given in examples], True)
    return batch | {"attention_mask": mask}


@pytest.mark.parametrize("starts", [{}, {"sequence_starts": FIRST}], ids=["", "starts"])
@pytest.mark.parametrize("fields", POOLINGS, ids=["cls", "mean"])
def test_choices_are_those_of_the_question_alone(tiny, fields, starts):
    model, rows = tiny("KeelBertForMultipleChoice", **fields).train(), sequences()
    labels = torch.tensor([2, 5, -100, 9])  # of twelve sequences, three in a row
    batch = pack(rows) | starts | {"example_ids": EXAMPLES, "labels": labels}
    packed, questions = model(**batch), []
    for number, places in MEMBERS.items():
        question = {name: x[None] for name, x in padded([rows[row][column] for row, column in places]).items()}
        row_numbers, columns = zip(*places, strict=True)
        close(model(**question).logits[0], packed.logits[list(row_numbers), list(columns)])
        right = int(labels[number - 1])
        index = right if right == -100 else places.index((right // 3, right % 3))
        questions.append(question | {"labels": torch.tensor([index])})
    count = {"num_items_in_batch": {"labels": 3}}
    close(gradients(model, [batch]), gradients(model, [question | count for question in questions]))


CHOSEN = (torch.arange(12).view(4, 3) % 5 < 2).double()
WINDOWS = {  # fields of the configuration, labels of four texts, the loss of one text
    "classes": ({"num_labels": 3}, torch.arange(4) % 3, cross_entropy),
    "several classes": ({"num_labels": 3}, CHOSEN, binary_cross_entropy_with_logits),
    "regression": ({"num_labels": 1}, torch.linspace(-1, 1, 4).view(4, 1).double(), mse_loss),
}


@pytest.mark.parametrize("starts", [{}, {"sequence_starts": FIRST}], ids=["", "starts"])
@pytest.mark.parametrize("window_pooling", ["mean", "max"])
@pytest.mark.parametrize("problem", WINDOWS)
def test_logits_of_a_text_are_those_of_its_windows_together(tiny, problem, window_pooling, starts):
    fields, labels, loss = WINDOWS[problem]
    model, rows = tiny("KeelBertForSequenceClassification", window_pooling=window_pooling, **fields), sequences()
    has_label = torch.tensor([True, True, False, True])
    labels = labels.where(has_label if labels.ndim == 1 else has_label[:, None], -100)
    batch = pack(rows) | starts | {"example_ids": EXAMPLES, "labels": labels}
    packed, losses = model(**batch).logits, []
    assert packed.shape == (4, model.config.num_labels)
    close(model(**{name: x for name, x in batch.items() if name != "labels"}).logits[:4], packed)
    model.zero_grad()
    for number, places in MEMBERS.items():
        windows = model(**padded([rows[row][column] for row, column in places])).logits
        text = windows.mean(0) if window_pooling == "mean" else windows.max(0).values
        close(packed[number - 1], text)
        if has_label[number - 1]:
            losses.append(loss(text, labels[number - 1]))
    expected = torch.stack(losses).mean()
    expected.backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    close(gradients(model, [batch]), (expected.detach(), grads))
    if problem == "regression":  # a number for each text, as (G,) too
        close(model(**batch | {"labels": labels[:, 0]}).loss, expected)


@pytest.mark.parametrize("window_pooling", ["mean", "max"])
def test_texts_of_one_window_each_are_as_without_windows(tiny, window_pooling):
    model = tiny("KeelBertForSequenceClassification", window_pooling=window_pooling)
    batch = pack(rows_of("KeelBertForSequenceClassification"))
    real = torch.arange(MOST) < torch.tensor([len(row) for row in ROWS])[:, None]
    numbers = real.flatten().cumsum(0).view(real.shape) * real
    together = batch | {"example_ids": numbers, "labels": batch["labels"][real]}
    equal(model(**together).logits, model(**batch).logits[real])
    equal(gradients(model, [together]), gradients(model, [batch]))


@pytest.mark.parametrize("some_labels", [True, False])
def test_several_classes_at_once_in_packed_rows(tiny, some_labels):
    """Labels (B, E, C) of zeros and ones, -100 for none: of a sequence, or of one of its classes."""
    labels = some(2, 4, MOST, 3).double() if some_labels else torch.full((4, MOST, 3), -100.0)
    model, rows = tiny("KeelBertForSequenceClassification", num_labels=3), rows_of("KeelBertModel")
    has_text = torch.tensor([[index < len(row) for index in range(MOST)] for row in ROWS])
    batch = pack(rows) | {"labels": labels.where(has_text[..., None], -100)}
    count = {"num_items_in_batch": {"labels": (batch["labels"] != -100).sum().clamp(min=1)}}
    each = [
        alone(given) | {"labels": batch["labels"][row, index][None]} | count
        for row, examples in enumerate(rows)
        for index, given in enumerate(examples)
    ]
    close(gradients(model, [batch]), gradients(model, each))


def test_what_cannot_be_packed_is_refused(tiny):
    rows = pack(sequences())
    numbers = {"example_ids": EXAMPLES}
    with pytest.raises(ValueError, match=r"KeelBertForTokenClassification does not bring windows .* drop example_ids"):
        tiny("KeelBertForTokenClassification")(**rows | numbers)
    for head in ("KeelBertForSequenceClassification", "KeelBertForMultipleChoice"):
        with pytest.raises(ValueError, match="give sequence_ids too"):
            tiny(head)(rows["input_ids"], **numbers)
    with pytest.raises(ValueError, match="need example_ids"):
        tiny("KeelBertForMultipleChoice")(**rows, labels=EXAMPLES)
    batch = pack(rows_of("KeelSeq2SeqModel"))
    for name in ("sequence_ids", "decoder_sequence_ids"):
        with pytest.raises(ValueError, match="go together"):
            tiny("KeelSeq2SeqModel")(**{key: value[:, :10] for key, value in batch.items() if key != name})
