"""Intervals of VBench's scores: whole prompts are resampled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dualipo.evaluation.paired import Kinds, Table, resampled, spread
from dualipo.evaluation.vbench.aggregate import aggregate
from dualipo.evaluation.vbench.prompts import official


def intervals(table: Table, seed: int, resamples: int) -> dict[str, dict[str, float]]:
    """{"mean", "low", "high"}, 95 percent, of each dimension of `table` and of the three totals it allows."""
    means, draws, _ = resampled([table], official_kinds(), seed, resamples)[0]
    found = _intervals(means, draws)
    whole = aggregate(means), aggregate(draws)
    return found | _intervals(*({k: v for k, v in each.items() if v is not None} for each in whole))


def official_kinds() -> Kinds:
    """Dimensions that are asked of the same prompts, in VBench's order."""
    return list(dict.fromkeys(entry.dimensions for entry in official()))


def _intervals(means: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    return {name: spread(mean, draws[name]) for name, mean in means.items()}
