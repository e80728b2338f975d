"""Scores of clips for preferences, from whichever critic lies in a folder: one that reasons, or a VideoReward."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualipo.config import Label, Prefer, Weights
from dualipo.errors import UserError
from dualipo.records import DIMENSIONS, Clip

if TYPE_CHECKING:
    from dualipo.critic.asking import Asking
    from dualipo.critic.base import Critic
    from dualipo.critic.videoreward.model import VideoReward

EQUAL = Weights()


@dataclass(frozen=True)
class Rated:
    score: float
    """How good the clip is, in [0, 1]."""
    desirable: bool
    """Bad on no dimension."""
    dimensions: Mapping[str, float]
    """Its scores on the dimensions judged, on the critic's own scale."""


class Scorer(ABC):
    """A critic as preferences need it."""

    @abstractmethod
    def see(self, clips: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What the critic keeps of clips, by id, for the calls below."""

    @abstractmethod
    def rate(self, clips: Sequence[Clip], seen: Any, seed: int) -> dict[str, Rated]:
        """By clip id; a clip that could not be judged is left out."""

    @abstractmethod
    def contradicts(self, pairs: Sequence[tuple[str, str, str]], seen: Any, seed: int) -> list[bool]:
        """Whether the critic, shown (prompt, better clip, worse clip) side by side, prefers the worse."""


class Voting(Scorer):
    """A generative critic: a score is the weighted mean over the dimensions of the expected rating under the paths'
    vote."""

    def __init__(self, critic: Critic, how: Asking, weights: Weights = EQUAL):
        self.critic, self.how, self.weights = critic, how, weights.of(DIMENSIONS)

    def see(self, clips: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return self.critic.see(clips)

    def rate(self, clips: Sequence[Clip], seen: Any, seed: int) -> dict[str, Rated]:
        from dualipo.critic.asking import ask
        from dualipo.critic.questions import Question
        from dualipo.critic.voting import expected_rating

        questions = [Question(dimension, clip.prompt, (clip.id,)) for clip in clips for dimension in DIMENSIONS]
        votes = ask(self.critic, questions, seen, self.how, seed)
        rated = {}
        for clip, own in zip(clips, zip(*[iter(votes)] * len(DIMENSIONS), strict=True), strict=True):
            if all(vote.verdict is not None for vote in own):
                values = [expected_rating(vote.votes) for vote in own]
                apart: dict[str, float] = dict(zip(DIMENSIONS, map(float, values), strict=True))
                desirable = all(vote.verdict != "bad" for vote in own)
                rated[clip.id] = Rated(float(np.average(values, weights=self.weights)), desirable, apart)
        return rated

    def contradicts(self, pairs: Sequence[tuple[str, str, str]], seen: Any, seed: int) -> list[bool]:
        """The pair's votes in both orders together decide."""
        from dualipo.critic.asking import ask, pooled
        from dualipo.critic.questions import Question

        forward = [Question("overall", prompt, (top, bottom)) for prompt, top, bottom in pairs]
        both = ask(self.critic, [*forward, *(q.swapped() for q in forward)], seen, self.how, seed)
        votes = [pooled(*pair) for pair in zip(both[: len(pairs)], both[len(pairs) :], strict=True)]
        return [vote["b"] > vote["a"] for vote in votes]


class Reward(Scorer):
    """A VideoReward. Our reading of a score in [0, 1]: the normal distribution's share below the weighted mean of the
    dimensions' normalised scores, which keeps its order; a clip is undesirable where a dimension lies at or under the
    seed labels' threshold of bad."""

    def __init__(self, model: VideoReward, batch_size: int, weights: Weights = EQUAL):
        self.model, self.batch_size, self.weights = model, batch_size, weights

    def see(self, clips: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return self.model.see(clips)

    def rate(self, clips: Sequence[Clip], seen: Any, seed: int) -> dict[str, Rated]:
        from dualipo.critic.videoreward.scale import overall

        scores = self.model.scores([(clip.prompt, clip.id) for clip in clips], seen, self.batch_size)
        calibration, dimensions = self.model.settings.calibration, self.model.settings.dimensions
        if calibration is None:
            raise UserError("this VideoReward has no thresholds; calibrate it with `dualipo reward train`")
        weights = self.weights.of(dimensions)
        if not any(weights):
            raise UserError(f"prefer.weights: this VideoReward knows {', '.join(dimensions)}, which all count 0")
        rated = {}
        for clip in clips:
            own = scores[clip.prompt, clip.id]
            desirable = all(own[d] > calibration.cuts(d)[0] for d in dimensions)
            apart = {d: float(own[d]) for d in dimensions}
            whole = float(overall(np.array(list(apart.values())), weights))
            rated[clip.id] = Rated(0.5 * math.erfc(-whole / math.sqrt(2)), desirable, apart)
        return rated

    def observe(self, clips: Sequence[Clip], frames: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Overall scores by clip id, in deviations of the held-out seed clips: for who only looks on."""
        asked = [(clip.prompt, clip.id) for clip in clips]
        scores = self.model.scores(asked, self.see(frames), self.batch_size)
        return {name: scores[prompt, name]["overall"] for prompt, name in asked}

    def contradicts(self, pairs: Sequence[tuple[str, str, str]], seen: Any, seed: int) -> list[bool]:
        """Never: a score does not depend on what stands beside a clip."""
        return [False] * len(pairs)


def load_scorer(folder: str | Path, asked: Label, section: Prefer) -> Scorer:
    """The critic in a folder, told by the `model_type` in its config.json, asked as for labels.

    Raises UserError as `load_critic` and `load_videoreward` do.
    """
    from dualipo.critic.videoreward.settings import is_videoreward

    if is_videoreward(folder):
        from dualipo.critic.videoreward.model import load_videoreward

        return Reward(load_videoreward(folder), asked.batch_size, section.weights)
    from dualipo.critic.asking import Asking
    from dualipo.critic.base import load_critic

    how = Asking(section.paths or asked.paths, asked.temperature, asked.max_new_tokens, asked.batch_size)
    return Voting(load_critic(folder), how, section.weights)
