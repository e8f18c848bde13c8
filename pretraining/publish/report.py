"""What verification found, in words and as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretraining.files import to_json
from pretraining.publish.places import FOLDERS
from pretraining.publish.probe.check import Check

MENDS = {
    "process": "open the model by hand with the lines that training printed, and see where Python stops",
    "no Keel": "take Keel's packages out of the environment, or let --versions make one",
    "files": "run the command of the training again, which writes the model anew from the newest checkpoint, and "
    "move away what training did not write; if the change was meant, publish a run that was trained with it",
    "weights file": "run the command of the training again, which writes the weights anew from the newest checkpoint",
    "auto_map": "put back the auto_map that training wrote into config.json: run its command again",
    "opens": "run the command of the training again; if only another version of transformers fails, name the versions "
    "that work on the card, or train with code that knows it",
    "logits": "the weights, the code or the configuration are not those that were evaluated: run the command of the "
    "training again",
    "classes agree": "the weights or the code were changed by hand: run the command of the training again",
    "tied weights": "set tie_word_embeddings as in training, and leave the tied weight out of the file: run the "
    "command of the training again",
    "buffers": "the code no longer fills what no file holds (_init_weights): put back the code that training wrote",
    "labels": "put back id2label and label2id of training in config.json: run its command again",
    "tokenizer": "put back the tokenizer that training wrote: run its command again",
    "images": "put back the preprocessor_config.json that training wrote: run its command again",
    "pipeline()": "open the model with that pipeline() by hand, and see what it says",
    "generate()": "put back the code that training wrote; if it is, this version of transformers hands over its cache "
    "by a name that the code does not take: update Keel, and train or export anew",
    "save and load": "put back the code that training wrote, whose hash configuration.py ends with: run its command "
    "again",
    "ONNX": "export by hand with transformers.exporters, and see what it says; a model that need not be exported can "
    "be pushed by hand",
    "example": "mend that example in README.md, or what it shows",
}
"""What to do about a check that fails, by its name."""


@dataclass(frozen=True)
class Opened:
    """What was found under one transformers."""

    versions: dict[str, str]
    """Of transformers, torch and Python."""
    checks: list[Check]

    @property
    def transformers(self) -> str:
        return self.versions["transformers"]

    def check(self, name: str) -> Check | None:
        return next((check for check in self.checks if check.name == name), None)


@dataclass(frozen=True)
class Report:
    """What was found of one checkpoint, under every version that was asked for."""

    name: str
    opened: list[Opened]

    @property
    def failures(self) -> list[tuple[str, Check]]:
        """Each failed check, with the transformers that it failed under."""
        return [(each.transformers, check) for each in self.opened for check in each.checks if check.result == "failed"]

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_json(self) -> str:
        runs: list[dict[str, Any]] = [
            {"versions": each.versions, "checks": [asdict(check) for check in each.checks]} for each in self.opened
        ]
        return to_json({"name": self.name, "passed": self.passed, "opened": runs}, indent=1)

    def to_markdown(self) -> str:
        first = self.opened[0].versions
        versions = " and ".join(each.transformers for each in self.opened)
        failed = len(self.failures)
        lines = [
            f"**{self.name}** was opened by a process that knows transformers and no Keel, under transformers "
            f"{versions} (torch {first['torch']}, Python {first['python']}). "
            + (f"**{failed} check{'s' * (failed > 1)} failed.**" if failed else "No check failed."),
            "",
            f"| check | {' | '.join(each.transformers for each in self.opened)} | what was found |",
            "|---" * (len(self.opened) + 2) + "|",
            *self._rows(),
        ]
        if failed:
            lines += ["", "What to do:", ""]
        for version, check in self.failures:
            mend = MENDS["example" if check.name.startswith("example") else check.name]
            lines.append(f"- {check.name}, transformers {version}: {check.detail}. Mend: {mend}.")
        return "\n".join(lines) + "\n"

    def _rows(self) -> list[str]:
        """A row for each check; what the newest transformers found stands in it, unless another one failed."""
        rows = []
        names = dict.fromkeys(check.name for each in self.opened for check in each.checks)
        for name in names:
            found = [each.check(name) for each in self.opened]
            there = [check for check in found if check is not None]
            told = next((check for check in there if check.result == "failed"), there[-1])
            results = [check.result.replace("failed", "**failed**") if check else "" for check in found]
            detail = told.detail.replace("|", "\\|")
            rows.append(f"| {name} | {' | '.join(results)} | {detail} |")
        return rows


def read_opened(found: dict[str, Any], folder: Path) -> Opened:
    """What a probe wrote."""
    checks = []
    for check in found["checks"]:
        detail = FOLDERS.sub("", check["detail"].replace(str(folder), folder.name))  # the report is pushed
        checks.append(Check(check["name"], check["result"], detail))
    return Opened(found["versions"], checks)
