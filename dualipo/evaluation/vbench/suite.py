"""The suite `vbench`: official prompts, VBench's own code a dimension at a time, its official aggregation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualipo.artifacts import write_json
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.evaluation.paired import by_prompt_rows
from dualipo.evaluation.suites import Suite, write_clip_scores
from dualipo.evaluation.vbench.aggregate import DIMENSIONS, TOTALS, aggregate
from dualipo.evaluation.vbench.environment import VERSION, Environment
from dualipo.evaluation.vbench.parts import Merging, is_shared, score_part
from dualipo.evaluation.vbench.prompts import Selection, select
from dualipo.evaluation.vbench.resampling import intervals
from dualipo.evaluation.vbench.results import SUFFIX
from dualipo.evaluation.vbench.scoring import Scoring
from dualipo.media.store import ClipStore
from dualipo.records import Prompt, read_rows

RAW = "vbench"
"""Folder in the clip folder with VBench's own results, one file a dimension."""


class VBench(Suite):
    """VBench 1.0 (16 dimensions) on its official prompts."""

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
        python = self.config.evaluate.vbench_python
        if python and not is_shared(work):
            Environment(python, work / "vbench").require()

    def score_part(self, clips: ClipStore, work: Path) -> None:
        if python := self.config.evaluate.vbench_python:
            score_part(self.selection, clips, work, python)

    def score(self, clips: Path, work: Path) -> dict[str, Any]:
        kind = Merging if is_shared(work) else Scoring
        scoring = kind(self.selection, ClipStore(clips), work, self.config.evaluate.vbench_python)
        measured = scoring.measure()
        for dimension, each in measured.items():
            write_json(clips / RAW / f"{dimension}{SUFFIX}", {dimension: each.raw})
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
