"""Trains a VideoReward on human labels, and calibrates it on those held out (VideoAlign, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualipo.artifacts import atomic
from dualipo.config import TrainReward
from dualipo.critic.base import Features, load_critic
from dualipo.critic.data import read_human
from dualipo.critic.questions import Answered
from dualipo.critic.videoreward.data import (
    ClipFiles,
    Pair,
    Rated,
    chosen_pairs,
    implied_pairs,
    rated_clips,
    split_prompts,
)
from dualipo.critic.videoreward.losses import TIE, bt_loss, btt_loss, regression_loss
from dualipo.critic.videoreward.model import VideoReward
from dualipo.critic.videoreward.scale import Scale
from dualipo.critic.videoreward.settings import Settings
from dualipo.curves import write_curves
from dualipo.errors import UserError
from dualipo.evaluation.calibration import calibrate
from dualipo.steps import derive_seed
from dualipo.training.loop import train
from dualipo.training.ranks import Part, merge, micro_batches, parts
from dualipo.training.task import Recipe, Task, Trained

Clips = Mapping[str, np.ndarray]


def reward_from_labels(
    backbone: Path, labels: Path, section: TrainReward, work: Path, seed: int
) -> tuple[VideoReward, Trained]:
    """A VideoReward over the critic in `backbone`, trained and calibrated on a folder of human labels."""
    answered = read_human(labels)
    model = VideoReward(load_critic(backbone), Settings(), seed)
    files = ClipFiles(labels, [clip for item in answered for clip in item.question.clips])
    return model, train_reward(model, answered, files, section, work, seed)


def write_reward(folder: Path, model: VideoReward, result: Trained) -> None:
    """The trained model and curves.csv, whole or not at all."""
    with atomic(folder) as temporary:
        model.save(temporary)
        write_curves(temporary / "curves.csv", result.series)


def train_reward(
    model: VideoReward, answered: Sequence[Answered], clips: Clips, section: TrainReward, work: Path, seed: int
) -> Trained:
    """Trains in place on part of the prompts and calibrates on the rest; resumes from `work` with the same floats.

    Our reading of a choice on `overall`: the scores it compares are the means over the dimensions, before
    normalisation, since the scale is known only once training has ended. Raises UserError where the labels hold
    nothing to learn from or to calibrate on.
    """
    try:
        learnt, held = split_prompts(answered, section.validation_share, seed)
    except ValueError as error:
        raise UserError(f"the seed labels do not suffice for a VideoReward: {error}") from None
    items = _items(learnt, section)
    model.settings = model.settings.model_copy(
        update={"loss": section.loss, "tie_tendency": section.tie_tendency, "mean": None, "deviation": None}
    )
    with _tuned(model, section):
        recipe = Recipe(
            section.steps, section.learning_rate, section.warmup_steps, section.max_grad_norm or math.inf,
            section.checkpoint_every, training=section.training,
        )  # fmt: skip
        result = train(_Reward(model, items, clips, section, seed), recipe, work)
    model.requires_grad_(False)
    calibrate_reward(model, held, clips)
    return result


def calibrate_reward(model: VideoReward, held: Sequence[Answered], clips: Clips) -> None:
    """Sets normalisation and thresholds from labels that the model has not learnt from.

    Raises UserError where their clips all score alike.
    """
    asked = list(dict.fromkeys((i.question.prompt, clip) for i in held for clip in i.question.clips))
    features = model.see({clip: clips[clip] for _, clip in asked})
    try:
        scale = Scale.of(model.raw_scores(asked, features))
    except ValueError as error:
        raise UserError(f"VideoReward cannot be normalised on {len(asked)} held-out clips: {error}") from None
    scaled = model.settings.model_copy(update={"mean": scale.mean, "deviation": scale.deviation})
    model.settings = scaled
    model.settings = scaled.model_copy(update={"calibration": calibrate(held, model.scores(asked, features))})


def _items(learnt: Sequence[Answered], section: TrainReward) -> list[Pair] | list[Rated]:
    if section.loss == "regression":
        items: list[Pair] | list[Rated] = rated_clips(learnt)
    else:
        pairs = [*chosen_pairs(learnt), *(implied_pairs(learnt) if section.implied_pairs else [])]
        # Plain Bradley-Terry has no outcome for a tie.
        items = [pair for pair in pairs if section.loss == "btt" or pair.verdict != TIE]
    if not items:
        kind = "ratings" if section.loss == "regression" else "preferences"
        raise UserError(f"the seed labels hold no {kind} for a VideoReward to learn from by {section.loss}; add some")
    return items


@contextmanager
def _tuned(model: VideoReward, section: TrainReward) -> Iterator[None]:
    """The parameters to train ask for gradients meanwhile; LoRA layers are merged into the weights at the end."""
    model.eval().requires_grad_(False)
    model.queries.requires_grad_(True)
    model.head.requires_grad_(True)
    if section.train_vision:
        for part in model.backbone.vision:
            part.requires_grad_(True)
    language, adapted = model.backbone.language_model, None
    if section.lora_rank:
        from peft import LoraConfig, get_peft_model

        alpha: Any = section.lora_alpha  # PEFT takes any number, and says int
        lora = LoraConfig(r=section.lora_rank, lora_alpha=alpha, target_modules="all-linear")
        adapted = get_peft_model(language, lora)
    else:
        language.requires_grad_(True)
    checkpointed: list[Any] = [language, *model.backbone.vision] if section.training.gradient_checkpointing else []
    checkpointed = [part for part in checkpointed if hasattr(part, "gradient_checkpointing_enable")]
    for part in checkpointed:
        # transformers recomputes in training mode alone.
        part.gradient_checkpointing_enable({"use_reentrant": False})
        part.train()
    yield
    for part in checkpointed:
        part.gradient_checkpointing_disable()
        part.eval()
    if adapted is not None:
        adapted.merge_and_unload()


class _Reward(Task):
    """The loss of a VideoReward on pairs or rated clips."""

    title = "VideoReward"

    def __init__(
        self, model: VideoReward, items: Sequence[Pair] | Sequence[Rated], clips: Clips, section: TrainReward, seed: int
    ):
        self.model, self.items, self.clips, self.section, self.seed = model, items, clips, section, seed
        self.fixed: Features | None = None
        if not section.train_vision:
            self.fixed = model.see({clip: clips[clip] for item in items for clip in _clips(item)})

    @property
    def trained(self) -> torch.nn.Module:
        return self.model

    def begin(self, step: int) -> list[Callable[[], torch.Tensor]]:
        rng = np.random.default_rng(derive_seed(self.seed, step))
        rows = rng.choice(len(self.items), min(self.section.batch_size, len(self.items)), replace=False)
        self.batch = [self.items[i] for i in rows]
        self.found: list[list[tuple[Part, torch.Tensor]]] = [[], []]
        own = parts(len(rows), micro_batches(len(rows), self.section.training.micro_batch_size))
        return [partial(self._part, part) for part in own]

    def _part(self, part: Part) -> torch.Tensor:
        batch = self.batch[part.rows]
        features = self.fixed
        if features is None:
            names = dict.fromkeys(clip for item in batch for clip in _clips(item))
            features = self.model.backbone.see({name: self.clips[name] for name in names}, gradient=True)
        scores = _scores(self.model, batch, features)
        for pieces, values in zip(self.found, scores, strict=False):
            pieces.append((part, values.detach()))
        return _loss(batch, scores, self.section)[0].mean() * part.weight

    def finish(self) -> dict[str, float]:
        scores = [merge(len(self.batch), pieces) for pieces in self.found if pieces]
        losses, logged = _loss(self.batch, scores, self.section)
        return {"loss": losses.mean().item(), **logged}


def _clips(item: Pair | Rated) -> tuple[str, ...]:
    return (item.clip,) if isinstance(item, Rated) else (item.clip_a, item.clip_b)


def _scores(model: VideoReward, batch: Sequence[Pair | Rated], features: Features) -> list[torch.Tensor]:
    """Raw scores of each item's first clip and, of pairs, of its second, (items,); equal ones are scored once."""
    asked = list(dict.fromkeys((item.prompt, clip) for item in batch for clip in _clips(item)))
    place = {pair: index for index, pair in enumerate(asked)}
    raw = model.raw(asked, features)
    # One more column: the mean of the dimensions, for choices on `overall`.
    scores = torch.cat([raw, raw.mean(1, keepdim=True)], 1)
    names = [*model.settings.dimensions, "overall"]
    column = [names.index(item.dimension) for item in batch]
    return [
        scores[[place[item.prompt, _clips(item)[which]] for item in batch], column]
        for which in range(len(_clips(batch[0])))
    ]


def _loss(
    batch: Sequence[Pair | Rated], scores: Sequence[torch.Tensor], section: TrainReward
) -> tuple[torch.Tensor, dict[str, float]]:
    """Losses of a batch, (items,), and what to log."""
    device = scores[0].device
    if section.loss == "regression":
        wanted = torch.tensor([item.value for item in batch if isinstance(item, Rated)], device=device)
        return regression_loss(scores[0], wanted), {}
    a, b = scores
    verdicts = torch.tensor([item.verdict for item in batch if isinstance(item, Pair)], device=device)
    losses = btt_loss(a, b, verdicts, section.tie_tendency) if section.loss == "btt" else bt_loss(a, b, verdicts)
    decided = verdicts != TIE
    lead = torch.where(verdicts == 0, a - b, b - a)[decided].detach()
    logged = {"margin": lead.mean().item(), "accuracy": ((lead.sign().mean() + 1) / 2).item()} if len(lead) else {}
    return losses, logged
