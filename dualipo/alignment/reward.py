"""Trains the reward on noisy latents that Flow-NRG steers by (VideoAlign, section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import torch

from dualipo.alignment.encoding import shapes
from dualipo.alignment.trainer import Encoded, by_shape, draw_bucket, draw_noise, draw_rows
from dualipo.config import LatentReward as Section
from dualipo.config import Training
from dualipo.generator.base import Generator
from dualipo.generator.latent_reward import LatentReward, judgement_losses
from dualipo.records import ClipScores, Desirability, Preference
from dualipo.steps import derive_seed
from dualipo.training.ranks import Part, merge, micro_batches, parts
from dualipo.training.task import Recipe, Task


def new_reward(generator: Generator, section: Section, seed: int) -> LatentReward:
    """An untrained reward on the generator's first blocks. Raises UserError where it has fewer, or is no flow."""
    from dualipo.errors import UserError

    if not generator.flow:
        name = type(generator).__name__
        raise UserError(f"latent_reward.train: reward guidance needs a rectified-flow generator, {name} is none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return LatentReward(generator, section.layers)
        except ValueError as error:
            raise UserError(f"latent_reward.{error}") from None


def clip_pairs(scored: Sequence[Desirability]) -> list[Preference]:
    """Every two scored clips of a prompt, the higher overall score first: (8 choose 2) a prompt where preferences hold
    one, at no more judging."""
    by_prompt: dict[str, list[Desirability]] = {}
    for row in scored:
        by_prompt.setdefault(row.prompt_id, []).append(row)

    def pair(first: Desirability, second: Desirability) -> Preference:
        high, low = (first, second) if first.score >= second.score else (second, first)
        return Preference(
            prompt_id=high.prompt_id, prompt=high.prompt, winner=high.clip, loser=low.clip,
            winner_score=high.score, loser_score=low.score,
        )  # fmt: skip

    return [pair(*two) for rows in by_prompt.values() for two in combinations(rows, 2)]


def judgements(pairs: Sequence[Preference], scores: Sequence[ClipScores]) -> torch.Tensor:
    """(pairs, dimensions): +1 where the winner's score on a dimension is higher, -1 where it is lower, 0 where the two
    are equal or one is unknown. A pair's winner is the better clip on the whole, not on each dimension."""
    by_clip = {row.clip: row.values for row in scores}
    unknown = (None,) * 3

    def compared(pair: Preference) -> list[int]:
        sides = zip(by_clip.get(pair.winner, unknown), by_clip.get(pair.loser, unknown), strict=True)
        return [0 if a is None or b is None else (a > b) - (a < b) for a, b in sides]

    return torch.tensor([compared(pair) for pair in pairs], dtype=torch.long).view(-1, 3)


class RewardTrainer(Task):
    """Bradley-Terry on preference pairs whose two clips are under the same noise and level.

    `data` are pairs of two clips, `preferred` (pairs, 3) as `judgements` gives it. Each step draws from streams
    of its own, as alignment's do.
    """

    title = "latent reward"

    def __init__(
        self,
        reward: LatentReward,
        generator: Generator,
        data: Encoded,
        preferred: torch.Tensor,
        section: Section,
        training: Training,
        seed: int,
    ):
        assert data.losers is not None
        self.reward, self.generator, self.data, self.section, self.seed = reward, generator, data, section, seed
        self.training = training
        self.preferred = preferred.to(generator.device)
        self.buckets = by_shape(shapes(data.latents), data.winners)
        reward.train().requires_grad_(True)

    @property
    def trained(self) -> torch.nn.Module:
        return self.reward

    def recipe(self, max_grad_norm: float, checkpoint_every: int) -> Recipe:
        """Processes, precision and micro-batches are alignment's; the model is small, and is neither sharded nor
        averaged."""
        kept = {"processes", "precision", "micro_batch_size"}
        training = Training(**self.training.model_dump(include=kept))
        section = self.section
        return Recipe(
            section.steps, section.learning_rate, section.warmup_steps, max_grad_norm, checkpoint_every,
            training=training,
        )  # fmt: skip

    def begin(self, step: int) -> list[Callable[[], torch.Tensor]]:
        section = self.section
        source = torch.Generator().manual_seed(derive_seed(self.seed, step))
        shape, bucket = draw_bucket(self.buckets, self.seed, step, "preferences")
        self.rows = bucket[draw_rows(len(bucket), section.batch_size, source)]
        self.levels = self.generator.draw_levels(len(self.rows), source)
        self.judged = int((self.preferred[self.rows] != 0).sum().clamp(min=1))
        self.found: list[tuple[Part, torch.Tensor]] = []
        self.right: list[tuple[Part, torch.Tensor]] = []
        own = parts(len(self.rows), micro_batches(len(self.rows), self.training.micro_batch_size))
        noise = draw_noise(len(self.rows), shape, own, source)
        return [partial(self._part, *each) for each in zip(own, noise, strict=True)]

    def _part(self, part: Part, noise: torch.Tensor) -> torch.Tensor:
        data, rows, levels = self.data, self.rows[part.rows], self.levels[part.rows]
        assert data.losers is not None
        noise, text = noise.to(self.generator.device), data.text[data.pair_text[rows]]
        noised = [
            self.generator.noised(data.latents[side[rows]], noise, levels) for side in (data.winners, data.losers)
        ]
        scores = self.reward(torch.cat(noised), levels.repeat(2), text.repeat(2, 1, 1))
        first, second = scores.chunk(2)
        preferred = self.preferred[rows]
        losses = judgement_losses(first, second, preferred).sum(dim=1)
        agreed = ((first > second) & (preferred > 0)) | ((first < second) & (preferred < 0))
        self.found.append((part, losses.detach()))
        self.right.append((part, agreed.sum(dim=1).float()))
        # A part's weight makes means over examples add up to the batch's; here the mean is over judgements.
        return losses.mean() * part.weight * (len(self.rows) / self.judged)

    def finish(self) -> dict[str, float]:
        count = len(self.rows)
        sums = [float(merge(count, pieces).sum()) / self.judged for pieces in (self.found, self.right)]
        return {"loss": sums[0], "accuracy": sums[1]}
