"""Chunks of a step made by a second process of the same machine, against one process."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dualipo import beside
from dualipo.config import parse_config
from dualipo.engine import execute
from dualipo.errors import UserError
from dualipo.resume import Chunks
from dualipo.runtime import chunk_threads, processes
from dualipo.steps import GRAPH

CONFIG = parse_config(
    {"generate": {"candidates": 2, "steps": 1}, "label": {"paths": 2, "pairs_per_prompt": 1, "max_new_tokens": 4}}
)


@pytest.fixture
def inputs(repository, course, tmp_path) -> dict[str, Path]:
    """Three chunks of prompts."""
    data, prompts = repository / "data", tmp_path / "prompts.jsonl"
    with open(data / "benchmark.jsonl") as lines:
        prompts.write_text("".join(itertools.islice(lines, 34)))
    models = {name: data / name for name in ("generator", "critic", "critic_reference")}
    return models | {"prompts": prompts, "course": course}


@pytest.fixture(autouse=True)
def no_process_left():
    yield
    beside._stop()


def make(name: str, inputs: dict[str, Path], root: Path):
    return execute(GRAPH[name], CONFIG, root, "1", {port: inputs[port] for port in GRAPH[name].inputs}, track=False)


def test_two_processes_make_what_one_makes(inputs, tmp_path, monkeypatch):
    alone = make("generate", inputs, tmp_path / "alone")
    inputs |= alone.outputs
    labelled = make("label", inputs, tmp_path / "alone")
    monkeypatch.setenv("DUALIPO_PROCESSES", "2")
    here, make_one = [], Chunks.make_one
    monkeypatch.setattr(Chunks, "make_one", lambda self, index: here.append(index) or make_one(self, index))
    assert make("generate", inputs, tmp_path / "both").digests == alone.digests
    (helper,) = multiprocessing.active_children()
    assert make("label", inputs, tmp_path / "both").digests == labelled.digests
    assert multiprocessing.active_children() == [helper]
    assert len(here) < 6


def test_a_process_that_dies_is_done_without(inputs, tmp_path, monkeypatch):
    alone = make("generate", inputs, tmp_path / "alone")
    monkeypatch.setenv("DUALIPO_PROCESSES", "2")
    make_one = Chunks.make_one

    def deadly(self, index):
        for child in multiprocessing.active_children():
            child.kill()
        make_one(self, index)

    monkeypatch.setattr(Chunks, "make_one", deadly)
    with pytest.warns(UserWarning, match="goes on alone"):
        assert make("generate", inputs, tmp_path / "both").digests == alone.digests


def test_what_stops_this_process_stops_the_others(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("DUALIPO_PROCESSES", "2")

    def stopped(self, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(Chunks, "make_one", stopped)
    with pytest.raises(KeyboardInterrupt):
        make("generate", inputs, tmp_path / "root")
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


KILLED = """
import os, time
from dualipo import beside
if __name__ == "__main__":
    print(beside._pool(1).submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_the_others_end_when_this_process_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    package = str(Path(beside.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": package}
    ) as process:
        assert process.stdout
        helper = int(process.stdout.readline())
        os.kill(helper, 0)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(helper, 0)
            time.sleep(0.05)


def test_processes_and_their_threads(monkeypatch):
    monkeypatch.delenv("DUALIPO_PROCESSES")
    for gpus, threads, expected in [(0, 1, (1, 1)), (0, 4, (4, 1)), (0, 20, (8, 2)), (2, 16, (2, 8)), (4, 2, (4, 1))]:
        monkeypatch.setattr("dualipo.runtime.gpus", lambda gpus=gpus: gpus)
        monkeypatch.setenv("DUALIPO_THREADS", str(threads))
        assert (processes(), chunk_threads()) == expected
    monkeypatch.setenv("DUALIPO_PROCESSES", "3")
    assert (processes(), chunk_threads()) == (3, 1)
    monkeypatch.setenv("DUALIPO_PROCESSES", "0")
    with pytest.raises(UserError, match="DUALIPO_PROCESSES='0'"):
        processes()
