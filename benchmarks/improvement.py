"""Does the generator improve, and does the critic stay as good? The experiment of params.yaml, once for each seed.

    python benchmarks/improvement.py --seeds 0 1 2

Runs lie in benchmarks/out/seed-<n>/; started again it goes on where it was. Prints tables in Markdown and writes
benchmarks/results/improvement.json. Exits with 1 unless, over all seeds, the final generator beats the base by at least
5 points with a 95 percent interval above 0, the base critic agrees with people on at least 75 percent of the test
pairs, and the final critic agrees no less than the base.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import CAVEAT, REPOSITORY, between, table, versions

from dualipo.artifacts import digest, read_json, write_json
from dualipo.config import Config, load_config
from dualipo.engine import run
from dualipo.evaluation.bootstrap import paired_difference
from dualipo.runtime import git_commit, threads
from dualipo.steps import BASE, derive_seed
from dualipo.studies.comparing import pooled_difference
from dualipo.studies.measuring import prompt_totals

MIN_GAIN, MIN_AGREEMENT = 5.0, 0.75


@dataclass(frozen=True)
class Measured:
    """One seed's run. Intervals are {"mean", "low", "high"}."""

    seed: int
    base: dict[str, float]
    """Total of the base, by prompt, points."""
    final: dict[str, float]
    """The same of the last promoted generator."""
    rounds: list[dict[str, Any]]
    """Base first: what was promoted, totals and agreements."""
    seconds: dict[str, float]
    """By `<round>/<step>`."""


def measure(seed: int, folder: Path, data: Path, params: Sequence[Path]) -> Measured:
    """Runs the experiment, or what is left of it, and reads its results."""
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(*params, overrides={"experiment.seed": seed})
    link = folder / "data"
    if not link.is_symlink():
        link.symlink_to(data.resolve(), target_is_directory=True)
    outcomes = run(config, folder)
    runs = folder / "runs"
    final = last_promoted(config, runs)
    return Measured(
        seed,
        prompt_totals(runs / BASE),
        prompt_totals(runs / final),
        [read_round(runs / name) for name in (BASE, *config.rounds)],
        {f"{outcome.round}/{outcome.step}": outcome.seconds for outcome in outcomes},
    )


def last_promoted(config: Config, runs: Path) -> str:
    """The round whose candidate is the champion in the end; `base` where none was promoted."""
    promoted = [n for n in config.rounds if read_json(runs / n / "generator_decision.json").get("promoted")]
    return promoted[-1] if promoted else BASE


def read_round(folder: Path) -> dict[str, Any]:
    scores = read_json(folder / "scores.json")
    found: dict[str, Any] = {
        "round": folder.name,
        "total": scores["total"],
        "dimensions": {name: value["mean"] for name, value in scores["dimensions"].items() if value},
        "agreement": read_json(folder / "agreement.json")["agreement"],
    }
    if folder.name != BASE:
        for kind, numbers, key in (("critic", "agreement", "agreement"), ("generator", "scores", "total")):
            # of a round that did not happen there are notes that give the reasons.
            decision = read_json(folder / f"{kind}_decision.json")
            found[f"{kind}_promoted"] = decision.get("promoted", False)
            found[f"{kind}_reasons"] = decision["reasons"]
            found[f"{kind}_candidate_{key}"] = read_json(folder / f"{kind}_candidate_{numbers}.json").get(key)
        settled = read_json(folder / "settlement.json")
        found |= {name: settled[name] for name in ("critic_rolled_back", "watch")}
        found["settled"] = settled["reasons"]
    return found


def judge(measured: Sequence[Measured], pooled: dict[str, float]) -> list[str]:
    """A sentence for each requirement that is not met."""
    base, final = (statistics.fmean(m.rounds[i]["agreement"]["mean"] for m in measured) for i in (0, -1))
    faults = []
    if pooled["low"] <= 0:
        faults.append(f"the interval of the gain reaches down to {pooled['low']:.2f}; it must lie above 0")
    if pooled["mean"] < MIN_GAIN:
        faults.append(f"the gain is {pooled['mean']:.2f} points; at least {MIN_GAIN:g} are required")
    if base < MIN_AGREEMENT:
        faults.append(f"the base critic agrees on {base:.1%} of the pairs; at least {MIN_AGREEMENT:.0%} is required")
    if final < base:
        faults.append(f"the critic's agreement fell from {base:.1%} to {final:.1%}")
    return faults


# ---- what is shown


