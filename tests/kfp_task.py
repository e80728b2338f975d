"""Stands for `python3` in KFP's local runner: a task with a fault where TASK_FAULT says so.

TASK_FAULT=<component>:<place>:<count file>:<times>    that component fails at that place, as often as told, counted in
the file. Places: `begin`, before anything; `deliver`, when the step is done and recorded and its outputs are not there.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any


def arm() -> None:
    name, place, file, times = os.environ.get("TASK_FAULT", ":::0").split(":")
    if name != sys.argv[sys.argv.index("--function_to_execute") + 1]:
        return
    failed = int(Path(file).read_text()) if Path(file).exists() else 0
    if failed >= int(times):
        return
    Path(file).write_text(str(failed + 1))
    if place == "begin":
        raise SystemExit("fault: begin")
    from dualipo.pipeline import call

    def move(*_: Any) -> None:
        raise OSError("fault: deliver")

    call.move = move


if __name__ == "__main__":
    assert sys.argv[1:3] == ["-m", "kfp.dsl.executor_main"], sys.argv
    arm()
    sys.argv = sys.argv[2:]
    runpy.run_module("kfp.dsl.executor_main", run_name="__main__", alter_sys=True)
