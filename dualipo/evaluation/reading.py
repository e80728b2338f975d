"""In which order scores are shown, so that none stands without what it must be read beside."""

from __future__ import annotations

from collections.abc import Iterable

FROZEN_MAXES = ("subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness")
"""Dimensions that a frozen clip maxes: to be read beside `dynamic_degree` alone."""


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Totals first, then what a frozen clip maxes with `dynamic_degree` beside it, then the others as they come."""
    names = list(names)
    first = ("total", "quality", "semantic", *FROZEN_MAXES, "dynamic_degree")
    return sorted(names, key=lambda name: first.index(name) if name in first else len(first))
