"""The suite `vbench`: official prompts, VBench's own code a dimension at a time, its official aggregation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualipo.artifacts import read_json, remove, replace, write_json
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.evaluation.paired import by_prompt_rows
from dualipo.evaluation.suites import Suite, write_clip_scores
from dualipo.evaluation.vbench.aggregate import DIMENSIONS, TOTALS, aggregate
from dualipo.evaluation.vbench.environment import VERSION, Environment, Failed
from dualipo.evaluation.vbench.prompts import FLICKERING, SAMPLES, Selection, clip_name, select
from dualipo.evaluation.vbench.resampling import intervals
from dualipo.evaluation.vbench.results import (
    FILTER,
    SUFFIX,
    Measured,
    check,
    parse_json,
    read_results,
    static_names,
)
from dualipo.media.store import ClipStore, read_bytes
from dualipo.records import Prompt, read_rows
from dualipo.steps import GIVEN

RAW = "vbench"
"""Folder in the clip folder with VBench's own results, one file a dimension."""


class VBench(Suite):
    """VBench 1.0 (16 dimensions) on its official prompts.

    Scratch files lie in `work`/vbench: clips/ and flickering/ as VBench wants them named, static/ what its filter
    left, results/ a file a finished dimension, logs/ what VBench printed.
    """

    def __init__(self, config: Config, benchmark: Path):
        super().__init__(config, benchmark)
        section = config.evaluate
        rows = read_rows(benchmark, Prompt)
        self.selection: Selection = select(
            section.vbench_dimensions, section.vbench_prompts, section.vbench_static_filter, rows
        )

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.selection.prompts

    def samples(self, prompt: Prompt) -> int:
        return self.selection.samples(prompt.id)

    def prepare(self, work: Path) -> None:
        if python := self.config.evaluate.vbench_python:
            Environment(python, work / "vbench").require()

    def score(self, clips: Path, work: Path) -> dict[str, Any]:
        scoring = _Scoring(self.selection, clips, work, self.config.evaluate.vbench_python)
        measured = scoring.measure()
        for dimension, found in measured.items():
            write_json(clips / RAW / f"{dimension}{SUFFIX}", {dimension: found.raw})
        write_clip_scores(clips, scoring.clip_scores(measured))
        table = scoring.by_prompt(measured)
        found = intervals(table, self.seed(), self.config.evaluate.bootstrap)
        values = {dimension: each.value for dimension, each in measured.items()}
        for name, value in {**values, **aggregate(values)}.items():
            if value is not None:
                found[name]["mean"] = value
        expected = {name: scoring.expected(name) for name in measured}
        return {
            "suite": self.selection.name,
            "namespace": f"{self.selection.name}/",
            **{name: found.get(name) for name in TOTALS},
            "dimensions": {name: found.get(name) for name in DIMENSIONS},
            "prompts": len(self.selection.prompts),
            "clips": len(scoring.store),
            "vbench": {
                "version": VERSION,
                "clips_md5": scoring.md5,
                "enhanced_prompts": self.selection.enhanced,
                "static_filter": self.selection.static_filter,
                "scored": {name: len(each.clips) for name, each in measured.items()},
                "left_out": {n: len(expected[n]) - len(each.clips) for n, each in measured.items()},
                "imported": sorted(scoring.imported & measured.keys()),
            },
            "by_prompt": by_prompt_rows(table),
        }


