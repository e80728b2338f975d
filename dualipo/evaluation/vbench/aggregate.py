"""VBench's quality, semantic and total score from its 16 dimensions.

Minima, maxima and weights are those of scripts/constant.py in VBench's repository (Apache License 2.0), the formula
that of scripts/cal_final_score.py: each dimension becomes (x - min) / (max - min), not clipped; quality is the weighted
mean of seven, semantic the mean of nine, total (4 quality + semantic) / 5. There a missing dimension counts as 0; here
it makes what it belongs to undefined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
}
"""Minimum, maximum (fractions of 1) and weight."""
SEMANTIC = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
DIMENSIONS = (*QUALITY, *SEMANTIC)
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0
TOTALS = ("quality", "semantic", "total")


def aggregate(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"quality", "semantic", "total"} in points of 100; None where a dimension that it needs is missing or None.

    `values` holds dimensions in points of 100 as VBench's tables print them, each a number or an array of equal shape.
    """
    quality, semantic = _weighted(values, QUALITY), _weighted(values, SEMANTIC)
    total = None
    if quality is not None and semantic is not None:
        total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return {"quality": quality, "semantic": semantic, "total": total}


def _weighted(values: Mapping[str, Any], constants: Mapping[str, tuple[float, float, float]]) -> Any:
    if any(values.get(name) is None for name in constants):
        return None
    parts = [
        weight * (np.asarray(values[name], float) / 100 - low) / (high - low)
        for name, (low, high, weight) in constants.items()
    ]
    found = 100 * sum(parts) / sum(weight for *_, weight in constants.values())
    return float(found) if np.ndim(found) == 0 else found
