"""Models of the Hugging Face hub: a small hub here, the hub's own client, and what the engine makes of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_steps import FakeStep, anything

from dualipo.artifacts import digest
from dualipo.config import Config, parse_config
from dualipo.engine import execute
from dualipo.errors import UserError
from dualipo.pipeline.data import fetch, sources
from dualipo.steps import Port, Step

COMMIT, BARE = "0123456789abcdef0123456789abcdef01234567", "f" * 40
SOURCE = f"hub/acme/tiny@{COMMIT}"
WANTED = {
    "model_index.json": b'{"_class_name": "WanPipeline"}',
    "transformer/model.safetensors": b"weights",
    "tokenizer/spiece.model": b"words",
    "tokenizer/merges.txt": b"a b",
}
UNWANTED = {
    "transformer/model.bin": b"pickled",
    "transformer/model.fp16.safetensors": b"weights, again",
    "modeling.py": b"raise SystemExit",
    "README.md": b"read me",
}
TREES = {COMMIT: WANTED | UNWANTED, BARE: {"model.bin": b"pickled", "config.json": b"{}"}}


@dataclass
class Hub:
    """The endpoints of a hub that a snapshot needs, for one repository; `acme/closed` is gated."""

    server: ThreadingHTTPServer
    asked: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0].removeprefix("/")
        self.hub.asked.append(path)
        if "acme/closed" in path:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if "acme/tiny" not in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        commit, _, name = (
            path.removeprefix("api/models/acme/tiny/tree/").removeprefix("acme/tiny/resolve/").partition("/")
        )
        if commit not in TREES:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        tree = TREES[commit]
        if path.startswith("api/"):
            listed = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in tree.items()
            ]
            return self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"}, body)
        if name not in tree:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        etag = f'"{hashlib.sha1(tree[name]).hexdigest()}"'
        return self._send(200, tree[name], {"ETag": etag, "X-Repo-Commit": commit}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    _Handler.hub = Hub(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield _Handler.hub
    server.shutdown()


def dualipo_fetch(folder: Path, source: str, home: Path, endpoint: str | None) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its variables when it is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(f"models: {{generator: {source}}}\n")
    variables = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0" if endpoint else "1", "HF_ENDPOINT": endpoint or ""}
    variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", "from dualipo.cli import main; main()", "fetch"],
        cwd=folder, env=os.environ | {k: v for k, v in variables.items() if v}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache(hub, tmp_path_factory) -> Path:
    """A hub cache (HF_HOME) that the hub's own client filled."""
    home = tmp_path_factory.mktemp("home")
    ended = dualipo_fetch(home / "first", SOURCE, home, hub.url)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip().endswith(SOURCE)
    return home


