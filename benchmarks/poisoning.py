"""Rows of labels and preferences changed as a fault would change them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dualipo.artifacts import write_json_lines

Row = dict[str, Any]
TURN = {"a": "b", "b": "a", "tie": "tie", "good": "bad", "bad": "good", "normal": "normal"}


def change_labels(labels: Path, change: Callable[[list[Row], list[Row]], None]) -> None:
    """Hands the ratings and choices of a folder of labels to `change`, which changes them in place."""
    tables = {kind: read_rows(labels / f"{kind}.jsonl") for kind in ("ratings", "choices")}
    change(tables["ratings"], tables["choices"])
    for kind, rows in tables.items():
        write_json_lines(labels / f"{kind}.jsonl", rows)


def says(row: Row, verdict: str, **more: Any) -> None:
    """Makes a label say `verdict` in every field: its reasoning path and its votes too."""
    total = sum(row["votes"].values())
    row |= {"verdict": verdict, "votes": {verdict: total}, "chosen": ends_in(row["chosen"], verdict), "rejected": None}
    row |= more


def said_in_both(row: Row, verdict: str) -> None:
    says(row, verdict, forward=verdict, backward=verdict, consistent=True)


def turn(row: Row) -> None:
    """Turns a label round: good and bad, or A and B, change places wherever they stand."""
    for key in ("verdict", "forward", "backward"):
        if row.get(key):
            row[key] = TURN[row[key]]
    row["votes"] = {TURN.get(word, word): count for word, count in row["votes"].items()}
    for key in ("chosen", "rejected"):
        if row[key]:
            row[key] = re.sub(r"\w+$", lambda found: TURN[found[0]], row[key])


def turn_all(ratings: list[Row], choices: list[Row]) -> None:
    for row in [*ratings, *choices]:
        turn(row)


def ends_in(path: str, verdict: str) -> str:
    return re.sub(r"\w+$", verdict, path)


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rewrite(path: Path, change: Callable[[list[Row]], Sequence[Row]]) -> None:
    write_json_lines(path, change(read_rows(path)))
