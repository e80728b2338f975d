"""Trains a VideoReward on human labels, and calibrates it on those held out (VideoAlign, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dualipo.critic.base import Features
from dualipo.critic.questions import Answered
from dualipo.critic.videoreward.data import Pair, Rated, chosen_pairs, implied_pairs, rated_clips, split_prompts
from dualipo.critic.videoreward.losses import TIE, bt_loss, btt_loss, regression_loss
from dualipo.critic.videoreward.model import VideoReward
from dualipo.critic.videoreward.scale import Scale
from dualipo.critic.videoreward.settings import TrainReward
from dualipo.curves import Series
from dualipo.errors import UserError
from dualipo.evaluation.calibration import calibrate
from dualipo.steps import derive_seed
from dualipo.training_state import load_state, save_state

Clips = Mapping[str, np.ndarray]


def train_reward(
    model: VideoReward, answered: Sequence[Answered], clips: Clips, section: TrainReward, work: Path, seed: int
) -> Series:
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
    with _tuned(model, section) as trained:
        series = _train(model, trained, items, clips, section, work, seed)
    model.requires_grad_(False)
    calibrate_reward(model, held, clips)
    return series


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
def _tuned(model: VideoReward, section: TrainReward) -> Iterator[list[torch.nn.Parameter]]:
    """The parameters to train; LoRA layers are merged into the weights at the end."""
    model.eval().requires_grad_(False)
    model.queries.requires_grad_(True)
    model.head.requires_grad_(True)
    if section.train_vision:
        for part in model.backbone.vision:
            part.requires_grad_(True)
    language, adapted = model.backbone.language_model, None
    if section.lora_rank:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=section.lora_rank, lora_alpha=section.lora_alpha, target_modules="all-linear")
        adapted = get_peft_model(language, lora)
    else:
        language.requires_grad_(True)
    yield [parameter for parameter in model.parameters() if parameter.requires_grad]
    if adapted is not None:
        adapted.merge_and_unload()


def _train(
    model: VideoReward,
    trained: list[torch.nn.Parameter],
    items: Sequence[Pair] | Sequence[Rated],
    clips: Clips,
    section: TrainReward,
    work: Path,
    seed: int,
) -> Series:
    optimizer = torch.optim.AdamW(trained, lr=section.learning_rate, weight_decay=0.0)
    state = load_state(work, model, optimizer)
    begin, extra = state if state else (0, {"series": {}})
    series: Series = {k: [(int(s), v) for s, v in points] for k, points in extra["series"].items()}
    fixed = None if section.train_vision else model.see({clip: clips[clip] for item in items for clip in _clips(item)})
    for step in tqdm(range(begin, section.steps), desc="VideoReward", initial=begin, total=section.steps, leave=False):
        rng = np.random.default_rng(derive_seed(seed, step))
        for group in optimizer.param_groups:
            group["lr"] = section.learning_rate * min(1.0, (step + 1) / max(section.warmup_steps, 1))
        rows = rng.choice(len(items), min(section.batch_size, len(items)), replace=False)
        batch = [items[i] for i in rows]
        features = fixed
        if features is None:
            names = dict.fromkeys(clip for item in batch for clip in _clips(item))
            features = model.backbone.see({name: clips[name] for name in names}, gradient=True)
        loss, logged = _loss(model, batch, features, section)
        optimizer.zero_grad()
        loss.backward()
        logged["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(trained, section.max_grad_norm or float("inf")))
        optimizer.step()
        for name, value in {"loss": loss.item(), **logged}.items():
            series.setdefault(name, []).append((step + 1, value))
        if (step + 1) % section.checkpoint_every == 0 and step + 1 < section.steps:
            save_state(work, step + 1, model, optimizer, {"series": series})
    return series


def _clips(item: Pair | Rated) -> tuple[str, ...]:
    return (item.clip,) if isinstance(item, Rated) else (item.clip_a, item.clip_b)


def _loss(
    model: VideoReward, batch: Sequence[Pair | Rated], features: Features, section: TrainReward
) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean loss of a batch; a clip that several of its items show is scored once."""
    asked = list(dict.fromkeys((item.prompt, clip) for item in batch for clip in _clips(item)))
    place = {pair: index for index, pair in enumerate(asked)}
    raw = model.raw(asked, features)
    # One more column: the mean of the dimensions, for choices on `overall`.
    scores = torch.cat([raw, raw.mean(1, keepdim=True)], 1)
    names = [*model.settings.dimensions, "overall"]
    column = [names.index(item.dimension) for item in batch]

    def of(which: int) -> torch.Tensor:
        return scores[[place[item.prompt, _clips(item)[which]] for item in batch], column]

    if section.loss == "regression":
        wanted = torch.tensor([item.value for item in batch if isinstance(item, Rated)], device=raw.device)
        return regression_loss(of(0), wanted).mean(), {}
    a, b = of(0), of(1)
    verdicts = torch.tensor([item.verdict for item in batch if isinstance(item, Pair)], device=raw.device)
    losses = btt_loss(a, b, verdicts, section.tie_tendency) if section.loss == "btt" else bt_loss(a, b, verdicts)
    decided = verdicts != TIE
    lead = torch.where(verdicts == 0, a - b, b - a)[decided].detach()
    logged = {"margin": lead.mean().item(), "accuracy": ((lead.sign().mean() + 1) / 2).item()} if len(lead) else {}
    return losses.mean(), logged
