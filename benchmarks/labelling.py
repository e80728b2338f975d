"""Asking the critic and sampling candidates, against doing the same the textbook way, in one run.

    python benchmarks/labelling.py [--paths 4] [--prompts 8] [--repetitions 5] [--data data]

Labelling: one pass of the vision tower a clip, and one reading of each question, whose cache all its paths share.
Textbook: `model.generate(num_return_sequences=paths)`, which looks at every clip and reads every question once for each
path. Both ask the same questions in the same batches at the same temperature, and stop at the end of an answer.
Sampling: prompts encoded once, many clips denoised together. Textbook: diffusers' own pipeline, one call a clip.
Prints medians over the repetitions, in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualipo.config import Config
from dualipo.critic.base import Critic, load_critic
from dualipo.critic.questions import Question
from dualipo.critic.voting import parse_verdict
from dualipo.generator.base import Generator, load_generator
from dualipo.records import DIMENSIONS, Prompt, read_rows
from dualipo.runtime import prepare_torch, threads
from dualipo.steps import derive_seed

REPOSITORY = Path(__file__).resolve().parents[1]
Clips = dict[str, np.ndarray]
Paths = list[list[str]]


def ask_shared(critic: Critic, clips: Clips, questions: Sequence[Question], config: Config, seed: int) -> Paths:
    """Every question's paths, as the steps sample them."""
    how, seen, paths = config.label, critic.see(clips), []
    for part in batches(questions, how.batch_size):
        paths += critic.paths(part, seen, how.paths, how.temperature, how.max_new_tokens, seed)
    return paths


def ask_textbook(critic: Critic, clips: Clips, questions: Sequence[Question], config: Config, seed: int) -> Paths:
    """Every question's paths, from transformers' own `generate`."""
    how, paths = config.label, []
    torch.manual_seed(seed)
    for part in batches(questions, how.batch_size):
        inputs = textbook_inputs(critic, clips, part)
        with torch.inference_mode():
            written = critic.model.generate(
                **inputs,
                do_sample=True,
                temperature=how.temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=how.paths,
                max_new_tokens=how.max_new_tokens,
                pad_token_id=critic.tokenizer.pad_token_id,
                eos_token_id=critic.tokenizer.eos_token_id,
            )
        read = inputs["input_ids"].shape[1]
        texts = critic.tokenizer.batch_decode(written[:, read:], skip_special_tokens=True)
        paths += list(batches(texts, how.paths))
    return paths


def textbook_inputs(critic: Any, clips: Clips, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
    """What a processor would make: padded token ids, and the pixels of every clip each time it is asked about."""
    shown = [clip for question in questions for clip in question.clips]
    pixels, grid = critic.pixels(np.stack([clips[clip] for clip in shown]))
    tokens = int(np.prod(grid)) // critic.model.config.vision_config.spatial_merge_size**2
    stub = {clip: _Length(tokens) for clip in set(shown)}
    rows = [critic._question_ids(question, stub) for question in questions]
    padded = critic.tokenizer.pad({"input_ids": rows}, padding=True, padding_side="left", return_tensors="pt")
    video = padded["input_ids"] == critic.model.config.video_token_id
    return {
        "input_ids": padded["input_ids"],
        "attention_mask": padded["attention_mask"],
        "mm_token_type_ids": video.int() * 2,
        "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([grid] * len(shown)),
    }


class _Length:
    """Stands for a clip that was not seen yet, where only its number of tokens matters."""

    def __init__(self, count: int):
        self.tokens = range(count)


def sample_together(generator: Generator, prompts: Sequence[str], seeds: Sequence[int], config: Config) -> np.ndarray:
    how = config.generate
    return generator.generate(prompts, seeds, how.steps, how.guidance, how.batch_size)


def sample_textbook(generator: Generator, prompts: Sequence[str], seeds: Sequence[int], config: Config) -> np.ndarray:
    how, pipeline = config.generate, generator.pipeline
    pipeline.set_progress_bar_config(disable=True)
    clips = [
        pipeline(
            prompt,
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            generator=torch.Generator().manual_seed(seed),
            max_sequence_length=generator.denoiser.config.max_text_seq_length,
            output_type="np",
        ).frames[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return (np.stack(clips) * 255).round().astype(np.uint8)


def batches(items: Sequence[Any], size: int) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def clock(ways: dict[str, Callable[[int], Any]], repetitions: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each way, taken in turns after one call each to warm up, and what its last call gave."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    for repetition in range(repetitions + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            results[name] = way(repetition)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data")
    arguments = parser.parse_args()
    prepare_torch()
    config = Config.model_validate({"label": {"paths": arguments.paths}})
    prompts = read_rows(arguments.data / "benchmark.jsonl", Prompt)[: arguments.prompts]
    generator, critic = load_generator(arguments.data / "generator"), load_critic(arguments.data / "critic")

    count = config.generate.candidates
    texts = [prompt.text for prompt in prompts for _ in range(count)]
    seeds = [derive_seed(0, prompt.id, k) for prompt in prompts for k in range(count)]
    sampled, made = clock(
        {
            "together": lambda _: sample_together(generator, texts, seeds, config),
            "textbook": lambda _: sample_textbook(generator, texts, seeds, config),
        },
        arguments.repetitions,
    )
    off = np.abs(made["together"].astype(int) - made["textbook"].astype(int)).max()

    names = [f"{prompt.id}-{k}" for prompt in prompts for k in range(count)]
    clips = dict(zip(names, made["together"], strict=True))
    prompt_of = dict(zip(names, texts, strict=True))
    singles = [Question(dimension, prompt_of[name], (name,)) for dimension in DIMENSIONS for name in names]
    pairs = [
        Question("overall", prompt.text, pair)
        for prompt in prompts
        for pair in list(combinations([f"{prompt.id}-{k}" for k in range(count)], 2))[: config.label.pairs_per_prompt]
    ]
    rows = []
    for title, questions in (
        ("ratings", singles),
        ("pairs, both orders", [*pairs, *(pair.swapped() for pair in pairs)]),
    ):
        asked, answered = clock(
            {
                "together": lambda seed, own=questions: ask_shared(critic, clips, own, config, seed),
                "textbook": lambda seed, own=questions: ask_textbook(critic, clips, own, config, seed),
            },
            arguments.repetitions,
        )
        readable = {
            name: statistics.fmean(
                parse_verdict(path, question.kind) is not None
                for question, paths in zip(questions, found, strict=True)
                for path in paths
            )
            for name, found in answered.items()
        }
        checks = f"readable verdicts {readable['together']:.1%} and {readable['textbook']:.1%}"
        rows.append((f"labelling, {title}", f"{len(questions)} x {arguments.paths} paths", asked, checks))
    rows.append(("sampling", f"{len(texts)} clips", sampled, f"pixels differ by at most {off} of 255"))

    print(f"Medians of {arguments.repetitions} repetitions, {threads()} threads.\n")
    print("| work | size | seconds | textbook, seconds | times faster | same work? |")
    print("| --- | --- | --- | --- | --- | --- |")
    for work, size, taken, check in rows:
        together, textbook = taken["together"], taken["textbook"]
        print(f"| {work} | {size} | {together:.2f} | {textbook:.2f} | {textbook / together:.1f} | {check} |")


if __name__ == "__main__":
    main()
