"""Self-refined preference optimization of the critic (Dual-IPO 3.2, eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dualipo.config import TrainCritic
from dualipo.critic.base import Critic
from dualipo.critic.certainty import srpo_loss
from dualipo.critic.data import PathPair, TrainingSet
from dualipo.critic.questions import Question
from dualipo.curves import Series
from dualipo.steps import derive_seed
from dualipo.training_state import load_state, save_state

CHECKPOINT_EVERY = 20
MEMORY = 0.9
"""Share of the old estimate of Q that is kept at each step."""


def train_srpo(
    critic: Critic, human: TrainingSet, pseudo: TrainingSet, section: TrainCritic, work: Path, seed: int
) -> Series:
    """Trains the critic's language model in place; the vision tower is frozen, so clips are seen once.

    The reference of the DPO term is the critic as it came; its log-probabilities are computed once. Q, the mean reward
    over the data set, is a running mean over the batches seen so far (our reading: the data set's mean under weights
    that change at every step cannot be had exactly). Resumes from `work` with the same floats.
    """
    pairs = pseudo.pairs
    reference = _reference_logprobs(critic, pseudo, section.batch_size)
    critic.language_model.requires_grad_(True)
    parameters = [p for p in critic.language_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=section.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    state = load_state(work, critic.language_model, optimizer)
    begin, extra = state if state else (0, {"mean_reward": 0.0, "series": {}})
    mean_reward, series = extra["mean_reward"], {k: [(int(s), v) for s, v in p] for k, p in extra["series"].items()}
    for step in tqdm(range(begin, section.steps), desc="SRPO", initial=begin, total=section.steps, leave=False):
        rng = np.random.default_rng(derive_seed(seed, step))
        for group in optimizer.param_groups:
            group["lr"] = section.learning_rate * min(1.0, (step + 1) / max(section.steps // 10, 1))
        optimizer.zero_grad()
        logged: dict[str, float] = {"loss": 0.0}
        if pairs:
            rows = rng.choice(len(pairs), min(section.batch_size, len(pairs)), replace=False)
            loss, found, rewards = _preference_loss(critic, pseudo, rows, reference, mean_reward, section)
            loss.backward()
            mean_reward = MEMORY * mean_reward + (1 - MEMORY) * rewards
            logged |= {"srpo_loss": loss.item(), **found}
            logged["loss"] += loss.item()
        if section.instruction_weight > 0 and (human.examples or pseudo.examples):
            loss = section.instruction_weight * _instruction_loss(critic, human, pseudo, section, rng)
            loss.backward()
            logged["instruction_loss"] = loss.item()
            logged["loss"] += loss.item()
        logged["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, section.max_grad_norm))
        optimizer.step()
        for name, value in logged.items():
            series.setdefault(name, []).append((step + 1, value))
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < section.steps:
            save_state(work, step + 1, critic.language_model, optimizer, {"mean_reward": mean_reward, "series": series})
    critic.language_model.requires_grad_(False)
    return series


def _reference_logprobs(critic: Critic, pseudo: TrainingSet, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all chosen and all rejected paths under the critic as it came, ([N], [N])."""

    def of(side: str) -> torch.Tensor:
        parts = [torch.empty(0)]
        for start in range(0, len(pseudo.pairs), batch_size):
            part = pseudo.pairs[start : start + batch_size]
            answers = [getattr(pair, side) for pair in part]
            parts.append(critic.logprobs([pair.question for pair in part], pseudo.features, answers).cpu())
        return torch.cat(parts)

    with torch.no_grad():
        return of("chosen"), of("rejected")


def _preference_loss(
    critic: Critic,
    pseudo: TrainingSet,
    rows: np.ndarray,
    reference: tuple[torch.Tensor, torch.Tensor],
    mean_reward: float,
    section: TrainCritic,
) -> tuple[torch.Tensor, dict[str, float], float]:
    batch: list[PathPair] = [pseudo.pairs[i] for i in rows]
    questions = [pair.question for pair in batch]
    both = critic.logprobs(
        [*questions, *questions], pseudo.features, [*(p.chosen for p in batch), *(p.rejected for p in batch)]
    )
    chosen, rejected = both.chunk(2)
    before_chosen, before_rejected = (side[torch.from_numpy(rows)].to(both.device) for side in reference)
    losses, found = srpo_loss(
        chosen, rejected, before_chosen, before_rejected, mean_reward, section.beta, section.algorithm == "srpo"
    )
    rewards = torch.cat([chosen - before_chosen, rejected - before_rejected]).detach().mean().item()
    return losses.mean(), {name: value.item() for name, value in found.items()}, rewards


def _instruction_loss(
    critic: Critic, human: TrainingSet, pseudo: TrainingSet, section: TrainCritic, rng: np.random.Generator
) -> torch.Tensor:
    """Mean negative log-probability of an answer token over human and unanimous pseudo-labelled examples."""
    total = section.instruction_batch_size
    share = section.seed_share if human.examples and pseudo.examples else float(bool(human.examples))
    from_human = round(total * share)
    total_logprob: Any = 0.0
    tokens = 0
    for data, count in ((human, from_human), (pseudo, total - from_human)):
        if count and data.examples:
            part: Sequence[tuple[Question, str]] = [
                data.examples[i] for i in rng.integers(len(data.examples), size=count)
            ]
            # Ratings and choices differ in length: apart, neither is padded to the other's.
            for kind in ("rating", "choice"):
                if own := [item for item in part if item[0].kind == kind]:
                    answers = [answer for _, answer in own]
                    total_logprob = total_logprob + critic.logprobs([q for q, _ in own], data.features, answers).sum()
                    tokens += int(critic.answer_lengths(answers).sum())
    return -total_logprob / tokens
