"""VBench's scores of a set of clips: laid out as it wants them, a dimension at a time, and held against them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualipo.artifacts import read_json, remove, replace, write_json
from dualipo.errors import UserError
from dualipo.evaluation.vbench.environment import Environment, Failed
from dualipo.evaluation.vbench.prompts import FLICKERING, SAMPLES, Selection, clip_name
from dualipo.evaluation.vbench.results import (
    FILTER,
    SUFFIX,
    Measured,
    check,
    parse_json,
    pooled,
    read_results,
    static_names,
)
from dualipo.media.store import ClipStore, read_bytes
from dualipo.records import Clip
from dualipo.runtime import release_gpu
from dualipo.steps import GIVEN


class Scoring:
    """The scoring of one set of clips: VBench's view of them, and every dimension's result.

    Scratch files lie in `work`/vbench: clips/ and flickering/ as VBench wants them named, static/ what its filter
    left, results/ a file a finished dimension, logs/ what VBench printed.
    """

    def __init__(self, selection: Selection, store: ClipStore, work: Path, python: str | None):
        self.selection = selection
        self.store = store
        self.folder = work / "vbench"
        self.environment = Environment(python, self.folder) if python else None
        self.given, self.given_filter = read_results(work / GIVEN) if (work / GIVEN).exists() else ({}, None)
        self.imported: set[str] = set()
        self.static: dict[str, str] | None = None
        """File name after the static filter -> before it; None where that is not known."""

    # ---- clips as VBench wants them

    @cached_property
    def names(self) -> dict[str, str]:
        """Clip id -> file name."""
        originals = self.selection.originals
        return {
            clip.id: clip_name(originals[clip.prompt_id], number)
            for group in self.store.by_prompt().values()
            for number, clip in enumerate(group)
        }

    @cached_property
    def md5s(self) -> dict[str, str]:
        """File name -> md5 of every clip; lays the clips out where they are not yet."""
        marker = self.folder / "laid.json"
        if not marker.exists():
            for name in ("clips", "flickering"):
                remove(self.folder / name)
                (self.folder / name).mkdir(parents=True)
            md5s = {}
            for clip, data in self.read():
                name, apart = self.names[clip.id], clip.prompt_id in self.selection.filtered
                (self.folder / ("flickering" if apart else "clips") / name).write_bytes(data)
                md5s[name] = hashlib.md5(data).hexdigest()
            write_json(self.folder / "info.json", [entry.content for entry in self.selection.entries])
            write_json(marker, md5s)
        return read_json(marker)

    def read(self) -> Iterable[tuple[Clip, bytes]]:
        """Every clip's row and mp4 file."""
        return ((clip, read_bytes(self.store.folder, clip.file)) for clip in self.store.clips)

    @cached_property
    def md5(self) -> str:
        """Of every clip's name and bytes."""
        return self.md5_of(self.store.clips)

    def md5_of(self, clips: Iterable[Clip]) -> str:
        names = sorted(self.names[clip.id] for clip in clips)
        listing = "".join(f"{self.md5s[name]} {name}\n" for name in names)
        return hashlib.md5(listing.encode()).hexdigest()

    def expected(self, dimension: str) -> set[str]:
        """File names of the clips that the dimension must score."""
        if self._is_filtered(dimension) and self.static is not None:
            return set(self.static)
        return {clip_name(entry.prompt, k) for entry in self.selection.of(dimension) for k in range(SAMPLES)}

    # ---- results

    def measure(self) -> dict[str, Measured]:
        """Every dimension of the selection; temporal flickering is missing where the filter left no clip.

        Raises UserError where the environment is not VBench's, or a dimension failed; the others are finished first.
        """
        assert self.md5s  # laid out
        found: dict[str, Measured] = {}
        failed: dict[str, str] = {}
        unscored: list[str] = []
        for dimension in tqdm(self.selection.dimensions, desc="VBench", leave=False):
            try:
                content = self._content(dimension)
                if content is None:
                    unscored.append(dimension)
                elif content["result"] is not None:
                    found[dimension] = self._checked(dimension, content["result"])
            except Failed as error:
                failed[dimension] = str(error)
        if failed:
            told = "; ".join(f"{name} ({cause})" for name, cause in failed.items())
            raise UserError(
                f"VBench failed on {len(failed)} of {len(self.selection.dimensions)} dimensions: {told}; logs are in "
                f"{self.folder / 'logs'}; the others are kept: put it right and run the step again, or leave "
                "dimensions out with evaluate.vbench_dimensions, and the totals are undefined"
            )
        if unscored:
            raise UserError(
                f"{len(unscored)} of VBench's dimensions have no scores: {', '.join(unscored)}; set "
                f"evaluate.vbench_python, or have the clips in {self.folder} scored elsewhere and run the step again "
                "with --import"
            )
        return found

    def _content(self, dimension: str) -> dict[str, Any] | None:
        """The finished result of a dimension: of before, of elsewhere or made now; None where nothing can make it."""
        filtered = self._is_filtered(dimension)
        file = self.folder / "results" / f"{dimension}.json"
        if file.exists() and (content := read_json(file))["clips_md5"] == self.md5:
            if filtered:
                self.static = content["static"]
            if content["imported"]:
                self.imported.add(dimension)
            return content
        imported = dimension in self.given
        if imported:
            self.imported.add(dimension)
            result = self._take(dimension, filtered)
        elif self.makes:
            result = self.make(dimension)
        else:
            return None
        content = {"clips_md5": self.md5, "imported": imported, "static": self.static, "result": result}
        write_json(file, content)
        return content

    def _take(self, dimension: str, filtered: bool) -> Any:
        where = "imported results"
        if filtered and self.given_filter is not None:
            self.static = self.known(static_names(self.given_filter, where))
        result = self.given[dimension]
        if filtered and self.static is None:
            # without the filter's own file nobody knows how many clips it left.
            rows = result[1] if isinstance(result, list) and len(result) == 2 else []
            names = {Path(row["video_path"]).name for row in rows if isinstance(row, Mapping) and "video_path" in row}
            return check(dimension, result, names & self.expected(dimension), where).raw
        return check(dimension, result, self.expected(dimension), where).raw

    # ---- made here

    options: Sequence[str] = ()
    """Of our runner, beside those of the dimension."""

    @property
    def makes(self) -> bool:
        """Whether it can make results."""
        return self.environment is not None

    def make(self, dimension: str) -> Any:
        """[mean, rows] of a dimension by VBench's own code, in VBench's order; None where there was no clip to score.

        Raises Failed where VBench fails, or its result is not one of these clips.
        """
        assert self.environment
        raw = self.folder / "raw" / f"{dimension}-{os.getpid()}"
        clips, info = self.folder / "clips", self.folder / "info.json"
        release_gpu()
        try:
            if self._is_filtered(dimension):
                clips = self._filter(raw)
                if not self.static:
                    return None
            options = ["--dimension", dimension, "--clips", str(clips), "--info", str(info), "--out", str(raw)]
            self.environment.run([*options, *self.options], dimension)
            file = raw / f"{dimension}{SUFFIX}"
            content = parse_json(file.read_text(encoding="utf-8"), file.name)
            return self.read_made(dimension, content.get(dimension), file.name)
        except UserError as error:
            raise Failed(str(error)) from None
        finally:
            remove(raw)

    def read_made(self, dimension: str, content: Any, where: str) -> Any:
        """A result of VBench's own code, held against the clips; its mean is that of `pooled`."""
        rows = self.ordered(dimension, check(dimension, content, self.expected(dimension), where).raw[1])
        return [pooled(dimension, rows, where), rows]

    def ordered(self, dimension: str, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """As one process of VBench writes them: prompts in the suite's order, clips by their number."""
        names = [clip_name(entry.prompt, k) for entry in self.selection.of(dimension) for k in range(SAMPLES)]
        places = {name: place for place, name in enumerate(names)}
        return sorted(rows, key=lambda row: places[row["video_path"]])

    def _is_filtered(self, dimension: str) -> bool:
        return dimension == FLICKERING and self.selection.static_filter

    def _filter(self, raw: Path) -> Path:
        """The clips that VBench's static filter leaves of temporal flickering's, five a prompt at most."""
        assert self.environment
        kept = self.folder / "static"
        options = ["--static-filter", "--clips", str(self.folder / "flickering"), "--out", str(raw / "filter")]
        self.environment.run(options, "static_filter")
        text = (raw / "filter" / FILTER).read_text(encoding="utf-8")
        self.static = self.known(static_names(parse_json(text, FILTER), FILTER))
        remove(kept)
        if self.static:
            replace(raw / "filter" / "filtered_videos", kept)
        return kept

    def known(self, static: dict[str, str]) -> dict[str, str]:
        names = {name for clip, name in self.names.items() if self._prompt_of[clip] in self.selection.filtered}
        if unknown := sorted(set(static.values()) - names):
            raise UserError(f"{FILTER}: {unknown[0]!r} is not among the clips; filter again")
        return static

    def _checked(self, dimension: str, result: Any) -> Measured:
        expected = self.expected(dimension)
        if dimension in self.imported and dimension == FLICKERING and self.static is None:
            expected = {row["video_path"] for row in result[1]}
        return check(dimension, result, expected, str(self.folder / "results"))

    # ---- scores of clips and prompts

    @cached_property
    def _prompt_of(self) -> dict[str, str]:
        return {clip.id: clip.prompt_id for clip in self.store.clips}

    def clip_scores(self, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
        """A row a clip; a dimension stands in it where the clip was asked for it, null where VBench left it out."""
        asked: dict[str, list[str]] = {}
        for entry in self.selection.entries:
            asked.setdefault(entry.prompt_id, []).extend(name for name in entry.dimensions if name in measured)
        scores = {name: self._own_names(name, each.clips) for name, each in measured.items()}
        return [
            {
                "clip": clip.id,
                "prompt_id": clip.prompt_id,
                "prompt": clip.prompt,
                "total": None,
                **{name: scores[name].get(self.names[clip.id]) for name in asked[clip.prompt_id]},
            }
            for clip in self.store.clips
        ]

    def _own_names(self, dimension: str, clips: Mapping[str, float]) -> dict[str, float]:
        if not self._is_filtered(dimension):
            return dict(clips)
        return {self.static[name]: score for name, score in clips.items()} if self.static is not None else {}

    def by_prompt(self, measured: Mapping[str, Measured]) -> dict[str, dict[str, tuple[float, int]]]:
        """Sum and number of each prompt's scored clips, by dimension."""
        ids = {entry.prompt: entry.prompt_id for entry in self.selection.entries}
        table: dict[str, dict[str, tuple[float, int]]] = {}
        for name, each in measured.items():
            own = table.setdefault(name, {})
            for file, score in each.clips.items():
                prompt = ids[file.rpartition("-")[0]]
                total, count = own.get(prompt, (0.0, 0))
                own[prompt] = (total + score, count + 1)
        return table