def show(measured: Sequence[Measured], pooled: dict[str, float], resamples: int) -> str:
    names = [entry["round"] for entry in measured[0].rounds]
    gains, critics, rounds = [], [], []
    both = [(m.base, m.final) for m in measured]
    for m in measured:
        totals = [between(entry["total"]) for entry in m.rounds]
        base, final = statistics.fmean(m.base.values()), statistics.fmean(m.final.values())
        gain = paired_difference(m.base, m.final, derive_seed(m.seed, "paired"), resamples)
        gains.append([m.seed, f"{base:.1f}", f"{final:.1f}", between(gain, signed=True)])
        rounds.append([m.seed, *totals, *_promotions(m, "generator")])
        critics.append([m.seed, *(between(e["agreement"], 100) for e in m.rounds), *_promotions(m, "critic")])
    means = [statistics.fmean(statistics.fmean(side.values()) for side in sides) for sides in zip(*both, strict=True)]
    gains.append(["all", *(f"{mean:.1f}" for mean in means), between(pooled, signed=True)])
    agreed = [statistics.fmean(m.rounds[i]["agreement"]["mean"] for m in measured) for i in range(len(names))]
    critics.append(["all", *(f"{100 * mean:.1f}" for mean in agreed), ""])
    columns = [*("base" if name == BASE else f"round {name}" for name in names), "promoted"]
    steps = list(dict.fromkeys(key.partition("/")[2] for key in measured[0].seconds))
    seconds = [
        [step, *(f"{sum(s for k, s in m.seconds.items() if k.partition('/')[2] == step):.0f}" for m in measured)]
        for step in steps
    ]
    seconds.append(["all", *(f"{sum(m.seconds.values()):.0f}" for m in measured)])
    dimensions = [
        [name, *(f"{statistics.fmean(m.rounds[i]['dimensions'][name] for m in measured):.1f}" for i in (0, -1))]
        for name in measured[0].rounds[0]["dimensions"]
    ]
    parts = [
        CAVEAT + " Brackets: 95 percent bootstrap intervals over prompts.",
        "Generator, points of 100:\n\n" + table(["seed", "base", "final", "paired difference"], gains),
        "Generator in use after each round, points of 100:\n\n" + table(["seed", *columns], rounds),
        "Dimensions, points of 100, mean over the seeds:\n\n" + table(["dimension", "base", "final"], dimensions),
        "Critic in use, agreement with the human test pairs, percent:\n\n" + table(["seed", *columns], critics),
        "Seconds by step, all rounds:\n\n" + table(["step", *(f"seed {m.seed}" for m in measured)], seconds),
    ]
    return "\n\n".join(parts)


def _promotions(m: Measured, kind: str) -> list[str]:
    promoted = [entry["round"] for entry in m.rounds[1:] if entry[f"{kind}_promoted"]]
    return [", ".join(promoted) or "none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data")
    parser.add_argument("--params", type=Path, action="append", default=[], help="a preset laid over params.yaml")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/out")
    parser.add_argument("--result", type=Path, default=REPOSITORY / "benchmarks/results/improvement.json")
    arguments = parser.parse_args()
    params = [REPOSITORY / "params.yaml", *arguments.params]
    measured = []
    for seed in arguments.seeds:
        print(f"seed {seed}", file=sys.stderr)
        measured.append(measure(seed, arguments.out / f"seed-{seed}", arguments.data, params))
    config = load_config(*params)
    resamples = config.evaluate.bootstrap
    pooled = pooled_difference([(m.base, m.final) for m in measured], resamples)
    faults = judge(measured, pooled)
    write_json(
        arguments.result,
        {
            "about": CAVEAT,
            "seeds": [
                {
                    "seed": m.seed,
                    "base_total": statistics.fmean(m.base.values()),
                    "final_total": statistics.fmean(m.final.values()),
                    "difference": paired_difference(m.base, m.final, derive_seed(m.seed, "paired"), resamples),
                    "rounds": m.rounds,
                    "seconds": m.seconds,
                }
                for m in measured
            ],
            "pooled_difference": pooled,
            "faults": faults,
            "passed": not faults,
            "parameters": config.model_dump(mode="json"),
            "data_md5": digest(arguments.data).md5,
            "git_commit": git_commit(REPOSITORY),
            "versions": versions(),
            "threads": threads(),
        },
    )
    print(show(measured, pooled, resamples))
    print()
    for fault in faults:
        print(f"Not met: {fault}.")
    if not faults:
        print("All requirements are met.")
    print(f"Written to {arguments.result}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