class _Scoring:
    """The scoring of one clip folder: VBench's view of it, and every dimension's result."""

    def __init__(self, selection: Selection, clips: Path, work: Path, python: str | None):
        self.selection = selection
        self.store = ClipStore(clips)
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
    def md5(self) -> str:
        """Of every clip's name and bytes; lays the clips out where they are not yet."""
        marker = self.folder / "laid.json"
        if not marker.exists():
            for name in ("clips", "flickering"):
                remove(self.folder / name)
                (self.folder / name).mkdir(parents=True)
            md5s = {}
            for clip in self.store.clips:
                data = read_bytes(self.store.folder, clip.file)
                name, apart = self.names[clip.id], clip.prompt_id in self.selection.filtered
                (self.folder / ("flickering" if apart else "clips") / name).write_bytes(data)
                md5s[name] = hashlib.md5(data).hexdigest()
            listing = "".join(f"{md5} {name}\n" for name, md5 in sorted(md5s.items()))
            write_json(self.folder / "info.json", [entry.content for entry in self.selection.entries])
            write_json(marker, {"md5": hashlib.md5(listing.encode()).hexdigest()})
        return read_json(marker)["md5"]

    def expected(self, dimension: str) -> set[str]:
        """File names of the clips that the dimension must score."""
        if dimension == FLICKERING and self.selection.static_filter and self.static is not None:
            return set(self.static)
        return {clip_name(entry.prompt, k) for entry in self.selection.of(dimension) for k in range(SAMPLES)}

    # ---- results

    def measure(self) -> dict[str, Measured]:
        """Every dimension of the selection; temporal flickering is missing where the filter left no clip.

        Raises UserError where the environment is not VBench's, or a dimension failed; the others are finished first.
        """
        assert self.md5  # laid out
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
        filtered = dimension == FLICKERING and self.selection.static_filter
        file = self.folder / "results" / f"{dimension}.json"
        if file.exists() and (content := read_json(file))["clips_md5"] == self.md5:
            self.static = content["static"] if filtered else None
            if content["imported"]:
                self.imported.add(dimension)
            return content
        imported = dimension in self.given
        if imported:
            self.imported.add(dimension)
            result = self._take(dimension, filtered)
        elif self.environment:
            result = self._run(dimension, filtered)
        else:
            return None
        content = {"clips_md5": self.md5, "imported": imported, "static": self.static, "result": result}
        write_json(file, content)
        return content

    def _take(self, dimension: str, filtered: bool) -> Any:
        where = "imported results"
        if filtered and self.given_filter is not None:
            self.static = self._known(static_names(self.given_filter, where))
        result = self.given[dimension]
        if filtered and self.static is None:
            # without the filter's own file nobody knows how many clips it left.
            rows = result[1] if isinstance(result, list) and len(result) == 2 else []
            names = {Path(row["video_path"]).name for row in rows if isinstance(row, Mapping) and "video_path" in row}
            return check(dimension, result, names & self.expected(dimension), where).raw
        return check(dimension, result, self.expected(dimension), where).raw

    def _run(self, dimension: str, filtered: bool) -> Any:
        assert self.environment
        raw = self.folder / "raw" / f"{dimension}-{os.getpid()}"
        clips = self.folder / "clips"
        try:
            if filtered:
                clips = self._filter(raw)
                if not self.static:
                    return None
            options = ["--dimension", dimension, "--clips", str(clips), "--info", str(self.folder / "info.json")]
            self.environment.run([*options, "--out", str(raw)], dimension)
            file = raw / f"{dimension}{SUFFIX}"
            content = parse_json(file.read_text(encoding="utf-8"), f"{dimension}{SUFFIX}")
            return check(dimension, content.get(dimension), self.expected(dimension), f"{dimension}{SUFFIX}").raw
        except UserError as error:
            raise Failed(str(error)) from None
        finally:
            remove(raw)

    def _filter(self, raw: Path) -> Path:
        """The clips that VBench's static filter leaves of temporal flickering's, five a prompt at most."""
        assert self.environment
        kept = self.folder / "static"
        options = ["--static-filter", "--clips", str(self.folder / "flickering"), "--out", str(raw / "filter")]
        self.environment.run(options, "static_filter")
        text = (raw / "filter" / FILTER).read_text(encoding="utf-8")
        self.static = self._known(static_names(parse_json(text, FILTER), FILTER))
        remove(kept)
        if self.static:
            replace(raw / "filter" / "filtered_videos", kept)
        return kept

    def _known(self, static: dict[str, str]) -> dict[str, str]:
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
        if dimension != FLICKERING or not self.selection.static_filter:
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


def write_archive(clips: Path, scores: Mapping[str, Any], archive: Path) -> None:
    """Writes VBench's results of a finished evaluation as the zip that its leaderboard takes.

    Raises UserError where a dimension or a prompt is missing, or temporal flickering was not filtered.
    """
    import zipfile

    from dualipo.artifacts import atomic

    files = [clips / RAW / f"{name}{SUFFIX}" for name in DIMENSIONS]
    missing = [name for name, file in zip(DIMENSIONS, files, strict=True) if not file.is_file()]
    if missing:
        raise UserError(
            f"{clips}: no leaderboard archive without VBench's {', '.join(missing)}; score all 16 dimensions"
        )
    if any(word in scores["suite"] for word in ("subset", "unfiltered")):
        raise UserError(
            f"{clips}: scored as {scores['suite']}, which the leaderboard does not take; score every prompt, with "
            "evaluate.vbench_static_filter on"
        )
    with atomic(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as target:
        for file in files:
            target.write(file, file.name)
