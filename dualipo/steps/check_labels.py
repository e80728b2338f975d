"""Great Expectations on the prompts and the pseudo-labels (METHOD 1, before step 5)."""

from __future__ import annotations

from pathlib import Path

from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.media.store import ClipStore, read_bytes
from dualipo.prompts import round_target
from dualipo.quality.frames import (
    balance_frame,
    choices_frame,
    coverage_frame,
    duplicate_share,
    health_frame,
    prompts_frame,
    ratings_frame,
)
from dualipo.quality.gate import run_gate
from dualipo.quality.profile import ProfileFile, drift, profile_labels, read_profile, write_profile
from dualipo.quality.suites import (
    balance_suite,
    choices_suite,
    coverage_suite,
    health_suite,
    prompts_suite,
    ratings_suite,
)
from dualipo.records import (
    HumanChoice,
    HumanRating,
    Prompt,
    PseudoChoice,
    PseudoRating,
    clips_of,
    find_table,
    joined,
    read_rows,
)
from dualipo.steps import Job, Summary


def check_labels(
    config: Config,
    job: Job,
    *,
    prompts: Path,
    candidates: Path,
    labels: Path,
    seed_labels: Path,
    previous_profile: Path,
    gate: Path,
    label_profile: Path,
) -> Summary:
    """Writes the label gate, verdicts on the prompts and on the pseudo-labels, and the labels' profile.

    The labels are held against the human seed labels, the target of the prompts, and the profile of the last labels
    that passed this gate. Raises UserError where a table is missing, empty or malformed, labels, clips and prompts do
    not belong together, or the seed holds no human label of a kind that the critic is asked for.
    """
    section = config.check_labels
    prompt_rows = read_rows(prompts, Prompt)
    ratings = read_rows(Path(labels) / "ratings.jsonl", PseudoRating)
    choices = read_rows(Path(labels) / "choices.jsonl", PseudoChoice)
    known = {prompt.id for prompt in prompt_rows}
    store = ClipStore(candidates)
    for label in joined(ratings, choices):
        if label.prompt_id not in known:
            raise UserError(f"{labels}: prompt {label.prompt_id!r} is not in {prompts}; label this round's clips again")
    files = [store.file(clip.id) for clip in store.clips]
    for clip in dict.fromkeys(clip for row in joined(ratings, choices) for clip in clips_of(row)):
        store.file(clip)  # raises where there is no such clip

    _, targets = round_target(config.prompts, job.round)
    balance = balance_frame(
        ratings,
        choices,
        read_rows(find_table(seed_labels, "ratings"), HumanRating),
        read_rows(find_table(seed_labels, "choices"), HumanChoice),
    )
    own, accepted = profile_labels(f"round {job.round}", ratings, choices), read_profile(previous_profile).accepted
    copies = duplicate_share(read_bytes(store.folder, file) for file in files)
    health = health_frame(ratings, choices, drift(own, accepted), copies)
    coverage = coverage_frame(prompt_rows, ratings, choices, targets)
    checks = {
        "prompts": (prompts_frame(prompt_rows, targets), prompts_suite(config.prompts.count, targets, section)),
        "ratings": (ratings_frame(ratings), ratings_suite(config.label)),
        "choices": (choices_frame(choices), choices_suite(config.label)),
        "balance": (balance, balance_suite(list(balance), section)),
        "health": (health, health_suite(list(health), section, config.label)),
    }
    if len(coverage.columns):
        checks["coverage"] = (coverage, coverage_suite(list(coverage), section))
    verdict = run_gate(gate, checks)
    write_profile(label_profile, ProfileFile(own=own, accepted=own if verdict.passed else accepted))
    metrics = {"passed": float(verdict.passed), **verdict.numbers("balance"), **verdict.numbers("health")}
    return Summary(metrics=metrics, tags={"verdict": "passed" if verdict.passed else "failed"})
