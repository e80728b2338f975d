"""The server of `dualipo annotate`: whom it refuses, what it gives, what outlives it; and the command around it."""

from __future__ import annotations

import re
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from types import SimpleNamespace

import pytest
from annotating import Server, make, work_through
from clips import numbered, write_clip
from test_report import SEEDS, prompts, write_clips

from dualipo import cli
from dualipo.annotation.session import open_session, read_session
from dualipo.annotation.sources import clip_pool
from dualipo.artifacts import read_json
from dualipo.media.video import check_clip

TOKEN, HOST = "t0ken", "127.0.0.1:8000"


@pytest.fixture
def web(tmp_path, packed_clips):
    """A client of the application, without token at first; `page` makes it the page's own."""
    from starlette.testclient import TestClient

    from dualipo.annotation.server import build_app

    folder = make(tmp_path / "session", clip_pool(packed_clips, 0), count=3)
    with open_session(folder) as session:
        client = TestClient(build_app(session, TOKEN), base_url=f"http://{HOST}")
        same = {"origin": f"http://{HOST}", "cookie": f"dualipo-annotate={TOKEN}"}
        yield SimpleNamespace(client=client, page=same, folder=folder, session=session)


def test_nothing_is_given_without_the_token(web):
    for path in ("/", "/?token=", "/?token=wrong", "/?token=t0ke", "/static/page.js", f"/static/page.js?token={TOKEN}"):
        assert web.client.get(path).status_code == 403
    assert web.client.get("/", headers={"cookie": "dualipo-annotate=wrong"}).status_code == 403
    assert web.client.get("/", headers={"cookie": b"dualipo-annotate=\xff; ="}).status_code == 403
    assert (
        web.client.post("/api/item", json={"annotator": "ann"}, headers={"origin": f"http://{HOST}"}).status_code == 403
    )
    opened = web.client.get(f"/?token={TOKEN}")
    assert opened.status_code == 200 and "Who is labelling?" in opened.text
    cookie = opened.headers["set-cookie"]
    assert cookie == f"dualipo-annotate={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    assert web.client.get("/static/page.js").status_code == 200, "the cookie is enough from now on"
    for path in ("/docs", "/openapi.json", "/static/session.py", "/static/..%2fsession.py"):
        assert web.client.get(path).status_code == 404


