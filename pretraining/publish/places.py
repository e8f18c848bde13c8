"""What a card must not tell: where on somebody's machine things lie."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from pretraining.cli import plain

# The folders of an absolute path within a text; a Hub name, a URL and a relative path have none.
FOLDERS = re.compile(r"(?<![\w.:/*\])}])~?/(?:[^/\s'\"]+/)+")


def plain_name(value: str) -> str:
    """A path that begins at a root, a home or a parent by its last name; any other text without such folders.

    A run's model is named with its run.
    """
    if not re.match(r"~|/|\.\.?/", value):
        return FOLDERS.sub("", value)
    path = Path(value)
    return f"{path.parent.name}/model" if path.name == "model" and path.parent.name else path.name


def without_places(value: Any) -> Any:
    """Settings whose paths are names."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return plain_name(value) if isinstance(value, str) else value


def shown_command(command: str) -> str:
    """A command whose paths are names, those inside lists too."""
    words = []
    for word in shlex.split(command):
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        value = plain(value) if value[:1] in ("[", "{") else value
        shown = without_places(value)
        words.append(option + equals + (shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)))
    return shlex.join(["python", *words] if words[0].endswith(".py") else words)
