"""Two generators on the same prompts: the difference of their totals, paired by prompt, from what scores.json holds.

Every suite's scores.json has `by_prompt`, rows of [dimension, prompt id, mean, clips]. Where clips have a total of
their own, the rows are those totals (`TOTAL`); VBench's total is an aggregate of its dimensions, made on each resample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dualipo.evaluation.bootstrap import LEVEL

TOTAL = "total"
RESAMPLES = 2000
"""Where no parameter says how many."""
Table = Mapping[str, Mapping[str, tuple[float, int]]]
"""Dimension -> prompt id -> (sum of its clips' scores in points of 100, how many were scored)."""


def by_prompt_rows(table: Table) -> list[list[Any]]:
    """[dimension, prompt id, mean, clips] of each prompt; a list, which neither DVC nor MLflow takes for metrics."""
    return [
        [dimension, prompt, total / count, count]
        for dimension, prompts in table.items()
        for prompt, (total, count) in prompts.items()
    ]


def by_prompt_table(rows: Iterable[Sequence[Any]]) -> dict[str, dict[str, tuple[float, int]]]:
    table: dict[str, dict[str, tuple[float, int]]] = {}
    for dimension, prompt, mean, count in rows:
        table.setdefault(dimension, {})[prompt] = (mean * count, count)
    return table


def paired_total(
    before: Mapping[str, Any], after: Mapping[str, Any], seed: int, resamples: int = RESAMPLES
) -> dict[str, float] | None:
    """Interval of total(after) - total(before) over the prompts that both have, from two scores.json of one suite.

    None where either has no scores by prompt, a total is undefined, or the suites differ.
    """
    if before.get("suite") != after.get("suite"):
        return None
    found = _totals([before, after], seed, resamples)
    if found is None:
        return None
    (mean, draws), (new_mean, new_draws) = found
    return spread(new_mean - mean, new_draws - draws)


def total_draws(scores: Mapping[str, Any], seed: int, resamples: int) -> np.ndarray | None:
    """(resamples,): the total on resamples of the benchmark's prompts, which are the same for equal prompts and seeds.

    The difference of two generators' draws is therefore a paired bootstrap of the difference of their totals. None
    where there are no scores by prompt or no total.
    """
    found = _totals([scores], seed, resamples)
    return found[0][1] if found else None


def spread(mean: float, draws: np.ndarray) -> dict[str, float]:
    """{"mean", "low", "high"} with the 95 percent percentile interval of `draws`."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def resampled(
    tables: Sequence[Table], kinds: Iterable[Sequence[str]], seed: int, resamples: int
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """(mean, mean of each resample) of every dimension, for each table; only prompts that all tables have take part.

    Dimensions of one kind, which are asked of the same prompts, and all tables share their draws.
    """
    found: list[tuple[dict[str, float], dict[str, np.ndarray]]] = [({}, {}) for _ in tables]
    for index, kind in enumerate(kinds):
        present = [name for name in kind if all(table.get(name) for table in tables)]
        if not present:
            continue
        prompts = sorted(set.intersection(*(set(table[name]) for table in tables for name in present)))
        if not prompts:
            continue
        drawn = np.random.default_rng([seed, index]).integers(len(prompts), size=(resamples, len(prompts)))
        for name in present:
            for table, (means, draws) in zip(tables, found, strict=True):
                sums, counts = (np.array([table[name][p][k] for p in prompts], float) for k in (0, 1))
                means[name] = float(sums.sum() / counts.sum())
                draws[name] = sums[drawn].sum(1) / counts[drawn].sum(1)
    return found


def _totals(every: Sequence[Mapping[str, Any]], seed: int, resamples: int) -> list[tuple[float, np.ndarray]] | None:
    """Total and its draws of each scores.json, over the prompts that all have; None where one is undefined."""
    if not all(scores.get("by_prompt") and scores.get("total") for scores in every):
        return None
    tables = [by_prompt_table(scores["by_prompt"]) for scores in every]
    if all(TOTAL in table for table in tables):
        own = resampled(tables, [(TOTAL,)], seed, resamples)
        pairs = [(means.get(TOTAL), draws.get(TOTAL)) for means, draws in own]
    else:
        from dualipo.evaluation.vbench.aggregate import aggregate
        from dualipo.evaluation.vbench.resampling import kinds

        own = resampled(tables, kinds(), seed, resamples)
        pairs = [(aggregate(means)["total"], aggregate(draws)["total"]) for means, draws in own]
    if any(mean is None or draws is None for mean, draws in pairs):
        return None
    return pairs
