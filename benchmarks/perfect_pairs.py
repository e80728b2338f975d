"""What holds a later round back: its pairs, or its training? The same round on the critic's pairs and on perfect ones.

    python benchmarks/perfect_pairs.py --runs studies/runs --seeds 0 1 2 [--round 2]

Takes `dualipo study rounds`' runs. The round's candidates are there; its alignment is done again from the generator
before it, on the critic's pairs and on those that the oracle would make of the same candidates (best and worst of each
prompt by the benchmark's own total, more than MARGIN points apart), with params.yaml's steps and three times as many.
The oracle is never in the loop: these are bounds, not ways to train. Everything lies in benchmarks/out/perfect_pairs/;
started again it goes on where it was. Prints a table and writes benchmarks/results/perfect_pairs.json.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from measuring import CAVEAT, REPOSITORY, RESULTS, between, finish, table
from preferences import MARGIN, Totals, true_margins, true_totals

from dualipo.config import Config, load_config
from dualipo.records import Desirability, Preference, read_rows, write_rows
from dualipo.steps import BASE, Job, derive_seed
from dualipo.steps.align import align
from dualipo.steps.evaluate import evaluate
from dualipo.studies.comparing import pooled_difference
from dualipo.studies.measuring import prompt_totals, read_rounds

TIMES = (1, 3)
"""Of params.yaml's steps."""


def perfect_pairs(scored: list[Desirability], totals: Totals) -> list[Preference]:
    """Each prompt's best and worst candidate by their true totals."""
    text = {row.prompt_id: row.prompt for row in scored}
    pairs = []
    for prompt, own in totals.items():
        best, worst = max(own, key=own.__getitem__), min(own, key=own.__getitem__)
        if own[best] - own[worst] > MARGIN and prompt in text:
            pairs.append(
                Preference(
                    prompt_id=prompt, prompt=text[prompt], winner=best, loser=worst,
                    winner_score=own[best] / 100, loser_score=own[worst] / 100,
                )
            )  # fmt: skip
    return pairs


def aligned(
    config: Config, runs: Path, number: str, pairs: list[Preference], data: Path, out: Path
) -> dict[str, float]:
    """Totals by prompt of the round's generator, aligned on `pairs`."""
    prev = config.rounds[number].prev
    if not (out / "scores.json").is_file():
        for name in ("preferences", "work"):
            (out / name).mkdir(parents=True, exist_ok=True)
        write_rows(out / "preferences/pairs.jsonl", pairs)
        write_rows(out / "preferences/desirability.jsonl", [])
        job = Job(number, derive_seed(config.experiment.seed, "perfect pairs"), out / "work")
        align(
            config, job, preferences=out / "preferences", candidates=runs / number / "candidates",
            real_clips=data / "real", generator=runs / prev / "generator", base_generator=runs / BASE / "generator",
            held_out=runs / BASE / "held_out.json", candidate=out / "candidate", curves=out / "curves.csv",
        )  # fmt: skip
        evaluate(
            config, job, candidate=out / "candidate", benchmark=data / "benchmark.jsonl",
            scores=out / "scores.json", benchmark_clips=out / "benchmark_clips",
        )  # fmt: skip
    return prompt_totals(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "studies/runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--round", default="2")
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/out/perfect_pairs")
    parser.add_argument("--result", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    number, data = arguments.round, arguments.data.absolute()
    found: dict[tuple[str, int], list[tuple[dict[str, float], dict[str, float]]]] = {}
    told: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        config = load_config(REPOSITORY / "params.yaml", overrides={"experiment.seed": seed})
        runs = arguments.runs.absolute() / f"seed-{seed}/full/runs"
        start = {one.name: one.in_use for one in read_rounds(config, runs)}[config.rounds[number].prev]
        totals = true_totals(runs / number)
        scored = read_rows(runs / number / "preferences/desirability.jsonl", Desirability)
        critics = read_rows(runs / number / "preferences/pairs.jsonl", Preference)
        for name, pairs in (("critic", critics), ("perfect", perfect_pairs(scored, totals))):
            margin = statistics.fmean(true_margins(pairs, totals))
            told.setdefault(name, []).append({"pairs": len(pairs), "margin": margin})
            for steps in (config.align.steps * times for times in TIMES):
                longer = config.model_copy(update={"align": config.align.model_copy(update={"steps": steps})})
                out = arguments.out / f"seed-{seed}/{number}-{name}-{steps}"
                found.setdefault((name, steps), []).append((start, aligned(longer, runs, number, pairs, data, out)))
    rows: list[list[str]] = []
    arms: list[dict[str, Any]] = []
    for (name, steps), gained in found.items():
        gain = pooled_difference(gained, load_config(REPOSITORY / "params.yaml").evaluate.bootstrap)
        by_seed = [statistics.fmean(after.values()) - statistics.fmean(start.values()) for start, after in gained]
        mean = {key: statistics.fmean(one[key] for one in told[name]) for key in ("pairs", "margin")}
        signed = ", ".join(f"{value:+.1f}" for value in by_seed)
        rows.append(
            [name, f"{mean['pairs']:.0f}", f"{mean['margin']:.1f}", str(steps), between(gain, signed=True), signed]
        )
        arms.append({"pairs": name, "steps": steps, "gain": gain, "by_seed": by_seed, **mean})
    header = ["pairs", "how many", "true margin, points", "steps", "gain of the round, points", "by seed"]
    content = {"about": CAVEAT, "round": number, "seeds": arguments.seeds, "arms": arms}
    about = f"Round {number}, over seeds {', '.join(map(str, arguments.seeds))}; gains over the generator before it."
    finish("perfect_pairs", [CAVEAT, about, table(header, rows)], content, [], arguments.result)


if __name__ == "__main__":
    main()
