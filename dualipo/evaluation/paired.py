"""Two generators on the same prompts: the difference of their totals, paired by prompt, from what scores.json holds.

Every suite's scores.json has `by_prompt`, rows of [dimension, prompt id, mean, clips]. Where clips have a total of
their own, the rows are those totals (`TOTAL`); VBench's total is an aggregate of its dimensions, made on each resample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    from dualipo.evaluation.vbench.aggregate import TOTALS, aggregate

    tables = [by_prompt_table(before["by_prompt"]), by_prompt_table(after["by_prompt"])]
    (means, draws, counts), (new_means, new_draws, _) = resampled(tables, _kinds(tables), seed, resamples)
    found = {
        name: Paired(new_means[name] - mean, new_draws[name] - draws[name], counts[name])
        for name, mean in means.items()
    }
    if _clipwise(tables):
        return found
    whole, new_whole = (aggregate(each) for each in (means, new_means))
    drawn, new_drawn = (aggregate(each) for each in (draws, new_draws))
    every = len(set.intersection(*({prompt for own in table.values() for prompt in own} for table in tables)))
    return found | {
        name: Paired(new_whole[name] - whole[name], new_drawn[name] - drawn[name], every)
        for name in TOTALS
        if whole[name] is not None and new_whole[name] is not None
    }


def paired_total(
    before: Mapping[str, Any], after: Mapping[str, Any], seed: int, resamples: int = RESAMPLES
) -> dict[str, float] | None:
    """Interval of total(after) - total(before) over the prompts that both have, from two scores.json of one suite.

    None where either has no scores by prompt, a total is undefined, or the suites differ.
    """
    if before.get("suite") != after.get("suite"):
        return None
    if not all(scores.get("by_prompt") and scores.get("total") for scores in (before, after)):
        return None
    found = paired(before, after, seed, resamples).get(TOTAL)
    return spread(found.mean, found.draws) if found else None


def total_draws(scores: Mapping[str, Any], seed: int, resamples: int) -> np.ndarray | None:
    """(resamples,): the total on resamples of the benchmark's prompts, which are the same for equal prompts and seeds.

    The difference of two generators' draws is therefore a paired bootstrap of the difference of their totals. None
    where there are no scores by prompt or no total.
    """
    if not (scores.get("by_prompt") and scores.get("total")):
        return None
    table = by_prompt_table(scores["by_prompt"])
    _, draws, _ = resampled([table], _kinds([table]), seed, resamples)[0]
    if _clipwise([table]):
        return draws[TOTAL]
    from dualipo.evaluation.vbench.aggregate import aggregate

    return aggregate(draws)[TOTAL]


def spread(mean: float, draws: np.ndarray) -> dict[str, float]:
    """{"mean", "low", "high"} with the 95 percent percentile interval of `draws`."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


Kinds = Sequence[Sequence[str]]
"""Dimensions that are asked of the same prompts, together."""


def resampled(
    tables: Sequence[Table], kinds: Kinds, seed: int, resamples: int
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


def _clipwise(tables: Sequence[Table]) -> bool:
    return all(TOTAL in table for table in tables)


def _kinds(tables: Sequence[Table]) -> Kinds:
    """Of a suite that says nothing of kinds: dimensions whose prompts are the same in all tables."""
    if not _clipwise(tables):
        from dualipo.evaluation.vbench.resampling import official_kinds

        return official_kinds()
    kinds: dict[tuple[frozenset[str], ...], list[str]] = {}
    for name in tables[0]:
        kinds.setdefault(tuple(frozenset(table.get(name, ())) for table in tables), []).append(name)
    return sorted(kinds.values(), key=lambda names: TOTAL not in names)
