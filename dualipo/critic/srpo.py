"""Self-refined preference optimization of the critic (Dual-IPO 3.2, eq. 5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualipo.alignment.losses import Diagnostics
from dualipo.config import TrainCritic
from dualipo.critic.base import Critic
from dualipo.critic.certainty import srpo_loss
from dualipo.critic.data import TrainingSet
from dualipo.critic.questions import Question
from dualipo.steps import derive_seed
from dualipo.training.loop import train
from dualipo.training.ranks import Part, merge, micro_batches, parts, world
from dualipo.training.task import Recipe, Task, Trained

MEMORY = 0.9
"""Share of the old estimate of Q that is kept at each step."""


def train_srpo(
    critic: Critic, human: TrainingSet, pseudo: TrainingSet, section: TrainCritic, work: Path, seed: int
) -> Trained:
    """Trains the critic's language model in place; the vision tower is frozen, so clips are seen once.

    The reference of the DPO term is the critic as it came; its log-probabilities are computed once. Q, the mean reward
    over the data set, is a running mean over the batches seen so far (our reading: the data set's mean under weights
    that change at every step cannot be had exactly). Resumes from `work` with the same floats.
    """
    recipe = Recipe(
        section.steps, section.learning_rate, section.steps // 10, section.max_grad_norm, section.checkpoint_every,
        betas=(0.9, 0.98), training=section.training,
    )  # fmt: skip
    language_model: Any = critic.language_model
    task = _Srpo(critic, human, pseudo, section, seed)
    if section.training.gradient_checkpointing:
        # transformers recomputes in training mode alone.
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
        language_model.train()
    result = train(task, recipe, work)
    if section.training.gradient_checkpointing:
        language_model.gradient_checkpointing_disable()
    language_model.eval().requires_grad_(False)
    return result


Group = tuple[TrainingSet, list[tuple[Question, str]]]
"""Examples of one kind from one set: padded to each other, computed together."""


class _Srpo(Task):
    """SRPO on pairs of reasoning paths beside instruction tuning on answers."""

    title = "SRPO"

    def __init__(self, critic: Critic, human: TrainingSet, pseudo: TrainingSet, section: TrainCritic, seed: int):
        self.critic, self.human, self.pseudo, self.section, self.seed = critic, human, pseudo, section, seed
        self.reference = _reference_logprobs(critic, pseudo, section.batch_size)
        self.mean_reward = 0.0
        critic.language_model.requires_grad_(True)

    @property
    def trained(self) -> torch.nn.Module:
        return self.critic.language_model

    @property
    def root(self) -> torch.nn.Module:
        return self.critic.model

    @property
    def extra(self) -> dict[str, Any]:
        return {"mean_reward": self.mean_reward}

    def restore(self, extra: dict[str, Any]) -> None:
        self.mean_reward = extra.get("mean_reward", 0.0)

    def begin(self, step: int) -> list[Callable[[], torch.Tensor]]:
        section, micro = self.section, self.section.training.micro_batch_size
        rng = np.random.default_rng(derive_seed(self.seed, step))
        computed: list[Callable[[], torch.Tensor]] = []
        self.rows = np.empty(0, int)
        self.found: list[tuple[Part, torch.Tensor, torch.Tensor]] = []
        if self.pseudo.pairs:
            count = min(section.batch_size, len(self.pseudo.pairs))
            self.rows = rng.choice(len(self.pseudo.pairs), count, replace=False)
            computed += [partial(self._preference, part) for part in parts(count, micro_batches(count, micro))]
        self.instruction: list[torch.Tensor] = []
        if section.instruction_weight > 0 and (self.human.examples or self.pseudo.examples):
            groups = self._draw_examples(rng)
            answers = [answer for _, examples in groups for _, answer in examples]
            tokens = int(self.critic.answer_lengths(answers).sum())
            rounds = micro_batches(len(answers), micro)
            shared = [parts(len(examples), rounds) for _, examples in groups]
            for index in range(max(map(len, shared))):
                chosen = [(each, own[index]) for each, own in zip(groups, shared, strict=True) if index < len(own)]
                computed.append(partial(self._instruction, chosen, tokens))
        return computed

    def finish(self) -> dict[str, float]:
        logged = {"loss": 0.0}
        if len(self.rows):
            chosen, rejected = (
                merge(len(self.rows), [(part, values[side]) for part, *values in self.found]) for side in (0, 1)
            )
            losses, found, rewards = self._srpo_loss(self.rows, chosen, rejected)
            self.mean_reward = MEMORY * self.mean_reward + (1 - MEMORY) * rewards
            logged |= {"srpo_loss": losses.mean().item(), **{name: value.item() for name, value in found.items()}}
            logged["loss"] += logged["srpo_loss"]
        if self.instruction:
            # A process's parts add up to its share, and the shares of all to the loss.
            share = sum(self.instruction[1:], start=self.instruction[0])
            logged["instruction_loss"] = merge(1, [(Part(0, 1, 1.0), share.reshape(1))]).item()
            logged["loss"] += logged["instruction_loss"]
        return logged

    def _preference(self, part: Part) -> torch.Tensor:
        rows = self.rows[part.rows]
        batch = [self.pseudo.pairs[i] for i in rows]
        questions = [pair.question for pair in batch]
        both = self.critic.logprobs(
            [*questions, *questions], self.pseudo.features, [*(p.chosen for p in batch), *(p.rejected for p in batch)]
        )
        chosen, rejected = both.chunk(2)
        self.found.append((part, chosen.detach(), rejected.detach()))
        return self._srpo_loss(rows, chosen, rejected)[0].mean() * part.weight

    def _srpo_loss(
        self, rows: np.ndarray, chosen: torch.Tensor, rejected: torch.Tensor
    ) -> tuple[torch.Tensor, Diagnostics, float]:
        """Losses of pairs, what to log of them, and their mean reward."""
        section = self.section
        before_chosen, before_rejected = (side[torch.from_numpy(rows)].to(chosen.device) for side in self.reference)
        losses, found = srpo_loss(
            chosen, rejected, before_chosen, before_rejected, self.mean_reward, section.beta,
            section.algorithm == "srpo",
        )  # fmt: skip
        rewards = torch.cat([chosen - before_chosen, rejected - before_rejected]).detach().mean().item()
        return losses, found, rewards

    def _draw_examples(self, rng: np.random.Generator) -> list[Group]:
        """Human and unanimous pseudo-labelled examples of a step."""
        section, groups = self.section, []
        total = section.instruction_batch_size
        share = section.seed_share if self.human.examples and self.pseudo.examples else float(bool(self.human.examples))
        from_human = round(total * share)
        for data, count in ((self.human, from_human), (self.pseudo, total - from_human)):
            if count and data.examples:
                drawn = [data.examples[i] for i in rng.integers(len(data.examples), size=count)]
                # Ratings and choices differ in length: apart, neither is padded to the other's.
                for kind in ("rating", "choice"):
                    if own := [item for item in drawn if item[0].kind == kind]:
                        groups.append((data, own))
        return groups

    def _instruction(self, chosen: list[tuple[Group, Part]], tokens: int) -> torch.Tensor:
        """Part of the mean negative log-probability of the `tokens` answer tokens of a step."""
        total: Any = 0.0
        for (data, examples), part in chosen:
            own = examples[part.rows]
            values = self.critic.logprobs([q for q, _ in own], data.features, [answer for _, answer in own])
            total = total + values.sum() * float(not part.filler)
        loss = self.section.instruction_weight * (-total / tokens)
        self.instruction.append(loss.detach())
        return loss * world().size


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
