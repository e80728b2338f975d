"""Scoring shared by shards: each scores the clips that it sampled; put together they give one process's scores.

VBench scores clip by clip, and its static filter chooses among the clips of one prompt, which lie in one tar. So a
shard runs VBench's own code on its clips alone, a dimension at a time, and hands on what it says of each clip. Means
are taken where all clips are together (`results.pooled`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dualipo.artifacts import read_json, remove, write_json
from dualipo.errors import UserError
from dualipo.evaluation.vbench.prompts import Selection
from dualipo.evaluation.vbench.results import Measured, check_rows, pooled
from dualipo.evaluation.vbench.scoring import Scoring
from dualipo.media.store import ClipStore
from dualipo.records import Clip

SCORED = "scored"
"""In the suite's scratch folder, a JSON file of each tar's name whose clips a shard has scored: {"clips_md5": of their
names and bytes, "static": names after the static filter and before it, "results": VBench's rows by dimension}."""


def is_shared(work: Path) -> bool:
    """Whether shards have scored clips of this evaluation."""
    return any((work / "vbench" / SCORED).glob("*.json"))


def score_part(selection: Selection, store: ClipStore, work: Path, python: str) -> None:
    """Scores a shard's clips, and leaves nothing but the scores in the suite's scratch folder.

    Raises UserError as `Scoring.measure`; the dimensions that were finished are kept then, as after a kill.
    """
    folder, tars = work / "vbench", _by_tar(store.clips)
    if not all(_file(folder, tar).exists() for tar in tars):
        scoring = _Part(selection.of_clips(store.clips), store, work, python)
        measured = scoring.measure()
        for tar, clips in tars.items():
            write_json(_file(folder, tar), scoring.of_tar(clips, measured))
    for path in folder.iterdir() if folder.exists() else ():
        if path.name != SCORED:
            remove(path)


class _Part(Scoring):
    """The scoring of one shard's clips."""

    options = ("--part",)

    def read_made(self, dimension: str, content: Any, where: str) -> Any:
        # of these clips alone VBench may have left out every one.
        return None if content == [None, []] else super().read_made(dimension, content, where)

    def of_tar(self, clips: Sequence[Clip], measured: Mapping[str, Measured]) -> dict[str, Any]:
        """What is handed on of the clips of one tar."""
        own = self.selection.of_clips(clips)
        prompts = {entry.prompt for entry in own.entries}
        names = {self.names[clip.id] for clip in clips}
        rows = {name: measured[name].raw[1] if name in measured else [] for name in own.dimensions}
        return {
            "clips_md5": self.md5_of(clips),
            "static": {new: old for new, old in (self.static or {}).items() if old in names},
            "results": {
                name: [row for row in found if row["video_path"].rpartition("-")[0] in prompts]
                for name, found in rows.items()
            },
        }


class Merging(Scoring):
    """The scoring of clips that shards have scored: nothing is left for VBench's code."""

    makes = True

    @cached_property
    def md5s(self) -> dict[str, str]:
        """File name -> md5 of every clip; lays none out, since no VBench will look for them."""
        return {self.names[clip.id]: hashlib.md5(data).hexdigest() for clip, data in self.read()}

    def make(self, dimension: str) -> Any:
        """[mean, rows] of a dimension from the shards' rows; None where there was no clip to score.

        Raises UserError where a tar was not scored in it, or the rows are not those of its clips.
        """
        if self._is_filtered(dimension):
            self.static = self.known({k: v for _, scored in self._scored for k, v in scored["static"].items()})
            if not self.static:
                return None
        rows: list[Mapping[str, Any]] = []
        for tar, scored in self._scored:
            if dimension in scored["results"]:
                rows += scored["results"][dimension]
            elif dimension in self.selection.of_clips(self._tars[tar]).dimensions:
                raise UserError(
                    f"{_file(self.folder, tar)}: the scores of {dimension} are missing; make its shard again"
                )
        where = f"shards' scores in {self.folder / SCORED}"
        check_rows(dimension, rows, self.expected(dimension), where)
        rows = self.ordered(dimension, rows)
        return [pooled(dimension, rows, where), rows]

    @cached_property
    def _tars(self) -> dict[str, list[Clip]]:
        return _by_tar(self.store.clips)

    @cached_property
    def _scored(self) -> list[tuple[str, dict[str, Any]]]:
        """Each tar and what its shard says of it, held against its clips."""
        found = []
        for tar, clips in self._tars.items():
            file = _file(self.folder, tar)
            if not file.exists():
                raise UserError(f"{file}: missing, while shards have scored other clips; make its shard again")
            scored = read_json(file)
            if scored["clips_md5"] != self.md5_of(clips):
                raise UserError(f"{file}: scores of other clips than are in {tar}.tar; make its shard again")
            found.append((tar, scored))
        return found


def _by_tar(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """The clips of each tar, by its name without the suffix."""
    tars: dict[str, list[Clip]] = {}
    for clip in clips:
        tars.setdefault(clip.file.partition(".tar/")[0], []).append(clip)
    return tars


def _file(folder: Path, tar: str) -> Path:
    return folder / SCORED / f"{tar}.json"
