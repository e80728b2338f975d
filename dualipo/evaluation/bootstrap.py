"""Confidence intervals by resampling prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


def interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[str], seed: int, resamples: int = 2000
) -> dict[str, float]:
    """{"mean", "low", "high"}: mean of `values` and its 95 percent percentile interval.

    Whole groups (all clips or pairs of one prompt) are drawn with replacement, since they are not independent.
    """
    values = np.asarray(values, float)
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(index, values, len(names))
    counts = np.bincount(index, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def paired_difference(
    before: dict[str, float], after: dict[str, float], seed: int, resamples: int = 2000
) -> dict[str, float]:
    """Interval of mean(after - before) over the prompts that both have, {"mean", "low", "high"}."""
    names = sorted(before.keys() & after.keys())
    return interval([after[name] - before[name] for name in names], names, seed, resamples)
