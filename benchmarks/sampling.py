"""Eight candidates of a prompt, against the pipeline of diffusers called once for each, in one run.

    python benchmarks/sampling.py [--size short] [--candidates 8] [--repetitions 5]

Ours: `Generator.generate`: the prompt is encoded once, all candidates are denoised in one batch, with and without the
prompt in one pass. Textbook: `pipeline(prompt)`, a clip a call. Both start from the same noise; their latents must
agree.

Sizes: `short` and `small` for a CPU, the same model over clips of 12 and of 256 tokens; `cogvideox-2b` and `wan-1.3b`,
the real models' shapes with random weights, for a GPU; `tiny` and `tiny-wan` try the command out, and require nothing
of its speed. Exits with 1 where latents differ or, at other sizes, our way is less than 1.5 times as fast. What is
gained are products of few rows and repeated encodings: a clip of many tokens keeps a machine busy by itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, Operations, alternate, finish, machine_line, peak_rate, table
from random_models import SHAPES, Shape, build_generator

from dualipo.generator.base import Generator
from dualipo.runtime import prepare_torch
from dualipo.steps import derive_seed

FASTER, DIFFERENCE, GUIDANCE = 1.5, 1e-3, 6.0
PROMPT = "a small red circle moving left slowly on a black background"
Sampled = tuple[np.ndarray, torch.Tensor]
"""Clips and their latents."""


def ours(generator: Generator, seeds: Sequence[int], shape: Shape) -> Sampled:
    held: list[torch.Tensor] = []
    decode = generator.decode

    def keeping(latents: torch.Tensor) -> np.ndarray:
        held.append(latents)
        return decode(latents)

    generator.decode = keeping  # type: ignore[method-assign]
    try:
        clips = generator.generate([PROMPT] * len(seeds), seeds, shape.steps, GUIDANCE, len(seeds), shape.size)
    finally:
        generator.decode = decode  # type: ignore[method-assign]
    return clips, torch.cat(held).float()


def textbook(generator: Generator, seeds: Sequence[int], shape: Shape) -> Sampled:
    frames, height, width = shape.size
    clips, held = [], []
    for seed in seeds:
        last: dict[str, torch.Tensor] = {}
        noise = torch.randn(generator.latent_shape(shape.size), generator=torch.Generator().manual_seed(seed))
        made = generator.pipeline(
            PROMPT,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=shape.steps,
            guidance_scale=GUIDANCE,
            latents=noise[None].to(generator.device, generator.sampling_dtype),
            max_sequence_length=shape.text_tokens,
            callback_on_step_end=lambda _pipeline, _step, _level, tensors, into=last: into.update(tensors) or {},
            output_type="np",
        ).frames[0]
        clips.append((made * 255).round().astype(np.uint8))
        held.append(last["latents"].float())
    return np.stack(clips), torch.cat(held)


def difference(found: tuple[Sampled, Sampled]) -> float:
    """Largest, over the latents' deviation."""
    (_, own), (_, plain) = found
    return ((own - plain).abs().max() / plain.std()).item()


def compare(shape: Shape, candidates: int, repetitions: int) -> dict[str, Any]:
    seeds = [derive_seed(0, PROMPT, k) for k in range(candidates)]
    off = []
    if shape.dtype != torch.float32:  # 16 bits round more than the two ways differ
        generator, two = build_generator(replace(shape, dtype=torch.float32)), replace(shape, steps=2)
        off = [difference((ours(generator, seeds[:2], two), textbook(generator, seeds[:2], two)))]
        del generator
    generator = build_generator(shape)
    with Operations() as counted:
        ours(generator, seeds, replace(shape, steps=1))
    first = counted.total
    with Operations() as counted:
        ours(generator, seeds, replace(shape, steps=2))
    operations = first + (shape.steps - 1) * (counted.total - first)
    times, found = alternate(
        lambda _: ours(generator, seeds, shape), lambda _: textbook(generator, seeds, shape), repetitions, warm_up=0
    )
    return {
        **times.content,
        "row": times.row(),
        "latents_differ_by": max(off or [difference(each) for each in found]),
        "pixels_differ_by": max(int(np.abs(a[0].astype(int) - b[0]).max()) for a, b in found),
        "operations": operations,
        "rate": operations / statistics.median(times.ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="short")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    prepare_torch()
    shape = SHAPES[arguments.size]
    rate, source = peak_rate()
    found = compare(shape, arguments.candidates, arguments.repetitions)

    faults = []
    if not found["latents_differ_by"] <= DIFFERENCE:
        faults.append(f"latents differ by {found['latents_differ_by']:.1e}, at most {DIFFERENCE:g} is allowed")
    if not arguments.size.startswith("tiny") and found["times_faster"]["median"] < FASTER:
        faults.append(f"{found['times_faster']['median']:.2f} times as fast, {FASTER} is required")
    size = "x".join(map(str, shape.size))
    row = [
        f"{arguments.candidates} clips of {size}, {shape.steps} steps", *found["row"],
        f"{found['latents_differ_by']:.0e}", f"{found['pixels_differ_by']} of 255",
    ]  # fmt: skip
    parts = [
        f"Sampling, size {arguments.size}, {arguments.repetitions} repetitions. {machine_line()}",
        table(["work", "s", "textbook, s", "times faster", "latents differ by", "pixels"], [row]),
        "Brackets: the median's interval, of paired ratios. Latents: the largest difference, over their deviation"
        + ("." if shape.dtype == torch.float32 else "; in float32, after two steps."),
        f"{found['operations'] / 1e9:,.1f}e9 operations at {found['rate'] / 1e9:.0f}e9 a second, "
        f"{found['rate'] / rate:.0%} of the peak rate ({rate / 1e9:.0f}e9, {source}).",
    ]
    content = {"size": arguments.size, "candidates": arguments.candidates, "peak_rate": rate, "found": found}
    finish(f"sampling-{arguments.size}", parts, content, faults, arguments.out)


if __name__ == "__main__":
    main()
