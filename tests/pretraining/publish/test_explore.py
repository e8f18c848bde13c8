"""The page about a model: in a browser it shows the model's own numbers, asks no network, and holds what fits."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.functional import cosine_similarity
from transformers import AutoImageProcessor, PreTrainedTokenizerFast

from modeling import KeelBertForPreTraining
from pretraining.data.pairs import dates
from pretraining.data.tokenizer import load_tokenizer
from pretraining.publish.explore import inputs, page
from pretraining.publish.explore.__main__ import main
from pretraining.publish.explore.text_page import why_unmasked
from pretraining.publish.explore.tokens import masked_words
from pretraining.publish.source import find_source
from tests.pretraining.publish.browser import CHROMIUM, Browser
from tests.pretraining.publish.explored import KINDS, TEXT, TEXT_KINDS, TEXTS, VITS, save_images, save_texts, texts_of


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, tiny, make_documents) -> dict[str, Path]:
    """The page of each kind of model, beside its `model/`."""
    documents = make_documents([TEXT, *TEXT.split() * 3])
    written: dict[str, Path] = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        given = texts_of(kind)
        if kind in VITS:
            given = save_images(kind, folder / "model", tiny)
        else:
            save_texts(kind, folder / "model", tiny, documents, folder / "cache")
        ratio = 0.5 if kind == "masked" else None
        written[kind] = page.write_page(find_source(folder / "model"), given, folder / "page.html", ratio)
    return written


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def data_of(path: Path) -> dict[str, Any]:
    """The data that a page holds."""
    found = re.search(r'<script type="application/json" id="data">(.*)</script>', path.read_text(encoding="utf-8"))
    assert found
    return json.loads(found[1])


def attentions_of(path: Path, number: int) -> dict[str, torch.Tensor]:
    """The model's attention to the page's n-th input, by transformers' own means: (L, A, Q, K) for each kind of it."""
    folder = path.parent / "model"
    model: Any = find_source(folder).open()
    if model.config.model_type == "keel-vit":
        image = Image.open(folder.parent / f"{('one', 'other')[number]}.png")
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = processor(np.atleast_3d(np.asarray(image)), input_data_format="channels_last", return_tensors="pt")
        with torch.no_grad():
            return {"image": torch.cat(model(**pixels, output_attentions=True).attentions)}
    tokenizer = load_tokenizer(str(folder))
    with torch.no_grad():
        if model.config.model_type == "keel-bert":
            inputs = tokenizer(*TEXTS[number].split(" ||| "), return_tensors="pt")
            return {"encoder": torch.cat(model(**inputs, output_attentions=True).attentions)}
        inputs = {"input_ids": tokenizer(texts_of("shared")[number], return_tensors="pt").input_ids}
        written = model.generate(**inputs)
        outputs = model(**inputs, decoder_input_ids=written[:, :-1], output_attentions=True)
    return {name: torch.cat(getattr(outputs, f"{name}_attentions")) for name in ("encoder", "decoder", "cross")}


def point(browser: Browser, selector: str, across: float = 0.5, down: float = 0.5, click: bool = False) -> None:
    """The pointer to a place in an element, from 0 to 1 in both directions."""
    box = browser.evaluate(
        f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
        "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
    )
    left, top, width, height = box
    browser.move(left + across * width, top + down * height, click)


def read(browser: Browser, section: str = "attention") -> tuple[str, float]:
    """What the reader below a map says, and its number."""
    said = browser.evaluate(f"document.querySelector('#{section} output').textContent")
    return said, float(re.findall(r"-?[\d.]+", said)[-1])


