"""A small reward model on noisy latents, built on the generator's first layers (VideoAlign, section 4.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualipo.artifacts import atomic, copy_folder, read_json, write_json
from dualipo.critic.videoreward.losses import TIE, bt_loss
from dualipo.errors import UserError
from dualipo.generator.base import Generator
from dualipo.records import DIMENSIONS

FOLDER, WEIGHTS = "latent_reward", "model.safetensors"
"""Inside a generator folder: the reward that steers it."""


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
        # In lists: no submodules of this one.
        self._view = [generator.with_denoiser(self.trunk)]
        blocks = self.trunk.blocks if hasattr(self.trunk, "blocks") else self.trunk.transformer_blocks
        self._last = [blocks[-1]]

    def forward(self, latents: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def keep(block: Any, arguments: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        handle = self._last[0].register_forward_hook(keep)
        try:
            self._view[0].predict(latents.to(self.trunk.dtype), levels, text)
        finally:
            handle.remove()
        return self.head(seen[0].float().mean(dim=1))


def judgement_losses(first: Tensor, second: Tensor, preferred: Tensor) -> Tensor:
    """-log sigmoid(+-(r_first - r_second)) of each judgement, (pairs, dimensions); 0 for a tie.

    `first` and `second` are rewards (pairs, dimensions), `preferred` is +1 where the first is better there, -1 where
    the second is, 0 for a tie. Raises ValueError where the shapes differ.
    """
    if not first.shape == second.shape == preferred.shape:
        raise ValueError(f"shapes differ: {tuple(first.shape)}, {tuple(second.shape)}, {tuple(preferred.shape)}")
    verdicts = torch.where(preferred == 0, TIE, torch.where(preferred > 0, 0, 1))
    return bt_loss(first.flatten(), second.flatten(), verdicts.flatten()).view_as(first)


def bradley_terry_loss(first: Tensor, second: Tensor, preferred: Tensor) -> Tensor:
    """The mean of `judgement_losses` over all judgements that are no tie, a scalar; 0 where all are ties."""
    return judgement_losses(first, second, preferred).sum() / (preferred != 0).sum().clamp(min=1)


def save_latent_reward(reward: LatentReward, folder: Path) -> None:
    """Puts a reward into the generator folder `folder`: its blocks' number as JSON, its weights as safetensors."""
    from safetensors.torch import save_file

    (folder / FOLDER).mkdir()
    about = {"layers": reward.trunk.config.num_layers, "dimensions": list(DIMENSIONS)}
    write_json(folder / FOLDER / "config.json", about)
    tensors = {name: value.detach().cpu().contiguous() for name, value in reward.state_dict().items()}
    with atomic(folder / FOLDER / WEIGHTS) as temporary:
        save_file(tensors, temporary, {"format": "pt"})


def load_latent_reward(generator: Generator, folder: Path) -> LatentReward:
    """The reward in the generator folder `folder`, which `generator` was loaded from. Raises UserError where it is not
    whole, or not one of this generator's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = folder / FOLDER
    try:
        reward = LatentReward(generator, int(read_json(place / "config.json")["layers"]))
        # Assigned, since parts may have a precision of their own.
        reward.load_state_dict(load_file(place / WEIGHTS, device=str(generator.device)), assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"{place}: not a reward of this generator ({' '.join(str(error).split())[:160]}); run align again"
        ) from None
    return reward.eval().requires_grad_(False)


def has_latent_reward(folder: Path) -> bool:
    return (folder / FOLDER / WEIGHTS).is_file()


def carry_latent_reward(source: Path, target: Path) -> None:
    """Hands a stored reward on to another generator folder; nothing where there is none."""
    if has_latent_reward(source):
        copy_folder(source / FOLDER, target / FOLDER)
