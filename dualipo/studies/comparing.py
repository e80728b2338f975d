"""Claims against what was measured: paired differences over prompts and seeds, and the verdict in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dualipo.errors import UserError
from dualipo.evaluation.bootstrap import interval, paired_difference
from dualipo.steps import derive_seed
from dualipo.studies.catalogue import Claim, Reference
from dualipo.studies.measuring import Measured

Runs = Mapping[str, Mapping[int, Measured]]
"""Variant -> seed -> what its run led to."""
Outcome = Literal["holds", "does not hold", "cannot be told"]
MIN_SEEDS = 3
"""Fewer tell nothing about the method, only about a run."""


@dataclass(frozen=True)
class Judged:
    """A claim, and what was measured. Intervals are {"mean", "low", "high"} in points of 100."""

    claim: Claim
    outcome: Outcome
    why: str
    difference: dict[str, float]
    """Better less worse over all seeds, paired by prompt."""
    by_seed: dict[int, dict[str, float]]

    def packed(self) -> dict[str, Any]:
        return {
            **self.claim.model_dump(),
            "outcome": self.outcome,
            "why": self.why,
            "difference": self.difference,
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
        }


def pooled_difference(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], resamples: int
) -> dict[str, float]:
    """Interval of the mean of after - before, of a pair of totals by prompt for each seed.

    Prompts are resampled, each with the differences of all seeds: the seeds share their benchmark prompts.
    """
    rows = [(prompt, after[prompt] - before[prompt]) for before, after in pairs for prompt in sorted(before)]
    return interval([d for _, d in rows], [p for p, _ in rows], derive_seed(0, "pooled"), resamples)


def judge_claim(claim: Claim, runs: Runs, resamples: int) -> Judged:
    """The claim holds where the pooled interval lies above zero and most seeds agree in sign; it does not where the
    interval lies below; else, and of fewer than three seeds, nothing can be told.

    Raises UserError where two runs were measured on different prompts.
    """
    better, worse = claim.sides
    seeds = _common_seeds(runs, better, worse)
    pairs = {seed: (_totals(runs, worse, seed), _totals(runs, better, seed)) for seed in seeds}
    for seed, (before, after) in pairs.items():
        if before.keys() != after.keys():
            raise UserError(
                f"{claim.better} and {claim.worse}, seed {seed}: measured on different benchmark prompts; run the study"
                " again with the same data"
            )
    by_seed = {s: paired_difference(*pair, derive_seed(s, "paired"), resamples) for s, pair in pairs.items()}
    pooled = pooled_difference(list(pairs.values()), resamples)
    signs = [value["mean"] > 0 for value in by_seed.values()]
    return Judged(claim, *_verdict(pooled, signs), pooled, by_seed)


def _verdict(pooled: Mapping[str, float], signs: Sequence[bool]) -> tuple[Outcome, str]:
    told = f"{sum(signs)} of {len(signs)} seeds have that sign"
    if len(signs) < MIN_SEEDS:
        return "cannot be told", f"{len(signs)} of the {MIN_SEEDS} seeds that a verdict needs"
    if pooled["low"] > 0:
        if sum(signs) * 2 > len(signs):
            return "holds", f"the interval lies above zero, and {told}"
        return "cannot be told", f"the interval lies above zero, but only {told}"
    if pooled["high"] < 0:
        return "does not hold", f"the interval lies below zero: the other way round; {told}"
    lean = "no difference at all" if pooled["low"] == pooled["high"] == 0 else f"the interval holds zero; {told}"
    return "cannot be told", lean


def _common_seeds(runs: Runs, *sides: Reference) -> list[int]:
    named = [set(runs[side.variant]) for side in sides if side.variant is not None]
    return sorted(set.intersection(*named) if named else set())


def _totals(runs: Runs, side: Reference, seed: int) -> dict[str, float]:
    # the base is in every variant's run: the same measurements.
    variant = side.variant if side.variant is not None else next(name for name in runs if seed in runs[name])
    return runs[variant][seed].totals(side)


def summary_rows(runs: Runs, rounds: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row for each variant and round: means over the seeds of the candidate's and the used generator's totals, of the
    candidate's dimensions (those that every seed has) and the critic's agreement, and how many seeds promoted the
    candidate."""
    rows = []
    for variant, measured in runs.items():
        for index in range(rounds[variant] + 1):
            entries = [one.rounds[index] for one in measured.values()]
            known = [name for name in entries[0].dimensions if all(name in entry.dimensions for entry in entries)]
            agreements = [entry.agreement for entry in entries if entry.agreement is not None]
            rows.append(
                {
                    "variant": variant,
                    "round": entries[0].name,
                    "candidate": statistics.fmean(statistics.fmean(e.candidate.values()) for e in entries),
                    "in_use": statistics.fmean(statistics.fmean(e.in_use.values()) for e in entries),
                    "by_seed": [statistics.fmean(entry.in_use.values()) for entry in entries],
                    "promoted": sum(entry.promoted for entry in entries),
                    "seeds": len(entries),
                    "agreement": statistics.fmean(agreements) if agreements else None,
                    "dimensions": {name: statistics.fmean(e.dimensions[name] for e in entries) for name in known},
                }
            )
    return rows
