"""Labelling: ratings on three dimensions and pairs in both orders, five paths each, against transformers' `generate`.

    python benchmarks/labelling.py [--size small] [--paths 5] [--prompts 2] [--repetitions 5]

Ours: `dualipo.critic.asking.ask`: a clip goes through the vision tower once, a question is read once, and its paths
share what was read. Textbook: `model.generate(num_return_sequences=paths)`, which looks at every clip and reads every
question once for each path. Both ask the same questions in the same batches and draw the same random numbers: every
path and every verdict must be equal.

Sizes: `small`, for a CPU, a critic with random weights that reads far more than it writes, as real ones do; `world`,
the small world's own critic and clips, whose verdicts can be read; `qwen2-vl-2b`, the real model's shape with random
weights, for a GPU; `tiny` tries the command out. Exits with 1 where a path or verdict differs or, at sizes small and
qwen2-vl-2b, our way is less than 4 times as fast.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import REPOSITORY, RESULTS, Operations, alternate, finish, machine_line, peak_rate, table
from random_models import CRITICS, build_critic

from dualipo.critic.asking import Asking, Vote, ask, count_votes
from dualipo.critic.base import Critic, load_critic
from dualipo.critic.questions import Question
from dualipo.critic.voting import reconcile
from dualipo.media.video import decode_clip
from dualipo.records import DIMENSIONS, HumanChoice, find_table, read_rows
from dualipo.runtime import prepare_torch
from dualipo.steps import derive_seed

FASTER, SEED = 4.0, 0
Clips = dict[str, np.ndarray]


@dataclass(frozen=True)
class Answered:
    """What a way of asking came to."""

    paths: list[list[str]]
    votes: list[Vote]

    @property
    def verdicts(self) -> list[Any]:
        return [vote.verdict for vote in self.votes]


@dataclass(frozen=True)
class Work:
    critic: Critic
    clips: Clips
    ratings: list[Question]
    pairs: list[Question]
    """Each pair's first order, then all second ones."""
    how: Asking

    @property
    def asked(self) -> list[list[Question]]:
        return [self.ratings, self.pairs]


# ---- ours


def ours(work: Work, seed: int) -> list[Answered]:
    """As the step `label` asks: every clip is seen once for all questions."""
    critic, seen, answered = work.critic, work.critic.see(work.clips), []
    plain = critic.paths
    for questions in work.asked:
        paths: list[list[str]] = []

        def keeping(*arguments: Any, into: list[list[str]] = paths) -> list[list[str]]:
            found = plain(*arguments)
            into += found
            return found

        critic.paths = keeping  # type: ignore[assignment, method-assign]
        try:
            votes = ask(critic, questions, seen, work.how, seed)
        finally:
            critic.paths = plain  # type: ignore[method-assign]
        answered.append(Answered(paths, votes))
    return answered


# ---- textbook


def textbook(work: Work, seed: int) -> list[Answered]:
    """The same batches with the same random numbers, from transformers' own `generate`."""
    return [_generated(work, questions, seed) for questions in work.asked]


def _generated(work: Work, questions: Sequence[Question], seed: int) -> Answered:
    critic, how, paths = work.critic, work.how, []
    ordered = sorted(range(len(questions)), key=lambda i: questions[i].topic)
    for number, start in enumerate(range(0, len(ordered), how.batch_size)):
        part = [questions[i] for i in ordered[start : start + how.batch_size]]
        inputs = textbook_inputs(critic, work.clips, part)
        torch.manual_seed(derive_seed(seed, number))
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
        paths += [texts[i : i + how.paths] for i in range(0, len(texts), how.paths)]
    votes = {i: count_votes(questions[i], found) for i, found in zip(ordered, paths, strict=True)}
    return Answered(paths, [votes[i] for i in range(len(questions))])


