"""The small world's data folder: labelled clips of the base generator, real clips and held-out prompts.

The human labels are simulated (annotators.py).
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dualipo.artifacts import atomic
from dualipo.critic.data import read_human
from dualipo.evaluation.people import PROMPTS
from dualipo.generator.base import Generator, load_generator
from dualipo.media.video import decode_clip, encode_clip
from dualipo.prompts import load_space, sample_prompts
from dualipo.records import HumanChoice, HumanRating, Prompt, RealClip, Record, read_rows, write_rows
from dualipo.steps import derive_seed
from dualipo.world.annotators import annotate_clip, annotate_pair
from dualipo.world.captions import mistaken, sentence
from dualipo.world.examples import Pair, generated_pairs
from dualipo.world.oracle import judge
from dualipo.world.scene import FPS, Scene, render

SEED_PROMPTS, TEST_PROMPTS, BENCHMARK_PROMPTS, REAL_CLIPS = 128, 40, 60, 160
DESCRIBED_PROMPTS = 3000
AS_ASKED, MISREAD, HURRIED = 4, 3, 1
"""Clips a prompt: sampled for the prompt itself; for one that differs in an attribute or two; in a single step. People
compare clips of several generators, some of which follow a prompt or finish a clip less well."""
PAIRS_A_PROMPT = 9
STEPS, GUIDANCE = 12, 1.0


def make_data(folder: Path, generator: Path, seed: int = 0) -> None:
    """Writes seed/, test/, real/ and benchmark.jsonl; no prompt stands in two of the first, second and last."""
    space = load_space("small_world")
    drawn = sample_prompts(space, BENCHMARK_PROMPTS, derive_seed(seed, "benchmark"), prefix="b")
    write_rows(folder / "benchmark.jsonl", drawn)
    taken = {prompt.text for prompt in drawn}
    model = load_generator(generator)
    for name, count in (("seed", SEED_PROMPTS), ("test", TEST_PROMPTS)):
        prompts = list(sample_prompts(space, count, derive_seed(seed, name), exclude=frozenset(taken), prefix=name[0]))
        taken |= {prompt.text for prompt in prompts}
        with atomic(folder / name) as temporary:
            write_human_labels(temporary, model, prompts, derive_seed(seed, name, "labels"))
            write_rows(temporary / PROMPTS, prompts)
    with atomic(folder / "real") as temporary:
        _write_real_clips(temporary, derive_seed(seed, "real"), frozenset(taken))


def described_pairs(folder: Path, generator: Generator, seed: int = 0) -> list[Pair]:
    """Clips of the generator with descriptions, of prompts that stand neither in test/ nor in benchmark.jsonl."""
    held_out = {answered.question.prompt for answered in read_human(folder / "test")}
    held_out |= {prompt.text for prompt in read_rows(folder / "benchmark.jsonl", Prompt)}
    space = load_space("small_world")
    drawn = sample_prompts(
        space, DESCRIBED_PROMPTS, derive_seed(seed, "described"), exclude=frozenset(held_out), prefix="d"
    )
    return generated_pairs(generator, list(drawn), derive_seed(seed, "described", "clips"), STEPS, GUIDANCE)


def write_human_labels(folder: Path, generator: Generator, prompts: Sequence[Prompt], seed: int) -> None:
    """Samples clips of each prompt and lets the simulated annotators rate all and compare some pairs."""
    (folder / "clips").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    ratings: list[HumanRating] = []
    choices: list[HumanChoice] = []
    for prompt in tqdm(prompts, desc="labelling"):
        scene = Scene.of(prompt.attributes)
        sampled = _answers(generator, prompt.text, scene, rng, derive_seed(seed, prompt.id))
        names = [f"clips/{prompt.id}-{k}.mp4" for k in range(len(sampled))]
        judged = []
        for name, clip in zip(names, sampled, strict=True):
            (folder / name).write_bytes(encode_clip(clip, FPS))
            judged.append(judge(decode_clip(folder / name), scene))
            ratings += annotate_clip(name, prompt.text, judged[-1], rng)
        pairs = list(itertools.permutations(range(len(sampled)), 2))
        for a, b in _some_pairs(pairs, rng):
            choices += annotate_pair((names[a], names[b]), prompt.text, (judged[a], judged[b]), rng)
    write_csv(folder / "ratings.csv", ratings)
    write_csv(folder / "choices.csv", choices)


def _answers(generator: Generator, text: str, scene: Scene, rng: np.random.Generator, seed: int) -> np.ndarray:
    """Clips for one prompt, of all three sources."""
    misread = [sentence(mistaken(scene, rng, int(rng.integers(1, 3)))) for _ in range(MISREAD)]
    finished = [*[text] * AS_ASKED, *misread]
    seeds = [derive_seed(seed, k) for k in range(len(finished) + HURRIED)]
    return np.concatenate(
        [
            generator.generate(finished, seeds[: len(finished)], STEPS, GUIDANCE),
            generator.generate([text] * HURRIED, seeds[len(finished) :], 1, GUIDANCE),
        ]
    )


def _some_pairs(pairs: list[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    """PAIRS_A_PROMPT ordered pairs, none of them in both orders."""
    chosen: list[tuple[int, int]] = []
    for index in rng.permutation(len(pairs)):
        a, b = pairs[index]
        if (b, a) not in chosen:
            chosen.append((a, b))
        if len(chosen) == PAIRS_A_PROMPT:
            break
    return chosen


def _write_real_clips(folder: Path, seed: int, held_out: frozenset[str]) -> None:
    (folder / "clips").mkdir(parents=True)
    rows = []
    for prompt in sample_prompts(load_space("small_world"), REAL_CLIPS, seed, exclude=held_out, prefix="real"):
        name = f"clips/{prompt.id}.mp4"
        clip = render(Scene.of(prompt.attributes), derive_seed(seed, prompt.id))
        (folder / name).write_bytes(encode_clip(clip, FPS))
        rows.append(RealClip(clip=name, prompt=prompt.text))
    write_csv(folder / "captions.csv", rows)


def write_csv(path: Path, rows: Iterable[Record]) -> None:
    table = [row.model_dump() for row in rows]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
