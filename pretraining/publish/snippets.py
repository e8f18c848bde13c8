"""The lines of code that a model card shows, for each class of ours, with what they printed when they were run."""

import json
import re
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from safetensors import safe_open
from transformers import AutoTokenizer

from pretraining.errors import UserError
from pretraining.files import REFERENCE
from pretraining.publish.fresh import run_fresh
from pretraining.publish.source import Source

UNPINNED = 'revision="main"'  # what `card.pin` puts a commit's hash into
PINNED = re.compile('revision="[0-9a-f]{40}"')
NATIVE = f'subfolder="native", {UNPINNED}'
OURS = f"trust_remote_code=True, {UNPINNED}"

# Texts of the embedded data, with the place of a masked word. Of anybody's own data nothing is shown.
TEXTS = {"pydocs": "Return the {mask} list.", "dates": "ko_KR 2031년 3월 5일"}

MASKED = """\
text = $text.replace("{mask}", tokenizer.mask_token)
inputs = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).$logits
masked = inputs["input_ids"] == tokenizer.mask_token_id
print(tokenizer.decode(logits[masked].argmax(-1)))"""
NEXT = """\
inputs = tokenizer($plain, $plain, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print(["the next sentence", "another one"][logits.argmax(-1).item()])"""
CLASS = """\
inputs = tokenizer($plain$pair, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print($label)"""
TAGS = """\
inputs = tokenizer($plain, return_tensors="pt")
with torch.no_grad():
    tags = model(**inputs).logits[0].argmax(-1).tolist()
tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
print([(token, model.config.id2label[tag]) for token, tag in zip(tokens, tags)])"""
SPAN = """\
question, context = $plain, $plain
inputs = tokenizer(question, context, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
start, end = outputs.start_logits.argmax().item(), outputs.end_logits.argmax().item()
print(repr(tokenizer.decode(inputs["input_ids"][0, start : end + 1])))"""
CHOICE = """\
question, choices = $plain, [$plain, $plain[::-1]]
inputs = tokenizer([question] * len(choices), choices, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**{name: x[None] for name, x in inputs.items()}).logits
print(logits.argmax(-1).item())"""
VECTORS = """\
inputs = tokenizer([$plain, ""], padding=True, return_tensors="pt")
with torch.no_grad():
    vectors = model(**inputs).last_hidden_state
mask = inputs["attention_mask"][..., None]
means = (vectors * mask).sum(1) / mask.sum(1)
print(tuple(means.shape))"""
WRITE = """\
inputs = tokenizer($plain, return_tensors="pt")
with torch.no_grad():
    written = model.generate(**inputs, num_beams=4)
print($writer.decode(written[0], skip_special_tokens=True))"""
IMAGE = """\
image = Image.radial_gradient("L").convert("RGB")  # or Image.open("photo.png")
inputs = processor(image, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print(model.config.id2label[logits.argmax(-1).item()])"""
PATCHES = """\
image = Image.radial_gradient("L").convert("RGB")  # or Image.open("photo.png")
inputs = processor(image, return_tensors="pt")
with torch.no_grad():
    vectors = model(**inputs).last_hidden_state
print(tuple(vectors.shape))"""

# What each class is for: Auto class, title, and the lines that follow its opening.
TASKS = {
    "KeelBertForPreTraining": ("AutoModelForPreTraining", "A masked word", MASKED),
    "KeelBertForMaskedLM": ("AutoModelForMaskedLM", "A masked word", MASKED),
    "KeelBertForNextSentencePrediction": ("AutoModelForNextSentencePrediction", "Whether one follows the other", NEXT),
    "KeelBertForSequenceClassification": ("AutoModelForSequenceClassification", "The class of a text", CLASS),
    "KeelBertForTokenClassification": ("AutoModelForTokenClassification", "The tag of each token", TAGS),
    "KeelBertForQuestionAnswering": ("AutoModelForQuestionAnswering", "The passage that answers", SPAN),
    "KeelBertForMultipleChoice": ("AutoModelForMultipleChoice", "The right choice", CHOICE),
    "KeelSeq2SeqForConditionalGeneration": ("AutoModelForSeq2SeqLM", "What the model writes", WRITE),
    "KeelViTForImageClassification": ("AutoModelForImageClassification", "The class of an image", IMAGE),
}
# What every model of the family gives.
VECTORS_OF = {
    "bert": ("AutoModel", "Vectors of texts, the mean over their tokens", VECTORS),
    "vit": ("AutoModel", "Vectors of an image, its class token's and its patches'", PATCHES),
}
# Runs each program of a JSON list, and prints a JSON list of what they printed.
RUNNER = """
import contextlib, io, json, sys
outputs = []
for code in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, "an example of the card", "exec"), {"__name__": "__main__"})
    outputs.append(output.getvalue())
print(json.dumps(outputs))
"""


class Snippet(NamedTuple):
    """A program that is whole: it imports what it needs, and prints."""

    title: str
    code: str


