"""How gradients become steps: on one process, or on several that hold the whole model each."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from dualipo.training.ranks import average_gradients, barrier, world
from dualipo.training.state import load_state, save_state
from dualipo.training.task import Recipe, Task

Result = TypeVar("Result")
Tensors = dict[str, torch.Tensor]


class Backend(Protocol):
    """The optimizer and the memory it works in."""

    @property
    def weights(self) -> list[torch.Tensor]:
        """The float32 weights that the optimizer steps: all of them, or this process's shard."""

    @property
    def device(self) -> torch.device: ...

    def without_gradient(self, compute: Callable[[], Result]) -> Result:
        """Runs passes of the model."""

    def backward(self, compute: Callable[[], torch.Tensor], last: bool) -> None:
        """Runs a part of the loss and adds its gradient; `last` is the step's last part."""

    def step(self, rate: float) -> float:
        """Averages over processes, clips and steps; the gradient's norm. No step is taken where that is not finite."""

    def save(self, folder: Path, step: int, extra: dict[str, Any], more: Tensors) -> None:
        """Stores the training after `step` steps, in the place of what was stored before."""

    def load(self, folder: Path, more: Tensors) -> tuple[int, dict[str, Any]] | None:
        """Takes back what `save` stored, `more` in place; None where nothing is stored."""

    def close(self) -> None:
        """Leaves a plain model with the weights trained, in the types they came in, on the process that writes."""


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    if recipe.training.precision == "as_stored":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


class Plain:
    """Every process holds the whole model and the whole optimizer; gradients are averaged over processes."""

    def __init__(self, task: Task, recipe: Recipe):
        self.task, self.recipe = task, recipe
        self.parameters = [p for p in task.trained.parameters() if p.requires_grad]
        self.dtypes = [p.dtype for p in self.parameters]
        if recipe.training.precision == "bf16":
            # steps of a small learning rate vanish in 16 bits: the weights proper are float32.
            for parameter in self.parameters:
                parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0
        )

    @property
    def weights(self) -> list[torch.Tensor]:
        return list(self.parameters)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def without_gradient(self, compute: Callable[[], Result]) -> Result:
        with torch.no_grad(), autocast(self.recipe, self.device):
            return compute()

    def backward(self, compute: Callable[[], torch.Tensor], last: bool) -> None:
        with autocast(self.recipe, self.device):
            loss = compute()
        loss.backward()

    def step(self, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        average_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def save(self, folder: Path, step: int, extra: dict[str, Any], more: Tensors) -> None:
        if world().main:
            save_state(folder, step, self.task.trained, self.optimizer, extra, more)
        barrier()

    def load(self, folder: Path, more: Tensors) -> tuple[int, dict[str, Any]] | None:
        return load_state(folder, self.task.trained, self.optimizer, more)

    def close(self) -> None:
        self.optimizer.zero_grad()
        for parameter, dtype in zip(self.parameters, self.dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)
