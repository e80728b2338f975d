"""Runs a step in several processes: torchrun starts `dualipo.training.worker` once a GPU, and the first one writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualipo.artifacts import read_json, remove, write_json
from dualipo.config import Config, Training
from dualipo.errors import Terminated, UserError
from dualipo.steps import Job, Summary

WORKER = "dualipo.training.worker"
SUMMARY = "summary.json"
ERROR = "error.json"


def needs_launch(settings: Training) -> bool:
    """Whether a step called here must start processes: it is asked to, and is not in one of them already."""
    return (settings.processes > 1 or settings.zero > 0) and "RANK" not in os.environ


def launch(step: str, config: Config, job: Job, bindings: Mapping[str, Path], processes: int) -> Summary:
    """Runs the step on `processes` processes of this machine and returns its summary.

    SIGTERM is handed on, and each process ends after the step of training under way. Raises UserError for what a
    process found wrong, Terminated after SIGTERM, RuntimeError where a process died.
    """
    folder = job.work / "launch"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SUMMARY, ERROR):
        remove(folder / name)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "--module", WORKER, "--step", step, *tell_worker(folder, config, job, bindings),
    ]  # fmt: skip
    with subprocess.Popen(command, env=_environment()) as process, _handed_on(process):
        status = process.wait()
    if (folder / ERROR).is_file():
        found = read_json(folder / ERROR)
        raise (Terminated if found["kind"] == "terminated" else UserError)(found["message"])
    if status or not (folder / SUMMARY).is_file():
        raise RuntimeError(f"{step}: a process ended with status {status}; its traceback stands above")
    return Summary.unpacked(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))


def tell_worker(folder: Path, config: Config, job: Job, bindings: Mapping[str, Path]) -> list[str]:
    """Writes into `folder` what the worker is told; its options, which also say where it answers."""
    write_json(folder / "config.json", config.model_dump(mode="json"))
    write_json(folder / "bindings.json", {name: str(path.absolute()) for name, path in bindings.items()})
    write_json(folder / "job.json", {"round": job.round, "seed": job.seed, "work": str(job.work.absolute())})
    files = ("config.json", "bindings.json", "job.json", SUMMARY, ERROR)
    return [part for name in files for part in (f"--{name.removesuffix('.json')}", str(folder / name))]


def _environment() -> dict[str, str]:
    """Ours, with the package's own folder in reach of Python, and one thread a process unless said otherwise."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextmanager
def _handed_on(process: subprocess.Popen[Any]) -> Iterator[None]:
    """SIGTERM goes to the launcher, which hands it to its processes."""
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(signal.SIGTERM))
    except ValueError:  # outside the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
