"""What a Hub on loopback keeps of a repository, and how its answers fail."""

import hashlib
import json
from dataclasses import dataclass, field


def git_hash(content: bytes) -> str:
    """The name of a file's content in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refusal(Exception):
    """A response that is an error: status, the message in X-Error-Message, X-Error-Code, and what else it says."""

    def __init__(self, status: int, message: str, code: str = "", **more: str):
        super().__init__(message)
        self.status, self.content = status, {"error": message, **more}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


@dataclass
class Fault:
    """What the next `times` requests come to whose "METHOD /path" matches."""

    requests: str
    status: int = 0
    """Of the response; 0: the connection is dropped instead."""
    message: str = ""
    times: int = 1
    after: int = 0
    """Bytes of the request's body that are read before."""


@dataclass
class Repository:
    private: bool
    kind: str = "model"
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each commit the files: path -> SHA-256."""
    large: set[str] = field(default_factory=set)
    """The SHA-256 of what was uploaded by LFS."""
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, str], message: str) -> str:
        content = json.dumps([self.branches.get(branch), sorted(files.items()), message])
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def resolve(self, revision: str) -> str:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid
