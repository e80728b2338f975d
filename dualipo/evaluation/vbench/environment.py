"""VBench's own Python environment, called as a subprocess."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dualipo.errors import UserError
from dualipo.evaluation.vbench import runner

VERSION = "0.1.5"
"""Of the package `vbench` on PyPI, whose results are read here."""


class Failed(Exception):
    """VBench failed on one dimension; the message is its last line."""


class Environment:
    """The interpreter `python`, which has VBench; what it prints goes to `folder`/logs."""

    def __init__(self, python: str, folder: Path):
        self.python = python
        self.folder = folder

    def require(self) -> None:
        """Raises UserError where the interpreter is not there, or its VBench is missing or of another version."""
        try:
            self.run([], "environment")
        except Failed as error:
            raise UserError(f"evaluate.vbench_python: {self.python} does not run ({error})") from None

    def run(self, options: Sequence[str], title: str) -> None:
        """Runs our runner with `options`; ends it where this process is stopped.

        Raises Failed where VBench fails, UserError where the environment is not the right one.
        """
        log = self.folder / "logs" / f"{title}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # of our own environment, which must not reach into VBench's.
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        variables = {name: value for name, value in os.environ.items() if name not in hidden}
        command = [self.python, str(Path(runner.__file__).resolve()), "--version", VERSION, *options]
        try:
            with (
                open(log, "wb") as sink,
                subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=variables) as process,
            ):
                try:
                    status = process.wait()
                except BaseException:
                    _end(process)
                    raise
        except OSError as error:
            raise UserError(
                f"evaluate.vbench_python: {self.python} can't be run ({error.strerror}); name the interpreter of an "
                "environment with VBench"
            ) from None
        if status == runner.WRONG_ENVIRONMENT:
            raise UserError(f"evaluate.vbench_python: {_last_line(log)}")
        if status:
            raise Failed(_last_line(log) or f"exit status {status}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]", log.read_text(encoding="utf-8", errors="replace"))]
    return next((line for line in reversed(lines) if line), "")[:300]
