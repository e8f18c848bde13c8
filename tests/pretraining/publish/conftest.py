"""A Hub on loopback that this process, and every process begun by it, takes for the Hub."""

from collections.abc import Iterator
from types import SimpleNamespace

import huggingface_hub.utils._http as client
import pytest
from hub import Hub
from huggingface_hub import constants

from pretraining.publish import push


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With a token that may write; whoever tries again does so at once."""
    with Hub() as server:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        for name, value in {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        # What huggingface_hub read from its environment when it was imported.
        read = {"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        read["HUGGINGFACE_CO_URL_TEMPLATE"] = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, here in read.items():
            monkeypatch.setattr(constants, name, here)
        monkeypatch.setattr(client, "time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setattr(push, "WAITS", (0, 0))
        yield server
        assert not server.unknown, f"the client asked what this Hub does not know: {server.unknown}"