# ---- attention ----


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_value_that_is_read_is_the_models(kind: str, pages: dict[str, Path], browser: Browser):
    browser.open(pages[kind].as_uri())
    for number in range(2):
        point(browser, f"#attention > fieldset:first-of-type label:nth-of-type({number + 1})", click=True)
        for stack, (name, weights) in enumerate(attentions_of(pages[kind], number).items(), 1):
            if kind in ("shared", "separate"):
                point(browser, f"#attention div fieldset label:nth-of-type({stack})", click=True)
            layers, _, queries, keys = weights.shape
            for layer, head, query, key in [(0, 1, 2, 0), (layers - 1, 0, queries - 1, keys // 2)]:
                point(browser, f'button[data-layer="{layer}"][data-head="{head}"]', click=True)
                point(browser, "#attention .field", (key + 0.5) / keys, (query + 0.5) / queries)
                said, value = read(browser)
                assert said.startswith(f"layer {layer}, head {head}: "), said
                assert value / 100 == pytest.approx(weights[layer, head, query, key].item(), abs=1 / 255), (name, said)
    assert not browser.complaints()


@pytest.mark.parametrize("kind", VITS)
def test_a_patch_that_is_chosen_shows_where_it_looks(kind: str, pages: dict[str, Path], browser: Browser):
    browser.open(pages[kind].as_uri())
    for number in range(2):
        point(browser, f"#attention > fieldset:first-of-type label:nth-of-type({number + 1})", click=True)
        weights = attentions_of(pages[kind], number)["image"]  # (2, 2, T, T)
        extra = weights.shape[-1] - 16
        point(browser, 'button[data-layer="1"][data-head="1"]', click=True)
        point(browser, "#attention .field", 2.5 / 4, 1.5 / 4)  # row 1, column 2
        said, value = read(browser)
        pooled = weights[1, 1, 0] if extra else weights[1, 1].mean(0)
        assert said.startswith(f"layer 1, head 1: the {'class token' if extra else 'mean of all patches'} looks at"), (
            said
        )
        assert value / 100 == pytest.approx(pooled[extra + 1 * 4 + 2].item(), abs=1 / 255)
        point(browser, "#attention .field", 2.5 / 4, 1.5 / 4, click=True)
        point(browser, "#attention .field", 0.5 / 4, 3.5 / 4)
        said, value = read(browser)
        assert said.startswith("layer 1, head 1: the patch in row 1, column 2 looks at the patch in row 3, column 0"), (
            said
        )
        assert value / 100 == pytest.approx(weights[1, 1, extra + 6, extra + 12].item(), abs=1 / 255)
    assert not browser.complaints()


def test_the_keyboard_reads_and_chooses(pages: dict[str, Path], browser: Browser):
    browser.open(pages["cls"].as_uri())
    weights = attentions_of(pages["cls"], 0)["image"]
    browser.evaluate("document.querySelector('#attention canvas[tabindex]').focus()")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):  # the first begins in the corner
        browser.press(key)
    said, value = read(browser)
    assert "the patch in row 0, column 2" in said
    assert value / 100 == pytest.approx(weights[1, 0, 0, 3].item(), abs=1 / 255)
    browser.press("Enter")
    browser.press("ArrowDown")
    said, value = read(browser)
    assert said.startswith("layer 1, head 0: the patch in row 0, column 2 looks at the patch in row 1, column 2")
    assert value / 100 == pytest.approx(weights[1, 0, 3, 7].item(), abs=1 / 255)
    browser.evaluate("document.querySelector('.heads [aria-pressed=true]').focus()")
    for key in ("ArrowUp", "ArrowRight"):
        browser.press(key)
    assert read(browser)[0].startswith("layer 0, head 1: ")
    assert not browser.complaints()


# ---- tokens ----


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_neighbours_are_those_of_the_table(kind: str, pages: dict[str, Path], browser: Browser):
    browser.open(pages[kind].as_uri())
    tables = data_of(pages[kind])["tables"]
    assert [table["title"] for table in tables] == (
        ["source tokens", "target tokens"] if kind == "separate" else ["tokens"]
    )
    model: Any = find_source(pages[kind].parent / "model").open() if kind != "separate" else None
    for number, table in enumerate(tables):
        rows = np.frombuffer(base64.b64decode(table["bytes"]), dtype=np.int8).reshape(-1, table["dimensions"])
        rows = torch.from_numpy(rows.copy()).double()
        if model is not None:  # nothing is left out of a table this small
            whole = model.get_input_embeddings().weight.double()
            assert cosine_similarity(rows, whole)[whole.norm(dim=-1) > 0].min() > 0.999
        names = [name for name in table["labels"] if re.fullmatch(r"_?[a-z]+", name)][-3:]
        unit = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        one, minus, plus = (table["labels"].index(name) for name in names)
        for text, query, own in (
            (names[0], unit[one], [one]),
            (f"{names[0]} - {names[1]} + {names[2]}", unit[one] - unit[minus] + unit[plus], [one, minus, plus]),
        ):
            cosines = cosine_similarity(rows, query[None])
            cosines[own] = -2
            expected = cosines.topk(10)
            found = browser.evaluate(
                f"(() => {{ const box = document.querySelectorAll('#tokens .side > div')[{number}];"
                f"const input = box.querySelector('input'); input.value = {json.dumps(text)};"
                "input.dispatchEvent(new Event('input'));"
                "const rows = [...box.querySelectorAll('tr')];"
                "return rows.map((row) => [row.cells[0].textContent, row.cells[2].textContent]); })()"
            )
            assert [name for name, _ in found] == [table["labels"][place] for place in expected.indices]
            assert np.allclose([float(cosine) for _, cosine in found], expected.values, atol=6e-4)
    assert not browser.complaints()


def test_a_word_that_is_no_token_is_told(pages: dict[str, Path], browser: Browser):
    browser.open(pages["uncased"].as_uri())
    browser.evaluate(
        "(() => { const input = document.querySelector('#tokens input'); input.value = 'thexyz <b>';"
        "input.dispatchEvent(new Event('input')); })()"
    )
    assert "“thexyz” is no single token" in browser.evaluate("document.querySelector('.results').textContent")
    assert not browser.complaints()


# ---- masked ----


@pytest.mark.parametrize("kind", ["uncased", "cased", "sinusoidal"])
def test_words_are_masked_with_all_their_tokens(kind: str, pages: dict[str, Path], browser: Browser):
    folder = pages[kind].parent / "model"
    model: Any = KeelBertForPreTraining.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(str(folder))
    inputs = dict(tokenizer("late Then", return_tensors="pt"))
    words = masked_words(model, tokenizer, inputs)
    assert [len(word["tokens"]) for word in words] == [
        1,
        *(len(tokenizer.tokenize(word)) for word in ("late", "Then")),
        1,
    ]
    assert "predicted" not in words[0]["tokens"][0]
    count = len(words[1]["tokens"])
    masked = dict(inputs)
    masked["input_ids"] = inputs["input_ids"].clone()
    masked["input_ids"][0, 1 : 1 + count] = tokenizer.mask_token_id
    with torch.no_grad():
        expected = model(**masked).prediction_logits[0, 1 : 1 + count].softmax(-1)
    for place, token in enumerate(words[1]["tokens"]):
        assert token["own"] == pytest.approx(expected[place, inputs["input_ids"][0, 1 + place]].item(), abs=1e-4)
        assert np.allclose([p for _, p in token["predicted"]], expected[place].topk(5).values, atol=1e-4)
    browser.open(pages[kind].as_uri())
    point(browser, "#masked .words button:nth-of-type(2)", click=True)
    said = browser.evaluate("[...document.querySelectorAll('#masked caption')].map((node) => node.textContent)")
    shown = [word for word in data_of(pages[kind])["inputs"][0]["words"] if "predicted" in word["tokens"][0]][1]
    assert len(said) == len(shown["tokens"])
    assert all(text.startswith(f"in place of {t['label']} (") for text, t in zip(said, shown["tokens"], strict=True))
    assert not browser.complaints()


def test_words_need_a_tokenizer_that_marks_them(pages: dict[str, Path]):
    model = find_source(pages["cased"].parent / "model").open()
    assert why_unmasked(model, load_tokenizer(str(pages["cased"].parent / "model"))) == ""
    unmarked = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, "a")), unk_token="a")
    assert why_unmasked(model, unmarked) == "This model's tokenizer does not show where words begin."


