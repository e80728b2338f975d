"""Thresholds that turn scores into verdicts, and agreement of scores with people.

Thresholds are calibrated on seed labels and stored with the model; the test set only measures them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from dualipo.critic.questions import Answered
from dualipo.errors import UserError
from dualipo.evaluation.bootstrap import interval
from dualipo.evaluation.people import by_category, by_question
from dualipo.evaluation.ties import calibrate_ratings, calibrate_ties, ratings_at, ties_excluded_hits, verdicts_at
from dualipo.records import CHOICES, DIMENSIONS

Scores = Mapping[tuple[str, str], Mapping[str, float]]
"""Normalised scores by dimension, `overall` among them, of each (prompt, clip)."""


class Calibration(BaseModel):
    """By dimension: |a - b| up to which two scores tie, and the scores up to which a clip is bad and normal."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ties: dict[str, float]
    ratings: dict[str, tuple[float, float]]

    def tie_threshold(self, dimension: str) -> float:
        """Raises UserError where no label of that dimension calibrated one."""
        if dimension not in self.ties:
            raise UserError(
                f"no tie threshold for pairs on {dimension!r}: the seed labels that calibrate it hold none; add some"
            )
        return self.ties[dimension]

    def cuts(self, dimension: str) -> tuple[float, float]:
        """Raises UserError where no label of that dimension calibrated them."""
        if dimension not in self.ratings:
            raise UserError(
                f"no thresholds for ratings of {dimension!r}: the seed labels that calibrate them hold none; add some"
            )
        return self.ratings[dimension]


def calibrate(answered: Sequence[Answered], scores: Scores) -> Calibration:
    """The thresholds that agree best with `answered`: ties by Deutsch et al. (2023), algorithm 1."""
    pairs: dict[str, list[Answered]] = {}
    ratings: dict[str, list[Answered]] = {}
    for item in answered:
        (pairs if item.question.kind == "choice" else ratings).setdefault(item.question.dimension, []).append(item)
    ties = {d: calibrate_ties(differences(own, scores), [i.verdict for i in own])[0] for d, own in pairs.items()}
    cuts = {
        d: calibrate_ratings(
            [scores[i.question.prompt, i.question.clips[0]][d] for i in own], [i.verdict for i in own]
        )[0]
        for d, own in ratings.items()
    }
    return Calibration(ties=ties, ratings=cuts)


def differences(pairs: Sequence[Answered], scores: Scores) -> list[float]:
    """score(a) - score(b) of each pair, on the dimension it was asked on."""
    return [
        scores[q.prompt, q.clips[0]][q.dimension] - scores[q.prompt, q.clips[1]][q.dimension]
        for q in (item.question for item in pairs)
    ]


def agreement_of_scores(
    answered: Sequence[Answered],
    scores: Scores,
    calibration: Calibration,
    seed: int,
    categories: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """What `measure_agreement` says of a generative critic, of scores.

    A pair ties where its scores differ by no more than the threshold that the seed labels gave. The order in which a
    pair is shown plays no part: `order_consistency` is 1. Raises UserError without pairs, or without a threshold.
    """
    pairs = [item for item in answered if item.question.kind == "choice"]
    if not pairs:
        raise UserError("the human test set has no pairs; the critic's gate needs some")
    gaps = differences(pairs, scores)
    people = [item.verdict for item in pairs]
    found = [
        verdicts_at([gap], calibration.tie_threshold(item.question.dimension))[0]
        for gap, item in zip(gaps, pairs, strict=True)
    ]
    prompts = [item.question.prompt for item in pairs]
    hits = [(p, hit) for p, hit in zip(prompts, ties_excluded_hits(gaps, people), strict=True) if hit is not None]
    agrees = [float(f == p) for f, p in zip(found, people, strict=True)]
    rated = [(i, hit) for d in DIMENSIONS for i, hit in _rated(answered, scores, calibration, d)]
    confusion = {word: Counter(f for f, p in zip(found, people, strict=True) if p == word) for word in CHOICES}
    return {
        "agreement": interval(agrees, prompts, seed),
        "ties_excluded": interval([hit for _, hit in hits], [prompt for prompt, _ in hits], seed) if hits else None,
        "pairs": len(pairs),
        "ties": people.count("tie") / len(pairs),
        "order_consistency": 1.0,
        "rating_agreement": {
            d: float(np.mean(own)) if (own := [hit for i, hit in rated if i.question.dimension == d]) else None
            for d in DIMENSIONS
        },
        "confusion": {word: dict(counts) for word, counts in confusion.items()},
        "tie_threshold": {d: calibration.tie_threshold(d) for d in sorted({i.question.dimension for i in pairs})},
        "by_question": by_question([*pairs, *(i for i, _ in rated)], [*agrees, *(hit for _, hit in rated)], seed),
        "by_category": by_category(pairs, agrees, categories or {}, seed),
    }


def _rated(
    answered: Sequence[Answered], scores: Scores, calibration: Calibration, dimension: str
) -> list[tuple[Answered, float]]:
    """Each rated item of the dimension, and 1 where the scores rate it as people do."""
    own = [i for i in answered if i.question.topic == f"rating/{dimension}"]
    if not own:
        return []
    found = ratings_at(
        [scores[i.question.prompt, i.question.clips[0]][dimension] for i in own], calibration.cuts(dimension)
    )
    return [(i, float(f == i.verdict)) for f, i in zip(found, own, strict=True)]
