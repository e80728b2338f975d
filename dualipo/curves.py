"""Training curves as CSV: one row a step, one column a series."""

from __future__ import annotations

import csv
from pathlib import Path

from dualipo.artifacts import atomic

Series = dict[str, list[tuple[int, float]]]
"""(step, value) points by name."""


def write_curves(path: Path, series: Series) -> None:
    """Header `step,<series>...`; a series without a value at a step leaves its field empty."""
    steps = sorted({step for points in series.values() for step, _ in points})
    columns = {name: dict(points) for name, points in series.items()}
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *columns])
        for step in steps:
            writer.writerow([step, *(f"{values[step]:.8g}" if step in values else "" for values in columns.values())])
