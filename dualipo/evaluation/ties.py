"""From scores to verdicts: accuracy with and without ties, and the thresholds between verdicts.

`differences` are score(a) - score(b) of each pair, `verdicts` what people said: `a`, `b` or `tie`. A threshold is
calibrated on one set of labels and may then be held against another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dualipo.records import RATINGS


def verdicts_at(differences: Sequence[float] | np.ndarray, threshold: float) -> list[str]:
    """`tie` where |difference| <= threshold, else the clip with the higher score."""
    return ["tie" if abs(d) <= threshold else "a" if d > 0 else "b" for d in np.asarray(differences, float).tolist()]


def ties_excluded_hits(differences: Sequence[float] | np.ndarray, verdicts: Sequence[str]) -> list[float | None]:
    """Per pair 1 where the higher score agrees with people, 0 where not, 0.5 where scores are equal (the expectation
    of a coin, VideoAlign appendix H.2), None where people called it a tie: it takes no part."""
    signed = [d if v == "a" else -d for d, v in zip(np.asarray(differences, float).tolist(), verdicts, strict=True)]
    return [
        None if verdict == "tie" else 1.0 if d > 0 else 0.5 if d == 0 else 0.0
        for d, verdict in zip(signed, verdicts, strict=True)
    ]


def ties_excluded_accuracy(differences: Sequence[float] | np.ndarray, verdicts: Sequence[str]) -> float | None:
    """Mean of `ties_excluded_hits`; None where people called every pair a tie."""
    hits = [hit for hit in ties_excluded_hits(differences, verdicts) if hit is not None]
    return float(np.mean(hits)) if hits else None


def ties_included_accuracy(
    differences: Sequence[float] | np.ndarray, verdicts: Sequence[str], threshold: float
) -> float:
    """Share of pairs on which `verdicts_at(threshold)` and people give the same of three verdicts."""
    found = verdicts_at(differences, threshold)
    return sum(a == b for a, b in zip(found, verdicts, strict=True)) / len(found)


def calibrate_ties(differences: Sequence[float] | np.ndarray, verdicts: Sequence[str]) -> tuple[float, float]:
    """(threshold, accuracy): of 0 and every |difference| the threshold with the best three-class accuracy.

    Deutsch et al. (2023), algorithm 1, in O(n log n): sorted by |difference|, a threshold turns a prefix into ties, and
    what each is worth follows from two running counts. Of equally good thresholds the smallest is taken.

    Raises ValueError without pairs, or where a difference is not finite.
    """
    values = np.asarray(differences, float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("finite score differences are needed")
    said = np.asarray(verdicts)
    size = np.abs(values)
    order = np.argsort(size, kind="stable")
    size = size[order]
    tied = np.concatenate([[0], np.cumsum((said == "tie")[order])])
    chosen = np.concatenate([[0], np.cumsum((said == np.where(values > 0, "a", "b"))[order])])
    # A threshold takes in all pairs of its size: how many of the sorted pairs lie at or under each candidate.
    candidates = np.unique(np.concatenate([[0.0], size]))
    under = np.searchsorted(size, candidates, side="right")
    right = tied[under] + chosen[-1] - chosen[under]
    best = int(right.argmax())
    return float(candidates[best]), float(right[best] / len(values))


def ratings_at(scores: Sequence[float] | np.ndarray, cuts: tuple[float, float]) -> list[str]:
    """`bad` up to the first cut, `normal` up to the second, `good` above."""
    low, high = cuts
    return ["bad" if s <= low else "normal" if s <= high else "good" for s in np.asarray(scores, float).tolist()]


def calibrate_ratings(
    scores: Sequence[float] | np.ndarray, ratings: Sequence[str]
) -> tuple[tuple[float, float], float]:
    """((low, high), accuracy): the two cuts at which `ratings_at` agrees with most ratings, in O(n log n).

    A cut lies half way between two neighbouring scores, and beyond the outermost by 1. Of equally good cuts the lowest
    are taken. Raises ValueError without scores, or where one is not finite.
    """
    values = np.asarray(scores, float)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError("finite scores are needed")
    said = np.asarray(ratings)
    points, first = np.unique(np.sort(values), return_index=True)
    # Of two neighbouring floats the mean may be the upper one, and 1 less than a huge one itself.
    half = np.where((halves := points[:-1] / 2 + points[1:] / 2) < points[1:], halves, points[:-1])
    lowest = min(points[0] - 1, np.nextafter(points[0], -np.inf))
    cuts = np.concatenate([[lowest], half, [points[-1] + 1]])
    under = np.concatenate([first, [len(values)]])
    ordered = said[np.argsort(values, kind="stable")]
    good, normal, bad = (np.concatenate([[0], np.cumsum(ordered == word)])[under] for word in RATINGS)
    # Right with cuts i <= j: bad[i] + (normal[j] - normal[i]) + (all good - good[j]).
    low_gain = np.maximum.accumulate(bad - normal)
    high_gain = normal + good[-1] - good
    high = int((low_gain + high_gain).argmax())
    low = int((bad - normal)[: high + 1].argmax())
    return (float(cuts[low]), float(cuts[high])), float((low_gain[high] + high_gain[high]) / len(values))
