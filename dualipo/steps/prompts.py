"""Draws a round's prompts."""

from __future__ import annotations

from pathlib import Path

from dualipo.artifacts import write_json
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.records import Prompt, joined, read_labels, read_rows, write_rows
from dualipo.steps import Job, Summary


def prompts(config: Config, job: Job, *, test_labels: Path, benchmark: Path, prompts: Path, audit: Path) -> Summary:
    """Writes the round's prompts and their audit; none of the human test set, the benchmark or VBench is among them.

    Raises UserError where those tables or the space cannot be read, the schedule names a round that is not there, or
    the target cannot be met.
    """
    from dualipo.prompts import draw_prompts, round_target
    from dualipo.prompts.audit import audit_prompts

    if unknown := config.prompts.schedule.keys() - config.rounds.keys():
        raise UserError(
            f"prompts.schedule: {sorted(unknown)[0]!r} is no round of this run; rounds: {', '.join(config.rounds)}"
        )
    space, target = round_target(config.prompts, job.round)
    draw = draw_prompts(space, config.prompts.count, job.seed, target, held_out_texts(test_labels, benchmark))
    rows = list(draw.prompts(prefix=f"r{job.round}"))
    found = audit_prompts(rows, target, draw.dropped, draw.remapped)
    write_rows(prompts, rows)
    write_json(audit, found)
    return Summary(
        metrics={
            "prompts": float(found["count"]),
            "max_share_error": found["max_error"],
            "repeated": float(found["repeated"]),
        },
        tags={"prompt_space": space.name},
    )


def held_out_texts(test_labels: Path, benchmark: Path) -> frozenset[str]:
    """Every prompt text of the human test set, of the benchmark, and of VBench, whatever suite measures this run."""
    from dualipo.evaluation.vbench.prompts import official_texts

    ratings, choices = read_labels(test_labels)
    tested = {row.prompt for row in joined(ratings, choices)}
    return official_texts() | tested | {row.text for row in read_rows(benchmark, Prompt)}
