"""Great Expectations on the prompts and the pseudo-labels (METHOD 1, before step 5)."""

from __future__ import annotations

from pathlib import Path

from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.prompts import round_target
from dualipo.quality.frames import balance_frame, choices_frame, prompts_frame, ratings_frame
from dualipo.quality.gate import run_gate
from dualipo.quality.suites import balance_suite, choices_suite, prompts_suite, ratings_suite
from dualipo.records import HumanChoice, HumanRating, Prompt, PseudoChoice, PseudoRating, find_table, read_rows
from dualipo.steps import Job, Summary


def check_labels(config: Config, job: Job, *, prompts: Path, labels: Path, seed_labels: Path, gate: Path) -> Summary:
    """Writes the label gate: verdicts on the prompts and on the pseudo-labels, against the human seed labels.

    Raises UserError where a table is missing, empty or malformed, labels and prompts do not belong together, or the
    seed holds no human label of a kind that the critic is asked for.
    """
    section = config.check_labels
    prompt_rows = read_rows(prompts, Prompt)
    ratings = read_rows(Path(labels) / "ratings.jsonl", PseudoRating)
    choices = read_rows(Path(labels) / "choices.jsonl", PseudoChoice)
    known = {prompt.id for prompt in prompt_rows}
    for label in (*ratings, *choices):
        if label.prompt_id not in known:
            raise UserError(f"{labels}: prompt {label.prompt_id!r} is not in {prompts}; label this round's clips again")

    _, targets = round_target(config.prompts, job.round)
    balance = balance_frame(
        ratings,
        choices,
        read_rows(find_table(seed_labels, "ratings"), HumanRating),
        read_rows(find_table(seed_labels, "choices"), HumanChoice),
    )
    checks = {
        "prompts": (prompts_frame(prompt_rows, targets), prompts_suite(config.prompts.count, targets, section)),
        "ratings": (ratings_frame(ratings), ratings_suite()),
        "choices": (choices_frame(choices), choices_suite()),
        "balance": (balance, balance_suite(list(balance), section)),
    }
    verdict = run_gate(gate, checks)
    metrics = {"passed": float(verdict.passed), **verdict.numbers("balance")}
    return Summary(metrics=metrics, tags={"verdict": "passed" if verdict.passed else "failed"})
