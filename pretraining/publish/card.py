"""The model card: what a stranger must know of a model, from what its run left."""

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open

from pretraining import environment, files
from pretraining.publish.card_data import (
    LOCAL,
    check_license,
    data_sources,
    hub_name,
    make_data,
    read_metrics,
    split_of,
    write_eval_results,
)
from pretraining.publish.places import plain_name, shown_command, without_places
from pretraining.publish.snippets import UNPINNED, make_snippets, run_snippets
from pretraining.publish.source import Source

PICTURES = {
    "curves.png": "Training's curves",
    "confusion.png": "True and predicted classes",
    "reliability.png": "How often the model is right, by how sure it is",
}
NOT_RECORDED = "The run left no record of it."
EMBEDDED = {
    "pydocs": "the English documentation that Python itself carries",
    "dates": "dates as people write them in twenty languages, by CLDR, with their ISO 8601 form",
    "digits": "scikit-learn's 1,797 handwritten digits",
}
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
    repo: str | None,
    report: Any,
    native: dict[str, Any] | None,
    command: str,
    license: str | None = None,
    example: str | None = None,
) -> Path:
    """Writes README.md, `.eval_results/` and the pictures that the card shows.

    Its examples are run in `folder`, and stand there with what they printed.

    Args:
        folder: what will be pushed: the model's files, and `native/` where `native` is given.
        repo: the name on the Hub; None: one to be filled in.
        report: of `verify`; None: the model was not verified.
        native: the figures of `native.write_proven_native`.
        command: what publishes the model.
        license: one of the Hub's names.
        example: the text that the examples read; None: one that tells nothing of anybody's data.

    Raises:
        UserError: there is no license, or an example fails.
    """
    license = check_license(license)
    path = source.file_of_run("results.json")
    results = json.loads(path.read_text(encoding="utf-8")) if path else {"signatures": {}}
    repo = repo or f"YOUR-NAME/{source.name}"
    for name in PICTURES:
        if picture := source.file_of_run(name):
            shutil.copyfile(picture, folder / name)
    head = make_data(source, results, license).to_yaml()
    sections = {
        "Use": use(source, folder, repo, native, example),
        "The model": model(source),
        "Data": data(source),
        "Tokenizer" if source.family != "vit" else "Images": inputs(source),
        "Training": training(source, results, folder),
        "Results": measured(source, results, folder),
        "Limits": limits(source, native),
        "Verified": verified(report, native),
        "Reproduce": reproduce(source, command),
        "Files of code": code(source),
    }
    lines = [f"# {source.name}", "", *introduction(source, results)]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section]
    readme = folder / "README.md"
    ModelCard(f"---\n{head}\n---\n\n" + "\n".join(lines) + "\n").save(readme)
    write_eval_results(source, results, folder)
    return readme


def pin(readme: Path, commit: str) -> None:
    """Makes every example of the card open one commit.

    No commit can hold its own hash. So all else is pushed first, and then the card, which names that commit: it has the
    weights and the code that were verified.
    """
    files.write_text(readme, readme.read_text(encoding="utf-8").replace(UNPINNED, f'revision="{commit}"'))


def introduction(source: Source, results: dict[str, Any]) -> Iterator[str]:
    settings = source.settings()
    named = ", ".join(describe_source(each) for each in data_sources(settings)) or "unknown data"
    verb = "fine-tuned" if "start" in settings else "pretrained"
    metrics = [name for name in read_metrics(results) if not name.endswith("loss")]
    best = f" On held-out data: {metrics[0].partition('_')[2]} {results[metrics[0]]:.4f}." if metrics else ""
    yield f"{WHAT[source.family]}, {verb} with Keel on {named}.{best}"


def describe_source(each: dict[str, Any]) -> str:
    """A source of data in words."""
    if each["source"] in EMBEDDED:
        return EMBEDDED[each["source"]]
    if hub_name(each["source"]):
        return f"[{each['source']}](https://huggingface.co/datasets/{each['source']})"
    keys = ("files", "source_files", "target_files", "folder")
    given = [each[key] if isinstance(each[key], list) else [each[key]] for key in keys if each.get(key)]
    names = [f"`{Path(name).name}`" for group in given for name in group]
    return ", ".join(names) or f"`{Path(each['source']).name}`"


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
    config = source.config
    with safe_open(source.folder / "model.safetensors", "pt") as weights:
        count = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    yield from table("", "", {"class": f"`{source.model_class.__name__}`", "numbers in its weights": f"{count:,}"})
    for name, words in SIZES.items():
        if hasattr(config, name):
            yield f"| {words} | {getattr(config, name):,} |"
    labels = config.id2label if "id2label" in config.to_diff_dict() else {}
    if labels:
        yield f"\nLabels: {', '.join(str(label) for label in labels.values())}."
    start = source.settings().get("init_from")
    if start and source.settings().get("start") != "scratch":
        yield f"\nIts weights began as those of {hub_name(start) or 'the local checkpoint ' + local_name(start)}."


