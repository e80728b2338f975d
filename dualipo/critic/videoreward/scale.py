"""Scores of several dimensions on one scale, so that their mean means something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of each dimension's raw scores on the validation clips (VideoAlign, appendix H.2)."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @staticmethod
    def of(scores: np.ndarray) -> Scale:
        """From raw scores (clips, dimensions); the deviation is the population's.

        Raises ValueError without clips, or where a dimension's scores are all equal or not finite: nothing normalises
        them.
        """
        scores = np.asarray(scores, float)
        if scores.ndim != 2 or not len(scores):
            raise ValueError(f"scores (clips, dimensions) are needed, shape {scores.shape} given")
        mean, deviation = scores.mean(0), scores.std(0)
        # Equal scores leave a rounding error of a deviation.
        if not np.all(deviation > 1e-12 * np.maximum(1, np.abs(scores).max(0))):
            raise ValueError("a dimension's scores are all equal, or not finite")
        return Scale(tuple(mean.tolist()), tuple(deviation.tolist()))

    def normalise(self, scores: np.ndarray) -> np.ndarray:
        """(score - mean) / deviation, (..., dimensions)."""
        return (np.asarray(scores, float) - self.mean) / self.deviation


def overall(normalised: np.ndarray, weights: Sequence[float] | None = None) -> np.ndarray:
    """A clip's overall score, (..., dimensions) -> (...): the mean of its normalised scores, or a weighted one."""
    return np.average(np.asarray(normalised, float), axis=-1, weights=weights)