def make_snippets(
    source: Source, repo: str, native: dict[str, Any] | None, example: str | None = None
) -> list[Snippet]:
    """The programs for a model: the native form's first, which needs no trust.

    Args:
        native: the figures of `native.write_proven_native`, where there is a native form.
        example: the text that they read; None: one that tells nothing of anybody's data.
    """
    parts = describe_inputs(source, example)
    tasks = [TASKS.get(source.model_class.__name__), VECTORS_OF.get(source.family)]
    found = []
    for auto, title, body in filter(None, tasks):
        lines = Template(body).substitute(parts)
        if native is not None:
            more = "".join(f", {name}={value!r}" for name, value in native["autos"][auto].items())
            code = opening(source, repo, auto, NATIVE, more) + lines
            found.append(Snippet(f"{title}, by transformers' own `{native['model_type']}`", code))
        found.append(Snippet(f"{title}, by the code in this repository", opening(source, repo, auto, OURS) + lines))
    return sorted(found, key=lambda snippet: "native" not in snippet.code)


def opening(source: Source, repo: str, auto: str, arguments: str, more: str = "") -> str:
    """The lines that open a model, and what turns inputs into tensors."""
    reader, name = ("AutoImageProcessor", "processor") if source.family == "vit" else ("AutoTokenizer", "tokenizer")
    lines = ["import torch", f"from transformers import {', '.join(sorted([auto, reader]))}", ""]
    if source.family == "vit":
        lines.insert(1, "from PIL import Image")
    lines.append(f'{name} = {reader}.from_pretrained("{repo}", {arguments})')
    if has_target(source):  # sources and targets have a vocabulary each
        folder = "native/target" if arguments == NATIVE else "target"
        options = arguments.replace('subfolder="native", ', "")
        lines.append(f'target = AutoTokenizer.from_pretrained("{repo}", subfolder="{folder}", {options})')
    lines.append(f'model = {auto}.from_pretrained("{repo}", {arguments}{more})')
    return "\n".join(lines) + "\n"


def has_target(source: Source) -> bool:
    return (source.folder / "target").is_dir()


def describe_inputs(source: Source, example: str | None) -> dict[str, str]:
    """What stands for the names in the bodies, as Python."""
    if source.family == "vit":
        return {}
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    text = example or example_text(source, tokenizer)
    plain = " ".join(text.replace("{mask}", "").split())
    config = source.config
    label = "model.config.id2label[logits.argmax(-1).item()]"
    if config.problem_type == "regression":
        label = "round(logits.item(), 1)"
    if config.problem_type == "multi_label_classification":
        label = "[model.config.id2label[i] for i in (logits[0] > 0).nonzero().flatten().tolist()]"
    return {
        "text": quoted(text if "{mask}" in text else f"{text} {{mask}}"),
        "plain": quoted(plain),
        "pair": f", {quoted(plain)}" if reads_pairs(source) else "",
        "label": label,
        "logits": "prediction_logits" if source.model_class.__name__ == "KeelBertForPreTraining" else "logits",
        "writer": "target" if has_target(source) else "tokenizer",
    }


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def example_text(source: Source, tokenizer: Any) -> str:
    """A text with {mask} where a word is missing; of words of the vocabulary, where the data is somebody's own."""
    known = TEXTS.get(source.settings().get("data", {}).get("source", ""))
    if known:
        return known
    by_id = [entry for entry, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    marked = [entry[1:] for entry in by_id if entry.startswith(("Ġ", "▁"))]  # where words begin, in BPE and Unigram
    words = [word for word in marked or by_id if word.isalpha() and len(word) > 1][:5]
    return " ".join([*words[:2], "{mask}", *words[2:]])


def reads_pairs(source: Source) -> bool:
    """Whether a classifier was trained on pairs of texts: its recorded inputs have a second segment."""
    path = source.file_of_run(REFERENCE)
    if path is None:
        return False
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        return "input.token_type_ids" in names and bool(file.get_tensor("input.token_type_ids").any())


def localised(code: str, repo: str, folder: Path) -> str:
    """A program that opens a folder instead of the repository."""
    return code.replace(f'"{repo}"', quoted(str(folder.absolute()))).replace(f", {UNPINNED}", "")


def run_snippets(snippets: list[Snippet], repo: str, folder: Path) -> list[str]:
    """What each program prints where the repository is this folder: run by a fresh process that has nothing of ours.

    Raises:
        UserError: one of them fails.
    """
    programs = [localised(code, repo, folder) for _, code in snippets]
    ended = run_fresh("-c", RUNNER, given=json.dumps(programs))
    if ended.returncode:
        told = ended.stderr.strip().splitlines()[-1]
        raise UserError(
            f"an example of the model card fails ({told}): give another --example, or mend the model in {folder}."
        )
    return list(json.loads(ended.stdout.splitlines()[-1]))
