"""Verification passes a checkpoint that training has written, and finds each fault that is planted in one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults import FAULTS, failing_example
from mistakes import one_sentence
from runs import environment, run_here

from pretraining.files import SUMS, write_sums
from pretraining.publish import environments, probe, verify
from pretraining.publish.probe.check import Check, Fault
from pretraining.publish.probe.checkpoint import Checkpoint
from pretraining.publish.probe.every import CHECKS
from pretraining.publish.probe.files import check_sums
from pretraining.publish.report import MENDS, Report, read_opened
from pretraining.publish.source import find_source
from publish import main

# Opens many checkpoints in forks of one process that knows no Keel: its imports take longer than most checks.
STRANGERS = (
    verify.BOOT.replace("from probe.process import main\nmain()", "")
    + """
import json, os
from dataclasses import asdict
from pathlib import Path
from probe.every import check_all
for name, folder, reference, checks in json.loads(Path(sys.argv[1]).read_text()):
    child = os.fork()
    if not child:
        found = check_all(Path(folder), Path(reference), checks)
        Path(folder, "found.json").write_text(json.dumps([asdict(check) for check in found]))
        os._exit(0)
    os.waitpid(child, 0)
"""
)


@pytest.fixture(scope="module")
def trained(
    arguments: list[str], seq2seq_arguments: Callable[[str], list[str]], digits: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:  # fmt: skip
    """A run of two steps of each family."""
    runs = tmp_path_factory.mktemp("trained")
    families = {
        "bert": arguments,
        "seq2seq": [*seq2seq_arguments("translation"), "--objective.beams=1"],
        "vit": [*digits, "--model.num_channels=3"],
    }
    return {
        name: run_here([*more, "--train.steps=2", "--checkpoint.export=last"], runs, name)
        for name, more in families.items()
    }


@pytest.fixture(scope="module")
def found(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Check]]:
    """What is found of every family's checkpoint, and of those with a fault, whose SHA256SUMS is written anew."""
    place = tmp_path_factory.mktemp("strangers")
    jobs = []
    for name in (*trained, *FAULTS):
        family, plant, check = FAULTS.get(name, (name, None, None))
        folder = place / name.replace(" ", "-")
        shutil.copytree(trained[family] / "model", folder)
        if plant is not None:
            plant(folder)
            write_sums(folder)
        # The verb's test exports an image model.
        checks = ["files", check] if plant else [each for each in CHECKS if each != "ONNX" or name == "seq2seq"]
        jobs.append((name, str(folder), str(trained[family] / "reference.safetensors"), checks))
    (place / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-I", "-c", STRANGERS, Path(probe.__path__[0]).parent, place / "jobs.json"]
    variables = environment(HF_MODULES_CACHE=str(place / "modules"))
    done = subprocess.run([*map(str, command)], cwd=place, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = {name: json.loads(Path(folder, "found.json").read_text()) for name, folder, *_ in jobs}
    return {name: {each["name"]: Check(**each) for each in checks} for name, checks in answers.items()}


SKIPPED = {
    "bert": {"labels", "images", "generate()", "buffers"},
    "seq2seq": {"labels", "images", "pipeline()"},
    "vit": {"tied weights", "buffers", "tokenizer", "generate()"},
}


@pytest.mark.parametrize("family", SKIPPED)
def test_what_training_wrote_passes(family: str, found: dict[str, dict[str, Check]]):
    checks = found[family]
    assert not [check for check in checks.values() if check.result == "failed"]
    assert {name for name, check in checks.items() if check.result == "skipped"} - {"ONNX"} == SKIPPED[family]
    assert "bit for bit" in checks["logits"].detail
    assert family != "seq2seq" or checks["ONNX"].result == "passed" or "not installed" in checks["ONNX"].detail


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, found: dict[str, dict[str, Check]]):
    checks, expected = found[name], FAULTS[name][2]
    assert checks[expected].result == "failed", checks[expected].detail


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_another_file(name: str, trained: dict[str, Path], tmp_path: Path):
    """The hashes that training wrote tell every fault."""
    family, plant, _ = FAULTS[name]
    shutil.copytree(trained[family] / "model", tmp_path / "model")
    plant(tmp_path / "model")
    with pytest.raises(Fault, match=r"is missing|is another file than training's"):
        check_sums(Checkpoint(tmp_path / "model", None))


def test_code_that_is_listed_nowhere(trained: dict[str, Path], tmp_path: Path):
    shutil.copytree(trained["bert"] / "model", tmp_path / "model")
    (tmp_path / "model" / "README.md").touch()
    (tmp_path / "model" / "native").mkdir()
    (tmp_path / "model" / "native" / "model.safetensors").touch()
    write_sums(tmp_path / "model" / "native")
    check_sums(Checkpoint(tmp_path / "model", None))
    (tmp_path / "model" / "more.py").touch()
    with pytest.raises(Fault, match=r"more\.py is listed nowhere"):
        check_sums(Checkpoint(tmp_path / "model", None))


def test_sums_are_those_of_the_tool(trained: dict[str, Path]):
    folder = trained["bert"] / "model"
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b": OK\n") == len(list(folder.iterdir())) - 1


