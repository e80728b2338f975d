"""What a caller of the training loop supplies: the model, and the loss of each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from dualipo.config import Training
from dualipo.curves import Series


@dataclass(frozen=True)
class Recipe:
    """What is asked of the optimizer, AdamW without weight decay."""

    steps: int
    learning_rate: float
    warmup_steps: int
    max_grad_norm: float
    """Infinity does not clip."""
    checkpoint_every: int
    betas: tuple[float, float] = (0.9, 0.999)
    training: Training = field(default_factory=Training)


@dataclass
class Trained:
    """What became of a training."""

    series: Series
    stopped_at: int | None = None
    """Steps after which it ended early; its weights are those of that step."""
    reason: str | None = None
    diverged_at: int | None = None
    """Steps after which winner and loser errors were first found rising together."""

    @property
    def metrics(self) -> dict[str, float]:
        found = {"stopped_at": self.stopped_at, "diverged_at": self.diverged_at}
        return {name: float(step) for name, step in found.items() if step is not None}

    @property
    def tags(self) -> dict[str, str]:
        found = {"stopped": self.reason or ""} if self.stopped_at is not None else {}
        if self.diverged_at is not None:
            found["diverged"] = f"winner and loser errors both rising at step {self.diverged_at}"
        return found


class Task(ABC):
    """A model with a loss a step. Every process of a training makes the same draws and holds the same model."""

    title: str
    """On the progress bar and in messages."""
    shown: ClassVar[dict[str, str]] = {"loss": "loss"}
    """Logged values on the progress bar, by the name they have there."""

    @property
    @abstractmethod
    def trained(self) -> torch.nn.Module:
        """Holds every trainable parameter; checkpoints name them by their place in it."""

    @property
    def root(self) -> torch.nn.Module:
        """Holds every module that the loss runs through: what ZeRO-3 shards."""
        return self.trained

    @abstractmethod
    def begin(self, step: int) -> Sequence[Callable[[], torch.Tensor]]:
        """Draws the batch of a step; returns one function a micro-batch that gives its part of the loss.

        The parts add up to the loss, averaged over processes. The loop calls each once and takes its gradient before
        the next. Called without gradient.
        """

    @abstractmethod
    def finish(self) -> dict[str, float]:
        """What the step logs, its `loss` among it, once all its parts were computed; equal on all processes."""

    @property
    def extra(self) -> dict[str, Any]:
        """What a checkpoint must hold besides, as JSON."""
        return {}

    def restore(self, extra: dict[str, Any]) -> None:  # noqa: B027 (most have nothing to restore)
        """Takes back what `extra` gave."""

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step with its gradient, and what it logs; on one process."""
        with torch.no_grad():
            computed = self.begin(step)
        values = [part() for part in computed]
        return sum(values[1:], start=values[0]), self.finish()
