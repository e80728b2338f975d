"""Aligns a generator with preferences: one task for every loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch

from dualipo.alignment import adapter
from dualipo.alignment.encoding import Rows, shapes
from dualipo.alignment.losses import (
    Diagnostics,
    denoising_error,
    diffusion_dpo_loss,
    diffusion_kto_loss,
    flow_dpo_loss,
    kl_estimate,
    rwr_loss,
    sft_loss,
)
from dualipo.config import Align
from dualipo.errors import UserError
from dualipo.generator.base import Generator
from dualipo.steps import derive_seed
from dualipo.training.loop import train
from dualipo.training.ranks import Part, merge, micro_batches, parts
from dualipo.training.task import Recipe, Task, Trained

PAIRED = ("dpo", "flow_dpo")
"""Losses on pairs of winner and loser."""
REFERRED = (*PAIRED, "kto")
"""Losses that measure against a frozen reference."""


@dataclass(frozen=True)
class Encoded:
    """Clips and texts as the denoiser takes them, encoded once."""

    latents: Rows
    """(clips, ...) of every clip in use; their shapes may differ."""
    text: Rows
    """(texts, length, width)."""
    winners: torch.Tensor
    """(pairs,) rows of `latents`; for losses on single clips the clips themselves."""
    losers: torch.Tensor | None
    """(pairs,), each of its winner's shape; None for losses on single clips."""
    pair_text: torch.Tensor
    """(pairs,) rows of `text`."""
    desirable: torch.Tensor | None
    """(clips,) bool, for KTO."""
    real: torch.Tensor
    """(real clips,) rows of `latents`."""
    real_text: torch.Tensor
    rewards: torch.Tensor | None = None
    """(clips,) standardised, for RWR."""


@dataclass
class _Batch:
    """A step's global batch, and what its parts have found so far."""

    rows: torch.Tensor
    """(B,) of the preferences."""
    levels: torch.Tensor
    """(B,)"""
    real: torch.Tensor
    """(R,) of the real clips; R may be 0."""
    real_levels: torch.Tensor
    joint: bool
    """Real clips have the judged ones' shape, and share their pass."""
    errors: list[list[tuple[Part, torch.Tensor]]]
    """Of each side (winner, loser), part by part."""
    before: list[list[tuple[Part, torch.Tensor]]]
    real_errors: list[tuple[Part, torch.Tensor]]
    q_ref: torch.Tensor | None = None

    def whole(self, pieces: list[list[tuple[Part, torch.Tensor]]]) -> list[torch.Tensor]:
        return [merge(len(self.rows), side) for side in pieces if side]