def test_the_verb(trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    """A card whose examples run passes; one whose example fails ends with status 1, and the report says so."""
    shutil.copytree(trained["vit"], tmp_path / "run")
    card = tmp_path / "run/model/README.md"
    card.write_text(
        '```python\nfrom transformers import AutoModel\nAutoModel.from_pretrained("me/digits", trust_remote_code=True, '
        'revision="0123abc")\n```\n'
    )
    main([str(tmp_path / "run")])
    out = tmp_path / "run/publish"
    report = json.loads((out / "verify.json").read_text())
    assert report["passed"] and {"no Keel", *CHECKS, "example 1"} == {
        check["name"] for check in report["opened"][0]["checks"]
    }
    said = capsys.readouterr().out
    assert (out / "verify.md").read_text() in said and "No check failed" in said
    assert str(tmp_path) not in (out / "verify.json").read_text()


def test_an_example_that_fails(trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch):
    shutil.copytree(trained["vit"], tmp_path / "run")
    failing_example(tmp_path / "run/model")
    (check,) = verify.run_examples(tmp_path / "run/model/README.md", tmp_path / "run/model")
    assert check.result == "failed" and "no_such_module" in check.detail
    failed = {"versions": {"transformers": "5", "torch": "2", "python": "3"}, "checks": [vars(check)]}
    monkeypatch.setattr(verify, "ask", lambda *_: failed)
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "run"), "--verify"])
    said = capsys.readouterr()
    assert end.value.code == 1 and "fails verification (example 1)" in said.err and "| **failed** |" in said.out


def test_a_process_that_dies_is_a_failed_check(trained: dict[str, Path], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    source = find_source(trained["vit"])
    report = verify.verify(source, source.folder, [], tmp_path)
    assert [check.name for _, check in report.failures] == ["process"]
    assert "it ended with 1" in (tmp_path / "verify.md").read_text()


def test_a_report_names_no_place_of_this_machine(tmp_path: Path):
    checks = [{"name": "opens", "result": "failed", "detail": f"no {tmp_path}/model/layers.py | '/usr/lib/x.py'"}]
    versions = {"transformers": "5.24.0", "torch": "2.13.0", "python": "3.11"}
    report = Report("numbers", [read_opened({"versions": versions, "checks": checks}, tmp_path / "model")])
    assert "no model/layers.py" in report.to_json() and "'x.py'" in report.to_json()
    assert str(tmp_path) not in report.to_markdown() and "/usr" not in report.to_markdown()
    assert "\\|" in report.to_markdown() and "Mend: " in report.to_markdown() and not report.passed
    assert set(MENDS) == {*CHECKS, "no Keel", "process", "example"}


def test_bad_input_is_one_sentence(trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    shutil.copytree(trained["vit"] / "model", tmp_path / "model.unfinished")
    shutil.copytree(trained["vit"] / "model", tmp_path / "other/model")
    (tmp_path / "other/model/config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    run = str(trained["vit"])
    (tmp_path / "out/repo").mkdir(parents=True)
    for given, *parts in (
        ([str(tmp_path / "nowhere")], "there is no folder", "runs/NAME"),
        ([str(tmp_path / "run")], "has no model/ yet"),
        ([str(tmp_path / "model.unfinished")], "half written"),
        ([str(tmp_path / "other/model")], "BertModel", "none of ours"),
        ([run, "--versions=5.x"], "'5.x' is no version of transformers"),
        ([run, f"--out={run}/model/out"], "lies in the model's folder"),
        ([run, f"--out={tmp_path / 'out'}"], "holds something else than a model"),
        ([run, "--private"], "--private is about a push"),
    ):
        with pytest.raises(SystemExit) as end:
            main(given)
        (sentence,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert end.value.code in (1, 2) and all(part in sentence for part in parts), sentence


def test_an_environment_is_made_once_and_has_this_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With no network pip fails: one sentence, and what was begun is not taken for an environment."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with one_sentence("No matching distribution found for transformers", "check the network"):
        environments.environment("5.23.0", tmp_path)
    calls: list[str] = []
    monkeypatch.setattr(environments, "pip", lambda *call: calls.append(call[-1]))
    pythons = {environments.environment("5.23.0", tmp_path) for _ in range(2)}
    assert len(pythons) == len(calls) == 1
    program = "from importlib.metadata import version; print(version('torch'))"
    done = subprocess.run([pythons.pop(), "-I", "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == torch.__version__, done.stderr


def test_versions_that_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environments, "requires", lambda name: ["transformers>=5.23,<5.25", "torch"])
    monkeypatch.setattr(environments, "newest_version", lambda requirement: "5.24.0")
    assert environments.resolve("5.24.0, newest ,5.23,5.23.0,5.25.1") == ["5.24.0", "5.23", "5.25.1"]
    for versions in ("", "5.24.0,", "../5.24.0", ">=5.23", "Newest"):
        with one_sentence(f"--versions {versions}: ", "is no version of transformers", "as in 5.23.0,newest"):
            environments.resolve(versions)
    with one_sentence("--versions newest,4.40: ", "needs transformers 5.23 at least", "leave 4.40 out"):
        environments.resolve("newest,4.40")


def test_an_environment_without_pip(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environments, "find_spec", lambda name: None)
    with one_sentence("--versions needs pip", "ensurepip"):
        environments.pip("install", "x")
