"""A push to a Hub on loopback by the real client: what arrives, what is sent twice, and what is told when it fails."""

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub import QUOTA, ROUTES, Hub
from hub_repository import Fault
from huggingface_hub import HfApi, constants
from mistakes import one_sentence
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from modeling.convert import to_native
from pretraining.errors import UserError
from pretraining.files import hashes
from pretraining.publish import push as pushing
from pretraining.publish.arrival import compare_files, compare_outputs
from pretraining.publish.endpoint import prepare_hub_client
from pretraining.publish.push import Pushed, check_card, check_repo, push, read_there, upload
from pretraining.publish.stranger import difference, open_model, outputs
from pretraining.settings import HubSettings

ROOT = Path(__file__).parents[3]
FAMILIES = {
    "KeelBertForPreTraining": "AutoModelForPreTraining",
    "KeelSeq2SeqForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "KeelViTForImageClassification": "AutoModelForImageClassification",
}
HEADS = [*FAMILIES, "KeelBertForMultipleChoice", "KeelViTForMaskedImageModeling"]
TOKENS = ("hf_write", "hf_read", "hf_wrong")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a model to the client: a large file, a small one and one in a folder."""
    made = tmp_path / "repo"
    (made / "native").mkdir(parents=True)
    save_file({"weight": torch.rand(300_000)}, made / "model.safetensors")
    (made / "config.json").write_text("{}")
    (made / "README.md").write_text("---\nlibrary_name: transformers\n---\nA model.\n")
    (made / "native" / "config.json").write_text("{ }")
    return made


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are compared, and no process is begun to open them."""
    monkeypatch.setattr(pushing, "compare_outputs", lambda folder, repo, commit: None)


def push_it(folder: Path, repo: str = "me/model", private=False, branch=None, tag=None) -> Pushed:
    return push(folder, repo, private=private, branch=branch, tag=tag, message="A model")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# ---- what arrives ----


def save(model: PreTrainedModel, folder: Path) -> None:
    """As `publish.py` stages it: our form, and the native one in a folder of its own."""
    model.save_pretrained(folder)
    to_native(model).save_pretrained(folder / "native")


STRANGER = """
import sys, torch, transformers
from safetensors.torch import save_file
torch.set_num_threads(1)
transformers.logging.disable_progress_bar()
for name, auto, commit, out in zip(*[iter(sys.argv[1:])] * 4):
    options = {"revision": commit, "attn_implementation": "eager"}
    own = transformers.AutoModel.from_pretrained(name, trust_remote_code=True, **options).eval()
    native = getattr(transformers, auto).from_pretrained(name, subfolder="native", **options).eval()
    kind = own.main_input_name
    inputs = {kind: torch.rand(2, 3, 8, 8) if kind == "pixel_values" else torch.arange(18).reshape(2, 9)}
    if own.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs[kind].clone()
    with torch.no_grad():
        found = {form: model(**inputs)[0] for form, model in (("own", own), ("native", native))}
    save_file(inputs | found, out)
assert not {"modeling", "pretraining"} & set(sys.modules)
"""


