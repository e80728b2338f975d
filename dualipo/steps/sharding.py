"""One step's work on several machines: shards make its chunks, and the step itself puts them together.

A step whose long loop is cut into chunks (`Step.shards`) keeps each finished chunk in its scratch folder, so that it
can go on after a kill. A shard is a process that makes some of those chunks; what it hands on, its part, is a scratch
folder with these, and with what it made of them where its loop says so (`Chunks.after`). The step finds the parts'
chunks in its own scratch folder as if it had made them before a kill, computes what is left, and writes its outputs:
the very bytes that one process makes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dualipo.artifacts import PARTIAL, read_json, remove, write_json
from dualipo.errors import UserError
from dualipo.steps import Step

_ABOUT = "part.json"


@dataclass(frozen=True)
class Shard:
    """One of `count` shards, counted from 0; written as in `0/8`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Raises UserError where `text` is no shard."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or int(match[1]) >= int(match[2]):
            raise UserError(f"shard {text!r}: write its number, from 0, and how many there are, as in 0/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def indices(self, chunks: int) -> range:
        """Its chunks: every `count`-th, so that shards of equal speed end together."""
        return range(self.number, chunks, self.count)


def write_part(work: Path, step: Step, fingerprint: str, shard: Shard) -> None:
    """Turns the scratch folder of a finished shard into its part."""
    for leftover in work.rglob(f".*{PARTIAL}*"):  # of a process that was killed while it wrote
        remove(leftover)
    write_json(work / _ABOUT, {"step": step.name, "fingerprint": fingerprint, "shard": str(shard)})


def put_together(parts: Sequence[Path], step: Step, fingerprint: str, work: Path) -> None:
    """Links every part's chunks into the scratch folder `work`.

    Raises UserError where a part is of another step, other inputs or other parameters, comes twice or is missing.
    """
    found: dict[Shard, Path] = {}
    for part in parts:
        about = read_json(part / _ABOUT)
        shard = Shard.parse(about["shard"])
        if (about["step"], about["fingerprint"]) != (step.name, fingerprint):
            raise UserError(
                f"{part}: shard {shard} of {about['step']} was made from other inputs or parameters than "
                f"{step.name} has now; make every shard again"
            )
        if shard in found:
            raise UserError(f"{part}: shard {shard} is there twice, the other being {found[shard]}; leave one out")
        found[shard] = part
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        raise UserError(f"{step.name}: shards of {counts[0]} and of {counts[1]} are mixed; make every shard again")
    missing = [str(shard) for n in range(counts[0]) if (shard := Shard(n, counts[0])) not in found]
    if missing:
        raise UserError(f"{step.name}: shards are missing, {', '.join(missing[:5])}; hand over every shard once")
    for part in parts:
        for file in part.rglob("*"):
            if file.is_file() and file.name != _ABOUT:
                link = work / file.relative_to(part)
                link.parent.mkdir(parents=True, exist_ok=True)
                remove(link)
                os.symlink(file.absolute(), link)
