"""What is seen of a pair without reading it does not tell its label: a classifier of that alone stays at chance."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from pretraining.data.packing import IGNORED
from pretraining.data.text.next_sentence import IS_NEXT, NOT_NEXT, SegmentPairs, draw_pairs, next_sentence, surface
from pretraining.data.text.prepared import PreparedText

STOP, COMMA, CAPITALS, WORDS = 0, 1, 60, 1000  # ids: two of punctuation, then capitalised words, then the others
PAIRS = 40_000

Span = tuple[int, int]


def make_text(sentences: list[Span], documents: list[int], limit: int) -> PreparedText:
    """Documents of as many sentences as each span allows; half of them begin with a title, which has no full stop.

    Sentences have 4 to some 60 tokens, the first of them capitalised, the last a full stop.
    """
    random = np.random.default_rng(0)
    counts = [random.integers(low, high + 1, number) for (low, high), number in zip(sentences, documents, strict=True)]
    count = random.permutation(np.concatenate(counts))
    first = count.cumsum() - count
    sizes = 4 + random.poisson(random.gamma(2, 7, count.sum()))
    title = np.zeros(len(sizes), dtype=bool)
    title[first[random.random(len(count)) < 0.5]] = True
    sizes[title] = random.integers(2, 6, title.sum())
    offsets = np.concatenate([[0], sizes.cumsum()])
    kind = random.random(offsets[-1])
    tokens = random.integers(2 + CAPITALS, WORDS, len(kind))
    tokens[kind > 0.95] = 2 + random.integers(CAPITALS, size=(kind > 0.95).sum())
    tokens[kind < 0.08] = COMMA
    tokens[offsets[:-1]] = 2 + random.integers(CAPITALS, size=len(sizes))
    tokens[offsets[1:][~title] - 1] = STOP
    starts = np.append(offsets[first], offsets[-1])
    return PreparedText(
        tokens_name="",
        limit=limit,
        short_rate=0.1,
        tokens=tokens,
        sentences=offsets,
        documents=starts,
        sources=np.zeros(len(count), dtype=np.uint16),
        dropped=0,
    )


# Sentences of a document, documents of each kind, tokens of a chunk.
CORPORA: dict[str, tuple[list[Span], list[int], int]] = {
    "long documents": ([(200, 400)], [200], 125),
    "long documents, long chunks": ([(200, 400)], [400], 509),
    "3 to 8 sentences": ([(3, 8)], [8000], 125),
    "3 to 8 sentences, long chunks": ([(3, 8)], [8000], 509),
    "both": ([(3, 8), (100, 300)], [4000, 60], 125),
    "one or two sentences": ([(1, 2)], [12000], 125),
}


@pytest.fixture(scope="module", params=CORPORA)
def text(request: pytest.FixtureRequest) -> PreparedText:
    return make_text(*CORPORA[request.param])


def tokens_of(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the tokens of all segments (N, 2, 2) lie in the text, one after another, and where each begins (N + 1,)."""
    sizes = (spans[..., 1] - spans[..., 0]).ravel()
    offsets = np.repeat(spans[..., 0].ravel() - (sizes.cumsum() - sizes), sizes)
    return offsets + np.arange(len(offsets)), np.append(0, sizes.reshape(-1, 2).sum(1).cumsum())


def look(data: PreparedText, spans: np.ndarray) -> np.ndarray:
    """The surface of segments, as far as we can think of it: (N, 9)."""
    at, bounds = tokens_of(spans)
    is_start = np.zeros(len(data.tokens) + 1, dtype=bool)
    is_start[data.sentences] = True
    starts, ends = is_start[at], is_start[at + 1]  # whether a sentence begins with a token, or ends with it
    first, last = bounds[:-1], bounds[1:] - 1
    # Tokens to the first sentence end, and from the last sentence start; all, where there is none.
    first_end = np.append(np.flatnonzero(ends), len(at))[np.searchsorted(np.flatnonzero(ends), first)]
    last_start = np.append(np.flatnonzero(starts), -1)[np.searchsorted(np.flatnonzero(starts), last, side="right") - 1]
    tokens = data.tokens[at]
    return np.stack(
        [
            np.diff(bounds),
            starts[first],
            ends[last],
            np.add.reduceat(ends.astype(int), first),
            np.add.reduceat((tokens == STOP).astype(int), first),
            tokens[last] <= COMMA,
            (tokens[first] > COMMA) & (tokens[first] < 2 + CAPITALS),
            np.minimum(first_end, last) - first,
            last - np.maximum(last_start, first),
        ],
        1,
    )


