"""Where the sentences of a text end."""

import re
from collections.abc import Iterator

import sentencex

WINDOW = 2000  # characters; longer paragraphs go to the sentence splitter in pieces


def sentences(text: str, language: str) -> list[list[str]]:
    """Runs of sentences between which no white space stands: of Chinese a paragraph, of English mostly one sentence.

    Inside a sentence white space becomes single spaces; what is empty is dropped.

    Args:
        text: paragraphs with blank lines between them.
        language: ISO 639-1 code, e.g. "ko"; one that sentencex does not know is treated as English.
    """
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    runs: list[list[str]] = []
    for paragraph in paragraphs:
        apart = True  # from what stands before
        for piece in filter(None, _split(paragraph, language)):
            sentence = piece.strip()
            if sentence and (apart or piece[0] == " "):
                runs.append([sentence])
            elif sentence:
                runs[-1].append(sentence)
            apart = piece[-1] == " " or (apart and not sentence)
    return runs


def _split(paragraph: str, language: str) -> Iterator[str]:
    # sentencex compares each sentence end with each quotation of its input: quadratic, minutes for a book of
    # dialogue without blank lines. So it sees one window at a time, and the last sentence of a window, which
    # may be cut, once more with the next.
    rest = ""
    for start in range(0, len(paragraph), WINDOW):
        *whole, rest = sentencex.segment(language, rest + paragraph[start : start + WINDOW])
        yield from whole
        if len(rest) > WINDOW:  # no sentence: a table, or a list
            head, _, tail = rest.rpartition(" ")
            yield f"{head} " if head else tail
            rest = tail if head else ""
    yield rest
