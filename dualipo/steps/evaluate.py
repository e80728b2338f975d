"""Benchmarks the generator candidate on held-out prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dualipo.artifacts import write_json
from dualipo.config import Config
from dualipo.steps import Job, Summary

if TYPE_CHECKING:
    from dualipo.generator.sampling import SamplingChunks


def evaluate(
    config: Config, job: Job, *, candidate: Path, benchmark: Path, scores: Path, benchmark_clips: Path
) -> Summary:
    """Writes the candidate's scores and the clips they come from; with `flow_nrg.evaluate` its reward steers them."""
    from dualipo.evaluation.benchmark import run_benchmark, score_metrics
    from dualipo.generator.guidance import Steering

    steering = Steering.of(config.flow_nrg, config.flow_nrg.evaluate)
    found = run_benchmark(config, candidate, benchmark, benchmark_clips, job.work, steering)
    write_json(scores, found)
    tags = {"guided": json.dumps(found["guided"])} if "guided" in found else {}
    return Summary(metrics=score_metrics(found), pictures=benchmark_sheet(benchmark_clips, job.work), tags=tags)


def chunks(config: Config, job: Job, *, candidate: Path, benchmark: Path) -> SamplingChunks:
    """The sampling of the benchmark's clips, which shards also score where the suite is VBench."""
    from dualipo.evaluation.benchmark import benchmark_chunks
    from dualipo.generator.guidance import Steering

    steering = Steering.of(config.flow_nrg, config.flow_nrg.evaluate)
    return benchmark_chunks(config, candidate, benchmark, job.work, steering)


def benchmark_sheet(clips: Path, work: Path) -> dict[str, Path]:
    """A contact sheet of clips spread evenly over the benchmark."""
    from dualipo.media.sheets import contact_sheet
    from dualipo.media.store import ClipStore

    store = ClipStore(clips)
    shown = store.clips[:: max(len(store) // 12, 1)][:12]
    sheet = work / "benchmark.png"
    sheet.write_bytes(contact_sheet([store[clip.id] for clip in shown], [clip.prompt for clip in shown], columns=2))
    return {"benchmark": sheet}
