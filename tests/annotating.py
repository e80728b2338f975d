"""Sessions of annotation to be worked through, and `dualipo annotate` in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from test_report import make_clip

from dualipo.annotation.session import make_session, open_session, settings_of
from dualipo.annotation.sources import Pool
from dualipo.media.video import encode_clip
from dualipo.records import DIMENSIONS, HumanChoice, HumanRating, write_rows

NOTHING = Pool([], [])


def write_known(folder: Path) -> Path:
    """Labels of loose clips: six clips and six pairs on which all three annotators agree, one of each that split."""
    (folder / "clips").mkdir(parents=True)
    ratings, choices = [], []
    for number in range(7):
        for side in "ab":
            data = encode_clip(make_clip("red", "left", 0.5, 100 + 2 * number + (side == "b")), 8)
            (folder / "clips" / f"{number}{side}.mp4").write_bytes(data)
        common = {"prompt": f"a known thing {number}", "reason": "seen"}
        for annotator in ("x", "y", "z"):
            odd = number == 6 and annotator == "z"
            verdict = {"dimension": "overall", "verdict": "tie" if odd else "a", "annotator": annotator, **common}
            choices.append(HumanChoice(clip_a=f"clips/{number}a.mp4", clip_b=f"clips/{number}b.mp4", **verdict))
            for dimension in DIMENSIONS:
                verdict |= {"dimension": dimension, "verdict": "bad" if odd else "good"}
                ratings.append(HumanRating(clip=f"clips/{number}a.mp4", **verdict))
    write_rows(folder / "ratings.jsonl", ratings)
    write_rows(folder / "choices.jsonl", choices)
    return folder


def make(folder: Path, pool: Pool, known: Pool = NOTHING, mode="both", count=100, study=None, **options) -> Path:
    request = {"seed": 0, "annotators": 3, "golden_share": 0.2, "golden": "g" if known.ratings else None}
    request |= {"reasons": False, "source": "here", **options}
    make_session(folder, settings_of(request, "A test", study=study), pool, known, mode, count)
    return folder


def verdicts_of(item: dict, choose=lambda item, question: None) -> dict[str, str]:
    usual = {"rating": "good", "choice": "a"}[item["kind"]]
    return {question: choose(item, question) or usual for question in item["questions"]}


def reply(session, name: str, shown: dict, choose=lambda item, question: None, reasons=None) -> None:
    item = shown["item"]
    session.answer(name, item["id"], verdicts_of(item, choose), reasons(item) if reasons else {}, 2.5)


def work_through(folder: Path, names: list[str], choose, reasons=None) -> None:
    with open_session(folder) as session:
        for name in names:
            while (shown := session.show(name))["item"]:
                reply(session, name, shown, lambda item, question, who=name: choose(who, item, question), reasons)


class Server:
    """`dualipo annotate` in a process of its own."""

    def __init__(self, *arguments: object, cwd: Path):
        command = [sys.executable, "-c", "from dualipo.cli import main; main()", "annotate", *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.told = []
        for line in self.process.stdout:
            self.told.append(line)
            if match := re.search(r"(http://\S+)/\?token=(\S+)", line):
                self.url, self.token = match.groups()
                return
        raise AssertionError(self.process.stderr.read())

    def post(self, path: str, **content) -> dict:
        port = self.url.rpartition(":")[2]
        headers = {"content-type": "application/json", "origin": self.url}
        headers["cookie"] = f"dualipo-annotate-{port}={self.token}"
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def answer(self, name: str, shown: dict) -> dict:
        item = shown["item"]
        return self.post("/api/answer", annotator=name, item=item["id"], verdicts=verdicts_of(item), seconds=1.0)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


def annotate(*arguments: object, cwd: Path) -> str:
    """A command of `dualipo annotate` that ends by itself; what it printed."""
    command = [sys.executable, "-c", "from dualipo.cli import main; main()", "annotate", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=120).stdout
