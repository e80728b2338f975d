"""The classic failure of preference training: errors of winners and of losers both rise."""

from __future__ import annotations

from statistics import fmean

from dualipo.curves import Series

ERRORS = ("error_winner", "error_loser")
"""Series of the mean d(y), the model's denoising error less its reference's."""


def diverging(series: Series, window: int, bound: float) -> bool:
    """Whether both errors' means over the last `window` steps exceed `bound` and their means over the window before.

    `bound` is in units of the squared error, whose target has a variance of about 1: 0.1 is a tenth of it lost on the
    winners as well. False for losses without these series, and before two windows are full.
    """
    for name in ERRORS:
        values = [value for _, value in series.get(name, [])]
        if len(values) < 2 * window:
            return False
        before, now = fmean(values[-2 * window : -window]), fmean(values[-window:])
        if now <= max(before, bound):
            return False
    return True
