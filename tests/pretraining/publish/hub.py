"""A Hub on loopback for the real huggingface_hub: repositories in memory, faults to order, and the bytes it received.

`python tests/pretraining/publish/hub.py 8013` serves until Ctrl-C: it is the Hub to programs that begin with
HF_ENDPOINT=http://127.0.0.1:8013 and HF_TOKEN=hf_write.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repository import Fault, Refusal, Repository, git_hash

PAGE = 5  # files in one page of a tree: few, so that every repository has several pages
CHUNK = 2**16
ID = r"(?P<id>[^/]+/[^/]+?)"
QUOTA = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit."
TOKENS = {"hf_write": "write", "hf_read": "read"}


class Hub(ThreadingHTTPServer):
    """Used as a context; `url` is the endpoint."""

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.received: Counter[str] = Counter()
        """Bytes of request bodies, by "METHOD /path"."""
        self.requests: list[str] = []
        self.unknown: list[str] = []
        """Requests of which this Hub knows nothing."""
        self.seconds_per_chunk = 0.0
        self.active = 0
        """Requests that are being answered."""
        self.lock = threading.Lock()

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def store(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        return digest

    def create(self, name: str, private: bool = False, kind: str = "model") -> Repository:
        repository = self.repositories[name] = Repository(private, kind)
        repository.commit("main", {".gitattributes": self.store(b"*.safetensors filter=lfs\n")}, "initial commit")
        return repository

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return {path: self.blobs[oid] for path, oid in repository.commits[repository.resolve(revision)].items()}

    def uploaded(self) -> int:
        """Bytes of large files that have arrived, those of broken uploads too."""
        return sum(count for request, count in list(self.received.items()) if request.startswith("PUT"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.call = f"{self.command} {parts.path}"
        hub = self.server
        with hub.lock:
            hub.active += 1
            hub.requests.append(self.call)
            fault = next((f for f in hub.faults if f.times and re.search(f.requests, self.call)), None)
            if fault:
                fault.times -= 1
        try:
            self.answer(fault)
        finally:
            with hub.lock:
                hub.active -= 1

    def answer(self, fault: Fault | None) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.read(min(length, fault.after) if fault and not fault.status else length)
        if fault and not fault.status:
            self.close_connection = True
            return
        try:
            if fault:
                raise Refusal(fault.status, fault.message)
            if len(body) == length:  # else the client was killed
                with self.server.lock:
                    self.route(body)
        except Refusal as refusal:
            self.send(refusal.content, refusal.status, refusal.headers)

    do_POST = do_PUT = do_HEAD = do_GET

    def read(self, length: int) -> bytes:
        body = bytearray()
        while len(body) < length and (chunk := self.rfile.read1(min(CHUNK, length - len(body)))):
            body += chunk
            self.server.received[self.call] += len(chunk)
            time.sleep(self.server.seconds_per_chunk)
        return bytes(body)

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    # ---- who asks, and for which repository ----

    def role(self) -> str:
        """The role of the request's token; empty: it has none."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token, "")

    def may_write(self, name: str) -> None:
        if self.role() != "write" or not name.startswith("me/"):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{name}"')

    def repository(self, name: str, kind: str = "model") -> Repository:
        found = self.server.repositories.get(name)
        if found is None or found.kind != kind or (found.private and not self.role()):
            raise Refusal(404 if self.role() else 401, "Repository not found", "RepoNotFound")
        return found

    def route(self, body: bytes) -> None:
        for pattern, answer in ROUTES.items():
            if match := re.fullmatch(pattern, self.call):
                parts = {name: unquote(part) for name, part in match.groupdict(default="").items()}
                answer(self, body, **parts)
                return
        if not self.call.endswith("/api/agent-harnesses"):  # which the client asks for where a program types
            self.server.unknown.append(self.call)
        raise Refusal(404, f"this Hub does not know {self.call}")

    # ---- answers ----

    def whoami(self, body: bytes) -> None:
        if not self.role():
            raise Refusal(401, "Invalid username or password.")
        self.send({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": self.role()}}})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self.may_write(name)
        if name in self.server.repositories:
            raise Refusal(409, "You already created this model repo", url=f"{self.server.url}/{name}")
        private = asked.get("visibility") == "private" or asked.get("private", False)
        self.server.create(name, private)
        self.send({"url": f"{self.server.url}/{name}"})

    def validate_yaml(self, body: bytes) -> None:
        bad = not json.loads(body)["content"].startswith("---\n")
        self.send({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}] if bad else []})

    def preupload(self, body: bytes, id: str, revision: str) -> None:
        repository = self.repository(id)
        self.may_write(id)
        there = repository.commits[repository.resolve(revision)]
        files = []
        for file in json.loads(body)["files"]:
            path, sha = file["path"], there.get(file["path"])
            large = b"\0" in base64.b64decode(file["sample"]) or file["size"] > 10 * 2**20
            oid = sha and (sha if sha in repository.large else git_hash(self.server.blobs[sha]))
            files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        self.send({"files": files})

    def lfs_batch(self, body: bytes, id: str) -> None:
        self.may_write(id)
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"href": f"{self.server.url}/lfs/{id}/{item['oid']}"}
            verify = {"href": f"{self.server.url}/lfs/{id}/verify"}
            known = item["oid"] in self.server.blobs
            objects.append(item if known else {**item, "actions": {"upload": upload, "verify": verify}})
        self.send({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, id: str, oid: str) -> None:
        if self.server.store(body) != oid:
            raise Refusal(400, "the content does not have this SHA-256")
        self.send({})

    def lfs_verify(self, body: bytes, id: str) -> None:
        asked = json.loads(body)
        if len(self.server.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "no such object")
        self.send({})

    def commit(self, body: bytes, id: str, revision: str) -> None:
        repository = self.repository(id)
        self.may_write(id)
        files, summary = dict(repository.commits[repository.branches[revision]]), ""
        for line in map(json.loads, body.splitlines()):
            kind, value = line["key"], line["value"]
            if kind == "header":
                summary = value["summary"]
            elif kind == "file":
                files[value["path"]] = self.server.store(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                assert value["oid"] in self.server.blobs, "committed and never uploaded"
                files[value["path"]] = value["oid"]
                repository.large.add(value["oid"])
            else:
                assert kind == "deletedFile", kind
                del files[value["path"]]
        oid = repository.commit(revision, files, summary)
        self.send({"commitUrl": f"{self.server.url}/{id}/commit/{oid}", "commitOid": oid})

    def branch(self, body: bytes, id: str, branch: str) -> None:
        repository = self.repository(id)
        self.may_write(id)
        if branch in repository.branches:
            raise Refusal(409, f"Reference refs/heads/{branch} already exists")
        repository.branches[branch] = repository.resolve(json.loads(body).get("startingPoint", "main"))
        self.send({})

    def tag(self, body: bytes, id: str, revision: str) -> None:
        repository, name = self.repository(id), json.loads(body)["tag"]
        self.may_write(id)
        if name in repository.tags:
            raise Refusal(409, f"Tag {name} already exists")
        repository.tags[name] = repository.resolve(revision)
        self.send({})

    def refs(self, body: bytes, id: str) -> None:
        repository = self.repository(id)
        kinds = {"branches": ("heads", repository.branches), "tags": ("tags", repository.tags)}
        listed: dict[str, list] = {"converts": []}
        for kind, (path, refs) in kinds.items():
            listed[kind] = [
                {"name": name, "ref": f"refs/{path}/{name}", "targetCommit": oid} for name, oid in refs.items()
            ]
        self.send(listed)

    def auth_check(self, body: bytes, id: str, write: str) -> None:
        self.repository(id)
        if write:
            self.may_write(id)
        self.send({})

    def info(self, body: bytes, id: str, revision: str) -> None:
        repository = self.repository(id)
        oid = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in repository.commits[oid]]
        self.send({"_id": id, "id": id, "sha": oid, "private": repository.private, "tags": [], "siblings": siblings})

    def tree(self, body: bytes, id: str, revision: str, folder: str) -> None:
        repository = self.repository(id)
        files = repository.commits[repository.resolve(revision)]
        inside = {path: sha for path, sha in sorted(files.items()) if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        if self.query.get("recursive", "false").lower() not in ("true", "1"):
            depth = folder.count("/") + bool(folder)
            inside = {path: sha for path, sha in inside.items() if path.count("/") == depth}
        start = int(self.query.get("cursor", 0))
        page = []
        for path, sha in list(inside.items())[start : start + PAGE]:
            content = self.server.blobs[sha]
            lfs = {"lfs": {"oid": sha, "size": len(content), "pointerSize": 130}} if sha in repository.large else {}
            page.append({"type": "file", "path": path, "size": len(content), "oid": git_hash(content), **lfs})
        self.query["cursor"] = str(start + PAGE)
        rest = "&".join(f"{name}={value}" for name, value in self.query.items())
        link = f'<{self.server.url}{self.call.partition(" ")[2]}?{rest}>; rel="next"'
        self.send(page, headers={"Link": link} if start + PAGE < len(inside) else {})

    def resolve(self, body: bytes, id: str, revision: str, path: str) -> None:
        repository = self.repository(id)
        oid = repository.resolve(revision)
        if path not in repository.commits[oid]:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        sha = repository.commits[oid][path]
        content = self.server.blobs[sha]
        headers = {"ETag": f'"{sha if sha in repository.large else git_hash(content)}"', "X-Repo-Commit": oid}
        if sha in repository.large:
            headers |= {"X-Linked-ETag": f'"{sha}"', "X-Linked-Size": str(len(content))}
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(content[start:], 206, headers)
        else:
            self.send(content, 200, headers)


ROUTES = {
    "GET /api/whoami-v2": Handler.whoami,
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.validate_yaml,
    f"POST /api/models/{ID}/preupload/(?P<revision>[^/]+)": Handler.preupload,
    rf"POST /{ID}\.git/info/lfs/objects/batch": Handler.lfs_batch,
    f"POST /lfs/{ID}/verify": Handler.lfs_verify,
    f"PUT /lfs/{ID}/(?P<oid>[^/]+)": Handler.lfs_put,
    f"POST /api/models/{ID}/commit/(?P<revision>[^/]+)": Handler.commit,
    f"POST /api/models/{ID}/branch/(?P<branch>[^/]+)": Handler.branch,
    f"POST /api/models/{ID}/tag/(?P<revision>[^/]+)": Handler.tag,
    f"GET /api/models/{ID}/refs": Handler.refs,
    f"GET /api/models/{ID}/auth-check(?P<write>/write)?": Handler.auth_check,
    f"GET /api/models/{ID}(?:/revision/(?P<revision>[^/]+))?": Handler.info,
    f"GET /api/models/{ID}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)": Handler.tree,
    f"(?:GET|HEAD) /{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": Handler.resolve,
}

if __name__ == "__main__":
    with Hub(int(sys.argv[1])) as hub:
        print(f"HF_ENDPOINT={hub.url} HF_TOKEN=hf_write", flush=True)
        threading.Event().wait()
