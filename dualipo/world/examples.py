"""Questions about described clips, for the small world's base critic before any human label.

Rendered clips are described by how they were drawn. Clips of the base generator are described by the oracle: here it
plays the writers of the captions that a vision-language model is pretrained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from tqdm import tqdm

from dualipo.critic.questions import Answered, Question
from dualipo.generator.base import Generator
from dualipo.media.video import decode_clip, encode_clip
from dualipo.records import Prompt
from dualipo.steps import derive_seed
from dualipo.world.annotators import choice_reason, choose, overall, rating_reasons, ratings
from dualipo.world.captions import mistaken, random_captions, sentence
from dualipo.world.corrupt import Fault, random_fault, render_with_faults
from dualipo.world.oracle import judge
from dualipo.world.scene import FPS, Scene

Restore = Callable[[np.ndarray], np.ndarray]
"""Passes clips through the generator's VAE and back."""


@dataclass(frozen=True)
class Described:
    """A clip as an answer to a prompt, and what is said of it."""

    clip: np.ndarray
    seen: dict[str, str]
    """What it shows of each attribute asked for."""
    holds: dict[str, bool]
    smoothness: float
    faithfulness: float

    @property
    def verdicts(self) -> dict[str, str]:
        return ratings(self.holds, self.smoothness, self.faithfulness)

    @property
    def reasons(self) -> dict[str, str]:
        return rating_reasons(self.seen, self.holds, self.smoothness, self.faithfulness)

    @property
    def overall(self) -> float:
        return overall(self.verdicts)


Pair = tuple[str, Described, Described]
"""A prompt and two clips that answer it."""


def rendered_pairs(count: int, seed: int, restore: Restore | None = None) -> list[Pair]:
    """`count` prompts with two rendered answers each, half of the clips passed through `restore`."""
    rng = np.random.default_rng(seed)
    captions = random_captions(count, seed)
    made = [_render_answer(scene, rng) for _, scene in captions for _ in range(2)]
    clips = [answer.clip for answer in made]
    if restore is not None:
        for start in range(0, len(clips), 64):
            clips[start : start + 64 : 2] = restore(np.stack(clips[start : start + 64 : 2]))
    described = [
        _drawn(captions[i // 2][1], replace(answer, clip=clip))
        for i, (clip, answer) in enumerate(zip(clips, made, strict=True))
    ]
    return [(text, described[2 * i], described[2 * i + 1]) for i, (text, _) in enumerate(captions)]


@dataclass(frozen=True)
class _Answer:
    """A clip, and what is known of it from how it was drawn."""

    clip: np.ndarray
    shown: Scene
    smoothness: float
    faithfulness: float


def _render_answer(asked: Scene, rng: np.random.Generator) -> _Answer:
    """A clip as a generator might answer the prompt: half the time with wrong attributes, often with faults."""
    shown = mistaken(asked, rng, int(rng.choice([1, 2]))) if rng.random() < 0.5 else asked
    faults: list[Fault] = []
    if rng.random() < 0.5:
        faults = [random_fault(rng, dimension) for dimension in ("motion", "faithfulness") if rng.random() < 0.6]
    quality = {"motion": 0.93, "faithfulness": 0.9}
    for fault in faults:
        quality[fault.dimension] = 0.75 - 0.75 * fault.severity
        if fault.name in ("teleport", "vanish", "flicker"):
            other = "faithfulness" if fault.dimension == "motion" else "motion"
            quality[other] = min(quality[other], 0.95 - 0.4 * fault.severity)
    clip = render_with_faults(shown, faults, int(rng.integers(2**31)))
    return _Answer(clip, shown, quality["motion"], quality["faithfulness"])


def _drawn(asked: Scene, answer: _Answer) -> Described:
    seen = {key: value for key, value in asdict(answer.shown).items() if value is not None}
    wanted = {key: value for key, value in asdict(asked).items() if value is not None}
    if wanted.get("speed") or seen.get("speed"):
        seen.setdefault("speed", "still")
    holds = {key: seen.get(key) == value for key, value in wanted.items()}
    return Described(answer.clip, seen, holds, answer.smoothness, answer.faithfulness)


def generated_pairs(
    generator: Generator, prompts: Sequence[Prompt], seed: int, steps: int, guidance: float
) -> list[Pair]:
    """Two clips of the generator for each prompt, through mp4 and back, described by the oracle.

    A quarter of the clips are sampled for a prompt that differs in an attribute or two, an eighth in a single step.
    """
    pairs: list[Pair] = []
    for start in tqdm(range(0, len(prompts), 32), desc="clips to describe", unit="batch"):
        part = prompts[start : start + 32]
        asked: list[tuple[str, Scene, int, bool]] = []
        for prompt in part:
            rng = np.random.default_rng(derive_seed(seed, prompt.id))
            scene = Scene.of(prompt.attributes)
            for source in rng.choice(["as asked", "misread", "hurried"], 2, p=[0.625, 0.25, 0.125]):
                misread = sentence(mistaken(scene, rng, int(rng.integers(1, 3))))
                text = misread if source == "misread" else prompt.text
                asked.append((text, scene, derive_seed(seed, prompt.id, len(asked) % 2), source == "hurried"))
        described: dict[int, Described] = {}
        for hurried in (False, True):
            rows = [i for i, item in enumerate(asked) if item[3] == hurried]
            texts, seeds = [asked[i][0] for i in rows], [asked[i][2] for i in rows]
            clips = generator.generate(texts, seeds, 1 if hurried else steps, guidance) if rows else ()
            described |= {i: _read(clip, asked[i][1]) for i, clip in zip(rows, clips, strict=True)}
        pairs += [(prompt.text, described[2 * i], described[2 * i + 1]) for i, prompt in enumerate(part)]
    return pairs


def _read(clip: np.ndarray, asked: Scene) -> Described:
    clip = decode_clip(encode_clip(clip, FPS))
    judgement = judge(clip, asked)
    return Described(clip, judgement.seen, judgement.holds, judgement.smoothness, judgement.faithfulness)


class Examples:
    """Random questions about pairs of described clips, with their answers. Clips are named by their place."""

    def __init__(self, pairs: Sequence[Pair], seed: int, prefix: str = ""):
        self.pairs, self.prefix, self.rng = pairs, prefix, np.random.default_rng(seed)

    @property
    def described(self) -> list[Described]:
        return [item for _, *both in self.pairs for item in both]

    @property
    def clips(self) -> dict[str, np.ndarray]:
        return {f"{self.prefix}{i}": item.clip for i, item in enumerate(self.described)}

    def draw(self, rated: int, compared: int) -> list[Answered]:
        drawn = []
        for index in range(rated):
            dimension = ("semantic", "semantic", "motion", "faithfulness")[index % 4]
            place = int(self.rng.integers(2 * len(self.pairs)))
            prompt, *both = self.pairs[place // 2]
            item = both[place % 2]
            question = Question(dimension, prompt, (f"{self.prefix}{place}",))
            drawn.append(Answered(question, item.verdicts[dimension], item.reasons[dimension]))
        for _ in range(compared):
            place = int(self.rng.integers(len(self.pairs)))
            prompt, *both = self.pairs[place]
            order = [0, 1] if self.rng.random() < 0.5 else [1, 0]
            names = [f"{self.prefix}{2 * place + i}" for i in order]
            first, second = (both[i] for i in order)
            verdict = choose(first.overall, second.overall)
            reason = choice_reason([first.reasons, second.reasons])
            drawn.append(Answered(Question("overall", prompt, (names[0], names[1])), verdict, reason))
        return drawn
