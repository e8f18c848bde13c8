"""The model card: what a stranger must know of a model, from what its run left."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from safetensors import safe_open

from pretraining import files
from pretraining.errors import UserError
from pretraining.publish import card_run
from pretraining.publish.card_data import (
    check_license,
    data_sources,
    hub_name,
    make_data,
    read_metrics,
    write_eval_results,
)
from pretraining.publish.card_run import PICTURES, cell, describe_source, local_name, table
from pretraining.publish.snippets import PINNED, UNPINNED, make_snippets, run_snippets
from pretraining.publish.source import Source

WHAT = {
    "bert": "An encoder of text (Devlin 2018)",
    "seq2seq": "An encoder-decoder Transformer (Vaswani 2017)",
    "vit": "A Vision Transformer (Dosovitskiy 2020)",
}
SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "encoder_layers": "layers of the encoder",
    "decoder_layers": "layers of the decoder",
    "num_attention_heads": "heads",
    "intermediate_size": "width of the feed-forward layers",
    "vocab_size": "entries of the vocabulary",
    "max_position_embeddings": "tokens at most",
    "image_size": "pixels on a side",
    "patch_size": "pixels on a patch's side",
}


def write_card(
    source: Source,
    folder: Path,
    *,
    repo: str,
    report: Any,
    native: dict[str, Any] | None,
    command: str,
    license: str | None,
    example: str | None = None,
) -> Path:
    """Writes README.md, `.eval_results/` and the pictures that the card shows.

    Its examples are run in `folder`, and stand there with what they printed.

    Args:
        folder: what will be pushed: the model's files, and `native/` where `native` is given.
        repo: the name on the Hub.
        report: of `verify`; None: the model was not verified.
        native: the figures of `native.write_proven_native`; None: there is no native form.
        command: what publishes the model.
        license: one of the Hub's names.
        example: the text that the examples read; None: one that tells nothing of anybody's data.

    Raises:
        UserError: there is no license, or an example fails.
    """
    license = check_license(license)
    results = {"signatures": {}} | source.record_of_run("results.json")
    if read_metrics(results) and not {"step", "examples"} <= results.keys():
        raise UserError(f"{source.run}/results.json is damaged (it names no step and no number of examples): mend it.")
    for name in PICTURES:
        if picture := source.file_of_run(name):
            shutil.copyfile(picture, folder / name)
    head = make_data(source, results, license).to_yaml()
    sections = {
        "Use": use(source, folder, repo, native, example),
        "The model": model(source),
        "Data": card_run.data(source),
        "Tokenizer" if source.family != "vit" else "Images": card_run.inputs(source),
        "Training": card_run.training(source, folder),
        "Results": card_run.measured(source, results, folder),
        "Limits": limits(source, native),
        "Verified": verified(report, native),
        "Reproduce": card_run.reproduce(source, command),
        "Files of code": code(source),
    }
    lines = [f"# {source.name}", "", *introduction(source, results)]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section]
    readme = folder / "README.md"
    ModelCard(f"---\n{head}\n---\n\n" + "\n".join(lines) + "\n").save(readme)
    write_eval_results(source, results, folder)
    return readme


def pin(readme: Path, commit: str, earlier: str | None) -> None:
    """Makes every example of the card open one commit.

    No commit can hold its own hash. So all else is pushed first, and then the card, which names that commit: it has the
    weights and the code that were verified.

    Args:
        earlier: the card in that commit. Where only the commits that they name differ, it stays: else the same command,
            given again, would push another card each time.
    """
    text = readme.read_text(encoding="utf-8")
    if earlier is None or PINNED.sub(UNPINNED, earlier) != text:
        earlier = text.replace(UNPINNED, f'revision="{commit}"')
    files.write_text(readme, earlier)


def introduction(source: Source, results: dict[str, Any]) -> Iterator[str]:
    settings = source.settings()
    named = ", ".join(describe_source(each) for each in data_sources(settings)) or "unknown data"
    verb = "fine-tuned" if "start" in settings else "pretrained"
    yield f"{WHAT[source.family]}, {verb} with Keel on {named}."
    good = [(name, value) for name, value in read_metrics(results).items() if not name.endswith("loss")]
    for name, value in good[:1]:
        yield f"On held-out data: {name.partition('_')[2].replace('_', ' ')} {value:.4f}."


def use(source: Source, folder: Path, repo: str, native: dict[str, Any] | None, example: str | None) -> Iterator[str]:
    snippets = make_snippets(source, repo, native, example)
    for snippet, output in zip(snippets, run_snippets(snippets, repo, folder), strict=True):
        yield from (f"**{snippet.title}:**", "", "```python", snippet.code)
        yield from (f"# {line}" for line in output.splitlines())
        yield from ("```", "")
    yield "What stands behind `#` at the end is what each printed when this card was written."
    if native is None:
        yield "This model is opened with the code in this repository alone."
    yield (
        "`trust_remote_code=True` runs the Python files listed below on your machine, and `revision` pins them: given "
        "a commit's hash, nothing that is pushed later reaches you, and transformers does not ask."
    )


def model(source: Source) -> Iterator[str]:
    count = 0
    for path in source.folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            names = list(weights.keys())
            count += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    yield from table("", "", {"class": f"`{source.model_class.__name__}`", "numbers in its weights": f"{count:,}"})
    sizes = source.config.to_dict()
    yield from (f"| {words} | {sizes[name]:,} |" for name, words in SIZES.items() if name in sizes)
    labels = source.config.id2label or {}
    if "id2label" in source.config.to_diff_dict():  # else they are transformers' LABEL_0, LABEL_1
        yield f"\nLabels: {', '.join(map(str, labels.values()))}."
    start = source.settings().get("init_from")
    if start and source.settings().get("start") != "scratch":
        yield f"\nIts weights began as those of {hub_name(start) or 'the local checkpoint ' + local_name(start)}."


def limits(source: Source, native: dict[str, Any] | None) -> Iterator[str]:
    config = source.config
    yield "- It knows what its data shows, with the data's errors and slants; nobody looked for harmful output."
    if source.family == "vit":
        yield f"- Images of other sizes are resized to {config.image_size} pixels; what is smaller than that is lost."
    else:
        yield f"- At most {config.max_position_embeddings:,} tokens at once."
    if source.model_class.__name__ in ("KeelBertForPreTraining", "KeelBertForMaskedLM"):
        yield "- Its vectors were learnt by filling in words, not by comparing texts: fine-tune them for search."
    if source.family == "seq2seq":
        yield "- It always writes something, also for what it cannot read; how sure it is, it does not say."
    if native is None:
        return
    yield from (f"- The native form: {note}" for note in native["notes"])
    if source.family == "vit":
        yield "- The native `ViTModel` has no pooler: its `last_hidden_state[:, 0]` is our `pooler_output`."
    if source.family == "seq2seq":
        yield "- The native form's hidden vectors hold the same numbers in another order, since Marian's sinusoids do."


def verified(report: Any, native: dict[str, Any] | None) -> Iterator[str]:
    yield "Not verified." if report is None else report.to_markdown().strip()
    if native is None:
        return
    yield (
        f"\nThe native form, `{native['class']}` in `native/`, against this model, in a process without its code "
        f"(transformers {native['transformers']}): the largest difference of an output is "
        f"{native['difference']:.1e} ({native['tolerance']:.0e} is allowed, relative above 1; {native['dtype']}).\n"
    )
    yield from ("<details><summary>What was compared</summary>\n", "| | | |", "|---|---|---|")
    for check in native["checks"]:
        yield f"| {check['name']} | {'passed' if check['passed'] else 'FAILED'} | {cell(check['detail'])} |"
    yield "\n</details>"


def code(source: Source) -> Iterator[str]:
    sums = {path.name: f"`{files.sha256(path)}`" for path in sorted(source.folder.glob("*.py"))}
    yield from table("file", "SHA-256", sums)
