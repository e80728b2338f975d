"""The one loop that trains the small world's base models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from tqdm import tqdm


def optimize(
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[int], torch.Tensor],
    steps: int,
    rate: float,
    label: str,
    *,
    weight_decay: float = 0.02,
    betas: tuple[float, float] = (0.9, 0.98),
    average: torch.nn.Module | None = None,
) -> None:
    """AdamW on `loss(step)` with a warm-up over a fortieth of the steps and cosine decay.

    With `average`, a module whose parameters are among those trained, it ends with their exponential moving average.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, betas=betas)
    warmup = max(steps // 40, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * s / steps)) + 0.02)
    )
    averaged = {name: p.detach().clone() for name, p in average.named_parameters()} if average else {}
    for step in (bar := tqdm(range(steps), desc=label)):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if average is not None:
            decay = min(0.995, (step + 1) / (step + 10))
            with torch.no_grad():
                for name, parameter in average.named_parameters():
                    averaged[name].lerp_(parameter, 1 - decay)
        bar.set_postfix(loss=f"{value.item():.3f}")
    if average is not None:
        average.load_state_dict(averaged, strict=False)
