"""Aligns the generator with the accepted critic's preferences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dualipo.artifacts import atomic
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.records import Desirability, Preference, RealClip, find_table, read_rows
from dualipo.steps import Job, Summary

if TYPE_CHECKING:
    import torch

    from dualipo.alignment.trainer import Encoded
    from dualipo.generator.base import Generator


def align(
    config: Config,
    job: Job,
    *,
    preferences: Path,
    candidates: Path,
    real_clips: Path,
    generator: Path,
    base_generator: Path,
    candidate: Path,
    curves: Path,
) -> Summary:
    """Writes the generator candidate and its curves.

    The frozen reference is the incumbent, or with `align.reference: base` the base model. With LoRA it is the model
    under the adapter; to refer to the base model for good, every round trains the same adapter on, which therefore goes
    into the candidate's folder beside the merged weights. Without a single usable preference the incumbent's weights
    are handed on: the gate on the preferences has already said so.
    """
    from dualipo.alignment import adapter
    from dualipo.alignment.trainer import REFERRED, Trainer
    from dualipo.curves import write_curves
    from dualipo.generator.base import load_generator

    section = config.align
    to_base = section.lora is not None and section.reference == "base"
    model = load_generator(base_generator if to_base else generator)
    data = _encode(model, section.loss, preferences, candidates, real_clips)
    series: dict[str, list[tuple[int, float]]] = {"loss": []}
    trained: dict[str, torch.Tensor] = {}
    if len(data.winners):
        reference = None
        if section.lora is None and section.loss in REFERRED:
            reference = load_generator(generator if section.reference == "previous" else base_generator)
        start = (lambda denoiser: adapter.load(generator, denoiser, base_generator)) if to_base else None
        trainer = Trainer(model, reference, data, section, job.seed, start)
        series, trained = trainer.train(job.work), trainer.adapter
    elif to_base:
        model = load_generator(generator)
    with atomic(candidate) as temporary:
        model.save(temporary)
        if not len(data.winners):
            adapter.carry(generator, temporary)
        elif to_base:
            adapter.save(temporary, trained, base_generator)
    write_curves(curves, series)
    last = {name: points[-1][1] for name, points in series.items() if points}
    return Summary(metrics={**last, "preferences": float(len(data.winners))}, curves=series)


def _encode(model: Generator, loss: str, preferences: Path, candidates: Path, real_clips: Path) -> Encoded:
    import torch

    from dualipo.alignment.losses import standardised
    from dualipo.alignment.trainer import Encoded, encode
    from dualipo.media.store import ClipStore
    from dualipo.media.video import decode_clip

    store = ClipStore(candidates)
    real = read_rows(find_table(real_clips, "captions"), RealClip)
    clips = {f"real/{row.clip}": decode_clip(real_clips / row.clip) for row in real}
    desirable = rewards = None
    if loss in ("dpo", "flow_dpo", "sft"):
        pairs = read_rows(preferences / "pairs.jsonl", Preference, allow_empty=True)
        first, prompts = [row.winner for row in pairs], [row.prompt for row in pairs]
        second = None if loss == "sft" else [row.loser for row in pairs]
    else:
        rows = read_rows(preferences / "desirability.jsonl", Desirability, allow_empty=True)
        first, prompts, second = [row.clip for row in rows], [row.prompt for row in rows], None
        desirable = torch.tensor([row.desirable for row in rows])
        rewards = standardised(torch.tensor([row.score for row in rows]))
    clips |= {name: store[name] for name in dict.fromkeys([*first, *(second or [])])}
    shapes = {clip.shape for clip in clips.values()}
    if len(shapes) > 1:
        raise UserError(
            f"{real_clips}: real clips and candidates differ in frames or size {sorted(shapes)}; make them alike"
        )
    latents, row_of, text, text_of = encode(model, clips, [*prompts, *(row.prompt for row in real)])

    def rows_of(names: list[str]) -> torch.Tensor:
        return torch.tensor([row_of[name] for name in names], dtype=torch.long, device=latents.device)

    def texts_of(prompts: list[str]) -> torch.Tensor:
        return torch.tensor([text_of[prompt] for prompt in prompts], dtype=torch.long, device=latents.device)

    return Encoded(
        latents,
        text,
        rows_of(first),
        None if second is None else rows_of(second),
        texts_of(prompts),
        None if desirable is None else desirable.to(latents.device),
        rows_of([f"real/{row.clip}" for row in real]),
        texts_of([row.prompt for row in real]),
        None if rewards is None else rewards.to(latents.device),
    )