class Trainer(Task):
    """Any loss of `align.loss` with its diffusion-loss terms (Dual-IPO eq. 6 to 10; VideoAlign eq. 6 and 9).

    Every step draws its rows, noise levels and noise from a stream of its own, so that a resumed training gives the
    floats of an unbroken one, and every process the same batch. Clips of several shapes: each step draws one shape, in
    proportion to the preferences that have it, and one for its real clips. With `align.lora` the reference is the
    generator without its adapter and `reference` is None, as it is for losses that need none. `start` is called on the
    fresh adapter's denoiser, to fill it.
    """

    title = "aligning"
    shown: ClassVar[dict[str, str]] = {"loss": "loss", "accuracy": "implicit_accuracy"}

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
        self.device = generator.device
        if section.lora is None:
            self.denoiser.requires_grad_(True)
        else:
            adapter.attach(self.denoiser, section.lora, derive_seed(seed, "adapter"))
            if start is not None:
                start(self.denoiser)
        found = shapes(data.latents)
        self.buckets = by_shape(found, data.winners)
        self.real_buckets = by_shape(found, data.real) if section.lambda_real > 0 else {}

    @property
    def trained(self) -> torch.nn.Module:
        return self.denoiser

    def train(self, work: Path) -> Trained:
        """Trains in place and returns the curves; goes on from a checkpoint in `work`."""
        section = self.section
        checkpointing = section.training.gradient_checkpointing
        if checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        recipe = Recipe(
            section.steps, section.learning_rate, section.warmup_steps, section.max_grad_norm,
            section.checkpoint_every, betas=(0.9, 0.99), training=section.training,
        )  # fmt: skip
        result = train(self, recipe, work)
        if checkpointing:
            self.denoiser.disable_gradient_checkpointing()
        if section.lora is not None:
            self.adapter = adapter.weights(self.denoiser)
            adapter.merge(self.denoiser)
        self.denoiser.eval().requires_grad_(False)
        return result

    # ---- a step

    def begin(self, step: int) -> list[Callable[[], torch.Tensor]]:
        section, data, generator = self.section, self.data, self.generator
        source = torch.Generator().manual_seed(derive_seed(self.seed, step))
        shape, bucket = draw_bucket(self.buckets, self.seed, step, "preferences")
        rows = bucket[draw_rows(len(bucket), section.batch_size, source)]
        micro = micro_batches(len(rows), section.training.micro_batch_size)
        own = parts(len(rows), micro)
        levels = generator.draw_levels(len(rows), source)
        noise = draw_noise(len(rows), shape, own, source)
        real, real_levels = rows[:0], levels[:0]
        real_own: Sequence[Part | None] = [None] * len(own)
        real_noise: Sequence[torch.Tensor | None] = [None] * len(own)
        joint = True
        if self.real_buckets:
            real_shape, bucket = draw_bucket(self.real_buckets, self.seed, step, "real")
            joint = real_shape == shape
            real = bucket[draw_rows(len(bucket), max(section.batch_size // 2, 1), source)]
            real_levels = generator.draw_levels(len(real), source)
            found = parts(len(real), micro)
            drawn = draw_noise(len(real), real_shape, found, source)
            # On one process there may be fewer real parts than judged ones.
            missing = [None] * (len(own) - len(found))
            real_own, real_noise = [*found, *missing], [*drawn, *missing]
        sides = 1 if data.losers is None else 2
        self.batch = _Batch(
            rows, levels.to(self.device), real, real_levels.to(self.device), joint,
            [[] for _ in range(sides)], [[] for _ in range(sides)], [],
        )  # fmt: skip
        if section.loss == "kto" and len(own) > 1:
            # Q_ref is the whole batch's: a pass without gradient over all parts comes first.
            for part, drawn_noise in zip(own, noise, strict=True):
                self._compare(part, drawn_noise, None, None)
            self.batch.q_ref = self._q_ref()
            self.batch.errors = [[]]
        return [partial(self._part, *each) for each in zip(own, noise, real_own, real_noise, strict=True)]

    def finish(self) -> dict[str, float]:
        section, batch = self.section, self.batch
        error, before = batch.whole(batch.errors), batch.whole(batch.before)
        losses, found = self._judge(error, before, batch.rows, batch.levels)
        total = losses.mean()
        logged = {f"{section.loss}_loss": total.item(), **{key: value.item() for key, value in found.items()}}
        if section.loss in PAIRED:
            winner_nll = error[0].mean()
            total = total + section.lambda_winner * winner_nll
            logged["nll_winner"] = winner_nll.item()
        if len(batch.real):
            real_nll = merge(len(batch.real), batch.real_errors).mean()
            total = total + section.lambda_real * real_nll
            logged["nll_real"] = real_nll.item()
        return {**logged, "loss": total.item()}

    def _part(
        self, part: Part, noise: torch.Tensor, real: Part | None, real_noise: torch.Tensor | None
    ) -> torch.Tensor:
        """A micro-batch's part of the loss."""
        section, batch = self.section, self.batch
        error, before, real_error = self._compare(part, noise, real, real_noise)
        if section.loss == "kto" and batch.q_ref is None:
            batch.q_ref = self._q_ref()
        losses, _ = self._judge(error, before, batch.rows[part.rows], batch.levels[part.rows])
        total = losses.mean()
        if section.loss in PAIRED:
            total = total + section.lambda_winner * error[0].mean()
        total = total * part.weight
        if real is not None and real_error is not None:
            total = total + section.lambda_real * (real_error.mean() * real.weight)
        return total

    def _compare(
        self, part: Part, noise: torch.Tensor, real: Part | None, real_noise: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor | None]:
        """Errors of a micro-batch's winners and losers under the model and the reference, and of its real clips."""
        data, batch = self.data, self.batch
        rows = batch.rows[part.rows]
        sides = [data.winners[rows]] + ([data.losers[rows]] if data.losers is not None else [])
        # Winner and loser of a pair share noise level and noise.
        clean = torch.cat([data.latents[side] for side in sides])
        noise = torch.cat([noise.to(self.device)] * len(sides))
        levels = batch.levels[part.rows].repeat(len(sides))
        text = data.text[data.pair_text[rows]].repeat(len(sides), 1, 1)
        judged = len(clean)
        real_error = None
        if real is not None and real_noise is not None:
            extra = batch.real[real.rows]
            others = (
                data.latents[data.real[extra]],
                real_noise.to(self.device),
                batch.real_levels[real.rows],
                data.text[data.real_text[extra]],
            )
            if batch.joint:
                joined = zip((clean, noise, levels, text), others, strict=True)
                clean, noise, levels, text = (torch.cat(pair) for pair in joined)
            else:
                real_error = _errors(self.generator, *self._noised(*others[:3]), *others[2:])
        noised, target = self._noised(clean, noise, levels)
        error = _errors(self.generator, noised, target, levels, text)
        if real is not None and real_error is None:
            real_error = error[judged:]
        found = list(error[:judged].chunk(len(sides)))
        # A pass for KTO's Q_ref has been through the reference already.
        before = [values for side in batch.before for known, values in side if known == part][: len(sides)]
        for pieces, values in zip(batch.errors, found, strict=True):
            pieces.append((part, values.detach()))
        if self.section.loss in REFERRED and not before:
            with torch.no_grad(), self._as_reference() as model:
                own = (each[:judged] for each in (noised, target, levels, text))
                before = list(_errors(model, *own).chunk(len(sides)))
            for pieces, values in zip(batch.before, before, strict=True):
                pieces.append((part, values))
        if real is not None and real_error is not None:
            batch.real_errors.append((real, real_error.detach()))
        return found, before, real_error

    def _noised(
        self, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noised clips, and what should be predicted of them."""
        return self.generator.noised(clean, noise, levels), self.generator.target(clean, noise, levels)

    def _judge(
        self, error: list[torch.Tensor], before: list[torch.Tensor], rows: torch.Tensor, levels: torch.Tensor
    ) -> tuple[torch.Tensor, Diagnostics]:
        """The loss asked for, of the judged clips' errors under the model and, `before`, under the reference."""
        section, data = self.section, self.data
        if not before:
            if section.loss == "sft":
                return sft_loss(error[0])
            assert data.rewards is not None
            return rwr_loss(error[0], data.rewards[rows].to(self.device))
        omega = self._omega(levels)
        if section.loss == "kto":
            assert data.desirable is not None
            desirable = data.desirable[rows].to(self.device)
            return diffusion_kto_loss(error[0], before[0], desirable, section.beta, q_ref=self.batch.q_ref, omega=omega)
        (winner, loser), (before_w, before_l) = error, before
        if section.loss == "flow_dpo":
            times = self.generator.times(levels) if section.omega == "derived" else None
            return flow_dpo_loss(winner, loser, before_w, before_l, section.beta, times)
        return diffusion_dpo_loss(winner, loser, before_w, before_l, section.beta, omega)

    def _omega(self, levels: torch.Tensor) -> torch.Tensor | None:
        return self.generator.snr_weight(levels) if self.section.omega == "snr" else None

    def _q_ref(self) -> torch.Tensor:
        """beta times the KL estimate of the whole batch, over its micro-batches and processes."""
        batch = self.batch
        (error,), (before,) = batch.whole(batch.errors), batch.whole(batch.before)
        return self.section.beta * kl_estimate(error, before, self._omega(batch.levels), reduce=lambda mean: mean)

    @contextmanager
    def _as_reference(self) -> Iterator[Generator]:
        """The frozen reference: a model of its own, or the generator with its adapter switched off."""
        if self.reference is not None:
            yield self.reference
        else:
            with adapter.switched_off(self.denoiser):
                yield self.generator


Buckets = dict[tuple[int, ...], torch.Tensor]
"""Places of preferences, or of real clips, by the shape of their latents."""


def by_shape(found: Sequence[tuple[int, ...]], rows: torch.Tensor) -> Buckets:
    """Places in `rows` by the shape of their latents, `found` of every row, the most frequent shape first."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows.tolist()):
        places.setdefault(found[row], []).append(place)
    ordered = sorted(places.items(), key=lambda item: -len(item[1]))
    return {shape: torch.tensor(own, device=rows.device) for shape, own in ordered}


def draw_bucket(buckets: Buckets, seed: int, step: int, name: str) -> tuple[tuple[int, ...], torch.Tensor]:
    """The shape of a step, drawn in proportion, and the places that have it."""
    chosen = 0
    if len(buckets) > 1:
        source = torch.Generator().manual_seed(derive_seed(seed, step, "shape", name))
        counts = torch.tensor([float(len(places)) for places in buckets.values()])
        chosen = int(torch.multinomial(counts, 1, generator=source))
    return list(buckets.items())[chosen]


def _errors(
    model: Generator, noised: torch.Tensor, target: torch.Tensor, levels: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """Denoising error of each clip under a model, (clips,)."""
    kind = model.denoiser.dtype
    return denoising_error(model.predict(noised.to(kind), levels, text.to(kind)), target)


def draw_rows(total: int, count: int, source: torch.Generator) -> torch.Tensor:
    """`count` distinct rows of `total`, or all of them in random order and some again where there are fewer."""
    rounds = -(-count // total)
    return torch.cat([torch.randperm(total, generator=source) for _ in range(rounds)])[:count]


def draw_noise(count: int, shape: tuple[int, ...], own: Sequence[Part], source: torch.Generator) -> list[torch.Tensor]:
    """torch.randn of (count, *shape) at the places of each part, holding no more than these at once.

    The stream is moved on past all of it. Clip after clip the same numbers come as at once: torch draws normal numbers
    in blocks of 16, which clips of other sizes would not fill.
    """
    if math.prod(shape) % 16 or sum(map(len, own)) == count:
        whole = torch.randn((count, *shape), generator=source)
        return [whole[part.rows] for part in own]
    wanted = {place for part in own for place in range(part.begin, part.end)}
    kept = {}
    for place in range(count):
        drawn = torch.randn(shape, generator=source)
        if place in wanted:
            kept[place] = drawn
    return [torch.stack([kept[place] for place in range(part.begin, part.end)]) for part in own]
