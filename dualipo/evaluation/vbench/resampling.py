"""Intervals of VBench's scores, and of the difference between two generators: whole prompts are resampled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dualipo.evaluation.bootstrap import LEVEL
from dualipo.evaluation.vbench.aggregate import aggregate
from dualipo.evaluation.vbench.prompts import official

RESAMPLES = 2000
"""Where no parameter says how many."""
Table = Mapping[str, Mapping[str, tuple[float, int]]]
"""Dimension -> prompt id -> (sum of its clips' scores in points of 100, how many were scored)."""


def intervals(table: Table, seed: int, resamples: int) -> dict[str, dict[str, float]]:
    """{"mean", "low", "high"}, 95 percent, of each dimension of `table` and of the three totals it allows."""
    means, draws = _resampled([table], seed, resamples)[0]
    found = _interval(means, draws)
    whole = aggregate(means), aggregate(draws)
    return found | _interval(*({k: v for k, v in each.items() if v is not None} for each in whole))


def paired_total(
    before: Mapping[str, Any], after: Mapping[str, Any], seed: int, resamples: int
) -> dict[str, float] | None:
    """Interval of total(after) - total(before) over the prompts that both have, from two scores.json of one suite.

    None where either has no scores by prompt, a total is undefined, or the suites differ.
    """
    if before.get("suite") != after.get("suite") or not (before.get("by_prompt") and after.get("by_prompt")):
        return None
    if not (before.get("total") and after.get("total")):
        return None
    (means, draws), (new_means, new_draws) = _resampled(
        [by_prompt_table(before["by_prompt"]), by_prompt_table(after["by_prompt"])], seed, resamples
    )
    mean, new_mean = aggregate(means)["total"], aggregate(new_means)["total"]
    if mean is None or new_mean is None:
        return None
    difference = aggregate(new_draws)["total"] - aggregate(draws)["total"]
    return _interval({"total": new_mean - mean}, {"total": difference})["total"]


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


def _resampled(
    tables: Sequence[Table], seed: int, resamples: int
) -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    """(mean, mean of each resample) of every dimension, for each table; only prompts that all tables have take part.

    Dimensions asked of the same prompts, and all tables, share their draws.
    """
    found: list[tuple[dict[str, float], dict[str, np.ndarray]]] = [({}, {}) for _ in tables]
    for index, kind in enumerate(dict.fromkeys(entry.dimensions for entry in official())):
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


def _interval(means: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    found = {}
    for name, mean in means.items():
        low, high = np.quantile(draws[name], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[name] = {"mean": float(mean), "low": float(low), "high": float(high)}
    return found
