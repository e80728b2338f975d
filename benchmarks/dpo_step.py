"""A step of Diffusion-DPO, its time and its peak memory, against a textbook step, in one run.

    python benchmarks/dpo_step.py [--size small] [--tuning lora full] [--repetitions 5]

Ours: `dualipo.alignment.trainer`. Clips and texts are encoded once, before training; VAE and text encoder are freed; a
LoRA's reference is the model with its adapter off; winner, loser and real clip share a pass.
Textbook: a policy and a second full copy of the model as reference; every step encodes its clips and texts.
Both draw the same pairs, noise levels and noise, step the same optimizer over the same weights (those of a LoRA, or
all), in the same precision, both with gradient checkpointing or both without. Their losses must agree in every step.

Sizes: `small` for a CPU; `cogvideox-2b` and `wan-1.3b`, the real models' shapes with random weights, for a GPU; `tiny`
and `tiny-wan` try the command out, and require nothing of its speed. Exits with 1 where losses differ or, at other
sizes, the step with LoRA is less than 1.25 times as fast or takes more than 0.6 times the memory.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import MIB, RESULTS, Operations, alternate, finish, machine_line, peak_memory, peak_rate, table
from random_models import SHAPES, Shape, build_generator

from dualipo.alignment import adapter
from dualipo.alignment.encoding import encode_clips, encode_texts
from dualipo.alignment.losses import widen
from dualipo.alignment.trainer import Encoded, Trainer
from dualipo.config import Align
from dualipo.generator.base import Generator
from dualipo.runtime import prepare_torch
from dualipo.sizes import BACKBONES, Backbone
from dualipo.steps import derive_seed
from dualipo.training.backend import Plain, autocast
from dualipo.training.task import Recipe

FASTER, MEMORY, DIFFERENCE = 1.25, 0.6, 1e-5
PAIRS, REAL, SEED = 2, 2, 0
TEXTS = ["a red circle", "a blue square moving left", "a green triangle", "a white star"]
"""Of the pairs and of the real clips."""


def section(shape: Shape, tuning: str) -> Align:
    """A pair and a real clip a step.

    At beta's usual thousands, float32's rounding of an error near 1, 6e-8, is 3e-5 of the loss: too much to compare.
    """
    return Align(
        loss="flow_dpo" if shape.family == "wan" else "dpo", beta=100.0, learning_rate=1e-4, warmup_steps=0,
        steps=1000, batch_size=1, lora={"lora": 16, "full": None}[tuning], training=shape.settings,
    )  # fmt: skip


def recipe(how: Align) -> Recipe:
    return Recipe(
        how.steps, how.learning_rate, 0, how.max_grad_norm, how.checkpoint_every, (0.9, 0.99), training=how.training
    )


def clip(shape: Shape, number: int) -> np.ndarray:
    """Pairs first, each winner before its loser; then real clips."""
    return np.random.default_rng(number).integers(256, size=(*shape.size, 3), dtype=np.uint8)


# ---- ours


def ours(shape: Shape, tuning: str, generator: Generator | None = None) -> Callable[[int], float]:
    """A function that takes a step and returns its loss."""
    how, generator = section(shape, tuning), generator or build_generator(shape)
    names = [str(number) for number in range(2 * PAIRS + REAL)]
    folder = tempfile.TemporaryDirectory()  # the shards are read as long as the trainer lives
    latents = encode_clips(generator, names, lambda name: clip(shape, int(name)), str.encode, Path(folder.name))
    text = encode_texts(generator, TEXTS, Path(folder.name))
    generator.keep_denoiser()
    data = Encoded(
        latents, text, torch.arange(0, 2 * PAIRS, 2), torch.arange(1, 2 * PAIRS, 2), torch.arange(PAIRS), None,
        torch.arange(2 * PAIRS, 2 * PAIRS + REAL), torch.arange(PAIRS, PAIRS + REAL),
    )  # fmt: skip
    reference = None
    if how.lora is None:
        reference = generator.with_denoiser(copy.deepcopy(generator.denoiser).eval())
    trainer = Trainer(generator, reference, data, how, SEED)
    if how.training.gradient_checkpointing:
        trainer.denoiser.enable_gradient_checkpointing()
    backend = Plain(trainer, recipe(how))

    def step(number: int, _keep: Any = folder) -> float:
        parts = backend.without_gradient(lambda: trainer.begin(number))
        for index, part in enumerate(parts):
            backend.backward(part, last=index + 1 == len(parts))
        logged = trainer.finish()
        backend.step(how.learning_rate)
        return logged["loss"]

    return step


# ---- textbook


def textbook(shape: Shape, tuning: str, policy: Generator | None = None) -> Callable[[int], float]:
    """The same, as one writes it first."""
    how, policy = section(shape, tuning), policy or build_generator(shape)
    reference = policy.with_denoiser(copy.deepcopy(policy.denoiser))
    model = policy.denoiser.train()
    if how.lora is None:
        model.requires_grad_(True)
    else:
        adapter.attach(model, how.lora, derive_seed(SEED, "adapter"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = widen(parameter.data)  # master weights
    if how.training.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=how.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)

    def error(of: Generator, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor, text: torch.Tensor) -> Any:
        kind = reference.denoiser.dtype
        x, target = policy.noised(clean, noise, levels), policy.target(clean, noise, levels)
        return (of.predict(x.to(kind), levels, text).float() - target.float()).square().flatten(1).mean(1)

    def step(number: int) -> float:
        source = torch.Generator().manual_seed(derive_seed(SEED, number))
        pair = int(torch.randperm(PAIRS, generator=source)[0])
        level = policy.draw_levels(1, source).to(policy.device)
        noise = torch.randn((1, *policy.latent_shape(shape.size)), generator=source).to(policy.device)
        real = int(torch.randperm(REAL, generator=source)[0])
        real_level = policy.draw_levels(1, source).to(policy.device)
        real_noise = torch.randn(noise.shape, generator=source).to(policy.device)

        numbers = (2 * pair, 2 * pair + 1, 2 * PAIRS + real)
        winner, loser, clean = (policy.encode_clips(clip(shape, n)[None]) for n in numbers)
        text, real_text = policy.encode_text([TEXTS[pair], TEXTS[PAIRS + real]]).split(1)
        both = torch.cat([winner, loser]), noise.repeat(2, 1, 1, 1, 1), level.repeat(2), text.repeat(2, 1, 1)
        with autocast(recipe(how), policy.device):
            error_w, error_l = error(policy, *both)
            with torch.no_grad():
                before_w, before_l = error(reference, *both)
            real_error = error(policy, clean, real_noise, real_level, real_text)[0]
        inside = -how.beta / 2 * ((error_w - before_w) - (error_l - before_l))
        loss = -F.logsigmoid(inside) + how.lambda_winner * error_w + how.lambda_real * real_error
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, how.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


# ---- the comparison


def compare(shape: Shape, tuning: str, repetitions: int) -> dict[str, Any]:
    steps: list[tuple[float, float]] = []
    if shape.dtype != torch.float32:  # 16 bits round more than the two ways differ
        exact = {key: value for key, value in shape.settings.items() if key != "precision"}
        ways = both(replace(shape, dtype=torch.float32, settings=exact), tuning)
        steps = [(ways[0](number), ways[1](number)) for number in range(2)]
        del ways
    ways = both(shape, tuning)
    done = []
    for way in ways:  # step 0, in which the adapter still is the identity
        with Operations() as counted:
            way(0)
        done.append(counted.total)
    times, losses = alternate(_after_first(ways[0]), _after_first(ways[1]), repetitions)
    del ways
    memory = [peak_memory(way, shape, SHAPES["tiny"], tuning) for way in (ours, textbook)]
    return {
        "tuning": tuning,
        **times.content,
        "row": times.row(),
        "losses": steps or losses,
        "largest_difference": max(abs(a - b) for a, b in steps or losses),
        "operations": done,
        "rate": done[0] / statistics.median(times.ours),
        "peak_bytes": memory,
    }


def _after_first(way: Callable[[int], float]) -> Callable[[int], float]:
    return lambda number: way(number + 1)


def both(shape: Shape, tuning: str) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """Both ways, from equal weights; the encoders are shared."""
    generator = build_generator(shape)
    copied = type(generator)(copy.copy(generator.pipeline)).with_denoiser(copy.deepcopy(generator.denoiser))
    return ours(shape, tuning, copied), textbook(shape, tuning, generator)


def judge(found: dict[str, Any], size: str) -> list[str]:
    faults, tuning = [], found["tuning"]
    if not found["largest_difference"] <= DIFFERENCE:
        faults.append(
            f"{tuning}: losses differ by {found['largest_difference']:.1e}, at most {DIFFERENCE:g} is allowed"
        )
    if tuning == "lora" and not size.startswith("tiny"):
        if found["times_faster"]["median"] < FASTER:
            faults.append(f"{tuning}: {found['times_faster']['median']:.2f} times as fast, {FASTER} is required")
        if share(found, "step") > MEMORY:
            faults.append(f"{tuning}: {share(found, 'step'):.2f} times the memory, at most {MEMORY} is allowed")
    return faults


def share(found: dict[str, Any], what: str) -> float:
    own, plain = (memory[what] for memory in found["peak_bytes"])
    return own / plain if plain else math.nan


def saved(backbone: Backbone) -> float:
    """Times fewer operations of a step of all weights with checkpointing, by the closed formulas: a pair and a real
    clip forward twice and backward, the pair under the reference, against the same and their encoding."""
    step = 3 * 4 * backbone.forward + 2 * backbone.forward
    encoding = 3 * backbone.vae_encode * backbone.pixels + 2 * 2.0 * backbone.text_encoder * backbone.text_tokens
    return (step + encoding) / step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="small")
    parser.add_argument("--tuning", nargs="+", choices=("lora", "full"), help="both; of the real shapes, lora")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    prepare_torch()
    shape = SHAPES[arguments.size]
    tunings = arguments.tuning or (["lora"] if shape.real else ["lora", "full"])
    rate, source = peak_rate()
    found = [compare(shape, tuning, arguments.repetitions) for tuning in tunings]

    rows = [
        [
            f"{each['tuning']}", *each["row"], f"{each['largest_difference']:.0e}",
            *(f"{memory['step'] / MIB:.0f}" for memory in each["peak_bytes"]), f"{share(each, 'step'):.2f}",
            f"{share(each, 'whole'):.2f}",
        ]
        for each in found
    ]  # fmt: skip
    header = [
        "trained", "s", "textbook, s", "times faster", "losses differ by", "MiB", "textbook, MiB", "of its memory",
        "with encoding",
    ]  # fmt: skip
    work = [
        f"- {each['tuning']}: {each['operations'][0] / 1e9:,.1f}e9 operations a step against "
        f"{each['operations'][1] / 1e9:,.1f}e9 ({each['operations'][1] / each['operations'][0]:.2f} times), at "
        f"{each['rate'] / 1e9:.0f}e9 a second, {each['rate'] / rate:.0%} of the peak rate"
        for each in found
    ]
    precision = "float32" if shape.dtype == torch.float32 else "bfloat16, losses compared in float32"
    parts = [
        f"DPO step, size {arguments.size}, {arguments.repetitions} repetitions. {machine_line()}",
        f"A step: one pair and one real clip of {'x'.join(map(str, shape.size))}, {precision}"
        + (", gradient checkpointing." if shape.settings else "."),
        table(header, rows),
        f"Brackets: the median's interval, of paired ratios. Peak rate {rate / 1e9:.0f}e9 a second ({source}).",
        "\n".join(work),
        "By dualipo/sizes.py the textbook's step takes "
        + " and ".join(f"{saved(BACKBONES[name]):.2f} times ({name})" for name in ("cogvideox-2b", "wan-1-3b"))
        + " the operations of ours at the real models' own shapes, all weights trained, with checkpointing.",
    ]
    faults = [fault for each in found for fault in judge(each, arguments.size)]
    content = {"size": arguments.size, "repetitions": arguments.repetitions, "peak_rate": rate, "found": found}
    finish(f"dpo_step-{arguments.size}", parts, content, faults, arguments.out)


if __name__ == "__main__":
    main()
