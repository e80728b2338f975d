"""Cost of sampling and labelling over two decades of prompts and of candidates: does it grow in proportion?

    python benchmarks/scaling.py [--prompts 4 40 400] [--candidates 2 20 200]

The steps `generate` and `label` as they are, files and all, on models of tiny shape with random weights: what is
measured is how cost grows, not how fast a model is. One process takes all sizes, after one that is not counted. Prints
seconds and peak memory of each, and the exponent b of seconds = a * size^b over the two decades. Exits with 1 where an
exponent is over 1.1, or memory grows by more than 16 KiB a clip over the second decade.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring import MIB, RESULTS, finish, fresh, machine_line, now, peak, restart_peak, table
from random_models import CRITICS, SHAPES, build_critic, build_generator

from dualipo.config import Config
from dualipo.records import Prompt, write_rows
from dualipo.steps import Job
from dualipo.steps.generate import generate
from dualipo.steps.label import label

EXPONENT, BYTES_A_CLIP = 1.1, 16 * 1024
STEPS = ("generate", "label")
Measured = dict[str, dict[str, float]]
"""By step: `seconds`, and `bytes` at the peak above those in use before."""


def take(prompts: int, candidates: int, models: Path) -> Measured:
    """One round's sampling and labelling."""
    config = Config.model_validate(
        {
            # Batches so small that the smallest size fills one: memory should not grow from there on.
            "generate": {"candidates": candidates, "steps": 2, "batch_size": 4},
            "label": {"paths": 2, "max_new_tokens": 6, "batch_size": 4},
        }
    )
    found: Measured = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [Prompt(id=f"p{n}", text=f"a red circle {n}", categories={}, attributes={}) for n in range(prompts)]
        write_rows(folder / "prompts.jsonl", rows)
        for step in STEPS:
            gc.collect()
            base, begin = restart_peak(), now()
            job = Job("1", 0, folder / f"work-{step}")
            if step == "generate":
                generate(
                    config, job, prompts=folder / "prompts.jsonl", generator=models / "generator",
                    candidates=folder / "candidates",
                )  # fmt: skip
            else:
                critics = {"critic": models / "critic", "critic_reference": models / "critic"}
                label(config, job, candidates=folder / "candidates", labels=folder / "labels", **critics)
            found[step] = {"seconds": now() - begin, "bytes": peak() - base}
    return found


def take_all(sizes: Sequence[tuple[int, int]]) -> list[Measured]:
    with tempfile.TemporaryDirectory() as name:
        models = Path(name)
        build_generator(SHAPES["tiny"]).save(models / "generator")
        build_critic(CRITICS["tiny"]).save(models / "critic")
        take(2, 2, models)
        return [take(*size, models) for size in sizes]


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of a line through the logarithms."""
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[4, 40, 400])
    parser.add_argument("--candidates", type=int, nargs="+", default=[2, 20, 200])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    axes = {
        "prompts": [(prompts, arguments.candidates[0]) for prompts in arguments.prompts],
        "candidates": [(arguments.prompts[0], candidates) for candidates in arguments.candidates],
    }
    measured = fresh(take_all, [size for sizes in axes.values() for size in sizes])
    rows, faults, slopes, content = [], [], [], []
    for axis, sizes in axes.items():
        own, measured = measured[: len(sizes)], measured[len(sizes) :]
        clips = [math.prod(size) for size in sizes]
        for size, count, found in zip(sizes, clips, own, strict=True):
            cells = [f"{found[s]['seconds']:.2f}" for s in STEPS] + [f"{found[s]['bytes'] / MIB:.0f}" for s in STEPS]
            rows.append([axis, *size, count, *cells])
            content.append({"axis": axis, "prompts": size[0], "candidates": size[1], **found})
        for step in STEPS:
            slope = exponent(clips, [found[step]["seconds"] for found in own])
            # The smallest size need not fill a chunk.
            more = (own[-1][step]["bytes"] - own[-2][step]["bytes"]) / (clips[-1] - clips[-2])
            slopes.append([axis, step, f"{slope:.2f}", f"{more / 1024:.0f}"])
            if slope > EXPONENT:
                faults.append(f"{step} costs {axis}^{slope:.2f}; at most {EXPONENT} is allowed")
            if more > BYTES_A_CLIP:
                faults.append(
                    f"{step} takes {more / 1024:.0f} KiB a clip more with more {axis}; at most 16 are allowed"
                )
    parts = [
        f"Growth of cost. {machine_line()}",
        table(
            ["varied", "prompts", "candidates", "clips", *(f"{s}, s" for s in STEPS), *(f"{s}, MiB" for s in STEPS)],
            rows,
        ),
        table(["varied", "step", "exponent", "KiB a clip more"], slopes),
    ]
    names = ("axis", "step", "exponent", "kib_a_clip")
    summary = {"measured": content, "growth": [dict(zip(names, row, strict=True)) for row in slopes]}
    finish("scaling", parts, summary, faults, arguments.out)


if __name__ == "__main__":
    main()
