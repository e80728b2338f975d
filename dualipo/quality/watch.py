"""Reward hacking named: looks that drift, and a reward that rises while the benchmark does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dualipo.quality.evidence import Interval, Standing
from dualipo.quality.promotion import spoken
from dualipo.quality.stopping import gain, risen

Effects = Mapping[str, Mapping[str, float] | None]


def shifted(effects: Effects, bound: float, who: str, whom: str) -> list[str]:
    """A sentence for each statistic whose standardised difference lies wholly beyond `bound`, in either direction."""
    found = []
    for name, effect in effects.items():
        if effect and (effect["low"] > bound or effect["high"] < -bound):
            found.append(
                f"appearance: {who} have {name} {effect['mean']:+.2f} [{effect['low']:+.2f}, {effect['high']:+.2f}] "
                f"standard deviations from {whom}, beyond {bound:g}: it may be rewarded for its own sake."
            )
    return found


def hacked(history: Sequence[Standing], draws: Mapping[str, Sequence[float]], reward: Interval | None) -> list[str]:
    """A sentence where the critic's `reward` of this round's clips, which are the last champion's of `history`, rose
    against the round before, whose clips are those of the champion before that, while the benchmark shows no gain
    between the two champions. Nothing where the champion stayed the same."""
    if len(history) < 2 or history[-1].champion == history[-2].champion:
        return []
    before = history[-1].reward
    rise, benchmark = risen(before, reward), gain(history[-2], history[-1], draws)
    if rise is None or rise["low"] <= 0 or benchmark is None or benchmark["low"] > 0:
        return []
    assert before and reward
    return [
        f"reward hacking: clips of round {history[-1].champion}'s generator are scored higher than those of the one "
        f"before ({spoken(before.mean)} to {spoken(reward.mean)}), the benchmark shows no gain between them "
        f"({benchmark['mean']:+.2f} [{benchmark['low']:+.2f}, {benchmark['high']:+.2f}] points)."
    ]


def reward_of(summary: Mapping[str, Any]) -> Interval | None:
    """The critic's mean score of a round's clips, from summary.json of its preferences."""
    found = summary.get("reward")
    return Interval.model_validate(found) if found else None
