"""What the gates are for: the same poisoned round with the gates on, and with them off.

    python benchmarks/ablation.py --seeds 0 1 2 [--lender RUNS ...]

The round is the first one of params.yaml. Its pseudo-labels are turned round before the critic learns from them: good for
bad, A for B, reasoning paths and votes too, in ratings and choices alike, so that they agree with each other. The critic
learns from them alone, harder than the experiment does (TRAINING), with the gates on and off alike. Everything after that
is the round as it is. Runs lie in benchmarks/out/ablation/seed-<n>/; started again it goes on where it was. `--lender`
names folders of finished experiments with the same seeds: what they made of the same inputs is taken from there.

Prints tables in Markdown, writes docs/ablation.md and benchmarks/results/ablation.json. Exits with 1 unless, over all
seeds, the generator that the gates let through is no worse than the base, and the one of the round without gates is
worse, with a 95 percent interval below 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, table, versions
from poisoning import Row, change_labels, turn

from dualipo.artifacts import digest, read_json, write_json
from dualipo.config import Config, load_config
from dualipo.engine import execute, run
from dualipo.quality.evidence import Decision, load
from dualipo.runtime import git_commit
from dualipo.steps import BASE, GRAPH, derive_seed
from dualipo.studies.comparing import pooled_difference
from dualipo.studies.measuring import prompt_totals

ROUND = "1"
TRAINING = {
    "train_critic.steps": 40,
    "train_critic.learning_rate": 2e-4,
    "train_critic.seed_share": 0.0,
    "train_critic.instruction_weight": 1.0,
}
GATES_OFF = {
    "check_labels.min_kept": 1,
    "check_labels.max_verdict_kl": 1e6,
    "check_labels.max_position_bias": 1.0,
    "check_labels.max_tie_share": 1.0,
    "check_labels.max_prompt_share_error": 1.0,
    "check_labels.min_vote_entropy": 0.0,
    "check_labels.max_vote_entropy": 1e6,
    "check_labels.min_certainty_spread": 0.0,
    "check_labels.min_kept_share": 0.0,
    "check_labels.max_kept_share": 1.0,
    "check_labels.min_choices_follow_ratings": 0.0,
    "check_labels.min_coverage": 0.0,
    "check_labels.max_duplicate_clips": 1.0,
    "check_labels.max_drift": 1.0,
    "check_critic.min_agreement": 0.0,
    "check_critic.max_drop": 1.0,
    "check_critic.max_rating_drop": 1.0,
    "prefer.max_winner_is_loser": 1.0,
    "prefer.min_pairs": 1,
    "promote_generator.max_drop": 100.0,
    "settle.roll_back_critic": False,
}
ARMS = {"on": {}, "off": GATES_OFF}
CAVEAT = (
    "The small world's own benchmark (0 to 100, scored by its oracle on held-out prompts) with simulated annotators. "
    "It is not VBench, and says nothing about videos of the real world."
)


@dataclass(frozen=True)
class Arm:
    """A poisoned round, with the gates on or off."""

    in_use: dict[str, float]
    """Total of the generator handed on, by prompt, points."""
    candidate: dict[str, float]
    critic_promoted: bool
    generator_promoted: bool
    agreement: float
    """Of the critic candidate with the human test pairs, of 1."""
    ratings: float
    """Of the same with their ratings, the mean of the dimensions."""
    incumbent_unchanged: bool
    """Whether the generator handed on is the base, byte for byte."""
    reasons: tuple[str, ...]


def poisoned(config: Config, folder: Path, data: Path, lenders: Sequence[Path]) -> None:
    """Runs the round up to its labels, turns them round, and runs the rest on them, or what is left of it."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, note = folder / f"runs/{ROUND}/labels", folder / "turned.json"
    if not note.is_file() or read_json(note)["labels"] != digest(labels).md5:
        run(config, folder, f"{ROUND}/label", data, track=False, lenders=lenders)
        change_labels(labels, _turned)
        write_json(note, {"labels": digest(labels).md5})
    steps = [step for step in GRAPH.values() if step.scope == "round"]
    names = [step.name for step in steps]
    for step in steps[names.index("label") + 1 :]:
        print(execute(step, config, folder, ROUND, track=False, data=data, lenders=lenders), file=sys.stderr)


def _turned(ratings: list[Row], choices: list[Row]) -> None:
    for row in [*ratings, *choices]:
        turn(row)


def read_arm(folder: Path) -> Arm:
    runs = folder / "runs"
    critic, generator = (load(Decision, runs / f"{ROUND}/{kind}_decision.json") for kind in ("critic", "generator"))
    found = read_json(runs / f"{ROUND}/critic_candidate_agreement.json")
    candidate, base = prompt_totals(runs / ROUND), prompt_totals(runs / BASE)
    return Arm(
        in_use=candidate if generator.promoted else base,
        candidate=candidate,
        critic_promoted=critic.promoted,
        generator_promoted=generator.promoted,
        agreement=found["agreement"]["mean"],
        ratings=statistics.fmean(value["mean"] for value in found["rating_agreement"].values()),
        incumbent_unchanged=digest(runs / f"{ROUND}/generator").md5 == digest(runs / f"{BASE}/generator").md5,
        reasons=(*critic.reasons, *generator.reasons),
    )


def judge(arms: dict[str, list[Arm]], gains: dict[str, dict[str, float]]) -> list[str]:
    """A sentence for each requirement that is not met."""
    faults = []
    if gains["off"]["high"] >= 0:
        faults.append("without gates the poisoned round does not make the generator worse")
    for arm in arms["on"]:
        if arm.critic_promoted or (statistics.fmean(arm.in_use.values()) < 0 and not arm.incumbent_unchanged):
            faults.append("with gates on, the poisoned critic or a worse generator was handed on")
    if gains["on"]["mean"] < 0:
        faults.append(f"with gates on the generator handed on lost {-gains['on']['mean']:.2f} points")
    return faults
