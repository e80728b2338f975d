"""Items of a foreign format to a folder of tables and clips: whole or absent, with what was left out named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dualipo.artifacts import atomic
from dualipo.errors import UserError
from dualipo.formats.base import CLIP_FIELDS, Broken, Item
from dualipo.formats.budget import Budget
from dualipo.formats.own import KINDS
from dualipo.records import Record, find_table, read_rows, write_rows

if TYPE_CHECKING:
    from dualipo.media.conform import Shape

SKIPPED = "skipped.jsonl"


@dataclass
class Imported:
    rows: Counter[str] = field(default_factory=Counter)
    """New rows of each table."""
    clips: int = 0
    """Distinct clip files that the new rows name."""
    shapes: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    """(frames, height, width) of these, as they lie in the new folder."""
    skipped: list[Broken] = field(default_factory=list)
    broken_clips: int = 0


def import_items(
    items: Iterable[Item | Broken],
    source: Path,
    dest: Path,
    budget: Budget,
    *,
    shape: Shape | None = None,
    link: bool = False,
    add: bool = False,
) -> Imported:
    """Writes `dest`: clips/ and, as JSON lines, whichever of ratings, choices and captions there are rows for.

    Every clip is decoded from end to end once, and named after the md5 of its bytes, so equal clips are kept once and
    folders can be joined. `shape` re-encodes each to one shape; `link` hard-links instead of copying where the file
    system can. `add` keeps what `dest` holds; equal rows are not doubled. What was left out is listed in skipped.jsonl.

    Raises UserError where more items are broken than `budget` allows, nothing is left, or `dest` is there already
    without `add`; nothing is written then.
    """
    if dest.exists() and not (add and dest.is_dir()):
        raise UserError(f"{dest}: already there; choose another folder, or --add to keep what it holds and add to it")
    from tqdm import tqdm

    every = list(items)
    allowed, done = budget.of(len(every)), Imported()
    new: dict[str, list[Record]] = {}
    with atomic(dest) as temporary:
        keeper = _Keeper(temporary / "clips", shape, link)
        if add and dest.exists():
            shutil.copytree(dest, temporary, copy_function=_link)
        (temporary / "clips").mkdir(parents=True, exist_ok=True)
        # a terminal's bar moves often; a log file gets a line now and then.
        pace = 0.1 if sys.stderr.isatty() else 60.0
        for item in tqdm(every, desc="importing", unit="item", mininterval=pace, leave=False):
            fault = item if isinstance(item, Broken) else keeper.take(item)
            if fault is None:
                for row in keeper.moved(item):
                    new.setdefault(_table(row), []).append(row)
                continue
            done.skipped.append(fault)
            if len(done.skipped) > allowed:
                raise UserError(_too_many(source, done.skipped, len(every), allowed))
        if not new:
            raise UserError(f"{source}: nothing usable in it{_first(done.skipped)}")
        for stem, rows in new.items():
            done.rows[stem] = _write_table(temporary, stem, rows)
        if done.skipped:
            _note_skipped(temporary / SKIPPED, done.skipped)
    done.clips, done.shapes, done.broken_clips = len(set(keeper.kept.values())), keeper.shapes(), len(keeper.faults)
    return done


class _Keeper:
    """Checks each source clip once and puts it into the new folder."""

    def __init__(self, folder: Path, shape: Shape | None, link: bool):
        self.folder, self.shape, self.link = folder, shape, link
        self.kept: dict[str, str] = {}
        self.faults: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, int, int]] = {}

    def take(self, item: Item) -> Broken | None:
        """Keeps the item's clips; what is wrong with it where one of them is broken."""
        for clip in item.clips:
            if clip not in self.kept and clip not in self.faults:
                try:
                    self._keep(clip)
                except UserError as error:
                    self.faults[clip] = str(error).removesuffix("; replace it or drop its rows")
            if clip in self.faults:
                return Broken(item.where, self.faults[clip].removeprefix(f"{item.where}: "))
        return None

    def moved(self, item: Item) -> list[Record]:
        """The item's rows with their clips' new paths."""
        fields = [(row, [name for name in CLIP_FIELDS if hasattr(row, name)]) for row in item.rows]
        return [
            row.model_copy(update={n: f"clips/{self.kept[getattr(row, n)]}" for n in names}) for row, names in fields
        ]

    def shapes(self) -> Counter[tuple[int, int, int]]:
        return Counter(self._shapes[name] for name in set(self.kept.values()))

    def _keep(self, clip: str) -> None:
        from dualipo.media.conform import conform
        from dualipo.media.video import check_clip, encode_clip

        if self.shape is None:
            info = check_clip(clip)
            with open(clip, "rb") as file:
                name = hashlib.file_digest(file, "md5").hexdigest() + Path(clip).suffix.lower()
            if not (self.folder / name).exists():
                (_link if self.link else shutil.copyfile)(clip, self.folder / name)
            self._shapes[name] = (info.frames, info.height, info.width)
        else:
            data = encode_clip(conform(clip, self.shape), self.shape.fps)
            name = hashlib.md5(data).hexdigest() + ".mp4"
            (self.folder / name).write_bytes(data)
            self._shapes[name] = (self.shape.frames, self.shape.height, self.shape.width)
        self.kept[clip] = name


def _link(source: str | Path, target: str | Path) -> None:
    """A hard link to the file itself, or a copy where the file system has none."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _table(row: Record) -> str:
    return next(stem for stem, kind in KINDS.items() if isinstance(row, kind))


def _write_table(folder: Path, stem: str, rows: list[Record]) -> int:
    """Writes the table, old rows first; returns how many are new."""
    old: list[Record] = []
    if any((folder / f"{stem}{suffix}").exists() for suffix in (".csv", ".jsonl")):
        table = find_table(folder, stem)
        old = list(read_rows(table, KINDS[stem], allow_empty=True))
        table.unlink()
    together = list(dict.fromkeys([*old, *rows]))
    write_rows(folder / f"{stem}.jsonl", together)
    return len(together) - len(set(old))


def _note_skipped(path: Path, skipped: list[Broken]) -> None:
    lines = [json.dumps({"where": item.where, "why": item.why}, ensure_ascii=False) + "\n" for item in skipped]
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    # never into the old file: it may be a link to the one in use.
    path.unlink(missing_ok=True)
    path.write_text(before + "".join(lines), encoding="utf-8")


def _too_many(source: Path, skipped: list[Broken], total: int, allowed: int) -> str:
    what = "an item is broken" if allowed == 0 else f"more than {allowed} of {total} items are broken"
    return f"{source}: {what}{_first(skipped)}; mend it, or allow more with --max-broken"


def _first(skipped: list[Broken]) -> str:
    return f", first {skipped[0].where}: {skipped[0].why}" if skipped else ""
