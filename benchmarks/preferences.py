"""How right are the preferences, round by round? The small world's oracle looks at what the critic preferred.

    python benchmarks/preferences.py studies/runs/seed-*/full

Of finished runs: the candidates' mean total, that of each prompt's best candidate and of the critic's winner, the
share of pairs whose winner is truly better, the same or worse by more than MARGIN points, and how much better it is.
What a critic could still give is between the candidates' mean and the best; what it does give between the mean and
its winner. The oracle looks on here: it is never in the loop. Prints a table and writes
benchmarks/results/preferences.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import CAVEAT, RESULTS, table
from tqdm import tqdm

from dualipo.artifacts import read_json, write_json
from dualipo.media.store import ClipStore
from dualipo.records import Preference, Prompt, read_rows
from dualipo.world.benchmark import score_clip

MARGIN = 5.0


Totals = dict[str, dict[str, float]]
"""By prompt and clip."""


def true_totals(round_folder: Path) -> Totals:
    """Total of every candidate of a round."""
    prompts = {prompt.id: prompt for prompt in read_rows(round_folder / "prompts.jsonl", Prompt)}
    store = ClipStore(round_folder / "candidates")
    totals: Totals = {}
    for clip in tqdm(store.clips, desc=str(round_folder), leave=False):
        total = score_clip(store[clip.id], prompts[clip.prompt_id])["total"]
        assert total is not None
        totals.setdefault(clip.prompt_id, {})[clip.id] = total
    return totals


def true_margins(pairs: Sequence[Preference], totals: Totals) -> list[float]:
    """How much better each pair's winner truly is, points."""
    return [totals[pair.prompt_id][pair.winner] - totals[pair.prompt_id][pair.loser] for pair in pairs]


def looked_at(round_folder: Path) -> dict[str, Any]:
    totals = true_totals(round_folder)
    pairs = read_rows(round_folder / "preferences/pairs.jsonl", Preference)
    critics = read_json(round_folder / "critic_decision.json")["evidence"]["agreement"]
    gains = true_margins(pairs, totals)
    own = [list(totals[pair.prompt_id].values()) for pair in pairs]
    return {
        "pairs": len(pairs),
        "right": statistics.fmean(gain > MARGIN for gain in gains),
        "same": statistics.fmean(abs(gain) <= MARGIN for gain in gains),
        "wrong": statistics.fmean(gain < -MARGIN for gain in gains),
        "gain": statistics.fmean(gains),
        "candidates": statistics.fmean(statistics.fmean(values) for values in own),
        "best": statistics.fmean(max(values) for values in own),
        "winner": statistics.fmean(totals[pair.prompt_id][pair.winner] for pair in pairs),
        "spread": statistics.fmean(statistics.pstdev(values) for values in own),
        "critic_reward": read_json(round_folder / "preferences/summary.json")["critic_reward"],
        "critic_change": 100 * (critics["candidate"] - critics["incumbent"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--result", type=Path, default=RESULTS / "preferences.json")
    arguments = parser.parse_args()
    found = {
        f"{run.parent.name}/{run.name}": {
            folder.name: looked_at(folder)
            for folder in sorted((run / "runs").iterdir())
            if (folder / "preferences/pairs.jsonl").is_file()
        }
        for run in arguments.runs
    }
    header = ["round", "pairs", "right", "same", "wrong", "margin", "candidates", "critic's winner", "best", "spread"]
    rows = []
    for name in sorted({name for rounds in found.values() for name in rounds}):
        here = [rounds[name] for rounds in found.values() if name in rounds]
        mean = {key: statistics.fmean(one[key] for one in here) for key in here[0]}
        shares = [f"{100 * mean[key]:.0f}" for key in ("right", "same", "wrong")]
        points = [f"{mean[key]:.1f}" for key in ("gain", "candidates", "winner", "best", "spread")]
        rows.append([name, f"{mean['pairs']:.0f}", *shares, *points])
    write_json(arguments.result, {"about": CAVEAT, "margin": MARGIN, "runs": found})
    print(f"{CAVEAT} Means over {len(found)} runs; shares in percent, the rest in points of 100.\n")
    print(table(header, rows))
    changes = [[run, *(f"{one['critic_change']:+.1f}" for one in rounds.values())] for run, rounds in found.items()]
    print("\nWhat refining changed in the critic's agreement with people, points:\n")
    print(table(["run", *(f"round {name}" for name in next(iter(found.values())))], changes))


if __name__ == "__main__":
    main()
