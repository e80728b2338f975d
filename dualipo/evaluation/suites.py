"""Benchmark suites: what each asks a generator for, and how it scores the clips."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualipo.artifacts import write_json_lines
from dualipo.config import Config
from dualipo.evaluation.bootstrap import interval
from dualipo.evaluation.paired import by_prompt_rows
from dualipo.media.store import ClipStore
from dualipo.records import Prompt, read_rows
from dualipo.steps import derive_seed

CLIP_SCORES = "scores.jsonl"
"""In the clip folder, a row a clip: {"clip", "prompt_id", "prompt", "total"} and dimensions, points of 100 or null."""


class Suite(ABC):
    """One suite on one data folder's held-out prompts `benchmark`."""

    def __init__(self, config: Config, benchmark: Path):
        self.config = config
        self.benchmark = benchmark

    @property
    @abstractmethod
    def prompts(self) -> Sequence[Prompt]:
        """What is sampled from, in order."""

    @abstractmethod
    def samples(self, prompt: Prompt) -> int:
        """Clips of this prompt."""

    def prepare(self, work: Path) -> None:  # noqa: B027 (most suites have nothing to prepare)
        """Called before anything is sampled; raises UserError where the clips could not be scored afterwards.

        `work` is the step's scratch folder.
        """

    def score_part(self, clips: ClipStore, work: Path) -> None:  # noqa: B027 (most suites score where all clips are)
        """Called by a shard with the clips that it sampled: leaves in `work` what `score` then need not compute."""

    @abstractmethod
    def score(self, clips: Path, work: Path) -> dict[str, Any]:
        """Scores the clip folder `clips`, writes `CLIP_SCORES` into it, and returns the contents of scores.json:
        {"suite", "total", "dimensions": {name: interval or null}, "prompts", "clips"} and what else the suite tells.

        Raises UserError where a clip cannot be scored.
        """

    def seed(self) -> int:
        """Of the resampling behind intervals."""
        return derive_seed(self.config.experiment.seed, "bootstrap")


class SmallWorld(Suite):
    """The small world's own benchmark: every prompt of `benchmark`, read by the oracle."""

    @property
    def prompts(self) -> Sequence[Prompt]:
        return read_rows(self.benchmark, Prompt)

    def samples(self, prompt: Prompt) -> int:
        return self.config.evaluate.samples_per_prompt

    def score(self, clips: Path, work: Path) -> dict[str, Any]:
        from dualipo.world.benchmark import DIMENSIONS, NAMESPACE, NOT_MEASURED, score_clip

        prompts, store = self.prompts, ClipStore(clips)
        asked = {prompt.id: prompt for prompt in prompts}
        rows: list[dict[str, Any]] = [
            {
                "clip": clip.id,
                "prompt_id": clip.prompt_id,
                "prompt": clip.prompt,
                **score_clip(store[clip.id], asked[clip.prompt_id]),
            }
            for clip in store.clips
        ]
        write_clip_scores(clips, rows)
        seed, resamples = self.seed(), self.config.evaluate.bootstrap

        def summarise(name: str) -> dict[str, float] | None:
            present = [row for row in rows if row[name] is not None]
            if not present:
                return None
            return interval([row[name] for row in present], [row["prompt_id"] for row in present], seed, resamples)

        return {
            "suite": "small_world",
            "namespace": NAMESPACE,
            "total": summarise("total"),
            "dimensions": {**{name: summarise(name) for name in DIMENSIONS}, **dict.fromkeys(NOT_MEASURED)},
            "prompts": len(prompts),
            "clips": len(rows),
            "by_prompt": by_prompt_rows(table_by_prompt(rows, ("total", *DIMENSIONS))),
        }


def table_by_prompt(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[str, dict[str, tuple[float, int]]]:
    """Sum and number of each prompt's scored clips, by name of the score, from rows of `CLIP_SCORES`."""
    table: dict[str, dict[str, tuple[float, int]]] = {name: {} for name in names}
    for row in rows:
        for name in names:
            if row[name] is not None:
                total, count = table[name].get(row["prompt_id"], (0.0, 0))
                table[name][row["prompt_id"]] = (total + row[name], count + 1)
    return table


def write_clip_scores(clips: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_json_lines(clips / CLIP_SCORES, rows)


def open_suite(config: Config, benchmark: Path) -> Suite:
    """The suite that `evaluate.suite` names."""
    if config.evaluate.suite == "vbench":
        from dualipo.evaluation.vbench.suite import VBench

        return VBench(config, benchmark)
    return SmallWorld(config, benchmark)
