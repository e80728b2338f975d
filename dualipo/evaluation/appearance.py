"""What clips look like, read off their pixels without any model: what a generator changes when it games its reward.

A critic that likes bright, colourful, sharp, lively or uniform clips for their own sake moves these statistics of the
winners away from the losers', and then those of the generator away from its predecessor's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dualipo.evaluation.bootstrap import interval

STATISTICS = ("brightness", "saturation", "sharpness", "motion", "diversity")
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""Of red, green and blue (ITU-R BT.709)."""
MOMENTS = 8
"""Pairs of neighbouring frames that are looked at, spread evenly over the clip."""
GRID = 4
"""Cells a side of the picture in small by which clips are told apart."""
DECIMALS = 5

Effect = dict[str, float] | None
"""A standardised difference with its 95 percent interval, {"mean", "low", "high"}; None where it is undefined."""


def look(frames: np.ndarray) -> dict[str, Any]:
    """One clip's statistics; `frames` is uint8 (frames, height, width, 3).

    `brightness` is the mean luma and `saturation` the mean of (max - min) / max of red, green and blue, both of 1;
    `sharpness` is the standard deviation of luma's Laplacian and `motion` the mean absolute change of luma between
    neighbouring frames. `small` is the clip in small, GRID * GRID * 3 means of 1 over cells and frames, from which
    `distinctness` computes diversity.
    """
    moments = np.unique(np.linspace(0, max(len(frames) - 2, 0), MOMENTS).round().astype(int))
    first = frames[moments].astype(np.float32) / 255
    luma, next_luma = first @ LUMA, frames[np.minimum(moments + 1, len(frames) - 1)].astype(np.float32) / 255 @ LUMA
    high, low = first.max(-1), first.min(-1)
    inner = luma[:, 1:-1, 1:-1]
    laplacian = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:] - 4 * inner
    rows, columns = (np.array_split(np.arange(size), GRID) for size in first.shape[1:3])
    cells = [first[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean((0, 1, 2)) for r in rows for c in columns]
    return {
        "brightness": _short(luma.mean()),
        "saturation": _short(np.divide(high - low, high, out=np.zeros_like(high), where=high > 0).mean()),
        "sharpness": _short(laplacian.std((1, 2)).mean()),
        "motion": _short(np.abs(next_luma - luma).mean()),
        "small": [_short(value) for value in np.concatenate(cells)],
    }


def distinctness(small: Sequence[Sequence[float]]) -> list[float] | None:
    """Each clip's root mean square distance to the others of its set; None for fewer than two clips."""
    points = np.asarray(small, float)
    if len(points) < 2:
        return None
    squares = (points**2).sum(1)
    # mean over all j of |x_i - x_j|^2, then without j = i, which adds 0 to the sum.
    means = squares - 2 * points @ points.mean(0) + squares.mean()
    return [float(value) for value in np.sqrt(np.maximum(means * len(points) / (len(points) - 1), 0))]


def by_prompt(clips: Path) -> list[list[Any]]:
    """[prompt id, STATISTICS] of each prompt of a clip folder, means over its clips; null where undefined.

    Diversity is how far a prompt's clips lie apart, or where each prompt has one alone, how far they all do. A list,
    which neither DVC nor MLflow takes for metrics.
    """
    from dualipo.media.store import ClipStore
    from dualipo.runtime import threads

    store = ClipStore(clips)
    # decoding and arithmetic leave Python's lock alone.
    with ThreadPoolExecutor(threads()) as pool:
        looks = list(pool.map(lambda clip: look(store[clip.id]), store.clips))
    seen = {clip.id: found for clip, found in zip(store.clips, looks, strict=True)}
    groups = {prompt: [seen[clip.id] for clip in own] for prompt, own in store.by_prompt().items()}
    if all(len(own) == 1 for own in groups.values()):
        alone = distinctness([own[0]["small"] for own in groups.values()])
        apart: dict[str, float | None] = dict(zip(groups, alone, strict=True)) if alone else dict.fromkeys(groups)
    else:
        apart = {prompt: _mean(distinctness([clip["small"] for clip in own])) for prompt, own in groups.items()}
    return [
        [prompt, *(_short(_mean([clip[name] for clip in own])) for name in STATISTICS[:-1]), _short(apart[prompt])]
        for prompt, own in groups.items()
    ]


def shifts(before: Sequence[Sequence[Any]], after: Sequence[Sequence[Any]]) -> dict[str, Effect]:
    """Of each statistic: how the prompts' values differ between two tables of `by_prompt`, see `effect`."""
    old, new = ({row[0]: dict(zip(STATISTICS, row[1:], strict=True)) for row in rows} for rows in (before, after))
    shared = [prompt for prompt in old if prompt in new]
    return {name: effect({p: old[p][name] for p in shared}, {p: new[p][name] for p in shared}) for name in STATISTICS}


def effect(before: Mapping[str, float | None], after: Mapping[str, float | None]) -> Effect:
    """Mean of after - before over the prompts that have both, in standard deviations of `before` over prompts.

    The interval resamples prompts. Not in deviations of the difference: two generators that start from the same noise
    differ so evenly that next to nothing would be many of them. None for fewer than two prompts, or equal values.
    """
    both = {
        prompt: (old, new)
        for prompt, old in before.items()
        if old is not None and (new := after.get(prompt)) is not None
    }
    deviation = float(np.std([old for old, _ in both.values()], ddof=1)) if len(both) > 1 else 0.0
    if not deviation:
        return None
    return interval([(new - old) / deviation for old, new in both.values()], list(both), seed=0)


def of_pairs(winners: Mapping[str, Mapping[str, Any]], losers: Mapping[str, Mapping[str, Any]]) -> dict[str, Effect]:
    """Of each statistic the shift from losers to winners, from the look of each prompt's one and other.

    Diversity is how far winners lie from other winners, against losers from other losers.
    """
    sides = [
        {name: {prompt: seen[name] for prompt, seen in side.items()} for name in STATISTICS[:-1]}
        | {"diversity": dict(zip(side, distinctness([seen["small"] for seen in side.values()]) or [], strict=False))}
        for side in (losers, winners)
    ]
    return {name: effect(sides[0][name], sides[1][name]) for name in STATISTICS}


def _mean(values: Sequence[float] | None) -> float | None:
    return float(np.mean(values)) if values else None


def _short(value: Any) -> Any:
    return None if value is None else round(float(value), DECIMALS)
