"""Steps of no weight. As a program: one call of the step `long`, killed where asked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dualipo.artifacts import digest, write_json
from dualipo.config import Config
from dualipo.steps import Job, Port, Step, Summary


@dataclass(frozen=True)
class FakeStep(Step):
    body: Callable[..., Summary] | None = None

    @property
    def function(self) -> Callable[..., Summary]:
        assert self.body
        return self.body


def long(config: Config, job: Job, *, source: Path, model: Path, curves: Path) -> Summary:
    """Adds up numbers in four parts, each saved; the result tells neither when nor how often it was stopped."""
    state = job.work / "state.json"
    part, total = json.loads(state.read_text()) if state.exists() else (0, int(source.read_text()))
    with open(job.work.parent.parent / "parts.log", "a") as log:
        for number in range(part, 4):
            total = (total * 31 + job.seed + number) % 10**9
            write_json(state, (number + 1, total))
            log.write(f"{number}\n")
            log.flush()
            _pause(f"part {number}")
    model.mkdir()
    (model / "weights").write_text(str(total * config.align.beta))
    _pause("first output")
    (model / "config.json").write_text("{}")
    curves.write_text(f"step,loss\n0,{total}\n")
    _pause("all outputs")
    return Summary(metrics={"total": total}, curves={"loss": [(0, float("nan"))]})


LONG = FakeStep(
    "long",
    "A training.",
    ("experiment", "align"),
    {"source": Port("{data}/source.txt", "data")},
    {"model": Port("runs/{round}/model", "generator"), "curves": Port("runs/{round}/curves.csv", "curves")},
    body=long,
)


def anything(step: Step) -> Callable[..., Summary]:
    """A body for any step of the graph: outputs that are a function of all inputs, the seed and the step's sections."""

    def body(config: Config, job: Job, **paths: Path) -> Summary:
        sections = config.model_dump(mode="json", include=set(step.sections) - {"experiment"})
        made_of = [[digest(paths[name]).md5 for name in step.inputs if name in paths], sections, job.seed]
        number = int(hashlib.md5(json.dumps(made_of).encode()).hexdigest()[:6], 16)
        for name, port in step.outputs.items():
            path = paths[name]
            if port.kind == "curves":
                path.write_text(f"step,loss\n0,1.0\n1,{number / 2**24}\n")
            elif name == "next_course":
                path.write_text('{"stop": false}')
            elif path.suffix:
                path.write_text(json.dumps({"total": {"mean": number / 2**24}}))
            else:
                path.mkdir()
                (path / "content").write_text(str(number))
        return Summary()

    return body


def as_dualipo() -> None:
    """The command line with weightless steps: no torch, no MLflow."""
    from dualipo import cli, engine

    Step.function = property(anything)  # type: ignore[assignment,misc]
    engine.prepare_torch = lambda count: None
    engine.chunk_threads = lambda: 1
    engine.seed_everything = lambda seed, torch_too: None
    engine.execute = partial(engine.execute, track=False)
    engine.run = partial(engine.run, track=False)
    cli.main()


# ---- killed at a place


def _pause(place: str) -> None:
    if os.environ.get("STOP_AT") == place:
        os.kill(os.getpid(), int(os.environ.get("STOP_BY", signal.SIGKILL)))
        time.sleep(30)  # a signal that is handled ends the sleep


def _kill_at_call(number: int) -> None:
    """Kills this process before its `number`-th renaming, removal or unlinking of a file, counted from 1."""
    left = [number]

    def counted(original: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    os.replace, os.unlink, shutil.rmtree = counted(os.replace), counted(os.unlink), counted(shutil.rmtree)


if __name__ == "__main__":
    from dualipo import cli
    from dualipo.engine import execute

    folder, call = Path(sys.argv[1]), int(sys.argv[2])
    if call:
        _kill_at_call(call)
    cli.cli.add_command(cli.click.Command("long", callback=lambda: execute(LONG, Config(), folder, "1", track=False)))
    sys.argv = ["dualipo", "long"]
    cli.main()
