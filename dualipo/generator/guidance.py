"""Flow-NRG: the gradient of a reward on noisy latents steers sampling (VideoAlign, section 4.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dualipo.config import FlowNrg, Weights
from dualipo.errors import UserError
from dualipo.generator.base import Generator
from dualipo.generator.latent_reward import has_latent_reward, load_latent_reward
from dualipo.records import DIMENSIONS

Reward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(latents, levels, text) -> rewards (batch, 3), one a dimension, differentiable in the latents."""


@dataclass(frozen=True)
class Steering:
    """What is asked for: the scale w, 0 for none, and the user's weights."""

    scale: float = 0.0
    weights: Weights = field(default_factory=Weights)

    @staticmethod
    def of(section: FlowNrg, scale: float) -> Steering:
        return Steering(scale, section.weights)

    def told(self, checkpoint: Path) -> dict[str, Any] | None:
        """What scores of this checkpoint's clips must say of it; None where they are sampled without guidance, since
        none is asked for or the checkpoint has no reward."""
        if not self.scale or not has_latent_reward(checkpoint):
            return None
        return {"scale": self.scale, "weights": self.weights.model_dump()}

    def guide(self, generator: Generator, checkpoint: Path) -> RewardGuidance | None:
        """The guide of a generator loaded from `checkpoint`; None as `told`. Raises UserError as `RewardGuidance`."""
        if self.told(checkpoint) is None:
            return None
        reward = load_latent_reward(generator, checkpoint)
        return RewardGuidance(generator, reward, self.weights.of(DIMENSIONS), self.scale)


UNGUIDED = Steering()


class RewardGuidance:
    """v~ = v - w * t / (1 - t) * grad_x r(x_t, t, text), r the weighted sum of the rewards (VideoAlign eq. 11).

    With x_t = (1 - t) x_0 + t x_1 and the score s = grad log p_t, E[x_1 | x_t] = -t s and v = -(x_t + t s) / (1 - t).
    The aligned distribution p_t * exp(w r) has the score s + w grad r, hence v~. Sampling runs from t = 1 to 0 and
    subtracts v, so the minus adds the gradient: r rises.

    `weights` are the user's, one for each of semantic, motion and faithfulness, divided by their sum; `scale` is w. The
    factor is infinite at t = 1. Our reading: no guidance where t > `latest`, since schedulers start as close to 1 as
    0.999. Raises UserError where the generator is no rectified flow or the weights are not three shares.
    """

    def __init__(
        self, generator: Generator, reward: Reward, weights: Sequence[float], scale: float, latest: float = 0.99
    ):
        if not generator.flow:
            raise UserError(f"reward guidance needs a rectified-flow generator, {type(generator).__name__} is none")
        if len(weights) != len(DIMENSIONS) or min(weights) < 0 or sum(weights) <= 0:
            names = ", ".join(DIMENSIONS)
            raise UserError(f"weights {list(weights)}: three numbers from 0 up, not all 0, are needed, for {names}")
        self.times, self.reward, self.scale, self.latest = generator.times, reward, scale, min(latest, 1 - 1e-6)
        self.weights = [weight / sum(weights) for weight in weights]

    def __call__(
        self, latents: torch.Tensor, levels: torch.Tensor, text: torch.Tensor, prediction: torch.Tensor
    ) -> torch.Tensor:
        t = self.times(levels)
        t = torch.where(t > self.latest, 0.0, t)
        if not self.scale or not t.any():
            return prediction
        # Tensors of sampling know no gradient: clones made here do.
        with torch.inference_mode(False), torch.enable_grad():
            x = latents.clone().requires_grad_()
            rewards = self.reward(x, levels.clone(), text.clone())
            total = (rewards * torch.tensor(self.weights).to(rewards)).sum()
            (gradient,) = torch.autograd.grad(total, x)
        factor = self.scale * t / (1 - t)
        return prediction - factor.to(gradient).view(-1, *[1] * (gradient.dim() - 1)) * gradient
