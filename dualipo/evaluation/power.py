"""Two versions compared prompt by prompt, and how many prompts it takes to see a difference of a given size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualipo.artifacts import read_json
from dualipo.errors import UserError
from dualipo.evaluation.bootstrap import LEVEL
from dualipo.evaluation.paired import RESAMPLES, paired
from dualipo.evaluation.reading import in_reading_order


@dataclass(frozen=True)
class Compared:
    """One score of two versions, points of 100; intervals are of 95 percent, over prompts."""

    name: str
    before: dict[str, float] | None
    after: dict[str, float] | None
    """None where its scores.json holds no mean of this score."""
    difference: dict[str, float]
    """after - before, paired by prompt."""
    prompts: int
    """That both have."""
    deviation: float
    """Of the difference, over prompts: the root of `prompts` times its standard error."""
    needed: int | None
    """Prompts at which the asked difference is seen; None where the differences do not vary."""
    smallest: float
    """Difference that is seen with the prompts there are."""


def required_prompts(deviation: float, difference: float, power: float) -> int:
    """Prompts at which a true `difference` of two versions lies apart from 0 with probability `power`, by a two-sided
    95 percent interval of the mean of paired differences whose deviation over prompts is `deviation`.

    n = ((z + z_power) * deviation / difference)^2, rounded up, at least 2; a normal approximation. Raises ValueError
    where `difference` is 0, or `power` does not lie between 0 and 1.
    """
    if not difference or not 0 < power < 1:
        raise ValueError("a difference other than 0 and a power between 0 and 1 are needed")
    return max(math.ceil((_margin(power) * deviation / difference) ** 2), 2)


def smallest_difference(deviation: float, prompts: int, power: float) -> float:
    """The difference for which `required_prompts` gives `prompts`."""
    return _margin(power) * deviation / math.sqrt(prompts)


def _margin(power: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + LEVEL) / 2) + norm.ppf(power))


def read_scores(path: Path) -> dict[str, Any]:
    """A scores.json with scores of every prompt; raises UserError where it is none."""
    scores = read_json(path)
    if not isinstance(scores, dict) or not isinstance(scores.get("suite"), str) or "dimensions" not in scores:
        raise UserError(f"{path}: no scores.json of a benchmark; name one that `dualipo evaluate` or `start` wrote")
    rows = scores.get("by_prompt")
    whole = isinstance(rows, list) and all(
        isinstance(row, list)
        and len(row) == 4
        and all(isinstance(word, str) for word in row[:2])
        and all(isinstance(value, int | float) for value in row[2:])
        for row in rows
    )
    if not rows or not whole:
        raise UserError(f"{path}: holds no scores of every prompt (`by_prompt`); evaluate the generator again")
    return scores


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    difference: float,
    power: float,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Compared]:
    """Every score that both versions have, the totals first, `dynamic_degree` beside what a frozen clip maxes.

    Raises UserError where the suites differ, or no prompt is in both.
    """
    if before["suite"] != after["suite"]:
        raise UserError(f"scored by {before['suite']!r} and by {after['suite']!r}: compare two scores of one suite")
    found = paired(before, after, seed, resamples)
    if not found:
        raise UserError("the two have no prompt in common; compare scores of one benchmark")
    rows = []
    for name in in_reading_order(found):
        own = found[name]
        low, high = np.quantile(own.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        # A resample's deviation is the population's: n in the place of n - 1.
        deviation = float(own.draws.std()) * own.prompts / math.sqrt(max(own.prompts - 1, 1))
        varies = deviation > 1e-9
        rows.append(
            Compared(
                name,
                _mean(before, name),
                _mean(after, name),
                {"mean": own.mean, "low": float(low), "high": float(high)},
                own.prompts,
                deviation,
                required_prompts(deviation, difference, power) if varies else None,
                smallest_difference(deviation, own.prompts, power),
            )
        )
    return rows


def _mean(scores: Mapping[str, Any], name: str) -> dict[str, float] | None:
    return scores.get(name) or scores["dimensions"].get(name)


def as_rows(rows: Sequence[Compared]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def format_comparison(rows: Sequence[Compared], suite: str, difference: float, power: float) -> str:
    """The table in words; every estimate with its interval."""
    cells = [
        [
            row.name,
            _spoken(row.before),
            _spoken(row.after),
            _spoken(row.difference, "+"),
            str(row.prompts),
            "-" if row.needed is None else str(row.needed),
            f"{row.smallest:.1f}",
        ]
        for row in rows
    ]
    head = ["score", "before", "after", "difference", "prompts", f"needed for {difference:g}", "seen now"]
    widths = [max(len(line[k]) for line in (head, *cells)) for k in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *cells)
    ]
    return "\n".join(
        [
            f"{suite}, points of 100, after less before on the same prompts; brackets: 95 percent bootstrap intervals "
            "over prompts.",
            *lines,
            f"needed: prompts at which a true difference of {difference:g} points is told from 0 in {power:.0%} of all "
            "cases; seen now: the smallest such difference with these prompts. Clips a prompt stay as they are.",
            "A frozen clip maxes consistency, flickering and smoothness: read them beside dynamic_degree.",
        ]
    )  # fmt: skip


def _spoken(value: Mapping[str, float] | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value['mean']:{sign}.1f} [{value['low']:{sign}.1f}, {value['high']:{sign}.1f}]"
