"""Training curves as CSV: one row a step, one column a series."""

from __future__ import annotations

import csv
from pathlib import Path

from dualipo.artifacts import atomic
from dualipo.errors import UserError

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


def read_curves(path: Path) -> Series:
    """The same back, without empty fields; raises UserError that names the line where a field is no number."""
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        if "step" not in names:
            raise UserError(f"{path}: no column 'step'; run the step that makes it again")
        curves: Series = {name: [] for name in names if name != "step"}
        for row in reader:
            try:
                step = int(row["step"])
                values = {name: float(row[name]) for name in curves if row[name] not in (None, "")}
            except (TypeError, ValueError):
                raise UserError(f"{path}, line {reader.line_num}: not a row of numbers; run its step again") from None
            for name, value in values.items():
                curves[name].append((step, value))
    return curves
