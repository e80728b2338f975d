"""The exponential moving average (EMA) of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Average:
    """a_k = d_k a_(k-1) + (1 - d_k) w_k after step k = 1, 2, ..., with a_0 = w_0 and d_k = min(decay, k / (k + 9)).

    The smaller decay of the first steps makes the start soon forgotten. `weights` are the float32 weights that the
    optimizer steps, whole or this process's shard of them; the average lies beside them.
    """

    def __init__(self, weights: Sequence[torch.Tensor], decay: float):
        self.weights, self.decay = weights, decay
        self.values = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step 1, 2, ..."""
        decay = min(self.decay, step / (step + 9))
        for value, weight in zip(self.values, self.weights, strict=True):
            value.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Puts the average in the place of the weights."""
        for value, weight in zip(self.values, self.weights, strict=True):
            weight.copy_(value)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {f"average/{index}": value for index, value in enumerate(self.values)}

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        for index, value in enumerate(self.values):
            value.copy_(tensors[f"average/{index}"])
