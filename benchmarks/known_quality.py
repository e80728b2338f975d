"""Holds the small world's benchmark against clips of known quality: `python benchmarks/known_quality.py`.

Prints docs/benchmark.md's tables: what each damage does to the total and to the dimensions, and how often generators
that damage known shares of their clips are ranked rightly. The prompts are the data folder's benchmark.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import table

from dualipo.evaluation.reading import FROZEN_MAXES
from dualipo.records import Prompt, read_rows
from dualipo.world.benchmark import WEIGHTS
from dualipo.world.known import Known, ranked_rightly, score_known

TOLD = ("overall_consistency", "object_class", "colour", "motion_direction")
SHOWN = ("total", *WEIGHTS, *(name for name in FROZEN_MAXES if name not in WEIGHTS), "dynamic_degree", *TOLD)


def damages(known: Known) -> str:
    rows = []
    for name, scores in [("clean", known.clean), *((f"{d.name} {d.strength:g}", s) for d, s in known.damaged.items())]:
        values = [[value for row in scores if (value := row[key]) is not None] for key in SHOWN]
        rows.append([name, *(f"{np.mean(own):.1f}" for own in values)])
    return table(["damage", *SHOWN], rows)


def rankings(known: Known, gaps: Sequence[float], samples: int, draws: int) -> str:
    rows = []
    for gap in gaps:
        shares = [k * gap for k in range(4)]
        right = sum(ranked_rightly(known, shares, samples, np.random.default_rng([0, k])) for k in range(draws))
        rows.append([", ".join(f"{share:.0%}" for share in shares), f"{right} of {draws}"])
    return table(["shares of damaged clips", "ranked rightly"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent / "data")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--samples", type=int, default=3, help="clips a prompt")
    arguments = parser.parse_args()
    known = score_known(read_rows(arguments.data / "benchmark.jsonl", Prompt))
    print(damages(known))
    print()
    print(rankings(known, (0.05, 0.1, 0.15, 0.2), arguments.samples, arguments.draws))


if __name__ == "__main__":
    main()