def test_what_cannot_be_masked_says_why(pages: dict[str, Path], browser: Browser):
    reasons = {"shared": "writes a text of its own", "cls": "has no head that predicts masked patches"}
    for kind, reason in reasons.items():
        browser.open(pages[kind].as_uri())
        assert reason in browser.evaluate("document.getElementById('masked').textContent")
    browser.open(pages["masked"].as_uri())
    assert (
        browser.evaluate("[...document.querySelectorAll('#masked img')].map((image) => image.naturalWidth)") == [8] * 6
    )
    assert "50% of the patches are masked" in browser.evaluate("document.getElementById('masked').textContent")


# ---- the file ----


NAMELESS = """[...document.querySelectorAll("button, input, canvas[tabindex], img")].filter((node) =>
    !node.ariaLabel && !node.textContent && !node.alt && !node.closest("label") && !node.closest(".field"))
    .map((node) => node.outerHTML)"""
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
HEIGHT = "document.documentElement.scrollHeight"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_small_alone_and_steady(kind: str, width: int, pages: dict[str, Path], browser: Browser):
    assert pages[kind].stat().st_size < page.LIMIT
    for dark in (False, True):
        browser.open(pages[kind].as_uri(), width=width, dark=dark)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        assert browser.evaluate(NAMELESS) == []
        browser.evaluate(FRAMES)
        assert browser.evaluate("layoutShifts") == []
        height = browser.evaluate(HEIGHT)
        point(browser, 'button[data-layer="0"][data-head="1"]', click=True)
        point(browser, "#attention .field")
        point(browser, "#positions .field")
        assert browser.evaluate(HEIGHT) == height
    assert not browser.complaints()


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "a & <b>bold</b>"])
def test_names_and_texts_are_no_program(name: str, pages: dict[str, Path], browser: Browser, tmp_path: Path):
    content = data_of(pages["uncased"])
    content["title"] = content["inputs"][0]["title"] = content["inputs"][0]["maps"][0]["queries"][0] = name
    (tmp_path / "page.html").write_text(page.to_html(content), encoding="utf-8")
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.evaluate("document.getElementById('name').textContent") == name
    assert browser.evaluate("document.title") == f"Inside {name}"
    assert not browser.complaints()


