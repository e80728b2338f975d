"""Labelling: ratings on three dimensions and pairs in both orders, five paths each, against transformers' `generate`.

    python benchmarks/labelling.py [--size small] [--paths 5] [--prompts 1] [--repetitions 5]

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
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import REPOSITORY, RESULTS, Operations, Times, alternate, finish, machine_line, peak_rate, table
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


# ---- ours


def ours(work: Work, questions: Sequence[Question], seed: int) -> Answered:
    critic, paths = work.critic, []
    plain = critic.paths

    def noted(*arguments: Any) -> list[list[str]]:
        found = plain(*arguments)
        paths.extend(found)
        return found

    critic.paths = noted  # type: ignore[method-assign]
    try:
        return Answered(paths, ask(critic, questions, critic.see(work.clips), work.how, seed))
    finally:
        critic.paths = plain  # type: ignore[method-assign]


# ---- textbook


def textbook(work: Work, questions: Sequence[Question], seed: int) -> Answered:
    """The same batches with the same random numbers, from transformers' own `generate`."""
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


def equal(own: Answered, plain: Answered, pairs: bool) -> int:
    """Paths and verdicts that differ, those of pairs after both orders were brought together too."""
    wrong = sum(a != b for x, y in zip(own.paths, plain.paths, strict=True) for a, b in zip(x, y, strict=True))
    wrong += sum(a != b for a, b in zip(own.votes, plain.votes, strict=True))
    if pairs:
        half = len(own.verdicts) // 2
        kept = [
            [reconcile(a, b) for a, b in zip(found.verdicts[:half], found.verdicts[half:], strict=True)]
            for found in (own, plain)
        ]
        wrong += sum(a != b for a, b in zip(*kept, strict=True))
    return wrong


def compare(work: Work, repetitions: int) -> dict[str, Any]:
    kinds = {"ratings": work.ratings, "pairs, both orders": work.pairs}
    dtype, wrong = work.critic.model.dtype, 0
    if dtype != torch.float32:  # 16 bits round more than the two ways differ
        work.critic.model.float()
        for kind, questions in kinds.items():
            own, plain = (way(work, questions[:4], SEED) for way in (ours, textbook))
            wrong += equal(own, plain, kind != "ratings")
        work.critic.model.to(dtype)
    done: list[list[int]] = [[], []]
    for questions in kinds.values():
        for counts, way in zip(done, (ours, textbook), strict=True):
            with Operations() as counted:
                way(work, questions, SEED)
            counts.append(counted.total)
    found: dict[str, Any] = {}
    for kind, questions in kinds.items():
        times, answered = alternate(
            lambda seed, own=questions: ours(work, own, seed),
            lambda seed, own=questions: textbook(work, own, seed),
            repetitions,
            warm_up=0,
        )
        if dtype == torch.float32:
            wrong += sum(equal(own, plain, kind != "ratings") for own, plain in answered)
        paths = [path for own, _ in answered for of in own.paths for path in of]
        readable = sum(sum(vote.votes.values()) - vote.votes["invalid"] for own, _ in answered for vote in own.votes)
        found[kind] = {"times": times, "questions": len(questions), "readable": readable / len(paths)}
    own, plain = (
        [sum(both) for both in zip(*(f["times"].__dict__[way] for f in found.values()), strict=True)]
        for way in ("ours", "textbook")
    )
    found["all"] = {"times": Times(own, plain), "questions": sum(f["questions"] for f in found.values())}
    return {"kinds": found, "wrong": wrong, "operations": [sum(counts) for counts in done]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("world", *CRITICS), default="small")
    parser.add_argument("--paths", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    prepare_torch()
    rate, source = peak_rate()
    work = prepare(arguments.size, arguments.prompts, arguments.paths, arguments.data)
    compared = compare(work, arguments.repetitions)
    found, done = compared["kinds"], compared["operations"]
    times = found["all"]["times"]

    faults = []
    if compared["wrong"]:
        faults.append(f"{compared['wrong']} paths and verdicts differ")
    if arguments.size not in ("tiny", "world") and times.faster["median"] < FASTER:
        faults.append(f"{times.faster['median']:.2f} times as fast, {FASTER:g} is required")
    rows = [
        [kind, f"{each['questions']} x {arguments.paths} paths", *each["times"].row()] for kind, each in found.items()
    ]
    readable = found["ratings"]["readable"]
    mine = sorted(times.ours)[len(times.ours) // 2]
    parts = [
        f"Labelling, size {arguments.size}, {arguments.repetitions} repetitions. {machine_line()}",
        table(["work", "size", "s", "textbook, s", "times faster"], rows),
        f"Brackets: the median's interval, of paired ratios. {compared['wrong']} paths and verdicts differ; "
        f"{readable:.0%} of the ratings' paths end in a readable verdict.",
        f"{done[0] / 1e9:,.1f}e9 operations against {done[1] / 1e9:,.1f}e9 ({done[1] / done[0]:.2f} times), "
        f"{done[0] / mine / rate:.0%} of the peak rate ({rate / 1e9:.0f}e9 a second, {source}).",
    ]
    content = {
        "size": arguments.size, "paths": arguments.paths, "prompts": arguments.prompts, "peak_rate": rate,
        "operations": done, "differing": compared["wrong"],
        "found": {kind: {"questions": each["questions"], **each["times"].content} for kind, each in found.items()},
    }  # fmt: skip
    finish(f"labelling-{arguments.size}", parts, content, faults, arguments.out)


if __name__ == "__main__":
    main()
