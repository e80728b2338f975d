"""A laboratory for faults: a whole experiment, copies of it to break, and steps called in processes that may die."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measuring import REPOSITORY

from dualipo import artifacts
from dualipo.artifacts import digest, read_json, remove, write_json
from dualipo.config import Config
from dualipo.engine import execute, plan, run
from dualipo.errors import UserError
from dualipo.quality.evidence import Decision, load, read_verdict
from dualipo.steps import BASE, GRAPH, Step
from dualipo.tracking import Tracker
from dualipo.world.shrink import shrink

ROUND = "1"
PARAMS = (REPOSITORY / "params.yaml", REPOSITORY / "benchmarks/faults.yaml")
IMPORTED = (
    "torch",
    "mlflow",
    "great_expectations",
    "diffusers.pipelines.cogvideo.pipeline_cogvideox",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "dualipo.tracking",
)
"""Made once, before the first process forks off, which then starts at once."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    how: str
    """`done`, `refused` (a UserError, told in `message`), `killed`, or `crashed`."""
    message: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    caught: bool
    by: str
    """The gate or mechanism that caught it; of one that was not caught, what looked on."""
    told: str
    """What it said, or what was seen."""
    kept: str
    """What shows that nothing was lost."""


class Lab:
    """The undamaged experiment in `out`/whole, its data in `out`/data, and copies of it to break."""

    def __init__(self, out: Path, config: Config):
        self.out, self.config = out, config
        self.whole, self.copies = out / "whole", out / "copies"
        self.writes: dict[str, int] = {}
        """By step: files that it puts in their places."""
        remove(self.copies)

    def make(self, data: Path) -> None:
        """Runs the undamaged experiment on part of the data folder, or finds that it was."""
        if not (self.out / "data").is_dir():
            shrink(data, self.out / "data", seed_prompts=16, test_prompts=16, benchmark=24, real=24)
        warm()
        made = self.out / "writes.json"
        if made.is_file() and read_json(made)["config"] == self.config.digest():
            self.writes = read_json(made)["writes"]
            return
        remove(self.whole)
        self.whole.mkdir(parents=True)
        (self.whole / "data").symlink_to((self.out / "data").absolute(), target_is_directory=True)
        for step, name in plan(self.config):
            print(f"undamaged: {step.name}", file=sys.stderr)
            self.count(step, name)
        for kind in ("critic", "generator"):
            # else a fault that closes a gate would change nothing.
            if not (decided := self.decided(self.whole, kind)).promoted:
                raise RuntimeError(f"the undamaged experiment promotes no {kind}: {decided.reasons[0]}")
        write_json(made, {"config": self.config.digest(), "writes": self.writes})

    def count(self, step: Step, round_name: str) -> None:
        """Runs a step of the undamaged experiment, and counts the files that it puts in their places."""

        def call() -> str:
            left = arm(0)
            execute(step, self.config, self.whole, round_name)
            return str(-left[0])

        ended = in_process(call)
        if ended.how != "done":
            raise RuntimeError(f"the undamaged experiment ends at {step.name}: {ended.how} {ended.message}")
        self.writes[step.name] = int(ended.message)

    # ---- copies

    def copy(self, name: str, own_data: bool = False) -> Path:
        """An experiment's folder of the fault's own. Its data folder is shared, unless `own_data`."""
        folder = self.copies / name
        remove(folder)
        shutil.copytree(self.whole, folder, symlinks=True)
        if own_data:
            (folder / "data").unlink()
            shutil.copytree(self.out / "data", folder / "data")
        return folder

    def path(self, folder: Path, step: str, port: str) -> Path:
        """Where a port of a step of the round lies."""
        ports = GRAPH[step].inputs | GRAPH[step].outputs
        base = GRAPH[step].scope == "base"
        return folder / ports[port].bind("data", BASE if base else ROUND, BASE, self.config.models)

    def md5s(self, folder: Path, *steps: str) -> dict[str, str]:
        """Of the outputs of steps, all where none is named; "missing" where there is nothing."""
        found = {}
        for name in steps or tuple(GRAPH):
            for port in GRAPH[name].outputs:
                path = self.path(folder, name, port)
                found[f"{name}/{port}"] = digest(path).md5 if path.exists() else "missing"
        return found

    def unmade(self, folder: Path, step: str) -> None:
        """Takes a step's outputs away, as before it ever ran."""
        for port in GRAPH[step].outputs:
            remove(self.path(folder, step, port))
        for record in (folder / ".dualipo/done").glob(f"*-{step}.json"):
            record.unlink()

    # ---- calls

    def call(self, folder: Path, *steps: str, config: Config | None = None, **options: Any) -> Ended:
        """Runs steps of the round one after the other, each in a process of its own, up to one that does not end."""
        ended = Ended("done")
        for name in steps:
            ended = in_process(partial(self._execute, folder, name, config, options))
            if ended.how != "done":
                return Ended(ended.how, f"{name}: {ended.message}")
        return ended

    def _execute(self, folder: Path, step: str, config: Config | None, options: Mapping[str, Any]) -> str:
        found = execute(GRAPH[step], config or self.config, folder, ROUND, **{"track": False, **options})
        return "up to date" if found.skipped else ""

    def run(self, folder: Path, until: str | None = None, track: bool = False) -> Ended:
        """`dualipo run`; the message counts the steps that were done, not found up to date."""
        return in_process(lambda: str(sum(not found.skipped for found in run(self.config, folder, until, track=track))))

    def kill(self, folder: Path, step: str, write: int) -> Ended:
        """Calls the step in a process that kills itself, by SIGKILL, before its `write`-th file is in its place."""

        def call() -> None:
            arm(write)
            execute(GRAPH[step], self.config, folder, ROUND)

        return in_process(call)

    def versions(self, folder: Path) -> dict[str, list[tuple[str, str]]]:
        """Registered versions by model: md5 and status."""
        tracker = Tracker(folder, self.config)
        names = [tracker.model_name(kind) for kind in ("critic", "generator")]
        return {name: [(v.md5, v.tags["status"]) for v in tracker.versions(name)] for name in names}

    # ---- gates

    def decided(self, folder: Path, kind: str) -> Decision:
        return load(Decision, folder / f"runs/{ROUND}/{kind}_decision.json")

    def incumbent_stays(self, folder: Path, *kinds: str) -> bool:
        """Whether the models that the promoting steps handed on are those the round began with."""
        return all(
            digest(self.path(folder, f"promote_{kind}", kind)).md5 == digest(self.whole / f"runs/{BASE}/{kind}").md5
            for kind in kinds
        )

    def judged(self, folder: Path, gate: str, promoters: tuple[str, ...], sees: str) -> Outcome:
        """Runs the promoting steps after a gate's step has run, and says whether the fault got past the gate. Caught it
        is only if the expectation that is there for it fails: its reason contains `sees`."""
        names = {"label_gate": "label gate", "critic_gate": "critic gate", "preference_gate": "preference gate"}
        ended = self.call(folder, *(f"promote_{kind}" for kind in promoters))
        if ended.how != "done":
            return Outcome(False, names[gate], f"{ended.how}: {ended.message}", "")
        verdict = read_verdict(folder / f"runs/{ROUND}/{gate}")
        decided = [self.decided(folder, kind) for kind in promoters]
        held = not any(d.promoted for d in decided) and self.incumbent_stays(folder, *promoters)
        seen = [reason for reason in verdict.reasons if sees in reason]
        told = [*seen, *verdict.reasons, "every expectation holds"][0]
        more = f" (and {len(verdict.reasons) - 1} more)" if len(verdict.reasons) > 1 else ""
        who = " and ".join(promoters)
        kept = f"{who} of the round before handed on, md5 unchanged" if held else f"{who} promoted"
        return Outcome(held and bool(seen), names[gate], told + more, kept)


# ---- processes


def warm() -> None:
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)


def in_process(work: Callable[[], Any], seconds: int = 300) -> Ended:
    """Calls `work` in a fork of this process, which may kill itself; what it returns is the message."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_child(work, writer, seconds))
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        content = stream.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Ended("killed", signal.Signals(os.WTERMSIG(status)).name)
    return Ended(**json.loads(content)) if content else Ended("crashed", "nothing was said")


def _child(work: Callable[[], Any], writer: int, seconds: int) -> int:
    signal.alarm(seconds)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    try:
        ended = Ended("done", str(work() or ""))
    except UserError as error:
        ended = Ended("refused", str(error))
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ended = Ended("crashed", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})")
    os.write(writer, json.dumps(ended.__dict__).encode()[:60_000])
    return 0


def arm(write: int) -> list[int]:
    """Kills this process before the `write`-th file from now on is in its place; never with 0. Returns a counter that
    falls by one a file."""
    left, replace = [write], artifacts.replace

    def counted(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    artifacts.replace = counted
    return left


def limit_files(size: int) -> None:
    """No file of this process may grow over `size` bytes: what a full disk looks like, without filling one."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
