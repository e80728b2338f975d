"""Aligns a generator with preferences: one loop for every loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dualipo.alignment.losses import denoising_error, diffusion_dpo_loss, diffusion_kto_loss
from dualipo.config import Align
from dualipo.generator.base import Generator
from dualipo.steps import derive_seed
from dualipo.training_state import load_state, save_state

Series = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Encoded:
    """Clips and texts as the denoiser takes them, encoded once."""

    latents: torch.Tensor
    """(clips, ...) of every clip in use."""
    text: torch.Tensor
    """(texts, length, width)."""
    winners: torch.Tensor
    """(pairs,) rows of `latents`; for KTO the clips themselves."""
    losers: torch.Tensor | None
    """(pairs,); None for KTO."""
    pair_text: torch.Tensor
    """(pairs,) rows of `text`."""
    desirable: torch.Tensor | None
    """(clips,) bool, for KTO."""
    real: torch.Tensor
    """(real clips,) rows of `latents`."""
    real_text: torch.Tensor


class Trainer:
    """Diffusion-DPO or Diffusion-KTO with their diffusion-loss terms (Dual-IPO eq. 6 to 10).

    Every step draws its rows, noise levels and noise from a stream of its own, so that a resumed training gives the
    floats of an unbroken one.
    """

    def __init__(self, generator: Generator, reference: Generator, data: Encoded, section: Align, seed: int):
        self.generator, self.reference, self.data, self.section, self.seed = generator, reference, data, section, seed
        self.denoiser = generator.denoiser.train().requires_grad_(True)
        self.parameters = [p for p in self.denoiser.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=section.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )

    def train(self, work: Path) -> Series:
        """Trains in place and returns the curves; goes on from a checkpoint in `work`."""
        section = self.section
        state = load_state(work, self.denoiser, self.optimizer)
        begin, extra = state if state else (0, {"series": {}})
        series: Series = {name: [(int(s), v) for s, v in points] for name, points in extra["series"].items()}
        for step in (
            bar := tqdm(range(begin, section.steps), desc="aligning", initial=begin, total=section.steps, leave=False)
        ):
            rate = section.learning_rate * min(1.0, (step + 1) / max(section.warmup_steps, 1))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, logged = self.loss(step)
            self.optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, section.max_grad_norm)
            self.optimizer.step()
            logged |= {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}
            for name, value in logged.items():
                series.setdefault(name, []).append((step + 1, value))
            bar.set_postfix(loss=f"{logged['loss']:.3f}", accuracy=f"{logged['implicit_accuracy']:.2f}")
            if (step + 1) % section.checkpoint_every == 0 and step + 1 < section.steps:
                save_state(work, step + 1, self.denoiser, self.optimizer, {"series": series})
        self.denoiser.eval().requires_grad_(False)
        return series

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Total loss of one step and what it is made of."""
        section, data, generator = self.section, self.data, self.generator
        source = torch.Generator().manual_seed(derive_seed(self.seed, step))
        device = data.latents.device
        rows = _draw(len(data.winners), section.batch_size, source).to(device)
        sides = [data.winners[rows]] + ([data.losers[rows]] if data.losers is not None else [])
        levels = generator.draw_levels(len(rows), source)
        noise = torch.randn(data.latents[sides[0]].shape, generator=source).to(device)
        # Winner and loser of a pair share noise level and noise.
        clean = torch.cat([data.latents[side] for side in sides])
        levels, noise = levels.repeat(len(sides)), torch.cat([noise] * len(sides))
        text = data.text[data.pair_text[rows]].repeat(len(sides), 1, 1)
        if section.lambda_real > 0 and len(data.real):
            extra = _draw(len(data.real), max(section.batch_size // 2, 1), source).to(device)
            clean = torch.cat([clean, data.latents[data.real[extra]]])
            text = torch.cat([text, data.text[data.real_text[extra]]])
            levels = torch.cat([levels, generator.draw_levels(len(extra), source)])
            noise = torch.cat([noise, torch.randn(data.latents[extra].shape, generator=source).to(device)])
        noised = generator.noised(clean, noise, levels)
        target = generator.target(clean, noise, levels)
        error = denoising_error(generator.predict(noised, levels, text), target)
        judged = len(rows) * len(sides)
        with torch.no_grad():
            before = denoising_error(
                self.reference.predict(noised[:judged], levels[:judged], text[:judged]), target[:judged]
            )
        omega = generator.snr_weight(levels[: len(rows)]) if section.omega == "snr" else None
        if data.losers is not None:
            (won, lost), (won_before, lost_before) = error[:judged].chunk(2), before.chunk(2)
            losses, found = diffusion_dpo_loss(won, lost, won_before, lost_before, section.beta, omega)
            winner_nll, name = won.mean(), "dpo_loss"
        else:
            assert data.desirable is not None
            losses, found = diffusion_kto_loss(error[:judged], before, data.desirable[rows], section.beta, omega=omega)
            winner_nll, name = None, "kto_loss"
        total = losses.mean()
        logged = {name: total.item(), **{key: value.item() for key, value in found.items()}}
        if winner_nll is not None:
            total = total + section.lambda_winner * winner_nll
            logged["nll_winner"] = winner_nll.item()
        if len(error) > judged:
            real_nll = error[judged:].mean()
            total = total + section.lambda_real * real_nll
            logged["nll_real"] = real_nll.item()
        return total, logged


def _draw(total: int, count: int, source: torch.Generator) -> torch.Tensor:
    """`count` distinct rows of `total`, or all of them in random order and some again where there are fewer."""
    rounds = -(-count // total)
    return torch.cat([torch.randperm(total, generator=source) for _ in range(rounds)])[:count]


def encode(
    generator: Generator, clips: dict[str, np.ndarray], texts: list[str], batch_size: int = 64
) -> tuple[torch.Tensor, dict[str, int], torch.Tensor, dict[str, int]]:
    """Latents of clips and embeddings of texts, with the row of each; encoded once, before training."""
    names, distinct = list(clips), list(dict.fromkeys(texts))
    latents = [
        generator.encode_clips(np.stack([clips[n] for n in names[i : i + batch_size]]))
        for i in range(0, len(names), batch_size)
    ]
    text = [generator.encode_text(distinct[i : i + 256]) for i in range(0, len(distinct), 256)]
    return (
        torch.cat(latents),
        {n: i for i, n in enumerate(names)},
        torch.cat(text),
        {t: i for i, t in enumerate(distinct)},
    )
