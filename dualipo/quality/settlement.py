"""How a round ends, as files: settlement.json for people and for the next round's end, course.json for its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualipo.artifacts import write_json
from dualipo.config import Training
from dualipo.curves import Series
from dualipo.quality.evidence import Agreement, Course, Scores, Settlement, Standing, parse
from dualipo.steps import BASE
from dualipo.training.divergence import diverging

DRAWS = 1000
"""Resamples of the benchmark's total that are kept for later rounds' intervals."""
DECIMALS = 4


def begin(scores: Mapping[str, Any], agreement: Mapping[str, Any], settlement: Path, course: Path) -> None:
    """Writes what the first round goes on from: the base models' scores.json and agreement.json, and no verdict."""
    standing = Standing(
        round=BASE,
        champion=BASE,
        total=parse(Scores, scores, "scores").mean,
        promoted=False,
        degraded=False,
        critic_updated=False,
        critic_rolled_back=False,
        agreement=parse(Agreement, agreement, "agreement").agreement,
        reward=None,
    )
    first = Settlement(
        critic_rolled_back=False,
        stop=False,
        reasons=["goes on: the models as they came."],
        watch=[],
        evidence={},
        history=[standing],
        draws={BASE: kept_draws(scores)},
    )
    write(first, Course(stop=False), settlement, course)


def write(found: Settlement, next_course: Course, settlement: Path, course: Path) -> None:
    write_json(settlement, found.model_dump())
    write_json(course, next_course.model_dump())


def kept_draws(scores: Mapping[str, Any]) -> list[float]:
    """The total on resamples of the benchmark's prompts, the same for every round; empty where it is undefined."""
    from dualipo.evaluation.paired import total_draws

    found = total_draws(scores, seed=0, resamples=DRAWS)
    return [] if found is None else [round(float(value), DECIMALS) for value in found]


def pathologies(series: Series, training: Training) -> list[str]:
    """What is wrong with a training's curves, in words: a loss that is not finite, or winner and loser errors that both
    rise (dualipo/training/divergence.py)."""
    losses = [(name, step, value) for name, points in series.items() if name.endswith("loss") for step, value in points]
    found = [f"{name} is {value:g} at step {step}" for name, step, value in losses if not math.isfinite(value)][:1]
    if diverging(series, training.divergence_window, training.divergence_bound):
        found.append("winner and loser errors both rise")
    return found
