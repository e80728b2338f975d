"""The learning rate of a step: warm-up, and the raise once training is stable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

from dualipo.curves import Series

WINDOW = 20
"""Steps in each of the two windows that are compared."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `rate`; from step `raised_at` on another one, of the same length, to `raised`.

    Dual-IPO raises 2e-6 to 2e-5 "once stable" and says no more. Our reading: at a step that is configured, or else
    where `stable` first holds after the warm-up; and by a ramp, since Adam's step is proportional to the rate.
    """

    rate: float
    warmup: int
    raised: float | None = None
    after: int | None = None
    """Steps before the raise; None measures them."""

    def at(self, step: int, raised_at: int | None) -> float:
        """The rate of step 0, 1, ...; `raised_at` is the first step of the raise, None before it is known."""
        begin = self.rate * min(1.0, (step + 1) / max(self.warmup, 1))
        if self.raised is None or raised_at is None or step < raised_at:
            return begin
        return self.rate + (self.raised - self.rate) * min(1.0, (step + 1 - raised_at) / max(self.warmup, 1))

    def raise_at(self, steps: int, series: Series) -> int | None:
        """First step of the raise once `steps` steps are done and logged; None while it is not known."""
        if self.raised is None:
            return None
        if self.after is not None:
            return self.after if steps >= self.after else None
        return steps if stable([value for _, value in series["loss"]][self.warmup :]) else None


def stable(losses: Sequence[float], window: int = WINDOW) -> bool:
    """Whether the loss has settled: the means of its last two windows differ by less than they vary within.

    |mean_2 - mean_1| <= sqrt((var_1 + var_2) / 2), variances over the window's steps. False before both are full.
    """
    if len(losses) < 2 * window:
        return False
    first, second = losses[-2 * window : -window], losses[-window:]
    return abs(fmean(second) - fmean(first)) <= ((pvariance(first) + pvariance(second)) / 2) ** 0.5