def some_pairs(data: PreparedText, kind: str) -> tuple[np.ndarray, SegmentPairs]:
    """The examples, in the text's order, and their pairs, PAIRS or more, of as many epochs as it takes."""
    index: list[np.ndarray] = []
    drawn: list[SegmentPairs] = []
    while sum(map(len, index)) < PAIRS:
        pairs = draw_pairs(data, kind, 0, len(drawn), np.arange(len(data)))
        asked = np.flatnonzero(pairs.label != IGNORED)
        index.append(asked)
        drawn.append(SegmentPairs(pairs.a[asked], pairs.b[asked], pairs.label[asked]))
    order = np.argsort(np.concatenate(index), kind="stable")
    a, b, label = (np.concatenate([getattr(pairs, name) for pairs in drawn])[order] for name in ("a", "b", "label"))
    return np.concatenate(index)[order], SegmentPairs(a, b, label)


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_the_surface_does_not_tell_the_label(text: PreparedText, kind: str):
    """Learnt on the text's first half, judged on the second: the same chunk in both would be known by heart."""
    if kind == "sop" and np.diff(np.searchsorted(text.sentences, text.documents)).max() < 3:
        assert (draw_pairs(text, "sop", 0, 0, np.arange(len(text))).label == IGNORED).all()
        return
    _, pairs = some_pairs(text, kind)
    a, b = look(text, pairs.a), look(text, pairs.b)
    seen = np.concatenate([a, b, a[:, :1] + b[:, :1], a[:, :1] - b[:, :1]], 1)
    half = len(seen) // 2
    classifier = HistGradientBoostingClassifier(random_state=0).fit(seen[:half], pairs.label[:half])
    # The standard std of chance is 0.35 points.
    assert classifier.score(seen[half:], pairs.label[half:]) == pytest.approx(0.5, abs=0.02)
    assert pairs.label.mean() == pytest.approx(0.5, abs=0.01)


def test_both_b_of_nsp_look_the_same(text: PreparedText):
    """Whichever is taken, so that not even the text's style is seen: it may have longer sentences than others."""
    index = np.arange(len(text))
    start, end = text.chunks[:-1], text.chunks[1:]
    true, other = (
        next_sentence(text, start, end, np.full(len(index), which), (0, 0), index) for which in (True, False)
    )
    asked = true.label != IGNORED
    assert np.array_equal(asked, other.label != IGNORED) and asked.mean() > 0.5
    assert (true.label[asked] == IS_NEXT).all() and (other.label[asked] == NOT_NEXT).all()
    assert np.array_equal(true.a, other.a) and np.array_equal(true.lengths, other.lengths)
    assert np.array_equal(true.b[~asked], other.b[~asked]) and (true.b[~asked, 0, 1] == end[~asked]).all()
    assert np.array_equal(true.b[:, 0, 0], true.a[:, 0, 1])
    length = np.diff(true.b[:, 0])[:, 0]
    one, two = (surface(text.sentences, pairs.b[:, 0, 0], length)[asked] for pairs in (true, other))
    assert np.array_equal(one, two)
    # The other B lies in one document, which is not A's, and is not its beginning.
    document = np.searchsorted(text.documents, other.b[asked, 0, 0], side="right") - 1
    assert (document != text.chunk_document[asked]).all()
    assert (other.b[asked, 0, 0] > text.documents[document]).all()
    assert (other.b[asked, 0, 1] <= text.documents[document + 1]).all()


def test_sentence_order_keeps_every_token_and_whole_sentences(text: PreparedText):
    pairs = draw_pairs(text, "sop", 0, 0, np.arange(len(text)))
    swapped = pairs.label == NOT_NEXT
    assert np.array_equal(pairs.lengths, np.diff(text.chunks))
    bounds = np.concatenate([pairs.a, pairs.b], 1)  # (N, 4, 2): head, first part, second part, tail
    bounds[swapped] = bounds[swapped][:, [0, 2, 1, 3]]
    assert np.array_equal(bounds[:, 0, 0], text.chunks[:-1]) and np.array_equal(bounds[:, 3, 1], text.chunks[1:])
    assert np.array_equal(bounds[:, :-1, 1], bounds[:, 1:, 0])  # without a gap
    asked = pairs.label != IGNORED
    assert np.isin(bounds[asked, 1:3], text.sentences).all()
    assert (bounds[asked, :3, 1] > bounds[asked, :3, 0]).all()
    # Chunks that are not asked about have fewer than two whole sentences behind the one that they begin in.
    before = np.searchsorted(text.sentences, text.chunks, side="right")
    assert np.array_equal(before[1:] - 1 - before[:-1] >= 2, asked)


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_pairs_do_not_depend_on_how_examples_are_cut_into_batches(text: PreparedText, kind: str):
    index = np.arange(500)
    whole = draw_pairs(text, kind, 0, 1, index)
    for part in np.split(index, [1, 8, 100]):
        pairs = draw_pairs(text, kind, 0, 1, part)
        for name in ("a", "b", "label"):
            assert np.array_equal(getattr(pairs, name), getattr(whole, name)[part])
