"""Intervals of VBench's scores, and of the difference between two generators on any suite: whole prompts are
resampled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualipo.evaluation.bootstrap import LEVEL
from dualipo.evaluation.vbench.aggregate import TOTALS, aggregate
from dualipo.evaluation.vbench.prompts import official

TOTAL = "total"
RESAMPLES = 2000
"""Where no parameter says how many."""
Table = Mapping[str, Mapping[str, tuple[float, int]]]
"""Dimension -> prompt id -> (sum of its clips' scores in points of 100, how many were scored)."""


def intervals(table: Table, seed: int, resamples: int) -> dict[str, dict[str, float]]:
    """{"mean", "low", "high"}, 95 percent, of each dimension of `table` and of the three totals it allows."""
    means, draws, _ = _resampled([table], seed, resamples, official_kinds())[0]
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
    found = paired(before, after, seed, resamples).get(TOTAL)
    return _interval({TOTAL: found.mean}, {TOTAL: found.draws})[TOTAL] if found else None


@dataclass(frozen=True)
class Paired:
    """after - before, points of 100."""

    mean: float
    draws: np.ndarray
    """The same of each resample of prompts."""
    prompts: int
    """That both have."""


def paired(before: Mapping[str, Any], after: Mapping[str, Any], seed: int, resamples: int) -> dict[str, Paired]:
    """Differences of every dimension and total that both scores.json hold by prompt; whole prompts are resampled.

    Where the total is a score of each clip it stands in `by_prompt` like a dimension and is resampled with it;
    VBench's totals are made of the dimensions of each resample.
    """
    tables = [by_prompt_table(before["by_prompt"]), by_prompt_table(after["by_prompt"])]
    clipwise = all(TOTAL in table for table in tables)
    sides = _resampled(tables, seed, resamples, _kinds(tables) if clipwise else official_kinds())
    (means, draws, counts), (new_means, new_draws, _) = sides
    found = {
        name: Paired(new_means[name] - mean, new_draws[name] - draws[name], counts[name])
        for name, mean in means.items()
    }
    if clipwise:
        return found
    whole, new_whole = (aggregate(each) for each in (means, new_means))
    spread, new_spread = (aggregate(each) for each in (draws, new_draws))
    every = len(set.intersection(*({prompt for own in table.values() for prompt in own} for table in tables)))
    return found | {
        name: Paired(new_whole[name] - whole[name], new_spread[name] - spread[name], every)
        for name in TOTALS
        if whole[name] is not None and new_whole[name] is not None
    }


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


Kinds = Sequence[Sequence[str]]
"""Dimensions that are asked of the same prompts, together."""


def official_kinds() -> Kinds:
    return list(dict.fromkeys(entry.dimensions for entry in official()))


def _kinds(tables: Sequence[Table]) -> Kinds:
    """Of a suite that says nothing of kinds: dimensions whose prompts are the same in all tables."""
    kinds: dict[tuple[frozenset[str], ...], list[str]] = {}
    for name in tables[0]:
        kinds.setdefault(tuple(frozenset(table.get(name, ())) for table in tables), []).append(name)
    return sorted(kinds.values(), key=lambda names: TOTAL not in names)


def _resampled(
    tables: Sequence[Table], seed: int, resamples: int, kinds: Kinds
) -> list[tuple[dict[str, float], dict[str, np.ndarray], dict[str, int]]]:
    """(mean, mean of each resample, prompts) of every dimension, for each table; only prompts that all tables have take
    part. Dimensions of one kind, and all tables, share their draws.
    """
    found: list[tuple[dict[str, float], dict[str, np.ndarray], dict[str, int]]] = [({}, {}, {}) for _ in tables]
    for index, kind in enumerate(kinds):
        present = [name for name in kind if all(table.get(name) for table in tables)]
        if not present:
            continue
        prompts = sorted(set.intersection(*(set(table[name]) for table in tables for name in present)))
        if not prompts:
            continue
        drawn = np.random.default_rng([seed, index]).integers(len(prompts), size=(resamples, len(prompts)))
        for name in present:
            for table, (means, draws, held) in zip(tables, found, strict=True):
                sums, counts = (np.array([table[name][p][k] for p in prompts], float) for k in (0, 1))
                means[name] = float(sums.sum() / counts.sum())
                draws[name] = sums[drawn].sum(1) / counts[drawn].sum(1)
                held[name] = len(prompts)
    return found


def _interval(means: Mapping[str, float], draws: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    found = {}
    for name, mean in means.items():
        low, high = np.quantile(draws[name], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[name] = {"mean": float(mean), "low": float(low), "high": float(high)}
    return found
