"""Programs that call the engine where something is broken on purpose.

python drivers.py kill FOLDER STEP ROUND WRITE        is killed in that step, before its WRITE-th file is in place
python drivers.py blind FOLDER ROUND TEST_LABELS      a round up to alignment, where nobody can see the oracle
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLIND_STEPS = ("generate", "label", "check_labels", "train_critic", "check_critic", "promote_critic", "prefer", "align")
"""What a round does between its prompts and its benchmark: everything that makes, or learns from, a reward."""
UNSEEN = ("dualipo.world.oracle", "dualipo.world.benchmark", "dualipo.world.annotators")


def kill(folder: Path, step: str, round_name: str, write: int) -> None:
    from dualipo import artifacts
    from dualipo.config import load_config
    from dualipo.engine import WHOLE, run
    from dualipo.steps import Step

    original, replace = Step.function.fget, artifacts.replace  # type: ignore[attr-defined]
    left = [-1]

    def armed(self: Step) -> Callable:
        function = original(self)

        def call(config: Any, job: Any, **paths: Path) -> Any:
            if (self.name, job.round) == (step, round_name):
                left[0] = write
            return function(config, job, **paths)

        return call

    def counted(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    Step.function = property(armed)  # type: ignore[assignment,method-assign]
    artifacts.replace = counted
    run(load_config(folder / "params.yaml"), folder, None if round_name == WHOLE else f"{round_name}")


def blind(folder: Path, round_name: str, test_labels: Path) -> None:
    for name in UNSEEN:
        assert name not in sys.modules
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ModuleNotFoundError
    from dualipo.config import load_config
    from dualipo.engine import execute
    from dualipo.steps import GRAPH

    config = load_config(folder / "params.yaml")
    for name in BLIND_STEPS:
        # people's test labels are shown to the step that measures, and to nobody else.
        bindings = {"test_labels": test_labels} if name == "check_critic" else {}
        execute(GRAPH[name], config, folder, round_name, bindings, track=False)
    assert all(sys.modules[name] is None for name in UNSEEN)


if __name__ == "__main__":
    _, program, experiment, *rest = sys.argv
    if program == "kill":
        kill(Path(experiment), rest[0], rest[1], int(rest[2]))
    else:
        blind(Path(experiment), rest[0], Path(rest[1]))
