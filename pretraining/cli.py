"""Settings from YAML files and the command line; a wrong one is one sentence."""

import dataclasses
import difflib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from modeling import CONFIGS
from pretraining.data.settings import TokenizerSettings
from pretraining.errors import UserError, one_line
from pretraining.objectives import OBJECTIVES, Entry
from pretraining.settings import (
    CACHE,
    NOT_SET_BY_HAND,
    CheckpointSettings,
    EvaluationSettings,
    HubSettings,
    LogSettings,
    OptimSettings,
    Settings,
    TrainSettings,
)

# The families that read tokens.
READERS = {"bert", "seq2seq"}
# A family's own defaults: what is generated must look like text.
DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "seq2seq": {"tokenizer.kind": "bpe", "tokenizer.cased": True},
    "vit": {},
}
RENAMED = {
    "objective.written": "objective.generate_examples",
    "objective.probe": "objective.probe_examples",
}


SECTIONS = {"model", "data", "tokenizer", "objective", "train", "optim", "evaluation", "checkpoint", "log", "hub"}


class Option(NamedTuple):
    """A setting of a verb that stands in no section."""

    kind: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Verb:
    """One of the programs: what it can learn, and what it is told."""

    program: str
    description: str
    objectives: dict[str, Entry]
    """Of each family the usual one comes first."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Its own, by `section.key`."""
    options: dict[str, Option] = field(default_factory=dict)
    """Fields of its `settings` that the others lack."""
    settings: type[Settings] = Settings
    checkpoint: str = "init_from"
    """What names the checkpoint on its command line."""
    free: frozenset[str] = frozenset()
    """Fields of the model that may differ from those of the checkpoint it starts from, beside what always may."""


PRETRAIN = Verb("pretrain.py", "Pretrain a model on your own data, from scratch or from a checkpoint.", OBJECTIVES)


def describe(hint: Any) -> str:
    """The values that a setting takes, in words."""
    kinds = get_args(hint) or (hint,)
    takes = ", ".join("null" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in kinds)
    takes = f"a list of {takes}, in brackets" if get_origin(hint) is list else takes
    return f"{takes} (in quotes in YAML, where it looks like a number, yes or no)" if str in kinds else takes


class Parser(ArgumentParser):
    """Errors of one sentence: the key, what is wrong with it, and the nearest right key or the values it takes."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        types = {action.dest: getattr(action, "_typehint", None) for action in self._actions}
        unknown = re.search(r"unrecognized arguments: --([\w.-]+)|Option '([\w.-]+)' is not accepted", message)
        nested = re.search(r"Group '([\w.]+)' does not accept option '([\w.-]+)'", message)
        wrong = re.search(r'Parser key "([\w.]+)":.*(?:Given value|Got value|value): (.*)', message, re.DOTALL)
        if unknown or nested:
            key = ".".join(nested.groups()) if nested else next(filter(None, unknown.groups() if unknown else ()))
            names = [name for name in types if name not in SECTIONS]
            near = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
            message = f"there is no setting {key}; the nearest is {near}."
            if key in RENAMED:
                message = f"{key} is named {RENAMED[key]} now: rename it."
        elif wrong:
            key, value = wrong.groups()
            hint = types.get(key)
            message = f"{key} cannot be {value.strip()!r}; it takes: {describe(hint)}."
        message = " ".join(message.split()).encode(errors="backslashreplace").decode()
        print(f"{self.prog}: error: {message} (--help lists every setting)", file=sys.stderr)
        sys.exit(2)


class OneKey(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: of two sections `train` the first would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in keys:
                raise yaml.YAMLError(f"{name} stands twice, again in line {key.start_mark.line + 1}")
            keys.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: str, program: str) -> dict:
    """What a file of settings says; ends the program where there is none."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), OneKey)
        if not isinstance(content, dict):
            raise yaml.YAMLError("it holds no settings")
        for key, value in content.items():
            if key in SECTIONS and not isinstance(value, dict):
                raise yaml.YAMLError(f"its section {key} is {value!r}: indent its settings below it, or leave it out")
            if str(key).partition(".")[0] in SECTIONS - {key}:
                raise yaml.YAMLError(f"{key} stands in no section: write it below {key.partition('.')[0]}, indented")
        return content
    except OSError as error:
        Parser(prog=program).error(f"--config: {path} cannot be read ({error.strerror}): name a YAML file.")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        Parser(prog=program).error(f"{path} is no YAML of settings: {one_line(error)}.")


def peek(arguments: list[str], key: str, default: str, program: str) -> str:
    """The value of `section.name` before the parser exists: it decides which sections or defaults the parser has."""
    value = default
    for i, argument in enumerate(arguments):
        option, _, given = argument.partition("=")
        given = given or (arguments[i + 1] if i + 1 < len(arguments) else "")
        if option == "--config" and given:
            content: Any = read_yaml(given, program)
            for step in key.split("."):
                content = content.get(step) if isinstance(content, dict) else None
            value = value if content is None else str(content)
        elif option == f"--{key}":
            value = given
    return value