def textbook_inputs(critic: Any, clips: Clips, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
    """What a processor would make: padded token ids, and the pixels of every clip each time it is asked about."""
    shown = [clip for question in questions for clip in question.clips]
    pixels, grid = critic.pixels(np.stack([clips[clip] for clip in shown]))
    tokens = int(np.prod(grid)) // critic.model.config.vision_config.spatial_merge_size**2
    stub = {clip: _Length(tokens) for clip in set(shown)}
    rows = [critic._question_ids(question, stub) for question in questions]
    padded = critic.tokenizer.pad({"input_ids": rows}, padding=True, padding_side="left", return_tensors="pt")
    video = padded["input_ids"] == critic.model.config.video_token_id
    inputs = {
        "input_ids": padded["input_ids"],
        "attention_mask": padded["attention_mask"],
        "mm_token_type_ids": video.int() * 2,
        "pixel_values_videos": pixels.to(critic.model.dtype),
        "video_grid_thw": torch.tensor([grid] * len(shown)),
    }
    return {name: value.to(critic.model.device) for name, value in inputs.items()}


class _Length:
    """Stands for a clip that was not seen yet, where only its number of tokens matters."""

    def __init__(self, count: int):
        self.tokens = range(count)


# ---- the comparison


def prepare(size: str, prompts: int, paths: int, data: Path) -> Work:
    """Four clips a prompt (of the small world's critic, people's test clips) and two pairs of them."""
    if size == "world":
        critic = load_critic(data / "critic")
        rows = read_rows(find_table(data / "test", "choices"), HumanChoice)
        texts = list(dict.fromkeys(row.prompt for row in rows))[:prompts]
        named = {
            t: list(dict.fromkeys(c for r in rows if r.prompt == t for c in (r.clip_a, r.clip_b)))[:4] for t in texts
        }
        clips = {name: decode_clip(data / "test" / name) for own in named.values() for name in own}
        how = Asking(paths, 1.0, 64, 64)
    else:
        shape = CRITICS[size]
        critic = build_critic(shape)
        texts = [f"a small red circle moving left , number {n}" for n in range(prompts)]
        named = {text: [f"{n}-{k}" for k in range(4)] for n, text in enumerate(texts)}
        source = np.random.default_rng(SEED)
        clips = {
            name: source.integers(256, size=(*shape.clip, 3), dtype=np.uint8) for own in named.values() for name in own
        }
        how = Asking(paths, 1.0, shape.written, shape.batch_size)
    ratings = [Question(dimension, text, (name,)) for text in texts for name in named[text] for dimension in DIMENSIONS]
    forward = [Question("overall", text, pair) for text in texts for pair in list(combinations(named[text], 2))[:2]]
    return Work(critic, clips, ratings, [*forward, *(pair.swapped() for pair in forward)], how)


def differing(own: list[Answered], plain: list[Answered]) -> int:
    """Paths and verdicts that differ, and those of pairs after both orders were brought together."""
    wrong = 0
    for a, b in zip(own, plain, strict=True):
        wrong += sum(x != y for of, by in zip(a.paths, b.paths, strict=True) for x, y in zip(of, by, strict=True))
        wrong += sum(x != y for x, y in zip(a.votes, b.votes, strict=True))
    kept = []
    for found in (own, plain):
        verdicts = found[1].verdicts
        half = len(verdicts) // 2
        kept.append([reconcile(x, y) for x, y in zip(verdicts[:half], verdicts[half:], strict=True)])
    return wrong + sum(x != y for x, y in zip(*kept, strict=True))


def compare(work: Work, repetitions: int) -> dict[str, Any]:
    dtype, wrong = work.critic.model.dtype, 0
    if dtype != torch.float32:  # 16 bits round more than the two ways differ
        work.critic.model.float()
        wrong = differing(ours(work, SEED), textbook(work, SEED))
        work.critic.model.to(dtype)
    operations = []
    for way in (ours, textbook):
        with Operations() as counted:
            way(work, SEED)
        operations.append(counted.total)
    times, answered = alternate(lambda seed: ours(work, seed), lambda seed: textbook(work, seed), repetitions, 0)
    if dtype == torch.float32:
        wrong = sum(differing(*each) for each in answered)
    votes = [vote for own, _ in answered for kind in own for vote in kind.votes]
    readable = 1 - sum(vote.votes["invalid"] for vote in votes) / (len(votes) * work.how.paths)
    return {"times": times, "differing": wrong, "operations": operations, "readable": readable}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("world", *CRITICS), default="small")
    parser.add_argument("--paths", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    prepare_torch()
    rate, source = peak_rate()
    work = prepare(arguments.size, arguments.prompts, arguments.paths, arguments.data)
    found = compare(work, arguments.repetitions)
    times, done = found.pop("times"), found["operations"]
    reached = done[0] / statistics.median(times.ours)

    faults = []
    if found["differing"]:
        faults.append(f"{found['differing']} paths and verdicts differ")
    if arguments.size not in ("tiny", "world") and times.faster["median"] < FASTER:
        faults.append(f"{times.faster['median']:.2f} times as fast, {FASTER:g} is required")
    asked = f"{len(work.ratings)} ratings, {len(work.pairs)} pairs, {arguments.paths} paths each"
    parts = [
        f"Labelling, size {arguments.size}, {arguments.repetitions} repetitions. {machine_line()}",
        table(["work", "s", "textbook, s", "times faster", "differing"], [[asked, *times.row(), found["differing"]]]),
        "Brackets: the median's interval, of paired ratios. Differing: paths and verdicts, of "
        f"{arguments.repetitions} repetitions; {found['readable']:.0%} of the paths end in a readable verdict.",
        f"{done[0] / 1e9:,.1f}e9 operations against {done[1] / 1e9:,.1f}e9 ({done[1] / done[0]:.2f} times), "
        f"{reached / rate:.0%} of the peak rate ({rate / 1e9:.0f}e9 a second, {source}).",
    ]
    content = {
        "size": arguments.size, "paths": arguments.paths, "prompts": arguments.prompts, "peak_rate": rate,
        "ratings": len(work.ratings), "pairs": len(work.pairs), **found, **times.content,
    }  # fmt: skip
    finish(f"labelling-{arguments.size}", parts, content, faults, arguments.out)


if __name__ == "__main__":
    main()
