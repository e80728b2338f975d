"""Rows of every table, and how they are stored: JSON lines, or CSV where people write them.

A table is read whole and checked row by row; the first bad row stops the run with its file, line and field.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dualipo.artifacts import atomic
from dualipo.errors import UserError

RatedDimension = Literal["semantic", "motion", "faithfulness"]
Dimension = Literal[RatedDimension, "overall"]
DIMENSIONS: tuple[RatedDimension, ...] = ("semantic", "motion", "faithfulness")
"""What is judged: semantic consistency, motion smoothness, video faithfulness (Dual-IPO, appendix A.2)."""
RATINGS = ("good", "normal", "bad")
CHOICES = ("a", "b", "tie")

Rating = Literal["good", "normal", "bad"]
Choice = Literal["a", "b", "tie"]
Text = Annotated[str, Field(min_length=1)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Prompt(Record):
    """One prompt and the discrete choices behind it."""

    id: Text
    text: Text
    categories: dict[str, str] = {}
    """Audited categories, e.g. `{"difficulty": "simple"}`."""
    attributes: dict[str, str] = {}
    """The drawn tuple, e.g. `{"shape": "circle", "colour": "red"}`; empty for prompts written by hand."""


class Clip(Record):
    """One clip of a clip folder and the prompt it answers."""

    id: Text
    prompt_id: Text
    prompt: Text
    file: Text
    """Path of the mp4 inside the clip folder, or `shard.tar/member.mp4`."""
    seed: int | None = None


class RealClip(Record):
    """A real clip with its caption, relative to the folder that holds the table."""

    clip: Text
    prompt: Text


class HumanRating(Record):
    """One annotator's rating of one clip on one dimension."""

    clip: Text
    prompt: Text
    annotator: Text
    dimension: RatedDimension
    verdict: Rating
    reason: Text
    """The annotator's reasoning in words: the chain of thought that the critic learns."""


class HumanChoice(Record):
    """One annotator's choice between two clips of one prompt."""

    clip_a: Text
    clip_b: Text
    prompt: Text
    annotator: Text
    dimension: Dimension = "overall"
    verdict: Choice
    reason: Text


class PseudoRating(Record):
    """The critic's rating of one clip on one dimension, by vote over its reasoning paths."""

    clip: Text
    prompt_id: Text
    prompt: Text
    dimension: RatedDimension
    verdict: Rating
    votes: dict[str, int]
    """Paths per verdict; `invalid` counts paths without a readable verdict."""
    certainty: float
    """Preference certainty of the winning path, in (0, 1) (Dual-IPO eq. 3)."""
    kept: bool
    chosen: Text
    """Reasoning path that ends in the majority verdict."""
    rejected: str | None
    """Reasoning path that ends in another verdict; null where the vote was unanimous."""


class PseudoChoice(Record):
    """The critic's choice between two clips, asked in both orders; `verdict` speaks of clip_a and clip_b as listed."""

    clip_a: Text
    clip_b: Text
    prompt_id: Text
    prompt: Text
    dimension: Dimension
    verdict: Choice
    forward: Choice | None
    """Vote with clip_a shown first; null where no path gave a readable verdict."""
    backward: Choice | None
    """Vote with clip_b shown first, already turned back to clip_a and clip_b."""
    consistent: bool
    """Both orders gave the same verdict."""
    votes: dict[str, int]
    certainty: float
    kept: bool
    chosen: Text
    rejected: str | None


class Preference(Record):
    """A preference pair for Diffusion-DPO."""

    prompt_id: Text
    prompt: Text
    winner: Text
    loser: Text
    winner_score: float
    loser_score: float


class Desirability(Record):
    """One clip for Diffusion-KTO: desirable (Good or Normal) or not (Bad)."""

    clip: Text
    prompt_id: Text
    prompt: Text
    desirable: bool
    score: float


class ClipScores(Record):
    """One clip's scores on the dimensions that the critic judged, higher is better; null where it did not."""

    clip: Text
    semantic: float | None
    motion: float | None
    faithfulness: float | None

    @property
    def values(self) -> tuple[float | None, ...]:
        """In the order of DIMENSIONS."""
        return self.semantic, self.motion, self.faithfulness


HumanLabel = HumanRating | HumanChoice
PseudoLabel = PseudoRating | PseudoChoice


def clips_of(row: HumanLabel | PseudoLabel) -> tuple[str, ...]:
    """The clips that a label is about: one of a rating, two of a choice."""
    return (row.clip,) if isinstance(row, HumanRating | PseudoRating) else (row.clip_a, row.clip_b)


Row = TypeVar("Row", bound=BaseModel)
First = TypeVar("First")
Second = TypeVar("Second")


def joined(first: Iterable[First], second: Iterable[Second]) -> list[First | Second]:
    """Rows of two kinds, ratings and choices say, in one list."""
    return [*first, *second]


def write_rows(path: str | Path, rows: Iterable[Record]) -> int:
    """Writes rows as JSON lines, whole or not at all; returns how many."""
    count = 0
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(row.model_dump_json() + "\n")
            count += 1
    return count


def read_rows(path: str | Path, kind: type[Row], allow_empty: bool = False) -> list[Row]:
    """Reads a .jsonl or .csv table of `kind`.

    Raises UserError that names file, line and field where the file is missing or empty, or a row is malformed,
    misses a field, holds an unknown one, a NaN or a value that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; a table of {kind.__name__} rows is needed here")
    rows = [parse_row(path, line, content, kind) for line, content in table_lines(path)]
    if not rows and not allow_empty:
        raise UserError(f"{path}: the table is empty; at least one {kind.__name__} row is needed")
    return rows


def read_labels(folder: str | Path) -> tuple[list[HumanRating], list[HumanChoice]]:
    """Human labels of a folder. Ratings may be absent, as in public benchmarks of pairs; raises UserError as
    `find_table` and `read_rows` for anything else."""
    rated = any((Path(folder) / f"ratings{suffix}").is_file() for suffix in (".csv", ".jsonl"))
    ratings = read_rows(find_table(folder, "ratings"), HumanRating) if rated else []
    return ratings, read_rows(find_table(folder, "choices"), HumanChoice)


def find_table(folder: str | Path, stem: str) -> Path:
    """`folder/stem.csv` or `folder/stem.jsonl`; raises UserError where there is neither, or both."""
    found = [p for suffix in (".csv", ".jsonl") if (p := Path(folder) / f"{stem}{suffix}").is_file()]
    if len(found) != 1:
        state = "both exist" if found else "neither exists"
        raise UserError(f"{folder}: exactly one of {stem}.csv and {stem}.jsonl is needed, {state}")
    return found[0]


def table_lines(path: Path) -> Iterable[tuple[int, Any]]:
    """Line number and content of each row of a .csv or .jsonl table, unchecked.

    Raises UserError where the file is no readable table, or a CSV row has more fields than the header.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row:
                        raise UserError(f"{path}, line {reader.line_num}: more fields than the header names")
                    yield reader.line_num, {k: v for k, v in row.items() if v is not None}
            else:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, json.loads(line)
    except (csv.Error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable {path.suffix[1:]} table: {error}") from None


def parse_row(path: Path, line: int, content: object, kind: type[Row]) -> Row:
    """One row of `kind`; raises UserError that names file, line and the first field that does not fit."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "row"
        found = "" if first["type"] == "missing" else f" (found {first['input']!r:.60})"
        raise UserError(f"{path}, line {line}: {field}: {first['msg']}{found}") from None
