"""What a model card tells of the run: its data, how it was trained, what came of it, and how to do it again."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pretraining import environment
from pretraining.publish.card_data import EMBEDDED, LOCAL, data_sources, hub_name, is_number, read_metrics, split_of
from pretraining.publish.places import plain_name, shown_command, without_places
from pretraining.publish.source import Source, reading

PICTURES = {
    "curves.png": "Training's curves",
    "confusion.png": "True and predicted classes",
    "reliability.png": "How often the model is right, by how sure it is",
}
NOT_RECORDED = "The run left no record of it."


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


def environment_of(source: Source) -> dict[str, Any]:
    """What `pretraining.environment` recorded; empty where an older version trained the model."""
    return source.record_of_run(environment.FILE)


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
    entries = f"{source.config.vocab_size:,} entries"
    if path := asked.get("path"):
        yield f"{entries}, taken from {hub_name(path) or local_name(path)}."
    elif asked:
        yield f"{entries}, {asked['kind']}, {'' if asked['cased'] else 'not '}cased, trained on the training text."
        yield "Text becomes Unicode's composed form (NFC): Hangul and accents are kept whole."
    if (source.folder / "target").is_dir():
        yield "Targets have a vocabulary of their own, in `target/`."


def rounded(values: list[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def training(source: Source, folder: Path) -> Iterator[str]:
    recorded, settings = environment_of(source), source.settings()
    for start in recorded.get("starts", []):
        processes = "one process" if start["processes"] == 1 else f"{start['processes']} processes"
        yield f"- begun {start['started']} at step {start['step']:,}: {processes}, {start['device']}"
    if settings:
        options = settings["train"]
        yield f"- {options['precision']}, attention by {options['kernel']}, {options['threads']} threads a process"
    if spent := recorded.get("trained"):
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
    with reading(path):
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        used, carbon = (sum(float(row[name]) for row in rows) for name in ("energy_consumed", "emissions"))
    if not rows:
        return
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
        how = cell(results["signatures"].get(plain, ""))
        yield f"| {plain} | {split_of(settings, name)} | {value:.4f} | {how} |"
    scores = {name: value for name, value in results.items() if name.startswith("eval_") and is_number(value)}
    groups = {name.removeprefix("eval_"): value for name, value in scores.items() if " " in name}
    if groups:
        yield from ("\n<details><summary>By class or language</summary>\n", "| | value |", "|---|---|")
        yield from (f"| {cell(name)} | {value:.4f} |" for name, value in groups.items())
        yield "\n</details>"
    if classes := source.file_of_run("classes.md"):
        with reading(classes):
            text = classes.read_text(encoding="utf-8")
        yield f"\n{text.rstrip()}"
    for name in ("confusion.png", "reliability.png"):
        if (folder / name).exists():
            yield f"\n![{PICTURES[name]}]({name})"
    if any(each["source"] in LOCAL for each in data_sources(settings)):
        yield (
            "\nThese are results on data that is no data set of the Hub. So they stand here and in `model-index`, and "
            "not in `.eval_results`, whose entries name one."
        )


def reproduce(source: Source, command: str) -> Iterator[str]:
    recorded = environment_of(source)
    starts = recorded.get("starts", [])[-1:]
    commands = [*(start["command"] for start in starts), command]
    yield from ("```bash", *map(shown_command, commands), "```", "")
    if not starts:
        yield f"How it was trained: {NOT_RECORDED.lower()}"
    for start in starts:
        changed = ", with uncommitted changes" if start.get("changed") else ""
        yield f"Keel's commit: {start['commit'] + changed if start.get('commit') else 'not known'}. Libraries:\n"
        yield from table("library", "version", {"Python": start["python"], **start["versions"]})
    if source.settings().get("train", {}).get("minutes"):
        yield "\nThe budget was in minutes: on another machine the run is longer or shorter, and never the same."


def local_name(checkpoint: str) -> str:
    """A run's name, from the path of its model/."""
    path = Path(checkpoint)
    return f"`{(path.parent if path.name == 'model' else path).name}`"


def cell(text: str) -> str:
    """A text that a table's cell can hold."""
    return " ".join(text.replace("|", "\\|").split())


def table(first: str, second: str, rows: dict[str, str]) -> Iterator[str]:
    yield from (f"| {first} | {second} |", "|---|---|")
    yield from (f"| {name} | {value} |" for name, value in rows.items())
