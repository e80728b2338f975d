"""When another round is not worth its cost (Dual-IPO, appendix D): a rule over what stood after each round.

The paper stops when the benchmark and people's judgement show no meaningful improvement, "even if the internal reward
continues to rise"; it looks at bare scores. **Our reading** asks the benchmark's noise as well. The gain over the last
k rounds has a 95 percent interval, by a bootstrap that is paired over the benchmark's prompts. The rounds end where its
upper end lies below k times `min_gain`: it is then *shown* that a round gains less than that. Noise makes the interval
wide, and so keeps the rounds going instead of ending them. k grows from `patience` to all rounds, and k times
`min_gain` with it, while the interval stays about as wide: a noisier benchmark takes more rounds to show that it stands
still. People (a study whose interval lies above 0) and the critic's agreement (a rise beyond its interval) can keep it
going as well.

A round without a new champion proves nothing of the next one: it is tried again, `max_retries` times in a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dualipo.config import Settle, Study
from dualipo.evaluation.bootstrap import interval
from dualipo.evaluation.paired import spread
from dualipo.quality.evidence import Interval, Standing
from dualipo.quality.promotion import spoken

Draws = Mapping[str, Sequence[float]]
"""By the round that made a champion: its total on the same resamples of the benchmark's prompts."""


@dataclass(frozen=True)
class Stopping:
    called_for: bool
    """Whether the rule says that the rounds end."""
    reasons: list[str]
    watch: list[str] = field(default_factory=list)
    """Reward hacking, where the reward rose over the rounds that ended it."""
    evidence: dict[str, Any] = field(default_factory=dict)


def judge(history: Sequence[Standing], draws: Draws, rule: Settle) -> Stopping:
    """What the rule says after the last round of `history`, whose first entry is the base models'."""
    failed = 0
    for standing in reversed(history[1:]):
        if standing.promoted:
            break
        failed += 1
    if failed:
        return _retry(history, failed, rule)
    shown: dict[str, Any] = {}
    for rounds in range(rule.patience, len(history)):
        evidence = _window(history, draws, rounds, rule)
        shown = shown or evidence
        if evidence["worth"]:
            continue
        moved = evidence["benchmark"]
        told = (
            f"stop: over the last {_rounds(rounds)} the benchmark moved by {moved['mean']:+.2f} "
            f"[{moved['low']:+.2f}, {moved['high']:+.2f}] points, which is less than {rule.min_gain:g} a round, and "
            "neither people nor the critic's agreement show more."
        )
        return Stopping(True, [told], _still_rising(evidence), evidence)
    if not shown:
        return Stopping(False, [f"goes on: the stopping rule looks at {_rounds(rule.patience)} at least."])
    return Stopping(False, [f"goes on: {shown['worth']}."], evidence=shown)


def gain(before: Standing, after: Standing, draws: Draws) -> dict[str, float] | None:
    """Paired interval of the benchmark's total of one champion less another's; None where it cannot be told."""
    if before.champion == after.champion:
        return {"mean": 0.0, "low": 0.0, "high": 0.0}
    old, new = draws.get(before.champion), draws.get(after.champion)
    if before.total is None or after.total is None or not old or not new or len(old) != len(new):
        return None
    return spread(after.total - before.total, np.subtract(new, old))


def risen(before: Interval | None, after: Interval | None) -> dict[str, float] | None:
    """Difference of two measurements with its 95 percent interval, as if they were independent; None where one has no
    interval. Of the same test pairs this is wider than a paired one would be."""
    old, new = _ends(before), _ends(after)
    if old is None or new is None:
        return None
    (mean, low, high), (new_mean, new_low, new_high) = old, new
    half = math.hypot(high - low, new_high - new_low) / 2
    return {"mean": new_mean - mean, "low": new_mean - mean - half, "high": new_mean - mean + half}


def _ends(found: Interval | None) -> tuple[float, float, float] | None:
    """Mean, low and high, where there are all three."""
    if found is None or found.mean is None or found.low is None or found.high is None:
        return None
    return found.mean, found.low, found.high


def preference(study: Study) -> dict[str, float]:
    """(wins - losses) / comparisons, with its 95 percent interval over comparisons."""
    outcomes = [1.0] * study.wins + [0.0] * study.ties + [-1.0] * study.losses
    return interval(outcomes, [f"{number:06d}" for number in range(len(outcomes))], seed=0)


def _retry(history: Sequence[Standing], failed: int, rule: Settle) -> Stopping:
    degraded = sum(standing.degraded for standing in history[-failed:])
    evidence = {"rounds_without_champion": failed, "of_these_degraded": degraded, "max_retries": rule.max_retries}
    told = "one round" if failed == 1 else f"{failed} rounds in a row"
    told += f" gave no new champion, the benchmark having fallen in {degraded} of {failed}"
    if failed > rule.max_retries:
        return Stopping(True, [f"stop: {told}, and {_retries(rule.max_retries)} allowed."], evidence=evidence)
    return Stopping(
        False, [f"goes on: {told}; the next one is retry {failed} of {rule.max_retries}."], evidence=evidence
    )


def _window(history: Sequence[Standing], draws: Draws, rounds: int, rule: Settle) -> dict[str, Any]:
    """What moved over the last so many rounds; `worth` says why another is worth its cost, empty where nothing does."""
    before, now, names = history[-1 - rounds], history[-1], [standing.round for standing in history[-rounds:]]
    benchmark, bound = gain(before, now, draws), rounds * rule.min_gain
    agreement = risen(before.agreement, now.agreement)
    people = {name: preference(rule.studies[name]) for name in names if name in rule.studies}
    worth = ""
    if benchmark is None:
        worth = "the benchmark's gain is unknown, since a total or its scores by prompt are missing"
    elif benchmark["high"] >= bound:
        worth = (
            f"over the last {_rounds(rounds)} the benchmark may have gained as much as {benchmark['high']:.2f} points, "
            f"and {rule.min_gain:g} a round are worth it"
        )
    elif agreement and agreement["low"] > 0:
        worth = f"the critic's agreement with people rose by {agreement['mean']:.3f}, beyond its interval"
    elif liked := [name for name, found in people.items() if found["low"] > 0]:
        worth = f"people preferred the generator of round {liked[-1]} to the one before, beyond the study's interval"
    return {
        "rounds": rounds,
        "min_gain": rule.min_gain,
        "benchmark": benchmark,
        "agreement": agreement,
        "reward": risen(before.reward, now.reward),
        "people": people,
        "worth": worth,
    }


def _still_rising(evidence: Mapping[str, Any]) -> list[str]:
    rise = evidence["reward"]
    if not rise or rise["low"] <= 0:
        return []
    return [
        f"reward hacking: over the last {_rounds(evidence['rounds'])} the reward of clips rose by "
        f"{spoken(rise['mean'])} while the benchmark stood still; more rounds would follow the reward alone."
    ]


def _rounds(count: int) -> str:
    return "round" if count == 1 else f"{count} rounds"


def _retries(count: int) -> str:
    return "no retries are" if not count else "one retry is" if count == 1 else f"{count} retries are"