@pytest.fixture
def cached(cache, monkeypatch) -> None:
    """This process finds the cache, and no network: conftest.py sets HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_snapshot_is_the_commits_safetensors_and_texts_and_nothing_else_is_asked_for(cache, hub):
    found = cache / "first" / SOURCE
    assert content(found) == WANTED
    assert not any(path.is_symlink() for path in found.rglob("*"))
    assert not [path for path in hub.asked if path.rpartition("/resolve/")[2].partition("/")[2] in UNWANTED]


def test_without_a_network_the_cache_serves_another_experiment(cache, tmp_path):
    ended = dualipo_fetch(tmp_path / "other", SOURCE, cache, None)
    assert ended.returncode == 0, ended.stderr
    assert content(tmp_path / "other" / SOURCE) == WANTED


def test_pickles_that_a_cache_already_holds_stay_there(cache, cached, tmp_path):
    from dualipo.hub import fetch_snapshot

    (snapshot,) = (cache / "hub").glob(f"models--*/snapshots/{COMMIT}")
    extra = snapshot / "transformer/pytorch_model.bin"
    extra.write_bytes(b"pickled")
    try:
        fetch_snapshot(SOURCE, tmp_path / "model")
    finally:
        extra.unlink()
    assert content(tmp_path / "model") == WANTED


@pytest.mark.parametrize(
    ("source", "online", "sentence"),
    [
        (SOURCE, False, r"not in the cache .*hub, and .* cannot be read .*; connect once"),
        (f"hub/acme/tiny@{'9' * 40}", True, f"has no commit {'9' * 40}"),
        (f"hub/acme/absent@{COMMIT}", True, "no such model at http"),
        (f"hub/acme/closed@{COMMIT}", True, "gated; accept its terms .* HF_TOKEN"),
        (f"hub/acme/tiny@{BARE}", True, "holds no safetensors"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_sentence_and_leaves_nothing(hub, tmp_path, source, online, sentence):
    ended = dualipo_fetch(tmp_path / "experiment", source, tmp_path / "home", hub.url if online else None)
    (line,) = ended.stderr.strip().splitlines()[-1:]
    assert ended.returncode == 2 and line.startswith(f"error: {source}: ") and re.search(sentence, line), ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "experiment" / source).exists()


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("hub/THUDM/CogVideoX-2b", "pin the commit"),
        ("hub/THUDM/CogVideoX-2b@main", "pin the commit"),
        ("hub/THUDM/CogVideoX-2b@0123456", "pin the commit"),
        ("THUDM/CogVideoX-2b", "hub/OWNER/NAME@COMMIT"),
        ("data/../elsewhere", "a folder of the data folder"),
        ("/models/wan", "a folder of the data folder"),
    ],
)
def test_a_model_is_a_data_folder_or_a_pinned_commit(value, sentence):
    with pytest.raises(UserError, match=f"models.generator: .*{sentence}"):
        parse_config({"models": {"generator": value}})


# ---- the engine


def adopting() -> FakeStep:
    """A step that reads nothing but the base generator."""
    read = {"base": Port("{data}/generator", "generator", model="generator")}
    made = {"generator": Port("runs/{round}/generator", "generator")}
    return FakeStep("adopt", "", (), read, made, scope="base", body=anything(Step("adopt", "", (), read, made)))


def test_a_step_fetches_the_model_once_and_records_commit_and_hash(cached, tmp_path, monkeypatch):
    config = parse_config({"models": {"generator": SOURCE}})
    made = execute(adopting(), config, tmp_path, track=False)
    record = json.loads((tmp_path / ".dualipo/done/base-adopt.json").read_text())
    assert record["inputs"]["base"]["path"] == SOURCE
    assert record["inputs"]["base"]["md5"] == digest(tmp_path / SOURCE).md5
    assert content(tmp_path / SOURCE) == WANTED and not made.skipped
    monkeypatch.setattr("dualipo.hub.fetch_snapshot", lambda *_: pytest.fail("it is there"))
    assert execute(adopting(), config, tmp_path, track=False).skipped


def test_the_chosen_folder_of_the_data_folder_is_read_and_another_is_another_input(tmp_path):
    for name in ("generator", "wan/tiny"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "model_index.json").write_text(name)
    first = execute(adopting(), Config(), tmp_path, data="mine", track=False)
    chosen = parse_config({"models": {"generator": "data/wan/tiny"}})
    second = execute(adopting(), chosen, tmp_path, data="mine", track=False)
    assert not second.skipped and second.fingerprint != first.fingerprint
    record = json.loads((tmp_path / ".dualipo/done/base-adopt.json").read_text())
    assert record["inputs"]["base"]["path"] == "mine/wan/tiny"
    with pytest.raises(UserError, match="elsewhere: missing, adopt needs it"):
        execute(adopting(), parse_config({"models": {"generator": "data/elsewhere"}}), tmp_path, data="mine")


def test_a_pipeline_fetches_chosen_folders_and_the_hubs_models(cached, tmp_path):
    (tmp_path / "data/wan").mkdir(parents=True)
    (tmp_path / "data/wan/model_index.json").write_text("{}")
    models = parse_config(
        {"models": {"generator": SOURCE, "critic": "data/wan", "critic_reference": "data/wan"}}
    ).models
    where = sources(models)
    assert where["benchmark"] == "data/benchmark.jsonl" and where["generator"] == SOURCE
    targets = {name: tmp_path / "out" / name for name in ("generator", "critic", "critic_reference")}
    (tmp_path / "out").mkdir()
    found = fetch(str(tmp_path / "data"), "", targets, where)
    assert content(targets["generator"]) == WANTED
    assert found["critic"] == found["critic_reference"] == digest(tmp_path / "data/wan")
    with pytest.raises(UserError, match="generator is missing"):
        fetch(str(tmp_path / "data"), "", targets)
