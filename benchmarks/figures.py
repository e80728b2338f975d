"""Draws the README's two pictures from finished runs: `python benchmarks/figures.py benchmarks/out/seed-*`.

docs/images/before_after.png: base and final clips of the first run, same prompts and seeds, spread evenly over the
benchmark. docs/images/score_over_rounds.png: the champion's total after each round, one line a run, with 95 percent
intervals.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dualipo.artifacts import read_json
from dualipo.media.sheets import side_by_side
from dualipo.media.store import ClipStore

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SHOWN = 10


def rounds_of(run: Path) -> list[Path]:
    """Folders of the base models and of the finished rounds, in order."""
    found = [path for path in (run / "runs").iterdir() if (path / "scores.json").is_file()]
    return sorted(found, key=lambda path: (path.name != "base", path.name.zfill(4)))


def champion_clips(run: Path) -> Path:
    """Benchmark clips of the last promoted generator."""
    promoted = [
        path
        for path in rounds_of(run)
        if path.name == "base" or read_json(path / "generator_decision.json").get("promoted")
    ]
    return promoted[-1] / "benchmark_clips"


def before_after(run: Path) -> None:
    base, final = ClipStore(run / "runs" / "base" / "benchmark_clips"), ClipStore(champion_clips(run))
    firsts = [clips[0] for clips in base.by_prompt().values()]
    shown = firsts[:: max(len(firsts) // SHOWN, 1)][:SHOWN]
    captions = [clip.prompt for clip in shown]
    picture = side_by_side([base[c.id] for c in shown], [final[c.id] for c in shown], captions, ("base", "final"))
    (IMAGES / "before_after.png").write_bytes(picture)


def score_over_rounds(runs: list[Path]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), dpi=150)
    for offset, run in enumerate(runs):
        rounds = rounds_of(run)
        totals = [read_json(path / "scores.json")["total"] for path in rounds]
        means = [total["mean"] for total in totals]
        errors = [
            [total["mean"] - total["low"] for total in totals],
            [total["high"] - total["mean"] for total in totals],
        ]
        places = [i + 0.06 * (offset - (len(runs) - 1) / 2) for i in range(len(rounds))]
        axes.errorbar(places, means, errors, marker="o", capsize=3, label=run.name.replace("-", " "))
        axes.set_xticks(range(len(rounds)), [f"round {p.name}" if p.name != "base" else "base" for p in rounds])
    axes.set_ylabel("total, of 100")
    axes.set_title("Small-world benchmark of the champion (not VBench)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(IMAGES / "score_over_rounds.png")


if __name__ == "__main__":
    finished = [Path(argument) for argument in sys.argv[1:]]
    if not finished:
        sys.exit(__doc__)
    IMAGES.mkdir(parents=True, exist_ok=True)
    before_after(finished[0])
    score_over_rounds(finished)
    print(f"drawn from {', '.join(map(str, finished))} into {IMAGES}")
