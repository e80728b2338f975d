"""Aligns the generator with the accepted critic's preferences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dualipo.artifacts import atomic
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.heldout import read_held_out, require_apart
from dualipo.records import ClipScores, Desirability, Preference, RealClip, find_table, joined, read_rows
from dualipo.steps import Job, Summary, derive_seed
from dualipo.training.launch import launch, needs_launch

if TYPE_CHECKING:
    import torch

    from dualipo.alignment.trainer import Encoded
    from dualipo.generator.base import Generator
    from dualipo.generator.latent_reward import LatentReward
    from dualipo.training.task import Trained


def align(
    config: Config,
    job: Job,
    *,
    preferences: Path,
    candidates: Path,
    real_clips: Path,
    generator: Path,
    base_generator: Path,
    held_out: Path,
    candidate: Path,
    curves: Path,
) -> Summary:
    """Writes the generator candidate and its curves.

    The frozen reference is the incumbent, or with `align.reference: base` the base model. With LoRA it is the model
    under the adapter; to refer to the base model for good, every round trains the same adapter on, which therefore goes
    into the candidate's folder beside the merged weights. Without a single usable preference the incumbent's weights
    are handed on: the gate on the preferences has already said so. With `latent_reward.train` a reward on noisy latents
    is trained on the same pairs, from the first blocks of the model that alignment starts from, and goes into the
    candidate's folder; without a pair the incumbent's goes on.

    Raises UserError where the prompt of a preference or the caption of a real clip is held out.
    """
    section = config.align
    if needs_launch(section.training):
        paths = {
            "preferences": preferences, "candidates": candidates, "real_clips": real_clips, "generator": generator,
            "base_generator": base_generator, "held_out": held_out, "candidate": candidate, "curves": curves,
        }  # fmt: skip
        return launch("align", config, job, paths, section.training.processes)

    from dualipo.alignment import adapter
    from dualipo.alignment.trainer import REFERRED, Trainer
    from dualipo.curves import write_curves
    from dualipo.generator.base import load_generator
    from dualipo.generator.latent_reward import carry_latent_reward, save_latent_reward
    from dualipo.training.ranks import world
    from dualipo.training.task import Trained

    require_apart(read_held_out(held_out), _texts(preferences, real_clips))
    to_base = section.lora is not None and section.reference == "base"
    model = load_generator(base_generator if to_base else generator)
    data = _encode(model, section.loss, preferences, candidates, real_clips, job.work / "encoded")
    reward, learnt = None, Trained({})
    if config.latent_reward.train:
        folder = job.work / "encoded"
        pairs = data if data.losers is not None else _encode(model, "dpo", preferences, candidates, real_clips, folder)
        reward, learnt = _train_reward(config, job, model, pairs, preferences)
    model.keep_denoiser()
    result = Trained({"loss": []})
    trained: dict[str, torch.Tensor] = {}
    if len(data.winners):
        reference = None
        if section.lora is None and section.loss in REFERRED:
            reference = load_generator(generator if section.reference == "previous" else base_generator)
            reference.keep_denoiser()
        start = (lambda denoiser: adapter.load(generator, denoiser, base_generator)) if to_base else None
        trainer = Trainer(model, reference, data, section, job.seed, start)
        result, trained = trainer.train(job.work), trainer.adapter
    elif to_base:
        model = load_generator(generator)
    if not world().main:
        return Summary()
    with atomic(candidate) as temporary:
        model.save(temporary)
        if not len(data.winners):
            adapter.carry(generator, temporary)
        elif to_base:
            adapter.save(temporary, trained, base_generator)
        if reward is not None:
            save_latent_reward(reward, temporary)
        elif config.latent_reward.train:
            carry_latent_reward(generator, temporary)
    result.series |= {f"latent_reward_{name}": points for name, points in learnt.series.items()}
    write_curves(curves, result.series)
    last = {name: points[-1][1] for name, points in result.series.items() if points}
    metrics = {**last, "preferences": float(len(data.winners)), **result.metrics}
    return Summary(metrics=metrics, curves=result.series, tags=result.tags)


def _texts(preferences: Path, real_clips: Path) -> dict[str, list[str]]:
    """Prompts that the generator learns from, by the folder that they stand in."""
    pairs = read_rows(preferences / "pairs.jsonl", Preference, allow_empty=True)
    scored = read_rows(preferences / "desirability.jsonl", Desirability, allow_empty=True)
    captions = read_rows(find_table(real_clips, "captions"), RealClip)
    return {
        str(preferences): [row.prompt for row in joined(pairs, scored)],
        str(real_clips): [row.prompt for row in captions],
    }


def _train_reward(
    config: Config, job: Job, model: Generator, data: Encoded, preferences: Path
) -> tuple[LatentReward | None, Trained]:
    """A reward trained on the pairs of `data`, and its curves; None where there is no pair."""
    from dualipo.alignment.reward import RewardTrainer, judgements, new_reward
    from dualipo.training.loop import train
    from dualipo.training.task import Trained

    section = config.align
    seed = derive_seed(job.seed, "latent_reward")
    reward = new_reward(model, config.latent_reward, seed)
    if not len(data.winners):
        return None, Trained({})
    pairs = read_rows(preferences / "pairs.jsonl", Preference)
    preferred = judgements(pairs, read_rows(preferences / "dimensions.jsonl", ClipScores))
    task = RewardTrainer(reward, model, data, preferred, config.latent_reward, section.training, seed)
    learnt = train(task, task.recipe(section.max_grad_norm, section.checkpoint_every), job.work / "latent_reward")
    reward.eval().requires_grad_(False)
    return reward, learnt


def _encode(
    model: Generator, loss: str, preferences: Path, candidates: Path, real_clips: Path, folder: Path
) -> Encoded:
    """Latents and text embeddings of everything that training reads, in `folder`."""
    import torch

    from dualipo.alignment.encoding import encode_clips, encode_texts
    from dualipo.alignment.losses import standardised
    from dualipo.alignment.trainer import Encoded
    from dualipo.media.store import ClipStore, read_bytes, read_clip

    store = ClipStore(candidates)
    real = read_rows(find_table(real_clips, "captions"), RealClip)
    files = {f"real/{row.clip}": (real_clips, row.clip) for row in real}
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
    files |= {name: (candidates, store.file(name)) for name in dict.fromkeys([*first, *(second or [])])}
    names, texts = list(files), list(dict.fromkeys([*prompts, *(row.prompt for row in real)]))
    latents = encode_clips(
        model, names, lambda name: read_clip(*files[name]), lambda name: read_bytes(*files[name]), folder
    )
    row_of, text_of = ({each: row for row, each in enumerate(all_of)} for all_of in (names, texts))
    found = latents.shapes
    for winner, loser in zip(first, second or [], strict=False):
        if found[row_of[winner]] != found[row_of[loser]]:
            raise UserError(
                f"{candidates}: clips {winner} and {loser} of one pair differ in frames or size; make them alike"
            )

    def rows_of(wanted: list[str]) -> torch.Tensor:
        return torch.tensor([row_of[name] for name in wanted], dtype=torch.long)

    def texts_of(wanted: list[str]) -> torch.Tensor:
        return torch.tensor([text_of[prompt] for prompt in wanted], dtype=torch.long)

    return Encoded(
        latents,
        encode_texts(model, texts, folder),
        rows_of(first),
        None if second is None else rows_of(second),
        texts_of(prompts),
        desirable,
        rows_of([f"real/{row.clip}" for row in real]),
        texts_of([row.prompt for row in real]),
        rewards,
    )
