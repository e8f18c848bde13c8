"""Settings: every field explained, every mistake one sentence, and what a run writes down is what it ran."""

import re
from pathlib import Path

import pytest
import yaml

from pretraining.cli import make_parser, parse
from pretraining.errors import UserError

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/pretrain/*.yaml"))


def test_help_explains_every_setting(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    parser = make_parser("bert", "sentence_pairs")
    settings = [action for action in parser._actions if "." in action.dest]
    assert len(settings) > 50
    for action in settings:
        assert f"--{action.dest}" in text
        assert action.help and len(action.help) > 10, f"{action.dest} has no explanation"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid_and_say_what_they_gave(path: Path):
    settings = parse([f"--config={path}"])
    assert settings.name == path.stem
    header = path.read_text().split("\nname:")[0]
    said = " ".join(header.replace("#", " ").split())
    assert "pretrain.py" in said and ("Measured on" in said or "Not run by us" in said)


def test_printed_settings_are_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture):
    given = ["--train.steps=7", "--model.hidden_size=24", "--data.files=['a.txt']", "--objective.row_length=256"]
    with pytest.raises(SystemExit):
        parse([*given, "--print_config"])
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert parse([f"--config={path}"]).resolved == parse(given).resolved


def test_the_command_line_overrides_files_in_order(tmp_path: Path):
    for name, size in (("one", 24), ("two", 36)):
        (tmp_path / name).write_text(yaml.safe_dump({"model": {"hidden_size": size}, "train": {"steps": 1}}))
    files = [f"--config={tmp_path}/one", "--config", f"{tmp_path}/two"]
    assert parse(files).model.hidden_size == 36
    assert parse([*files, "--model.hidden_size", "48"]).model.hidden_size == 48


NAMES = ["../up", ".", "..", "", "a/../b", "/absolute", "a b"]
LISTS = {
    "one": (["--data.files", "a.txt"], ["a.txt"]),
    "one, by =": (["--data.files=a.txt"], ["a.txt"]),
    "two": (["--data.files", "a.txt", "b c.txt"], ["a.txt", "b c.txt"]),
    "two, by =": (["--data.files=a.txt", "b.txt"], ["a.txt", "b.txt"]),
    "a pattern": (["--data.files", "[ab]*.txt"], ["[ab]*.txt"]),
    "numbers": (["--data.files", "2023", "2024"], ["2023", "2024"]),
    "a hyphen": (["--data.files", "-"], ["-"]),
    "brackets": (["--data.files", "['a.txt', b.txt]"], ["a.txt", "b.txt"]),
    "nothing in brackets": (["--data.files", "[]"], []),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_needs_no_brackets_on_the_command_line(name: str):
    arguments, expected = LISTS[name]
    settings = parse([*arguments, "--train.steps=1", "--log.trackers", "wandb", "--data.mixture", "{source: files}"])
    assert settings.data.files == expected and settings.log.trackers == ["wandb"] and len(settings.data.mixture) == 1
    assert settings.train.steps == 1
    image = parse(["--model.family=vit", "--objective.crop_scale", "0.5", "1", "--train.steps=1"])
    assert image.objective.crop_scale == [0.5, 1.0]


MISTAKES = {
    "two vocabularies for one text": (["--train.steps=1", "--tokenizer.separate=true"], "separate is for pairs"),
    "an unknown key": (["--train.step=3"], "no setting train.step; the nearest is train.steps"),
    "an unknown key in a file": (
        ["--config={tmp}/key.yaml"],
        "no setting optim.lerning_rate; the nearest is optim.lea",
    ),
    "an unknown section in a file": (["--config={tmp}/section.yaml"], "no setting trian"),
    "a file that is no YAML": (["--config={tmp}/broken.yaml"], "broken.yaml is no YAML"),
    "a file that is not there": (["--config={tmp}/nothing.yaml"], "nothing.yaml cannot be read (No such file"),
    "a folder for a file": (["--config={tmp}"], "cannot be read (Is a directory)"),
    "a file of nothing": (["--config={tmp}/empty.yaml"], "it holds no settings"),
    "a section twice": (
        ["--config={tmp}/twice.yaml"],
        "twice.yaml is no YAML of settings: train stands twice, again in line 3",
    ),
    "a key twice": (["--config={tmp}/deep.yaml"], "until stands twice, again in line 1"),
    "one value for a list in a file": (["--config={tmp}/list.yaml"], "it takes: a list of str, in brackets"),
    "a word for a number": (["--train.steps=many"], "train.steps cannot be 'many'; it takes: int"),
    "an unknown choice": (["--objective.next_sentence=nsb"], "it takes: nsp, sop, none"),
    "an unknown objective": (["--objective.name=clozes"], "model.family bert takes: sentence_pairs"),
    "an objective of another family": (["--objective.name=translation"], "translation is one of seq2seq"),
    "a setting with hyphens": (["--train.rows-per-step=3"], "rows-per-step; the nearest is train.rows_per_step"),
    "a setting that its section lacks": (["--config={tmp}/lacks.yaml"], "optim.lr; the nearest is optim."),
    "a budget that is no number": (["--train.minutes=.nan", "--train.steps=null"], "train.minutes is nan"),
    "a budget without end": (["--train.epochs=.inf", "--train.steps=null"], "train.epochs is inf"),
    "a learning rate without end": (["--optim.learning_rate=.inf"], "optim.learning_rate is inf"),
    "a name too long for a folder": ([f"--name={'ab' * 150}"], "at most 200 bytes"),
    "a name that is no text": (["--data.files=a\udcff"], "surrogates not allowed"),
    "a source that is no dictionary": (["--data.mixture=foo"], "data.mixture"),
    "an unknown family": (["--model.family=gpt"], "invalid choice: 'gpt'"),
    "two budgets": (["--train.minutes=1"], "exactly one budget"),
    "no budget": (["--train.steps=null"], "exactly one budget"),
    "a budget of nothing": (["--train.steps=0"], "more than 0"),
    "a rate above one": (["--objective.mask_rate=1.5"], "between 0 and 1"),
    "rates above one together": (
        ["--objective.random_token_rate=0.3"],
        "mask_token_rate + objective.random_token_rate",
    ),
    "heads that do not divide": (["--model.num_attention_heads=7"], "no multiple of num_attention_heads=7"),
    "examples beyond the table": (["--objective.sequence_length=513"], "model.max_position_embeddings to at least 513"),
    "rows shorter than examples": (["--objective.row_length=64"], "objective.row_length"),
    "noam without steps": (["--optim.schedule=noam"], "optim.warmup"),
    **{f"the name {name!r}": ([f"--name={name}"], "a run's name is letters") for name in NAMES},
    "a learning rate below zero": (["--optim.learning_rate=-0.1"], "optim.learning_rate"),
    "a beta of one": (["--optim.beta1=1"], "optim.beta1 is 1"),
    "a seed below zero": (["--seed=-1"], "seed is -1"),
    "an unknown activation": (["--model.hidden_act=gellu"], "hidden_act='gellu' is unknown"),
    "an unknown tracker": (["--log.trackers=['wandbb']"], "'wandbb' is no tracker"),
    "a source with a weight below zero": (
        ["--data.mixture=[{'source': 'files', 'weight': -1}]"],
        "weight of the source 'files' is -1",
    ),
    "no source with a weight": (["--data.weight=0"], "data.weight is 0"),
    "an unknown key of a source": (["--data.mixture=[{'sauce': 'files'}]"], "no setting sauce; the nearest is source"),
    "a similarity above one": (["--data.near_duplicates=8"], "data.near_duplicates is 8"),
    "half a batch warm-up": (["--train.batch_warmup=5"], "set both or neither"),
    "a phase without an end": (
        ["--train.phases=[{objective.sequence_length: 64}]"],
        "train.phases[0] ends at until",
    ),
    "phases in no order": (["--train.phases=[{until: 0.5}, {until: 0.4}]"], "train.phases[1] ends at until: 0.4"),
    "a phase that changes the seed": (["--train.phases=[{until: 0.5, train.window: 4}]"], "sets train.window"),
    "a phase with an unknown key": (
        ["--train.phases=[{until: 0.5, objective.len: 4}]"],
        "no setting objective.len",
    ),
    "a phase beyond the table": (
        ["--train.phases=[{until: 0.5, objective.sequence_length: 1024}]"],
        "model.max_position_embeddings to at least 1024",
    ),
    "a mask as large as the image": (
        ["--model.family=vit", "--objective.name=masked_images", "--objective.mask_size=14"],
        "objective.mask_size is 14, and an image is 14 patches on each side",
    ),
    "an unknown precision": (["--train.precision=fp8"], "it takes: auto, fp32, bf16, fp16"),
    "an unknown allocator": (["--train.allocator=jemalloc"], "it takes: auto, keep, system"),
}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("name: null", "name cannot be null; it takes: str"),
        ("tokenizer: {cased: null}", "tokenizer.cased cannot be null; it takes: bool"),
        ("data: {language: no}", "data.language cannot be 'False'; it takes: str (in quotes"),
        ("optim:\n  # learning_rate: 1", "section optim is None"),
        ("optim: [1]", "section optim is [1]"),
        ("optim: fast", "section optim is 'fast'"),
        ("model.family: vit", "model.family stands in no section"),
        ("optim: {learning_rate: 1}\noptim.learning_rate: 2", "optim.learning_rate stands in no section"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "wrong.yaml").write_text(f"seed: 1\n{text}\n")
    with pytest.raises(SystemExit):
        parse([f"--config={tmp_path}/wrong.yaml", "--train.steps=1"])
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["한글", "हिन्दी", "e\u0301t\u0301", "1e3", "null"])
def test_a_name_is_of_letters_in_any_script(name: str):
    assert parse([f"--name={name}", "--train.steps=1"]).name == name


def test_changed_settings_are_those_that_were_given_so():
    settings, changes = parse(["--train.steps=3"]), {"seed": 5, "name": "other", "optim.warmup": 0.2}
    changed = settings.changed(changes)
    given = parse(["--train.steps=3", *(f"--{key}={value}" for key, value in changes.items())])
    assert (changed.seed, changed.name, changed.optim) == (given.seed, given.name, given.optim)
    assert yaml.safe_load(changed.resolved) == yaml.safe_load(given.resolved)
    for key in ("sed", "optim.lr", "trained_positions"):  # the last one is no setting, but what a checkpoint says
        with pytest.raises(UserError, match=f"no setting {key}"):
            settings.changed({key: 1})


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "key.yaml").write_text("optim: {lerning_rate: 1.0}")
    (tmp_path / "section.yaml").write_text("trian: {steps: 1}")
    (tmp_path / "broken.yaml").write_text("train: [")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "twice.yaml").write_text("train:\n  steps: 1\ntrain:\n  window: 2\n")
    (tmp_path / "deep.yaml").write_text("train: {phases: [{until: 0.5, until: 0.6}]}")
    (tmp_path / "list.yaml").write_text("data: {files: a.txt}")
    (tmp_path / "lacks.yaml").write_text("optim: {lr: 1}")
    arguments, expected = MISTAKES[mistake]
    with pytest.raises(SystemExit) as end:
        parse(["--train.steps=3", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert expected in said
    assert len(re.findall("error:", said)) == 1 and said.count("\n") == 1
