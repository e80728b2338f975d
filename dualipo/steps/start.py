"""Adopts the models as they came, checks the data folder, and measures both models before the first round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dualipo.artifacts import copy_folder, write_json
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.records import Prompt, RealClip, find_table, read_labels, read_rows
from dualipo.steps import Job, Summary

if TYPE_CHECKING:
    from dualipo.resume import Chunks


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
    settlement: Path,
    next_course: Path,
) -> Summary:
    """Writes the base models' copies, the base critic's agreement, the base generator's scores, and what the rounds go
    on from.

    Raises UserError where a table is malformed, a clip is missing or truncated, or a prompt of the human test set also
    stands in the seed labels or in the benchmark, or one of the benchmark among the real clips' captions.
    """
    from dualipo.evaluation.agreement import measure_agreement
    from dualipo.evaluation.benchmark import run_benchmark, score_metrics
    from dualipo.quality.settlement import begin
    from dualipo.steps.check_critic import agreement_metrics
    from dualipo.steps.evaluate import benchmark_sheet

    check_data(seed_labels, test_labels, real_clips, benchmark)
    if config.evaluate.suite == "vbench":
        check_captions(real_clips)
    measured = measure_agreement(config, base_critic, test_labels)
    write_json(agreement, measured)
    found = run_benchmark(config, base_generator, benchmark, benchmark_clips, job.work)
    write_json(scores, found)
    begin(found, measured, settlement, next_course)
    copy_folder(base_generator, generator)
    copy_folder(base_critic, critic)
    metrics = {**agreement_metrics(measured), **score_metrics(found)}
    return Summary(metrics=metrics, pictures=benchmark_sheet(benchmark_clips, job.work))


def chunks(config: Config, job: Job, *, base_generator: Path, benchmark: Path, **others: Path) -> Chunks:
    """The sampling of the benchmark's clips."""
    from dualipo.evaluation.benchmark import benchmark_chunks

    return benchmark_chunks(config, base_generator, benchmark, job.work)


def check_captions(real_clips: Path) -> None:
    """Raises UserError where a real clip's caption is one of VBench's prompts."""
    from dualipo.evaluation.vbench.prompts import official_texts

    captions = {row.prompt for row in read_rows(find_table(real_clips, "captions"), RealClip)}
    if shared := sorted(captions & official_texts()):
        raise UserError(f"{real_clips}: caption {shared[0]!r} is a prompt of VBench, which no generator may train on")


def check_data(seed_labels: Path, test_labels: Path, real_clips: Path, benchmark: Path) -> None:
    """Reads every table and decodes every clip that it names."""
    from dualipo.media.video import check_clip

    prompts: dict[Path, set[str]] = {}
    find_table(seed_labels, "ratings")  # only the test set does without
    for folder in (seed_labels, test_labels):
        ratings, choices = read_labels(folder)
        prompts[folder] = {row.prompt for row in [*ratings, *choices]}
        named = {row.clip for row in ratings} | {clip for row in choices for clip in (row.clip_a, row.clip_b)}
        for clip in sorted(named):
            check_clip(folder / clip)
    real = read_rows(find_table(real_clips, "captions"), RealClip)
    for row in real:
        check_clip(real_clips / row.clip)
    held_out = {row.text for row in read_rows(benchmark, Prompt)}
    if shared := sorted(held_out & {row.prompt for row in real}):
        raise UserError(
            f"{benchmark}: prompt {shared[0]!r} is also a caption of {real_clips}; held-out prompts must be apart"
        )
    for other, name in ((prompts[seed_labels], f"{seed_labels}"), (held_out, f"{benchmark}")):
        if shared := sorted(prompts[test_labels] & other):
            raise UserError(
                f"{test_labels}: prompt {shared[0]!r} also stands in {name}; the human test set must be apart"
            )
