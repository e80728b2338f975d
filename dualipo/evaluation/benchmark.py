"""The generator's benchmark: held-out prompts, fixed seeds, one score a dimension and a total."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dualipo.config import Config
from dualipo.evaluation.appearance import by_prompt
from dualipo.evaluation.suites import Suite, open_suite
from dualipo.generator.guidance import UNGUIDED, Steering
from dualipo.generator.sampling import SHARDS, SamplingChunks, pack_clips, sampling_chunks
from dualipo.media.store import ClipStore
from dualipo.records import Clip
from dualipo.steps import derive_seed


def run_benchmark(
    config: Config, checkpoint: Path, benchmark: Path, clips: Path, work: Path, steering: Steering = UNGUIDED
) -> dict[str, Any]:
    """Samples the clips of the suite into `clips`, scores each (`clips/scores.jsonl`) and returns the contents of
    scores.json, in points of 100 with 95 percent intervals over prompts, and each prompt's `appearance`.

    Every generator of an experiment gets the same prompts and seeds, so that two versions can be compared in pairs.
    Scores of clips that were sampled with reward guidance say so (`guided`: scale and weights).
    """
    suite = open_suite(config, benchmark)
    suite.prepare(work)
    pack_clips(_chunks(config, suite, checkpoint, work, steering), clips)
    guided = steering.told(checkpoint)
    scored = {**suite.score(clips, work), "appearance": by_prompt(clips)}
    return {**scored, **({"guided": guided} if guided else {})}


def benchmark_chunks(
    config: Config, checkpoint: Path, benchmark: Path, work: Path, steering: Steering = UNGUIDED
) -> SamplingChunks:
    """The sampling of the benchmark's clips; a shard also scores its own, where the suite can."""
    suite = open_suite(config, benchmark)

    def score(rows: list[dict[str, Any]]) -> None:
        suite.score_part(ClipStore(work / SHARDS, map(Clip.model_validate, rows)), work)

    sampling = _chunks(config, suite, checkpoint, work, steering)
    return replace(sampling, before=partial(suite.prepare, work), after=score)


def _chunks(config: Config, suite: Suite, checkpoint: Path, work: Path, steering: Steering) -> SamplingChunks:
    root, prompts = config.experiment.seed, suite.prompts
    seeds = [[derive_seed(root, "benchmark", p.id, k) for k in range(suite.samples(p))] for p in prompts]
    return sampling_chunks(checkpoint, prompts, seeds, config.evaluate, work, steering)


def score_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """The means, named `<suite>/<dimension>` and `<suite>/total`, leaving out what is null."""
    found = {**scores["dimensions"], **{name: scores.get(name) for name in ("quality", "semantic", "total")}}
    return {f"{scores['suite']}/{name}": value["mean"] for name, value in found.items() if value}
