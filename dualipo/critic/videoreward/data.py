"""What a VideoReward learns from: people's choices and ratings, as pairs and rated clips."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dualipo.critic.frames import MAX_FRAMES
from dualipo.critic.questions import Answered
from dualipo.media.video import sample_clip
from dualipo.records import CHOICES
from dualipo.steps import derive_seed

RATING_VALUE = {"good": 1.0, "normal": 0.5, "bad": 0.0}
CACHED_CLIPS = 512


@dataclass(frozen=True)
class Pair:
    """A preference between two clips of one prompt on one dimension; `verdict` is a place in `records.CHOICES`."""

    prompt: str
    clip_a: str
    clip_b: str
    dimension: str
    verdict: int


@dataclass(frozen=True)
class Rated:
    prompt: str
    clip: str
    dimension: str
    value: float
    """Good 1, normal 0.5, bad 0."""


def rated_clips(answered: Sequence[Answered]) -> list[Rated]:
    return [
        Rated(item.question.prompt, item.question.clips[0], item.question.dimension, RATING_VALUE[item.verdict])
        for item in answered
        if item.question.kind == "rating"
    ]


def chosen_pairs(answered: Sequence[Answered]) -> list[Pair]:
    found = []
    for question, verdict in ((item.question, item.verdict) for item in answered if item.question.kind == "choice"):
        one, two = question.clips
        found.append(Pair(question.prompt, one, two, question.dimension, CHOICES.index(verdict)))
    return found


def implied_pairs(answered: Sequence[Answered]) -> list[Pair]:
    """Pairs of one prompt's clips that people rated differently on a dimension.

    Our reading: clips of equal ratings are no tie. People still tell them apart (VideoAlign 3.2), so they say nothing.
    """
    groups: dict[tuple[str, str], list[Rated]] = {}
    for item in rated_clips(answered):
        groups.setdefault((item.prompt, item.dimension), []).append(item)
    return [
        Pair(prompt, one.clip, two.clip, dimension, 0 if one.value > two.value else 1)
        for (prompt, dimension), own in groups.items()
        for one, two in itertools.combinations(own, 2)
        if one.value != two.value
    ]


def split_prompts(answered: Sequence[Answered], share: float, seed: int) -> tuple[list[Answered], list[Answered]]:
    """(learnt from, held out): whole prompts, about `share` of them held out, at least one on either side.

    Raises ValueError where there are fewer than two prompts.
    """
    prompts = sorted({item.question.prompt for item in answered})
    if len(prompts) < 2:
        raise ValueError("labels of at least two prompts are needed")
    count = min(max(round(share * len(prompts)), 1), len(prompts) - 1)
    drawn = np.random.default_rng(derive_seed(seed, "held out")).permutation(len(prompts))[:count]
    held = {prompts[i] for i in drawn}
    return (
        [item for item in answered if item.question.prompt not in held],
        [item for item in answered if item.question.prompt in held],
    )


class ClipFiles(Mapping[str, np.ndarray]):
    """Clips of a folder of video files by their path in it, cut to the frames a critic looks at; decoded when asked."""

    def __init__(self, folder: Path, files: Sequence[str]):
        self._files = list(dict.fromkeys(files))
        self._read = lru_cache(CACHED_CLIPS)(lambda file: sample_clip(folder / file, MAX_FRAMES))

    def __getitem__(self, file: str) -> np.ndarray:
        return self._read(file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