# ---- inputs ----


def test_without_inputs_a_page_has_its_own(pages: dict[str, Path], tmp_path: Path):
    out = page.write_page(find_source(pages["mean"].parent / "model"), [], tmp_path / "page.html")
    titles = [entry["title"] for entry in data_of(out)["inputs"]]
    assert titles == [f"a handwritten {digit}" for digit in inputs.DIGITS]
    out = page.write_page(find_source(pages["cls"].parent / "model"), [], tmp_path / "page.html")
    assert "CC BY" in data_of(out)["inputs"][0]["title"]
    out = page.write_page(find_source(pages["uncased"].parent / "model"), [], tmp_path / "page.html")
    assert [entry["title"] for entry in data_of(out)["inputs"]] == [inputs.NEUTRAL]


def test_held_out_dates_and_sentences_of_the_run_are_shown(here: Path, make_documents, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dates, "DATES", 20)
    found = inputs.dates(0.3)
    assert [text.split()[0] for text in found] == list(inputs.DATES)
    prose = ["The first sentence of a module says what it is for.", "The second one tells how it is used, with care."]
    code = ">>> [x for x in range(3)] gives a list of three numbers."
    documents = make_documents(["\n\n".join([code, *prose]), code, " ".join(prose)])
    monkeypatch.setattr(inputs, "load_text", lambda settings: {"validation": documents})
    assert inputs.pydocs_sentences(0.05) == [f"{prose[0]} ||| {prose[1]}", prose[0]]


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        ("uncased", "the cat " * 40, r"'the cat .*…' has 82 tokens, and the model has 40 positions: shorten it"),
        ("shared", "the cat " * 40, "tokens, and the model has 40 positions: shorten it"),
        ("uncased", "the cat ||| ", "has an empty text"),
        ("shared", "", "has an empty text"),
        ("uncased", "a ||| b ||| c", "has 3 texts, and the model reads 2 at a time"),
        ("shared", "a ||| b", "has 2 texts, and the model reads 1 at a time"),
        ("cls", "no/such.png", "no/such.png cannot be read as an image: No such file"),
    ],
)
def test_mistakes_are_one_sentence(kind: str, text: str, told: str, pages: dict[str, Path], tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        main([str(pages[kind].parent / "model"), text, "--out", str(tmp_path / "out" / "page.html")])
    said = capsys.readouterr().err
    assert re.search(told, said) and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_the_command_writes_beside_the_model(pages: dict[str, Path], capsys):
    folder = pages["cased"].parent
    main([str(folder / "model"), "the cat"])
    assert capsys.readouterr().out == f"{folder / 'publish' / 'explore.html'}\n"
    assert data_of(folder / "publish" / "explore.html")["inputs"][0]["title"] == "the cat"
