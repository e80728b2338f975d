"""The generator's benchmark: held-out prompts, fixed seeds, one score a dimension and a total."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dualipo.artifacts import atomic
from dualipo.config import Config
from dualipo.evaluation.bootstrap import interval
from dualipo.generator.guidance import UNGUIDED, Steering
from dualipo.generator.sampling import pack_clips, sampling_chunks
from dualipo.media.store import ClipStore
from dualipo.records import Prompt, read_rows
from dualipo.resume import Chunks
from dualipo.steps import derive_seed


def run_benchmark(
    config: Config, checkpoint: Path, benchmark: Path, clips: Path, work: Path, steering: Steering = UNGUIDED
) -> dict[str, Any]:
    """Samples the benchmark's clips into `clips`, scores each (`clips/scores.jsonl`) and returns the contents of
    scores.json, in points of 100 with 95 percent intervals over prompts.

    Every generator of an experiment gets the same prompts and seeds, so that two versions can be compared in pairs.
    Scores of clips that were sampled with reward guidance say so (`guided`: scale and weights).
    """
    from dualipo.world.benchmark import DIMENSIONS, score_clip

    section, root = config.evaluate, config.experiment.seed
    prompts = read_rows(benchmark, Prompt)
    pack_clips(benchmark_chunks(config, checkpoint, benchmark, work, steering), clips)
    store, asked = ClipStore(clips), {prompt.id: prompt for prompt in prompts}
    rows = [
        {
            "clip": clip.id,
            "prompt_id": clip.prompt_id,
            "prompt": clip.prompt,
            **score_clip(store[clip.id], asked[clip.prompt_id]),
        }
        for clip in store.clips
    ]
    with atomic(clips / "scores.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seed = derive_seed(root, "bootstrap")

    def summarise(name: str) -> dict[str, float] | None:
        present = [row for row in rows if row[name] is not None]
        if not present:
            return None
        return interval([row[name] for row in present], [row["prompt_id"] for row in present], seed, section.bootstrap)

    guided = steering.told(checkpoint)
    return {
        "suite": section.suite,
        "total": summarise("total"),
        "dimensions": {name: summarise(name) for name in DIMENSIONS},
        "prompts": len(prompts),
        "clips": len(rows),
        **({"guided": guided} if guided else {}),
    }


def benchmark_chunks(
    config: Config, checkpoint: Path, benchmark: Path, work: Path, steering: Steering = UNGUIDED
) -> Chunks:
    """The sampling of the benchmark's clips."""
    section, root = config.evaluate, config.experiment.seed
    prompts = read_rows(benchmark, Prompt)
    seeds = [[derive_seed(root, "benchmark", p.id, k) for k in range(section.samples_per_prompt)] for p in prompts]
    return sampling_chunks(checkpoint, prompts, seeds, section, work, steering)


def score_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """The means, named `<suite>/<dimension>` and `<suite>/total`, leaving out what is null."""
    found = {**scores["dimensions"], "total": scores["total"]}
    return {f"{scores['suite']}/{name}": value["mean"] for name, value in found.items() if value}
