"""Answers of one session: a file of JSON lines that only grows. An answer is on disk before the page hears of it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from pydantic import Field

from dualipo.errors import UserError
from dualipo.records import Record, Text, parse_row


class Answer(Record):
    """What one annotator said of one item. Verdicts and reasons speak of clip a and b as the item lists them."""

    item: Text
    annotator: Text
    verdicts: dict[str, str] = Field(default_factory=dict)
    """By dimension; empty where the item was skipped."""
    reasons: dict[str, str] = Field(default_factory=dict)
    """By dimension of one clip; by `a` and `b` of two."""
    swapped: bool = False
    """Clip b was shown as A."""
    seconds: float = Field(ge=0)
    """From showing to answering."""
    at: Text
    """UTC, ISO 8601."""

    @property
    def skipped(self) -> bool:
        return not self.verdicts


class AnswerLog:
    """Appends answers. Each is flushed to the disk before `append` returns."""

    def __init__(self, path: Path):
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        self._mend()

    def append(self, answer: Answer) -> None:
        """Raises OSError where the disk refuses; the file is then as it was."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            line = (answer.model_dump_json() + "\n").encode()
            if self._file.write(line) != len(line):
                raise OSError("the disk took only part of an answer")
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()

    def _mend(self) -> None:
        """Drops a last line that a crash cut short: nobody was told that it was kept."""
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)


def read_answers(path: Path) -> list[Answer]:
    """The last answer of each annotator to each item, in the order in which they were first given.

    A last line without its end is passed over: it is being written, or a crash cut it short. Raises UserError where
    another line is no answer.
    """
    if not path.is_file():
        return []
    found: dict[tuple[str, str], Answer] = {}
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
        except ValueError:
            raise UserError(f"{path}, line {number}: not valid JSON; restore the file or remove the line") from None
        answer = parse_row(path, number, content, Answer)
        found[answer.item, answer.annotator] = answer
    return list(found.values())