def make_parser(family: str, objective: str, verb: Verb = PRETRAIN) -> Parser:
    """Every setting of a run that trains `family` on `objective`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=verb.program, description=verb.description, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file of settings; what follows it overrides it.")
    parser.add_argument("--name", type=str, default="run", help="The run's name: it leaves everything in RUNS/NAME.")
    parser.add_argument("--runs", type=str, default="runs", help="The folder of all runs.")
    parser.add_argument("--cache", type=str, default=CACHE, help="The folder of prepared data and trained tokenizers.")
    parser.add_argument("--seed", type=int, default=0, help="Decides weights, order, pairs, masks and dropout.")
    parser.add_argument(
        "--resume",
        type=str,
        default="auto",
        help="auto: continue the run from its newest checkpoint, if it has one; PATH: from this checkpoint, and from "
        "the newest one that came of it when the same command is given again; none: start anew, in an empty folder.",
    )
    parser.add_argument(
        "--init_from",
        type=str | None,
        default=None,
        help="A folder or Hub name of a checkpoint, ours or native, to start from: its weights, its architecture (the "
        "defaults of model.*) and its tokenizer; null: fresh weights.",
    )
    for name, (kind, default, text) in verb.options.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--model.family", choices=list(CONFIGS), default=family, help="The architecture.")
    parser.add_class_arguments(CONFIGS[family], "model", skip=NOT_SET_BY_HAND)
    sections = {
        "data": verb.objectives[objective].data,
        **({"tokenizer": TokenizerSettings} if family in READERS else {}),
        "objective": verb.objectives[objective].settings,
        "train": TrainSettings,
        "optim": OptimSettings,
        "evaluation": EvaluationSettings,
        "checkpoint": CheckpointSettings,
        "log": LogSettings,
        "hub": HubSettings,
    }
    for key, section in sections.items():
        parser.add_class_arguments(section, key)
    return parser


def gather_lists(parser: Parser, arguments: list[str]) -> list[str]:
    """The arguments with every list in brackets: `--data.files a.txt b.txt`, as the shell makes of `*.txt`, is one."""
    kinds = {f"--{action.dest}": getattr(action, "_typehint", None) for action in parser._actions}
    gathered, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, given = argument.partition("=")
        kind = kinds.get(option)
        if get_origin(kind) is not list:
            gathered.append(argument)
            continue
        values = [given] if equals else []
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if not values or (len(values) == 1 and values[0][:1] == "[" and isinstance(plain(values[0]), list)):
            gathered += [option, *values]
        else:
            members = values if get_args(kind) == (str,) else [plain(value) for value in values]
            gathered.append(f"{option}={json.dumps(members, ensure_ascii=False)}")
    return gathered


def plain(value: str) -> Any:
    """A value as YAML; the text itself where it is none, as a pattern like [ab]*.txt."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def instantiate(parser: Parser, given: Namespace) -> Namespace:
    """The settings classes with these values.

    Raises:
        UserError: a value is refused, by a class of ours or by the model's configuration, whose errors are plain ones.
    """
    try:
        return parser.instantiate(given)
    except ValueError as error:
        raise UserError(str(error)) from error


def parse(arguments: list[str] | None = None, verb: Verb = PRETRAIN, default_family: str = "bert") -> Any:
    """The settings of a run, `verb.settings`, resolved: from YAML, the command line and the checkpoint of init_from.

    Whatever is wrong ends the program with one sentence.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = peek(arguments, "model.family", default_family, verb.program)
    family = asked if asked in CONFIGS else default_family  # the parser itself refuses it
    names = [name for name, entry in verb.objectives.items() if entry.family == family]  # the usual one first
    name = peek(arguments, "objective.name", names[0], verb.program)
    parser = make_parser(family, name if name in names else names[0], verb)
    if name not in names and asked == family:
        others = f" {name} is one of {verb.objectives[name].family}." if name in verb.objectives else ""
        parser.error(f"objective.name is {name!r}, and model.family {family} takes: {', '.join(names)}.{others}")
    arguments = gather_lists(parser, arguments)
    known = {action.dest for action in parser._actions}
    defaults = DEFAULTS[family] | verb.defaults
    parser.set_defaults({key: value for key, value in defaults.items() if key in known})
    checkpoint = peek(arguments, "init_from", "null", verb.program)
    try:
        if checkpoint == "null":
            return make_settings(parser, arguments, family, verb)
        from pretraining import init_from  # heavy: it converts models

        start = init_from.read_config(checkpoint, CONFIGS[family])
        parser.set_defaults(init_from.architecture(start))
        positions = 0
        if family in READERS:
            parser.set_defaults({"tokenizer.path": checkpoint, "tokenizer.separate": init_from.is_separate(start)})
            positions = start.max_position_embeddings
        settings = make_settings(parser, arguments, family, verb, positions)
        return init_from.resolve(settings, start, init_from.FREE | verb.free)
    except UserError as error:
        parser.error(re.sub("^init_from:", f"{verb.checkpoint}:", str(error)))


def make_settings(
    parser: Parser, arguments: list[str], family: str, verb: Verb, trained_positions: int = 0
) -> Settings:
    """The settings that these arguments give, with their YAML."""
    given = parser.parse_args(arguments)
    for action in parser._actions:  # in YAML jsonargparse takes null for anything
        hint = getattr(action, "_typehint", None)
        if hint and given.get(action.dest, "") is None and hint is not Any and type(None) not in get_args(hint):
            parser.error(f"{action.dest} cannot be null; it takes: {describe(hint)}.")
    if family in READERS:
        given.tokenizer.path = given.tokenizer.path or given.init_from
    resolved = parser.dump(given, skip_none=False)
    given.model.pop("family")
    sections = {"tokenizer": None, **instantiate(parser, given)}
    names = {field.name for field in dataclasses.fields(verb.settings)} & sections.keys()
    values = {name: sections[name] for name in names}
    return verb.settings(family=family, resolved=resolved, trained_positions=trained_positions, **values)
