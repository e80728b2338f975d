"""Aligns a generator with preferences: one loop for every loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dualipo.alignment import adapter
from dualipo.alignment.losses import (
    Diagnostics,
    denoising_error,
    diffusion_dpo_loss,
    diffusion_kto_loss,
    flow_dpo_loss,
    rwr_loss,
    sft_loss,
)
from dualipo.config import Align
from dualipo.curves import Series
from dualipo.errors import UserError
from dualipo.generator.base import Generator
from dualipo.steps import derive_seed
from dualipo.training_state import load_state, save_state

PAIRED = ("dpo", "flow_dpo")
"""Losses on pairs of winner and loser."""
REFERRED = (*PAIRED, "kto")
"""Losses that measure against a frozen reference."""


@dataclass(frozen=True)
class Encoded:
    """Clips and texts as the denoiser takes them, encoded once."""

    latents: torch.Tensor
    """(clips, ...) of every clip in use."""
    text: torch.Tensor
    """(texts, length, width)."""
    winners: torch.Tensor
    """(pairs,) rows of `latents`; for losses on single clips the clips themselves."""
    losers: torch.Tensor | None
    """(pairs,); None for losses on single clips."""
    pair_text: torch.Tensor
    """(pairs,) rows of `text`."""
    desirable: torch.Tensor | None
    """(clips,) bool, for KTO."""
    real: torch.Tensor
    """(real clips,) rows of `latents`."""
    real_text: torch.Tensor
    rewards: torch.Tensor | None = None
    """(clips,) standardised, for RWR."""


class Trainer:
    """Any loss of `align.loss` with its diffusion-loss terms (Dual-IPO eq. 6 to 10; VideoAlign eq. 6 and 9).

    Every step draws its rows, noise levels and noise from a stream of its own, so that a resumed training gives the
    floats of an unbroken one. With `align.lora` the reference is the generator without its adapter and `reference` is
    None, as it is for losses that need none. `start` is called on the fresh adapter's denoiser, to fill it.
    """

    def __init__(
        self,
        generator: Generator,
        reference: Generator | None,
        data: Encoded,
        section: Align,
        seed: int,
        start: Callable[[torch.nn.Module], None] | None = None,
    ):
        if section.loss == "flow_dpo" and not generator.flow:
            name = type(generator).__name__
            raise UserError(f"align.loss: flow_dpo needs a rectified-flow generator, {name} is none; use dpo")
        if (reference is None) != (section.lora is not None or section.loss not in REFERRED):
            raise ValueError("reference: needed without LoRA by losses that refer to one, and only then")
        self.generator, self.reference, self.data, self.section, self.seed = generator, reference, data, section, seed
        self.adapter: dict[str, torch.Tensor] = {}
        """The trained adapter's weights, once trained; the generator itself holds them merged."""
        self.denoiser = generator.denoiser.train()
        if section.lora is None:
            self.denoiser.requires_grad_(True)
        else:
            adapter.attach(self.denoiser, section.lora, derive_seed(seed, "adapter"))
            if start is not None:
                start(self.denoiser)
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
            shown = {"loss": "loss", "accuracy": "implicit_accuracy"}
            bar.set_postfix({name: f"{logged[key]:.3f}" for name, key in shown.items() if key in logged})
            if (step + 1) % section.checkpoint_every == 0 and step + 1 < section.steps:
                save_state(work, step + 1, self.denoiser, self.optimizer, {"series": series})
        if section.lora is not None:
            self.adapter = adapter.weights(self.denoiser)
            adapter.merge(self.denoiser)
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
        before = None
        if section.loss in REFERRED:
            with torch.no_grad(), self._as_reference() as model:
                prediction = model.predict(noised[:judged], levels[:judged], text[:judged])
                before = denoising_error(prediction, target[:judged])
        losses, found = self._judge(error[:judged], before, rows, levels[: len(rows)])
        total = losses.mean()
        logged = {f"{section.loss}_loss": total.item(), **{key: value.item() for key, value in found.items()}}
        if section.loss in PAIRED:
            winner_nll = error[: len(rows)].mean()
            total = total + section.lambda_winner * winner_nll
            logged["nll_winner"] = winner_nll.item()
        if len(error) > judged:
            real_nll = error[judged:].mean()
            total = total + section.lambda_real * real_nll
            logged["nll_real"] = real_nll.item()
        return total, logged

    def _judge(
        self, error: torch.Tensor, before: torch.Tensor | None, rows: torch.Tensor, levels: torch.Tensor
    ) -> tuple[torch.Tensor, Diagnostics]:
        """The loss asked for, of the judged clips' errors under the model and, `before`, under the reference."""
        section, data, generator = self.section, self.data, self.generator
        if before is None:
            if section.loss == "sft":
                return sft_loss(error)
            assert data.rewards is not None
            return rwr_loss(error, data.rewards[rows])
        if section.loss == "kto":
            assert data.desirable is not None
            omega = generator.snr_weight(levels) if section.omega == "snr" else None
            return diffusion_kto_loss(error, before, data.desirable[rows], section.beta, omega=omega)
        four = *error.chunk(2), *before.chunk(2)
        if section.loss == "flow_dpo":
            return flow_dpo_loss(*four, section.beta, generator.times(levels) if section.omega == "derived" else None)
        return diffusion_dpo_loss(*four, section.beta, generator.snr_weight(levels) if section.omega == "snr" else None)

    @contextmanager
    def _as_reference(self) -> Iterator[Generator]:
        """The frozen reference: a model of its own, or the generator with its adapter switched off."""
        if self.reference is not None:
            yield self.reference
        else:
            with adapter.switched_off(self.denoiser):
                yield self.generator


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