def local_name(checkpoint: str) -> str:
    """A run's name, from the path of its model/."""
    path = Path(checkpoint)
    return f"`{(path.parent if path.name == 'model' else path).name}`"


def data(source: Source) -> Iterator[str]:
    for each in data_sources(source.settings()):
        yield f"- {describe_source(each)}" + (f" (weight {each['weight']})" if each.get("weight", 1) != 1 else "")
    recorded = environment_of(source)
    yield ""
    if not recorded:
        yield NOT_RECORDED
        return
    yield "What preparation said of it:"
    yield from ("", "```", *(plain_name(line) for line in recorded["data"]), "```", "")
    yield f"Fingerprint of the prepared data: `{recorded['fingerprint']}`."


def environment_of(source: Source) -> dict[str, Any]:
    """What `pretraining.environment` recorded; empty where an older version trained the model."""
    path = source.file_of_run(environment.FILE)
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def inputs(source: Source) -> Iterator[str]:
    if source.family == "vit":
        processor = json.loads((source.folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = processor["size"]
        yield (
            f"Resized to {size['height']} x {size['width']}, {source.config.num_channels} channels, divided by 255, "
            f"mean {rounded(processor['image_mean'])}, std {rounded(processor['image_std'])}. Held-out images were "
            "exactly what the saved processor makes of them; what it makes of transparency and 16 bits is what "
            "`pipeline()` does."
        )
        return
    asked = source.settings().get("tokenizer", {})
    made = f"taken from {plain_name(asked['path'])}" if asked.get("path") else f"{asked.get('kind', '')}, trained here"
    yield f"{source.config.vocab_size:,} entries, {made}; {'' if asked.get('cased') else 'not '}cased."
    yield "Text becomes Unicode's composed form (NFC): Hangul and accents are kept whole."
    if (source.folder / "target").is_dir():
        yield "Targets have a vocabulary of their own, in `target/`."


def rounded(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def training(source: Source, results: dict[str, Any], folder: Path) -> Iterator[str]:
    recorded, settings = environment_of(source), source.settings()
    for start in recorded.get("starts", []):
        processes = "one process" if start["processes"] == 1 else f"{start['processes']} processes"
        yield f"- begun {start['started']} at step {start['step']:,}: {processes}, {start['device']}"
    if settings:
        options = settings["train"]
        yield f"- {options['precision']}, attention by {options['kernel']}, {options['threads']} threads a process"
    if spent := results.get("trained"):
        unit = next(name for name in spent if name not in ("steps", "seconds"))
        yield f"- {spent['steps']:,} steps, {spent[unit]:,} {unit}, {spent['seconds']:,.0f} s without evaluation"
    yield from energy(source)
    if not recorded:
        yield f"- command, libraries and device: {NOT_RECORDED.lower()}"
    if (folder / "curves.png").exists():
        yield f"\n![{PICTURES['curves.png']}](curves.png)"
    if settings:
        yield from ("\n<details><summary>All settings</summary>\n", "```yaml")
        yield yaml.safe_dump(without_places(settings), sort_keys=False, allow_unicode=True).rstrip()
        yield from ("```", "\n</details>")


def energy(source: Source) -> Iterator[str]:
    path = source.file_of_run("emissions.csv")
    if path is None:
        return
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    used, carbon = (sum(float(row[name]) for row in rows) for name in ("energy_consumed", "emissions"))
    yield (
        f"- {used:.6f} kWh, {carbon:.6f} kg of CO2 by the power stations of {rows[-1]['country_name']} "
        f"(codecarbon {rows[-1]['codecarbon_version']}; estimated where the processor does not tell)"
    )


def measured(source: Source, results: dict[str, Any], folder: Path) -> Iterator[str]:
    metrics = read_metrics(results)
    if not metrics:
        yield NOT_RECORDED
        return
    settings = source.settings()
    yield f"The weights of step {results['step']:,}, on {results['examples']:,} held-out examples:\n"
    yield from ("| metric | split | value | how |", "|---|---|---|---|")
    for name, value in metrics.items():
        plain = name.partition("_")[2]
        yield f"| {plain} | {split_of(settings, name)} | {value:.4f} | {results['signatures'].get(plain, '')} |"
    groups = {name: value for name, value in results.items() if name.startswith("eval_") and " " in name}
    if groups:
        yield from ("\n<details><summary>By class or language</summary>\n", "| | value |", "|---|---|")
        yield from (f"| {name.removeprefix('eval_')} | {value:.4f} |" for name, value in groups.items())
        yield "\n</details>"
    if classes := source.file_of_run("classes.md"):
        yield "\n" + classes.read_text(encoding="utf-8").rstrip()
    for name in ("confusion.png", "reliability.png"):
        if (folder / name).exists():
            yield f"\n![{PICTURES[name]}]({name})"
    if any(each["source"] in LOCAL for each in data_sources(settings)):
        yield (
            "\nThese are results on data that is no data set of the Hub. So they stand here and in `model-index`, and "
            "not in `.eval_results`, whose entries name one."
        )


def limits(source: Source, native: dict[str, Any] | None) -> Iterator[str]:
    config = source.config
    yield "- It knows what its data shows, with the data's errors and slants; nobody looked for harmful output."
    if source.family == "vit":
        yield f"- Images of other sizes are resized to {config.image_size} pixels; what is smaller than that is lost."
    else:
        yield f"- At most {config.max_position_embeddings:,} tokens at once."
    if source.family == "bert" and source.model_class.__name__ in ("KeelBertForPreTraining", "KeelBertForMaskedLM"):
        yield "- Its vectors were trained to fill in words, not to be compared: fine-tune them for similarity or search."
    if source.family == "seq2seq":
        yield "- It always writes something, also for what it cannot read; the number that it is sure is not shown."
    for note in (native or {}).get("notes", []):
        yield f"- The native form: {note}"
    if source.family == "vit" and native is not None:
        yield "- The native `ViTModel` has no pooler: `last_hidden_state[:, 0]` is what ours returns as `pooler_output`."
    if source.family == "seq2seq" and native is not None:
        yield "- The native form's hidden vectors hold the same numbers in another order, since Marian's sinusoids do."


def verified(report: Any, native: dict[str, Any] | None) -> Iterator[str]:
    if report is None:
        yield "Not verified: `python publish.py DIR --verify` does it."
    else:
        yield report.to_markdown().strip()
    if native is not None:
        yield (
            f"\nThe native form, `{native['class']}` in `native/`, against this model, in a process without its code "
            f"(transformers {native['transformers']}): the largest difference of an output is "
            f"{native['difference']:.1e}, {native['tolerance']:.0e} being allowed (relative above 1, {native['dtype']}).\n"
        )
        yield from ("<details><summary>What was compared</summary>\n", "| | | |", "|---|---|---|")
        for check in native["checks"]:
            passed = "passed" if check["passed"] else "FAILED"
            yield f"| {check['name']} | {passed} | {cell(check['detail'])} |"
        yield "\n</details>"


def cell(text: str) -> str:
    """A text that a table's cell can hold."""
    return " ".join(text.replace("|", "\\|").split())


def reproduce(source: Source, command: str) -> Iterator[str]:
    recorded = environment_of(source)
    if not recorded:
        yield f"How it was trained: {NOT_RECORDED.lower()}"
    for start in recorded.get("starts", [])[-1:]:
        yield from ("```bash", shown_command(start["command"]), shown_command(command), "```", "")
        changed = ", with uncommitted changes" if start.get("changed") else ""
        yield f"Keel's commit: {start['commit'] + changed if start.get('commit') else 'not known'}. Libraries:\n"
        yield from table("library", "version", {"Python": start["python"], **start["versions"]})
    if source.settings().get("train", {}).get("minutes"):
        yield "\nThe budget was in minutes: on another machine the run is longer or shorter, and never the same."


def code(source: Source) -> Iterator[str]:
    paths = sorted(source.folder.glob("*.py"))
    yield from table("file", "SHA-256", {path.name: f"`{sha256(path)}`" for path in paths})


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def table(first: str, second: str, rows: dict[str, str]) -> Iterator[str]:
    yield from (f"| {first} | {second} |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in rows.items())
