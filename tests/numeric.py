"""Reference arithmetic for the tests of pure tensor functions: exact-ish scalars and central differences."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from decimal import Decimal

import torch
from torch import Tensor

_CONTEXT = decimal.Context(prec=60, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x) in 60 digits."""
    with decimal.localcontext(_CONTEXT):
        return float(1 / (1 + (-Decimal(x)).exp()))


def minus_log_sigmoid(x: float) -> float:
    """log(1 + e^-x) in 60 digits."""
    with decimal.localcontext(_CONTEXT):
        return float((1 + (-Decimal(x)).exp()).ln())


def central_differences(function: Callable[..., Tensor], inputs: list[Tensor], step: float = 1e-6) -> list[Tensor]:
    """Gradient of a scalar function in every element of every float64 input, by (f(x + h) - f(x - h)) / 2h."""
    gradients = []
    for position, tensor in enumerate(inputs):
        gradient = torch.zeros_like(tensor)
        for index in range(tensor.numel()):
            values = []
            for sign in (1, -1):
                moved = [other.detach().clone() for other in inputs]
                moved[position].view(-1)[index] += sign * step
                values.append(float(function(*moved)))
            gradient.view(-1)[index] = (values[0] - values[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


def autograd(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The same by back-propagation; zeros where an input takes no part."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    found = torch.autograd.grad(function(*leaves), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


ERRORS = [1 + random(6, seed=seed, scale=0.1) for seed in range(4)]
"""error_w, error_l, reference_error_w, reference_error_l of six pairs."""
ROWS = list(zip(*(tensor.tolist() for tensor in ERRORS), strict=True))
