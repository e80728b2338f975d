"""Our own tables (dualipo/records.py), from a folder that people keep elsewhere."""

from __future__ import annotations

from pathlib import Path

from dualipo.errors import UserError
from dualipo.formats.base import CLIP_FIELDS, Broken, Found, Item, Unusable, clip_of
from dualipo.records import HumanChoice, HumanLabel, HumanRating, RealClip, find_table, parse_row, table_lines

KINDS: dict[str, type[HumanLabel | RealClip]] = {"ratings": HumanRating, "choices": HumanChoice, "captions": RealClip}


def own_tables(source: Path, clips: Path | None = None) -> Found:
    """Any of ratings, choices and captions as .jsonl or .csv, with every column that docs/data.md lists.

    Clips are relative to the folder of the tables, or to `clips`. Raises UserError where there is no table, or one as
    .csv and as .jsonl.
    """
    present = [stem for stem in KINDS if any((source / f"{stem}{suffix}").is_file() for suffix in (".csv", ".jsonl"))]
    if not present:
        names = ", ".join(f"{stem}.jsonl" for stem in KINDS)
        raise UserError(f"{source}: no table here; one of {names} is needed (or .csv)")
    for stem in present:
        table = find_table(source, stem)
        for line, content in table_lines(table):
            where = f"{table}, line {line}"
            try:
                row = parse_row(table, line, content, KINDS[stem])
                if not row.prompt.strip():
                    raise Unusable("prompt is empty")
                fields = [field for field in CLIP_FIELDS if hasattr(row, field)]
                paths = {field: clip_of(row.model_dump(), field, [clips or source]) for field in fields}
            except UserError as error:
                yield Broken(where, str(error).removeprefix(f"{where}: "))
            except Unusable as error:
                yield Broken(where, str(error))
            else:
                yield Item(where, (row.model_copy(update=paths),))