def test_other_names_and_other_sites_are_refused(web):
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1:8000", "", "[::1", "a@b"):
        assert web.client.get("/", headers={**web.page, "host": host}).status_code == 421
    for host in ("localhost:9000", "[::1]:8000", "127.0.0.1"):
        assert web.client.get("/", headers={**web.page, "host": host}).status_code == 200, "a tunnel has another port"
    for origin in ("http://evil.example", "http://127.0.0.1:9000", "null", ""):
        given = web.client.post("/api/item", json={"annotator": "ann"}, headers={**web.page, "origin": origin})
        assert given.status_code == 403
    plain = {**web.page, "content-type": "text/plain"}
    assert web.client.post("/api/item", content='{"annotator": "ann"}', headers=plain).status_code == 415
    huge = {"annotator": "a" * 70000}
    assert web.client.post("/api/item", json=huge, headers=web.page).status_code == 413
    assert web.client.post("/api/item", json={"annotator": "ann"}, headers=web.page).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(web):
    page = web.client.get("/", headers=web.page)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer" and page.headers["x-content-type-options"] == "nosniff"
    script = web.client.get("/static/page.js", headers=web.page).text
    assert not re.search(r"https?://", page.text + script)


def test_clips_are_given_in_parts(web):
    item = web.client.post("/api/item", json={"annotator": "ann"}, headers=web.page).json()["item"]
    url = item["clips"][0]["url"]
    assert item["clips"][0]["tiny"] and "known" not in item
    whole = web.client.get(url, headers=web.page)
    assert whole.status_code == 200 and whole.headers["content-type"] == "video/mp4"
    check_clip(whole.content)
    part = web.client.get(url, headers={**web.page, "range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    head = web.client.head(url, headers=web.page)
    assert head.headers["content-length"] == str(len(whole.content)) and not head.content
    assert web.client.get(url, headers={**web.page, "range": "bytes=9999999-"}).status_code == 416
    assert web.client.get("/clip/" + "0" * 32, headers=web.page).status_code == 404
    assert web.client.get(url).status_code == 403


def test_files_that_play_are_given_as_they_are(tmp_path):
    from starlette.testclient import TestClient

    from dualipo.annotation.server import build_app

    source = write_clip(tmp_path / "in/a.mp4", numbered(5, 144, 160))
    (tmp_path / "in/a.txt").write_text("a prompt")
    with open_session(make(tmp_path / "session", clip_pool(tmp_path / "in", 0), annotators=1)) as session:
        client = TestClient(build_app(session, TOKEN), base_url=f"http://{HOST}")
        cookie = {"cookie": f"dualipo-annotate={TOKEN}"}
        url = f"/clip/{session.show('ann')['item']['clips'][0]}"
        assert client.get(url, headers=cookie).content == source.read_bytes()
        assert client.get(url, headers={**cookie, "range": "bytes=-7"}).content == source.read_bytes()[-7:]
        source.write_bytes(source.read_bytes() + b"0")
    with open_session(tmp_path / "session") as session:
        client = TestClient(build_app(session, TOKEN), base_url=f"http://{HOST}")
        gone = client.get(url, headers=cookie)
        assert gone.status_code == 410 and "not the clip that this session was made of" in gone.json()["error"]


def test_answers_are_refused_in_words(web):
    asked = web.client.post("/api/item", json={"annotator": "ann"}, headers=web.page).json()["item"]
    for given, status in (
        ({"annotator": "ann", "item": asked["id"], "verdicts": {"motion": "good"}}, 409),
        ({"annotator": "ann", "item": "nothing", "verdicts": {}}, 409),
        ({"annotator": "<b>", "item": asked["id"], "verdicts": {}}, 409),
        ({"annotator": "ann", "item": asked["id"], "verdicts": {}, "seconds": "long"}, 422),
        ({"annotator": "ann", "item": asked["id"], "more": 1}, 422),
    ):
        assert web.client.post("/api/answer", json=given, headers=web.page).status_code == status
    assert (web.folder / "answers.jsonl").read_bytes() == b""
    web.session._log.append = lambda given: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    full = {"annotator": "ann", "item": asked["id"], "verdicts": {}}
    answer = web.client.post("/api/answer", json=full, headers=web.page)
    assert answer.status_code == 507 and "Not saved: No space left" in answer.json()["error"]
    still = web.client.post("/api/item", json={"annotator": "ann"}, headers=web.page).json()
    assert still["item"]["id"] == asked["id"] and still["answered"] == 0


# ---- the command


def test_killed_between_answers_nothing_that_was_acknowledged_is_lost(tmp_path, packed_clips):
    arguments = ("--clips", packed_clips, "--count", 6, "--no-reasons", "--no-browser", "--session", "session")
    kept: list[str] = []
    before = ""
    for number in range(3):
        server = Server(*arguments, cwd=tmp_path)
        shown = server.post("/api/item", annotator="ann")
        assert shown["answered"] == len(kept)
        assert shown["item"]["id"] == before or not number, "what was before them still is"
        for _ in range(2):
            kept.append(shown["item"]["id"])
            shown = server.answer("ann", shown)
        before = shown["item"]["id"]
        if number == 2:
            assert server.end(signal.SIGTERM) == 143
        else:
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
            with open(tmp_path / "session/answers.jsonl", "a") as file:
                file.write('{"item": "cut sho')
        assert [answer.item for answer in read_session(tmp_path / "session").answers] == kept


def test_annotators_at_once_are_all_kept(tmp_path, packed_clips):
    """Four people answer at the same time over real connections, in a session that needs two of them an item."""
    server = Server(
        "--clips",
        packed_clips,
        "--count",
        8,
        "--annotators",
        2,
        "--no-reasons",
        "--no-browser",
        "--session",
        "s",
        cwd=tmp_path,
    )
    given: dict[str, list[str]] = {name: [] for name in ("ann", "ben", "cho", "dan")}
    faults: list[BaseException] = []

    def label(name: str) -> None:
        try:
            shown = server.post("/api/item", annotator=name)
            while shown["item"]:
                given[name].append(shown["item"]["id"])
                shown = server.answer(name, shown)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=label, args=(name,)) for name in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(server.url, timeout=30)
    assert server.end(signal.SIGINT) == 130 and not faults
    recorded = read_session(tmp_path / "s")
    assert len(recorded.answers) == len((tmp_path / "s/answers.jsonl").read_text().splitlines())
    assert {(a.annotator, a.item) for a in recorded.answers} == {(n, i) for n, own in given.items() for i in own}
    counts = Counter(answer.item for answer in recorded.answers)
    assert counts.keys() == recorded.items.keys() and min(counts.values()) >= 2


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`dualipo annotate ...` in this process, without its server: status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dualipo.annotation.cli._serve", lambda place, *more: print(f"served {place}"))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dualipo", "annotate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return end.value.code, told.out, told.err

    return run


def test_the_command_makes_a_session_goes_on_with_it_and_exports(call, tmp_path, packed_clips, known_labels):
    made = ("--clips", packed_clips, "--golden", known_labels, "--count", 4, "--annotators", 1, "--no-reasons")
    assert call(*made)[:2] == (0, "served annotation/clips-clips\n")
    before = (tmp_path / "annotation/clips-clips/items.jsonl").read_bytes()
    assert call(*made)[0] == 0 and (tmp_path / "annotation/clips-clips/items.jsonl").read_bytes() == before
    status, _, told = call(*made, "--seed", 1)
    assert status == 2 and "made with seed 0, not 1" in told
    assert call("--session", "annotation/clips-clips")[0] == 0
    status, _, told = call()
    assert status == 2 and "say what to look at" in told
    session = tmp_path / "annotation/clips-clips"
    status, _, told = call("export", session, "seed")
    assert status == 2 and "--partial" in told
    work_through(session, ["Ann"], lambda *asked: None)
    status, out, _ = call("export", session, "seed")
    assert status == 0 and "seed: 12 ratings, 16 choices, " in out and "ann: 8 items, golden" in out
    assert read_json(session / "report.json")["annotators"]["ann"]["golden_accuracy"] is not None
    status, out, _ = call("report", session, "--without", "Ann", "--out", "r.json")
    assert status == 0 and read_json(tmp_path / "r.json")["left_out"] == ["ann"]


def test_the_command_of_a_study_and_of_a_round(call, tmp_path, packed_clips):
    rival = tmp_path / "rival"
    write_clips(rival, prompts(10), SEEDS, 0.95)
    assert call("--study", rival, packed_clips, "--count", 3, "--session", "s")[:2] == (0, "served s\n")
    settings = read_session(tmp_path / "s").settings
    assert settings.study and not settings.reasons and "overall" in settings.dimensions
    assert "rival" not in settings.title and len(read_session(tmp_path / "s").items) == 3
    status, out, _ = call("report", "s")
    assert status == 0 and "nothing to tell yet" in out
    status, _, told = call("--study", rival, rival)
    assert status == 2 and "both are the same" in told
    status, _, told = call("--study", rival, packed_clips, "--mode", "rate")
    assert status == 2 and "compares pairs" in told
    (tmp_path / "runs/1").mkdir(parents=True)
    (tmp_path / "runs/1/candidates").symlink_to(packed_clips)
    status, _, told = call("--round", 1)
    assert status == 2 and "dualipo label" in told
    assert call("--round", 1, "--select", "random", "--mode", "pair")[:2] == (0, "served annotation/round-1\n")
    own = tmp_path / "guide.yaml"
    own.write_text("intro: []\nreasons: []\ntopics: {}\n")
    status, _, told = call("--clips", packed_clips, "--guideline", own)
    assert status == 2 and "topics lacks faithfulness, motion, overall, semantic" in told