def test_every_family_opens_from_the_repository_with_nothing_of_ours(hub: Hub, unopened: None, tiny, tmp_path: Path):
    """Ours by `trust_remote_code` and a revision, the native form without trust; neither with a warning."""
    models, arguments = {}, []
    for head in FAMILIES:
        name = f"me/{head}"
        models[name] = tiny(head).float()
        save(models[name], tmp_path / head)
        pushed = push_it(tmp_path / head, name)
        assert pushed.url == f"{hub.url}/{name}"
        arguments += [name, FAMILIES[head], pushed.commit, str(tmp_path / f"{head}.safetensors")]
        # A later push does not change what an earlier revision is.
        (tmp_path / head / "config.json").write_text("{}")
        assert push_it(tmp_path / head, name).commit != pushed.commit
    caches = {"HF_HUB_CACHE": f"{tmp_path}/hub", "HF_MODULES_CACHE": f"{tmp_path}/modules"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | caches
    command = [sys.executable, "-P", "-W", "default::UserWarning", "-c", STRANGER, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
    for name, model in models.items():
        found = load_file(tmp_path / f"{name.removeprefix('me/')}.safetensors")
        inputs = {key: x for key, x in found.items() if key not in ("own", "native")}
        model.set_attn_implementation("eager")
        with torch.no_grad():
            assert torch.equal(found["own"], model.base_model(**inputs)[0])
            # The pad token's logit differs: converted, it is the lowest that there is.
            assert torch.allclose(found["native"][..., :-1], model(**inputs)[0][..., :-1], atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_compared_by_its_own_outputs(head: str, tiny, tmp_path: Path):
    model = tiny(head).float()
    model.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path), own=True)
    assert type(opened).__name__ == head
    model.set_attn_implementation("eager")
    assert difference(outputs(opened), outputs(model)) == 0
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert difference(outputs(opened), outputs(model)) > 0


def test_something_else_than_was_pushed_is_told(hub: Hub, tiny, tmp_path: Path):
    save(tiny("KeelBertForMaskedLM").float(), tmp_path)
    commit = upload(tmp_path, "me/model", private=False, branch=None, message="a model")
    (tmp_path / "another").touch()
    with one_sentence("another is missing in me/model"):
        compare_files(tmp_path, "me/model", commit, HfApi())
    (tmp_path / "another").unlink()
    weights = load_file(tmp_path / "model.safetensors")
    changed = {name: x + 1e-6 for name, x in weights.items()}
    save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with one_sentence("model.safetensors", "me/model", "not what was pushed", "again"):
        compare_files(tmp_path, "me/model", commit, HfApi())
    with one_sentence("the model", "me/model", "differ by up to"):
        compare_outputs(tmp_path, "me/model", commit)
    repository = hub.repositories["me/model"]
    broken = repository.commit("main", {**repository.commits[commit], "bert.py": hub.store(b"import nothing_here")}, "")
    with one_sentence("me/model", "does not open from there", "nothing_here"):
        compare_outputs(tmp_path, "me/model", broken)


def test_a_repository_follows_the_folder(hub: Hub, folder: Path, unopened: None):
    first = push_it(folder, private=True, branch="trial", tag="v1")
    assert first.url == f"{hub.url}/me/model/tree/trial"
    repository = hub.repositories["me/model"]
    assert repository.private and repository.tags == {"v1": first.commit}
    assert list(hub.files("me/model", "main")) == [".gitattributes"]
    before = contents(folder)
    assert hub.files("me/model", first.commit) == {".gitattributes": hub.files("me/model")[".gitattributes"], **before}
    assert push_it(folder, private=True, branch="trial", tag="v1") == first, "nothing has changed: no commit"
    assert read_there("me/model", "README.md", first.commit) == (folder / "README.md").read_text()
    assert read_there("me/model", "nothing.md", first.commit) is None
    hub.repositories["me/model"].commit("trial", {**repository.commits[first.commit], "mine.txt": hub.store(b"")}, "")
    (folder / "native" / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    second = push_it(folder, private=True, branch="trial", tag="v2")
    now = set(hub.files("me/model", second.commit))
    assert now == {".gitattributes", "README.md", "config.json", "model-00001-of-00001.safetensors", "mine.txt"}
    assert hub.files("me/model", "v1").items() >= before.items()
    with one_sentence("--tag: v1", "another commit of me/model", second.commit, "another --tag"):
        push_it(folder, private=True, branch="trial", tag="v1")


# ---- what is sent twice ----


def uploading(folder: Path) -> subprocess.Popen:
    """A process that pushes the folder, as a run begins it."""
    task = {"folder": str(folder), "repo": "me/model", "private": False, "branch": None, "message": "A model"}
    command = [sys.executable, "-m", "pretraining.publish.send"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    assert process.stdin
    process.stdin.write(json.dumps(task) + "\n")
    process.stdin.flush()
    return process


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("end", [subprocess.Popen.kill, lambda process: process.stdin.close()], ids=["kill", "run"])
def test_a_push_that_is_killed_sends_no_whole_file_twice(end: Callable, hub: Hub, folder: Path, unopened: None):
    """By SIGKILL; and where the run ends whose push it is."""
    small, large = (folder / f"{name}.safetensors" for name in ("model", "other"))
    save_file({"weight": torch.rand(3_000_000)}, large)
    hub.seconds_per_chunk = 0.01
    process = uploading(folder)
    wait_for(lambda: hub.uploaded() > small.stat().st_size + large.stat().st_size / 2)
    end(process)
    assert process.wait(timeout=10) != 0
    hub.seconds_per_chunk = 0
    wait_for(lambda: not hub.active)  # what the system had taken from the process arrives all the same
    sent = hub.uploaded()
    assert sent < small.stat().st_size + large.stat().st_size
    assert list(hub.files("me/model")) == [".gitattributes"], "a commit is whole or not there"
    push_it(folder)
    assert hub.uploaded() - sent == large.stat().st_size, "the small one had arrived"
    assert hub.files("me/model").items() >= contents(folder).items()
    assert push_it(folder) and hub.uploaded() - sent == large.stat().st_size


def test_a_connection_that_drops_is_tried_again(hub: Hub, folder: Path, unopened: None):
    size, part = (folder / "model.safetensors").stat().st_size, 2**18
    hub.faults = [Fault("PUT", after=part), Fault("POST .*/commit/", after=100), Fault("repos/create")]
    push_it(folder)
    assert hub.files("me/model").items() >= contents(folder).items()
    assert hub.uploaded() == size + part


# ---- what is told ----


@pytest.mark.parametrize(
    "name", ["model", "me/model/x", "me/mo--del", "me/.model", "me/model.git", f"me/{'m' * 97}", "me/ä"]
)
def test_a_name_that_the_hub_refuses_is_told_before_any_request(name: str, hub: Hub, folder: Path):
    for attempt in (check_repo, lambda repo: push_it(folder, repo)):
        with one_sentence("--repo", name):
            attempt(name)
    assert not hub.requests


CHECKS = {
    "no token": ({"HF_TOKEN": ""}, "me/model", ["no token", "me/model", "hf auth login", "HF_TOKEN"]),
    "wrong token": ({"HF_TOKEN": "hf_wrong"}, "me/model", ["does not know the token", "hf auth login"]),
    "accented token": ({"HF_TOKEN": "hf_é"}, "me/model", ["the token has a character", "hf auth login"]),
    "reading token": ({"HF_TOKEN": "hf_read"}, "me/model", ["may only read", "me/model", "may write"]),
    "another's": ({}, "you/model", ["--repo: you/model", "begin it with me"]),
}


@pytest.mark.parametrize("case", CHECKS)
def test_what_no_push_could_succeed_with_is_told_before_it(case: str, hub: Hub, monkeypatch: pytest.MonkeyPatch):
    variables, repo, parts = CHECKS[case]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with one_sentence(*parts) as error:
        check_repo(repo)
    assert set(hub.requests) <= {"GET /api/whoami-v2", "GET /api/agent-harnesses"}, error


ANSWERS = {
    "another server": (Fault("whoami", 404, "Not Found"), ["does not answer as a Hub does (Not Found)"]),
    "rate": (Fault("whoami", 429, "Slow down"), ["has trouble, HTTP 429"]),
    "down": (Fault("whoami", 502, "Bad Gateway"), ["has trouble, HTTP 502"]),
    "drops": (Fault("whoami", times=9), ["the connection to http://127", "fails"]),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_answers_before_the_push(case: str, hub: Hub):
    fault, parts = ANSWERS[case]
    hub.faults = [fault]
    with one_sentence(*parts):
        check_repo("me/model")


def test_a_card_that_the_hub_refuses_is_told_before_the_push(hub: Hub):
    check_card("me/model", "---\nlicense: mit\n---\n")
    hub.faults = [Fault("validate-yaml", 400, '"license" must be one of [mit]')]
    with one_sentence("refuses the card", "license", "mend that"):
        check_card("me/model", "---\nlicense: foo\n---\n")
    hub.faults = [Fault("validate-yaml", 503, "Maintenance")]
    with one_sentence("has trouble, HTTP 503"):
        check_card("me/model", "---\nlicense: mit\n---\n")


def test_a_page_instead_of_a_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """As a proxy answers that wants a password."""
    monkeypatch.setitem(ROUTES, "GET /api/whoami-v2", lambda handler, body: handler.send(b"<html>"))
    with one_sentence("does not answer as a Hub does", "HF_ENDPOINT"):
        check_repo("me/model")


def test_a_repository_that_can_be_pushed_to_passes(hub: Hub):
    check_repo("me/model")
    assert not hub.repositories
    hub.create("me/model")
    check_repo("me/model")
    hub.faults = [Fault("auth-check", 403, "Forbidden")]  # a fine-grained token for other repositories
    with one_sentence("may not write to me/model", "Forbidden", "right"):
        check_repo("me/model")


def test_offline_and_no_connection(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for attempt in (check_repo, lambda repo: push_it(folder, repo)):
        with one_sentence("me/model", "HF_HUB_OFFLINE is set", "unset it"):
            attempt("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for attempt in (check_repo, lambda repo: push_it(folder, repo)):
        with one_sentence("connection to http://127.0.0.1:9 fails", "refused", "not sent twice"):
            attempt("me/model")
    assert not hub.requests


REFS = ["", "a b", "a..b", "-x", "v1.", "/a", "a~1", "x.lock", "refs/pr/1", "a" * 40, "@", "a\n"]


@pytest.mark.parametrize("setting", ["branch", "tag"])
def test_a_branch_or_a_tag_that_git_refuses_is_told_before_any_request(setting: str, hub: Hub):
    for name in REFS:
        with one_sentence(f"--{setting}: {name!r} is no name of a branch or a tag", "v1.0"):
            check_repo("me/model", **{setting: name})
    with one_sentence("hub.branch: 'a b' is no name"):
        HubSettings(repo="me/model", branch="a b")
    assert not hub.requests
    for name in ("v1.0", "feature/a", "모델", "v1+cpu"):
        check_repo("me/model", **{setting: name})


def test_a_branch_or_a_tag_that_is_taken_is_told_before_the_push(hub: Hub):
    repository = hub.create("me/model")
    repository.tags |= {"v1": repository.branches["main"], "v2": "another"}
    check_repo("me/model", tag="v1")  # there may be nothing new to push
    for taken, parts in {
        ("trial", "v1"): ["--tag: v1", "another commit of me/model"],
        (None, "v2"): ["--tag: v2", "another commit of me/model", "another --tag"],
        (None, "main"): ["--tag: main is a branch of me/model"],
        ("trial", "trial"): ["--tag: trial is a branch"],
        ("v1", None): ["--branch: v1 is a tag of me/model"],
    }.items():
        with one_sentence(*parts):
            check_repo("me/model", *taken)


def test_what_an_earlier_model_left_is_not_read_with_this_one(hub: Hub, folder: Path, unopened: None):
    """transformers would take each of these for this model's."""
    stale = ["added_tokens.json", "special_tokens_map.json", "processor_config.json", "target/tokenizer.json"]
    stale += ["adapter_config.json", ".eval_results/other.yaml", "explore.html", "chat_template.jinja"]
    repository = hub.create("me/model")
    before = repository.commits[repository.branches["main"]]
    repository.commit("main", {**before, **{name: hub.store(b"{}") for name in [*stale, "onnx/config.json"]}}, "")
    push_it(folder)
    assert set(hub.files("me/model")) == {".gitattributes", "onnx/config.json", *contents(folder)}


ALWAYS = 1000
FAILURES = {
    "no right": (Fault("POST .*/commit/", 403, "You need write access"), ["may not write to me/model", "write access"]),
    "a 401": (Fault("POST .*/preupload/", 401, "Invalid username or password."), ["may not write to me/model"]),
    "revoked": (Fault("PUT", 401, "Invalid credentials in Authorization header"), ["does not know the token"]),
    "quota, 403": (Fault("POST .*/batch", 403, QUOTA), ["no room for me/model", "storage limit reached", "goes on"]),
    "quota, 507": (Fault("PUT", 507, "Insufficient Storage"), ["no room for me/model", "goes on from there"]),
    "quota, 413": (Fault("POST .*/commit/", 413, "Payload Too Large"), ["no room for me/model"]),
    "renamed": (Fault("POST .*/preupload/", 404, "Repository not found"), ["there is no model me/model", "taken"]),
    "changed": (Fault("POST .*/commit/", 412, "A commit has happened since"), ["changed by somebody else", "again"]),
    "bad card": (Fault("validate-yaml", 400, '"license" must be one of'), ["refuses what is pushed", '"license"']),
    "rate": (Fault("POST .*/preupload/", 429, "Slow down", ALWAYS), ["has trouble, HTTP 429", "not sent twice"]),
    "down": (Fault("POST .*/commit/", 503, "Maintenance", ALWAYS), ["has trouble, HTTP 503", "Maintenance"]),
    "drops": (Fault("PUT", times=ALWAYS, after=1000), ["connection to http://127", "fails", "not sent twice"]),
    "no tag": (Fault("POST .*/tag/", 403, "Forbidden"), ["may not write to me/model"]),
    "an echo": (Fault("POST .*/commit/", 403, "Bearer hf_write may not"), ["Bearer (the token) may not"]),
}


@pytest.mark.parametrize("case", FAILURES)
def test_what_stops_a_push_is_one_sentence(case: str, hub: Hub, folder: Path, unopened: None, capfd, caplog):
    fault, parts = FAILURES[case]
    hub.faults, before = [fault], hashes(folder)
    with pytest.raises(UserError) as failed:
        push_it(folder, tag="v1")
    sentence = str(failed.value)
    assert all(part in sentence for part in parts) and "\n" not in sentence and sentence.endswith("."), sentence
    said = "".join([*traceback.format_exception(failed.value), *capfd.readouterr(), caplog.text])
    assert "the above exception" not in said and not any(token in said for token in TOKENS)
    assert hashes(folder) == before
    print(f"{case}: {sentence}")
    hub.faults = []
    assert hub.repositories["me/model"].tags == {}
    assert hub.repositories["me/model"].tags == {"v1": push_it(folder, tag="v1").commit}


def test_a_name_that_is_taken(hub: Hub, folder: Path):
    hub.create("me/data", kind="dataset")
    with one_sentence("there is no model me/data", "taken by something else", "another repository"):
        push_it(folder, "me/data")
    hub.create("you/model")
    with one_sentence("may not write to you/model", "don't have the rights"):
        push_it(folder, "you/model")
    hub.create("me/open")
    for attempt in (lambda: check_repo("me/open", private=True), lambda: push_it(folder, "me/open", private=True)):
        with one_sentence("me/open is to be private", "for all to see"):
            attempt()
    assert list(hub.files("me/open")) == [".gitattributes"]


# ---- an endpoint without Xet ----

ENDPOINTS = {
    "": None,
    "https://huggingface.co": None,
    "https://hub-ci.huggingface.co/": None,
    "http://127.0.0.1:8013": "1",
    "https://nothuggingface.co": "1",
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_xet_is_off_for_other_endpoints_than_the_hub(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    prepare_hub_client()
    assert os.environ.get("HF_HUB_DISABLE_XET") == ENDPOINTS[endpoint]
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    prepare_hub_client()
    assert os.environ["HF_HUB_DISABLE_XET"] == "0", "what is set by hand stays"


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:8013", "ftp://a", "http://", "http://[::1", "http://a:b", "http://a:99999"]
)
def test_an_endpoint_that_is_no_address(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with one_sentence(f"HF_ENDPOINT is {endpoint!r}", "unset it"):
        prepare_hub_client()


def test_preparing_the_client_imports_none():
    program = "from pretraining.publish.endpoint import prepare_hub_client as p; p(); import sys; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "pretraining.publish.endpoint" in done.stdout and "huggingface_hub" not in done.stdout


def test_an_endpoint_without_xet_is_one_sentence(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    process = uploading(folder)
    assert process.wait(timeout=60) == 1
    (sentence,) = process.stderr.read().splitlines()[-1:]
    assert f"{hub.url} has no Xet storage" in sentence and "HF_HUB_DISABLE_XET=1" in sentence
    (asked,) = (request for request in hub.unknown if "xet-write-token" in request)
    hub.unknown.remove(asked)
