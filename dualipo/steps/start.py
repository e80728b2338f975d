"""Adopts the models as they came, checks the data folder, and measures both models before the first round."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dualipo.artifacts import copy_folder, write_json
from dualipo.config import Config
from dualipo.heldout import HeldOut, hold_out, require_apart, write_held_out
from dualipo.records import (
    HumanChoice,
    HumanRating,
    Prompt,
    RealClip,
    clips_of,
    find_table,
    joined,
    read_labels,
    read_rows,
)
from dualipo.steps import Job, Summary

if TYPE_CHECKING:
    from dualipo.generator.sampling import SamplingChunks


def start(
    config: Config,
    job: Job,
    *,
    base_generator: Path,
    base_critic: Path,
    seed_labels: Path,
    test_labels: Path,
    real_clips: Path,
    benchmark: Path,
    generator: Path,
    critic: Path,
    agreement: Path,
    scores: Path,
    benchmark_clips: Path,
    held_out: Path,
    label_profile: Path,
    settlement: Path,
    next_course: Path,
) -> Summary:
    """Writes the base models' copies, the base critic's agreement and the base generator's scores; the hashes of the
    held-out prompts; the human seed labels' profile, from which the first round's pseudo-labels may drift so far; and
    what the rounds go on from.

    Raises UserError where a table is malformed, a clip is missing or truncated, or a prompt of the human test set also
    stands in the seed labels, among the real clips' captions or in the benchmark, or one of the benchmark (with
    `evaluate.suite: vbench` of VBench too) among the captions.
    """
    from dualipo.evaluation.agreement import measure_agreement
    from dualipo.evaluation.benchmark import run_benchmark, score_metrics
    from dualipo.quality.profile import ProfileFile, profile_humans, write_profile
    from dualipo.quality.settlement import begin
    from dualipo.steps.check_critic import agreement_metrics
    from dualipo.steps.evaluate import benchmark_sheet

    human, held = check_data(seed_labels, test_labels, real_clips, benchmark, config.evaluate.suite == "vbench")
    measured = measure_agreement(config, base_critic, test_labels)
    write_json(agreement, measured)
    found = run_benchmark(config, base_generator, benchmark, benchmark_clips, job.work)
    write_json(scores, found)
    begin(found, measured, settlement, next_course)
    copy_folder(base_generator, generator)
    copy_folder(base_critic, critic)
    write_held_out(held_out, held)
    profile = profile_humans(*human)
    write_profile(label_profile, ProfileFile(own=profile, accepted=profile))
    metrics = {**agreement_metrics(measured), **score_metrics(found)}
    return Summary(metrics=metrics, pictures=benchmark_sheet(benchmark_clips, job.work))


def chunks(config: Config, job: Job, *, base_generator: Path, benchmark: Path, **others: Path) -> SamplingChunks:
    """The sampling of the benchmark's clips, which shards also score where the suite is VBench."""
    from dualipo.evaluation.benchmark import benchmark_chunks

    return benchmark_chunks(config, base_generator, benchmark, job.work)


def check_data(
    seed_labels: Path, test_labels: Path, real_clips: Path, benchmark: Path, vbench: bool = False
) -> tuple[tuple[list[HumanRating], list[HumanChoice]], HeldOut]:
    """Reads every table and decodes every clip that it names; returns the seed labels and what is held out."""
    from dualipo.media.video import check_clip

    find_table(seed_labels, "ratings")  # only the test set does without
    labels = {folder: read_labels(folder) for folder in (seed_labels, test_labels)}
    prompts: dict[Path, list[str]] = {}
    for folder, (ratings, choices) in labels.items():
        rows = joined(ratings, choices)
        prompts[folder] = [row.prompt for row in rows]
        for clip in sorted({clip for row in rows for clip in clips_of(row)}):
            check_clip(folder / clip)
    real = read_rows(find_table(real_clips, "captions"), RealClip)
    for row in real:
        check_clip(real_clips / row.clip)
    measured = [row.text for row in read_rows(benchmark, Prompt)]
    held_out = hold_out(prompts[test_labels], measured_texts(measured, vbench))
    captions = {str(real_clips): [row.prompt for row in real]}
    require_apart(held_out, {str(seed_labels): prompts[seed_labels], **captions, str(benchmark): measured}, ["test"])
    require_apart(held_out, captions)
    return labels[seed_labels], held_out


def measured_texts(benchmark: Iterable[str], vbench: bool) -> list[str]:
    """Prompts that generators are measured on: the benchmark's, and where `vbench` is the suite VBench's."""
    from dualipo.evaluation.vbench.prompts import official_texts

    return [*benchmark, *(sorted(official_texts()) if vbench else ())]
