"""Does the stopping rule stop where the paper stopped, and not on noise? Score curves shaped like Wan-1.3B's.

    python benchmarks/stopping.py

Dual-IPO reports 84.26 for the base, 86.28 after three rounds, 88.32 after five and 88.33 after a sixth; what lies
between is interpolated, what follows stays. Each round's candidate is measured with noise, promoted or refused as
`promote_generator` does, and the rounds end where the rule says so. The noise is given as the standard error of the
difference of two totals, paired by prompt. Beside the rule of dualipo/quality/stopping.py: one that looks at the bare
difference, and one that stops where the round's interval holds 0. Writes benchmarks/results/stopping.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualipo.artifacts import write_json
from dualipo.config import Settle
from dualipo.evaluation.paired import TOTAL, by_prompt_rows, total_draws
from dualipo.quality.evidence import Interval, Standing
from dualipo.quality.stopping import Draws, gain, judge

WAN = (84.26, 84.93, 85.61, 86.28, 87.30, 88.32, 88.33)
"""Total after each round, the base first."""
PLATEAU = 5
"""Rounds after which it is reached."""
PROMPTS, DRAWS, LAST = 100, 400, 20
"""LAST: rounds after which a simulation ends in any case."""
NOISE = (0.1, 0.2, 0.3, 0.5)
Rule = Callable[[Sequence[Standing], Draws, Settle], bool]


def bare(history: Sequence[Standing], draws: Draws, settle: Settle) -> bool:
    """The round's gain is less than `min_gain`."""
    found = gain(history[-2], history[-1], draws)
    return bool(found and found["mean"] < settle.min_gain)


def holds_zero(history: Sequence[Standing], draws: Draws, settle: Settle) -> bool:
    """The interval of the round's gain holds 0."""
    found = gain(history[-2], history[-1], draws)
    return bool(found and found["low"] <= 0)


def ours(history: Sequence[Standing], draws: Draws, settle: Settle) -> bool:
    return judge(history, draws, settle).called_for


RULES: dict[str, Rule] = {"this rule": ours, "bare difference": bare, "interval holds 0": holds_zero}


def measured(total: float, error: float, rng: np.random.Generator) -> dict[str, Any]:
    """scores.json of a generator of true total `total`; two of them differ with the standard error `error`."""
    points = total + rng.normal(0, error * np.sqrt(PROMPTS / 2), PROMPTS)
    rows = {f"p{n:03d}": (float(point), 1) for n, point in enumerate(points)}
    return {"suite": "recorded", "total": {"mean": float(points.mean())}, "by_prompt": by_prompt_rows({TOTAL: rows})}


def drawn(scores: dict[str, Any]) -> list[float]:
    found = total_draws(scores, 0, DRAWS)
    assert found is not None  # `measured` has a total and scores by prompt
    return list(found)


def simulate(rule: Rule, settle: Settle, error: float, seed: int, curve: Sequence[float] = WAN) -> tuple[int, int]:
    """Rounds that were run until the rule stopped, and how far along the curve the last champion is."""
    rng = np.random.default_rng([seed, round(1000 * error)])
    scores, reached = measured(curve[0], error, rng), 0
    draws = {"0": drawn(scores)}
    history = [standing(0, "0", scores, False)]
    for number in range(1, LAST + 1):
        ahead = reached + 1
        candidate = measured(curve[min(ahead, len(curve) - 1)], error, rng)
        promoted = candidate["total"]["mean"] >= scores["total"]["mean"]
        champion = f"{number}" if promoted else history[-1].champion
        if promoted:
            scores, reached = candidate, ahead
            draws[champion] = drawn(scores)
        history.append(standing(number, champion, scores, promoted))
        if rule(history, draws, settle):
            return number, reached
    return LAST, reached


def standing(number: int, champion: str, scores: dict[str, Any], promoted: bool) -> Standing:
    """The reward rises all the time; the agreement stays."""
    reward = 0.5 + 0.03 * number
    return Standing(
        round=f"{number}",
        champion=champion,
        total=scores["total"]["mean"],
        promoted=promoted,
        degraded=not promoted and number > 0,
        critic_updated=True,
        critic_rolled_back=False,
        agreement=Interval(mean=0.8, low=0.75, high=0.85),
        reward=Interval(mean=reward, low=reward - 0.01, high=reward + 0.01) if number else None,
    )


def summarise(rule: Rule, settle: Settle, error: float, seeds: int) -> dict[str, Any]:
    """Share of simulations that stopped before the plateau, and of the others when they did; null where all did."""
    found = [simulate(rule, settle, error, seed) for seed in range(seeds)]
    stopped = [rounds for rounds, reached in found if reached >= PLATEAU]
    return {
        "false_stops": sum(reached < PLATEAU for _, reached in found) / seeds,
        "median_rounds": float(np.median(stopped)) if stopped else None,
        "nine_in_ten_by": float(np.quantile(stopped, 0.9)) if stopped else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--result", type=Path, default=Path(__file__).parent / "results/stopping.json")
    arguments = parser.parse_args()
    settle, found = Settle(), []
    print(f"patience {settle.patience}, min_gain {settle.min_gain:g}, max_retries {settle.max_retries}")
    print("| rule | noise | false stops | median rounds | 9 in 10 by round |\n|---|---|---|---|---|")
    for name, rule in RULES.items():
        for error in NOISE:
            row = summarise(rule, settle, error, arguments.seeds)
            found.append({"rule": name, "noise": error, **row})
            ends = ("–" if row[key] is None else f"{row[key]:.0f}" for key in ("median_rounds", "nine_in_ten_by"))
            print(f"| {name} | {error:g} | {100 * row['false_stops']:.0f} % | {' | '.join(ends)} |")
    write_json(arguments.result, {"curve": WAN, "seeds": arguments.seeds, "settle": settle.model_dump(), "rows": found})


if __name__ == "__main__":
    main()
