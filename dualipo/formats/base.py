"""What a reader of a foreign format gives: items of checked rows whose clip fields still name files of the source."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualipo.errors import UserError
from dualipo.records import HumanLabel, RealClip, table_lines

CLIP_FIELDS = ("clip", "clip_a", "clip_b")


@dataclass(frozen=True)
class Item:
    """What stands or falls together: one row of a table, or one clip with its caption."""

    where: str
    """File and line."""
    rows: tuple[HumanLabel | RealClip, ...]
    """Human labels or captions; their clip fields hold absolute paths."""

    @property
    def clips(self) -> list[str]:
        found = [getattr(row, field, None) for row in self.rows for field in CLIP_FIELDS]
        return list(dict.fromkeys(clip for clip in found if clip))


@dataclass(frozen=True)
class Broken:
    """An item that can't be used."""

    where: str
    why: str


Found = Iterator[Item | Broken]


class Unusable(Exception):
    """An item's own fault, in words."""


def open_table(source: Path) -> Path:
    """`source` itself where it is a .csv or .jsonl file, else the only one in it; raises UserError otherwise."""
    if source.is_file():
        if source.suffix not in (".csv", ".jsonl"):
            raise UserError(f"{source}: a .csv or .jsonl table is needed, or the folder that holds one")
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder")
    tables = sorted(path for suffix in ("csv", "jsonl") for path in source.glob(f"*.{suffix}"))
    if len(tables) != 1:
        state = f"there are {len(tables)}; name one of them" if tables else "there is none"
        raise UserError(f"{source}: one .csv or .jsonl table is needed here, {state}")
    return tables[0]


def table_rows(table: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """`(file and line, row)` of a table whose rows all have the `needed` columns; other columns are handed on.

    Raises UserError where the table is empty, not readable or lacks a column.
    """
    empty = True
    for line, row in table_lines(table):
        empty = False
        if not isinstance(row, dict) or (missing := [name for name in needed if name not in row]):
            lacking = ", ".join(missing) if isinstance(row, dict) else "all"
            raise UserError(f"{table}, line {line}: without {lacking}; the columns {', '.join(needed)} are needed")
        yield f"{table}, line {line}", row
    if empty:
        raise UserError(f"{table}: the table is empty")


def text_of(row: dict[str, Any], column: str) -> str:
    """A cell's words, without white space around them; raises Unusable where there are none."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise Unusable(
            f"{column} is empty" if value in (None, "") or isinstance(value, str) else f"{column} is no text"
        )
    return value.strip()


def clip_of(row: dict[str, Any], column: str, folders: Sequence[Path]) -> str:
    """Path of a clip that a cell names relative to one of `folders`; the first that exists, else the first.

    Raises Unusable where the path leads out of these folders: a table from elsewhere may name only what came with it.
    """
    name = text_of(row, column)
    path = os.path.normpath(name)
    if os.path.isabs(path) or path.split(os.sep)[0] == os.pardir:
        raise Unusable(f"{column} {name!r} leads out of {folders[0]}; write it relative to the folder of the clips")
    places = [folder / path for folder in folders]
    return str(next((place for place in places if place.is_file()), places[0]))
