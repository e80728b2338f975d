"""A small reward model on noisy latents, built on the generator's first layers (VideoAlign, section 4.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dualipo.critic.videoreward.losses import TIE, bt_loss
from dualipo.generator.base import Generator
from dualipo.records import DIMENSIONS


class LatentReward(torch.nn.Module):
    """(latents, levels, text) -> rewards (batch, 3): the first `layers` blocks, a mean over tokens, a linear head.

    The blocks begin as copies of the generator's, which know noisy latents and their level; they and the head are
    trained. Raises ValueError where the generator has fewer blocks.
    """

    def __init__(self, generator: Generator, layers: int):
        super().__init__()
        denoiser: Any = generator.denoiser
        if not 1 <= layers <= denoiser.config.num_layers:
            raise ValueError(f"layers: 1 to {denoiser.config.num_layers} are there, {layers} asked for")
        self.trunk = type(denoiser).from_config({**denoiser.config, "num_layers": layers})
        self.trunk.to(denoiser.device)
        stored = denoiser.state_dict()
        # Assigned, since parts may have a precision of their own.
        self.trunk.load_state_dict({name: stored[name].clone() for name in self.trunk.state_dict()}, assign=True)
        width = denoiser.config.num_attention_heads * denoiser.config.attention_head_dim
        self.head = torch.nn.Linear(width, len(DIMENSIONS), device=denoiser.device)
        self._view = [generator.with_denoiser(self.trunk)]  # in a list: no submodule of this one
        blocks = self.trunk.blocks if hasattr(self.trunk, "blocks") else self.trunk.transformer_blocks
        self._last = blocks[-1]

    def forward(self, latents: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def keep(block: Any, arguments: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handle = self._last.register_forward_hook(keep)
        try:
            self._view[0].predict(latents.to(self.trunk.dtype), levels, text)
        finally:
            handle.remove()
        return self.head(seen[0].float().mean(dim=1))


def bradley_terry_loss(first: Tensor, second: Tensor, preferred: Tensor) -> Tensor:
    """-log sigmoid(+-(r_first - r_second)), the mean over all judgements that are no tie, a scalar.

    `first` and `second` are rewards (pairs, dimensions), `preferred` is +1 where the first is better there, -1 where
    the second is, 0 for a tie. The loss is 0 where all are ties. Raises ValueError where the shapes differ.
    """
    if not first.shape == second.shape == preferred.shape:
        raise ValueError(f"shapes differ: {tuple(first.shape)}, {tuple(second.shape)}, {tuple(preferred.shape)}")
    verdicts = torch.where(preferred == 0, TIE, torch.where(preferred > 0, 0, 1))
    losses = bt_loss(first.flatten(), second.flatten(), verdicts.flatten())
    return losses.sum() / (verdicts != TIE).sum().clamp(min=1)


def fit_latent_reward(
    reward: LatentReward,
    generator: Generator,
    first: Tensor,
    second: Tensor,
    text: Tensor,
    preferred: Tensor,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Trains in place with Bradley-Terry on pairs under the same noise and level; returns the loss of every step.

    `first` and `second` are latents (pairs, ...), `text` (pairs, length, width), `preferred` as `bradley_terry_loss`
    takes it.
    """
    reward.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(reward.parameters(), lr=learning_rate, weight_decay=0.0)
    source, losses = torch.Generator().manual_seed(seed), []
    for _ in tqdm(range(steps), desc="latent reward", leave=False):
        rows = torch.randperm(len(first), generator=source)[:batch_size].to(first.device)
        levels = generator.draw_levels(len(rows), source)
        noise = torch.randn(first[rows].shape, generator=source).to(first)
        noised = torch.cat([generator.noised(clean[rows], noise, levels) for clean in (first, second)])
        scores = reward(noised, levels.repeat(2), text[rows].repeat(2, 1, 1))
        loss = bradley_terry_loss(*scores.chunk(2), preferred[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    reward.eval().requires_grad_(False)
    return losses
