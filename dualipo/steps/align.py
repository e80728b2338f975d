"""Aligns the generator with the accepted critic's preferences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dualipo.artifacts import atomic
from dualipo.config import Config
from dualipo.heldout import read_held_out, require_apart
from dualipo.records import ClipScores, Desirability, Preference, RealClip, find_table, joined, read_rows
from dualipo.steps import Job, Summary, derive_seed
from dualipo.training.launch import launch, needs_launch

if TYPE_CHECKING:
    import torch

    from dualipo.alignment.dataset import Dataset
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
    is trained on clips of the same prompts, from the first blocks of the model that alignment starts from, and goes
    into the candidate's folder; without two clips that differ the incumbent's goes on.

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
    from dualipo.alignment.dataset import Dataset
    from dualipo.alignment.trainer import REFERRED, Trainer
    from dualipo.curves import write_curves
    from dualipo.generator.base import load_generator
    from dualipo.generator.latent_reward import carry_latent_reward, save_latent_reward
    from dualipo.training.ranks import world
    from dualipo.training.task import Trained

    require_apart(read_held_out(held_out), _texts(preferences, real_clips))
    to_base = section.lora is not None and section.reference == "base"
    model = load_generator(base_generator if to_base else generator)
    dataset = Dataset(model, candidates, real_clips, job.work / "encoded")
    data = preferred_clips(dataset, section.loss, preferences)
    reward, learnt = None, Trained({})
    if config.latent_reward.train:
        reward, learnt = _train_reward(config, job, model, dataset, preferences)
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


def preferred_clips(dataset: Dataset, loss: str, preferences: Path) -> Encoded:
    """What the loss learns from: pairs, winners, or every scored clip."""
    if loss in ("dpo", "flow_dpo", "sft"):
        pairs = read_rows(preferences / "pairs.jsonl", Preference, allow_empty=True)
        return dataset.winners(pairs) if loss == "sft" else dataset.pairs(pairs)
    return dataset.scored(read_rows(preferences / "desirability.jsonl", Desirability, allow_empty=True))


def _train_reward(
    config: Config, job: Job, model: Generator, dataset: Dataset, preferences: Path
) -> tuple[LatentReward | None, Trained]:
    """A reward trained on pairs of clips that differ on a dimension, and its curves; None where there are none."""
    from dualipo.alignment.reward import RewardTrainer, clip_pairs, judgements, new_reward
    from dualipo.training.loop import train
    from dualipo.training.task import Trained

    section, training = config.latent_reward, config.align.training
    seed = derive_seed(job.seed, "latent_reward")
    reward = new_reward(model, section, seed)
    if section.pairs == "all":
        pairs = clip_pairs(read_rows(preferences / "desirability.jsonl", Desirability, allow_empty=True))
    else:
        pairs = read_rows(preferences / "pairs.jsonl", Preference, allow_empty=True)
    judged = judgements(pairs, read_rows(preferences / "dimensions.jsonl", ClipScores, allow_empty=True))
    told = judged.any(dim=1)
    if not told.any():
        return None, Trained({})
    data = dataset.pairs([pair for pair, differs in zip(pairs, told.tolist(), strict=True) if differs])
    task = RewardTrainer(reward, model, data, judged[told], section, training, seed)
    recipe = task.recipe(config.align.max_grad_norm, config.align.checkpoint_every)
    learnt = train(task, recipe, job.work / "latent_reward")
    reward.eval().requires_grad_(False)
    return reward, learnt
