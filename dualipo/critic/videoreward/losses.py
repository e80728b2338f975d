"""What a score means for a preference, as pure functions (VideoAlign, section 3.2).

a and b are the scores of a pair's two clips, shape [B]; verdicts are places in `records.CHOICES`: 0 for a, 1 for b and
2 for tie. Losses are per item, [B], in nats. float16 and bfloat16 are computed in float32; float64 stays.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dualipo.alignment.losses import examples

TIE = 2
"""Place of `tie` in `records.CHOICES`."""
TIE_TENDENCY = 5.0
"""k of Bradley-Terry with ties; VideoAlign sets 5."""


def tie_logprobs(a: Tensor, b: Tensor, k: float = TIE_TENDENCY) -> Tensor:
    """log P(a wins), log P(b wins), log P(tie) of Bradley-Terry with ties, [B, 3] (Rao and Kupper; VideoAlign eq. 1).

    P(a) = e^a / (e^a + k e^b) and P(tie) = (k^2 - 1) e^a e^b / ((e^a + k e^b) (k e^a + e^b)). With s = a - b these are
    sigmoid(s - ln k) and (k^2 - 1) P(a) P(b): no exponential of a score is ever taken, so no score is too large.

    Raises ValueError where k is not above 1, at which nothing would tie, or the shapes differ.
    """
    if not (k > 1 and math.isfinite(k)):
        raise ValueError(f"k must be a number above 1, {k} given")
    a, b = examples(a, b)
    wins = F.logsigmoid(a - b - math.log(k))
    loses = F.logsigmoid(b - a - math.log(k))
    return torch.stack([wins, loses, wins + loses + (math.log(k - 1) + math.log(k + 1))], dim=-1)


def btt_loss(a: Tensor, b: Tensor, verdicts: Tensor, k: float = TIE_TENDENCY) -> Tensor:
    """-log P(verdict) under Bradley-Terry with ties (VideoAlign eq. 2). Raises ValueError as `tie_logprobs` does."""
    return -tie_logprobs(a, b, k).gather(-1, _checked(a, verdicts).unsqueeze(-1)).squeeze(-1)


def bt_loss(a: Tensor, b: Tensor, verdicts: Tensor) -> Tensor:
    """-log sigmoid(s_w - s_l) of plain Bradley-Terry (VideoAlign 3.2, the ablation).

    It has no outcome for a tie: a tied pair's loss is 0, and whoever averages leaves such pairs out.
    """
    a, b = examples(a, b)
    verdicts = _checked(a, verdicts)
    lead = torch.where(verdicts == 0, a - b, b - a)
    return torch.where(verdicts == TIE, torch.zeros_like(lead), -F.logsigmoid(lead))


def regression_loss(score: Tensor, rating: Tensor) -> Tensor:
    """(score - rating)^2 of clips that people rated one by one (VideoAlign 3.2, the ablation)."""
    score, rating = examples(score, rating)
    return (score - rating).square()


def _checked(scores: Tensor, verdicts: Tensor) -> Tensor:
    if verdicts.shape != scores.shape:
        raise ValueError(
            f"one verdict a pair is needed, shapes {tuple(scores.shape)} and {tuple(verdicts.shape)} given"
        )
    return verdicts.long()
