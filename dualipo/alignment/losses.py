"""The generator's losses as pure functions of per-clip errors.

Every function takes tensors of shape [B], one value per clip or per pair, and returns per-example values for the caller
to average. float16 and bfloat16 are computed in float32; float64 stays. d(y) = ||target - model(x_t)||^2 -
||target - ref(x_t)||^2 stands for minus the log ratio of the two models (Diffusion-DPO, Wallace et al. 2023, eq. 14),
up to the factor that beta absorbs. Diagnostics are detached scalar tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Diagnostics = dict[str, Tensor]
Reduce = Callable[[Tensor], Tensor]
"""Averages a scalar over all processes."""


def denoising_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error of each clip, [B, ...] -> [B]: the *mean* over the latent's elements.

    Our reading of ||.||^2: the mean, as the public code of Diffusion-DPO has it, so that beta does not depend on the
    clip's size. Raises ValueError where the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    return (widen(prediction) - widen(target)).square().reshape(len(target), -1).mean(dim=1)


def diffusion_dpo_loss(
    error_w: Tensor,
    error_l: Tensor,
    reference_error_w: Tensor,
    reference_error_l: Tensor,
    beta: float,
    omega: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """-log sigmoid(-beta/2 * omega * (d(y_w) - d(y_l))) of each pair (Dual-IPO eq. 6, Diffusion-DPO eq. 14).

    T and the constant of the noise schedule are folded into `beta`. `error_w` and `error_l` are the errors of winner
    and loser under the same timestep and noise, `reference_error_*` those of the frozen reference; `omega` weights each
    pair's noise level (see `omega.py`), None being 1.

    Returns the losses, [B], and: `implicit_accuracy`, the share of pairs with d(y_w) < d(y_l), equality counting half;
    `error_winner` and `error_loser`, the means of d(y_w) and d(y_l), both rising being the classic failure; `margin`,
    the mean of d(y_l) - d(y_w); `kl`, `kl_estimate` over winners and losers, without omega.
    """
    error_w, error_l, reference_w, reference_l = examples(error_w, error_l, reference_error_w, reference_error_l)
    gap_w, gap_l = error_w - reference_w, error_l - reference_l
    margin = gap_l - gap_w
    loss = -F.logsigmoid(beta / 2 * _weighted(margin, omega))
    return loss, {
        "implicit_accuracy": win_rate(margin),
        "margin": margin.detach().mean(),
        "error_winner": gap_w.detach().mean(),
        "error_loser": gap_l.detach().mean(),
        "kl": kl_estimate(torch.cat([error_w, error_l]), torch.cat([reference_w, reference_l])),
    }


def flow_dpo_loss(
    error_w: Tensor,
    error_l: Tensor,
    reference_error_w: Tensor,
    reference_error_l: Tensor,
    beta: float,
    times: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """-log sigmoid(-beta_t/2 * (d(y_w) - d(y_l))) of each pair, d on velocities (VideoAlign, Liu et al. 2025, eq. 6).

    beta_t is `beta` where `times` is None, as the paper recommends. With the pairs' times t in [0, 1], [B] (0 clean, 1
    noise), it is beta * (1 - t)^2: the schedule that follows from Diffusion-DPO, since an error of the noise is (1 - t)
    times that of the velocity (lemma B.1). The paper finds that it hacks the reward.

    Returns what `diffusion_dpo_loss` does. Raises ValueError where a time lies outside [0, 1].
    """
    errors = error_w, error_l, reference_error_w, reference_error_l
    return diffusion_dpo_loss(*errors, beta, None if times is None else derived_weight(times))


def derived_weight(times: Tensor) -> Tensor:
    """(1 - t)^2 of times t in [0, 1], [B]: beta_t / beta of Flow-DPO as derived (VideoAlign eq. 6)."""
    if ((times < 0) | (times > 1)).any():
        raise ValueError("times: values in [0, 1] are needed, 0 clean and 1 noise")
    return (1 - widen(times)).square()


def kl_estimate(
    error: Tensor, reference_error: Tensor, omega: Tensor | None = None, reduce: Reduce | None = None
) -> Tensor:
    """The batch's estimate of KL[model || reference], a scalar >= 0 without gradient (Dual-IPO eq. 9).

    max(0, mean of -omega * d over the batch and, by `reduce`, over processes; None is `mean_over_ranks`): d is averaged
    first and clamped last, so that equal shares of a batch on many ranks give what the whole batch gives on one. Small
    batches make it noisy; IPO uses 128.
    """
    error, reference_error = examples(error, reference_error)
    mean = _weighted(reference_error - error, omega).detach().mean()
    return (reduce or mean_over_ranks)(mean).clamp(min=0)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a scalar over the processes of torch.distributed; the scalar itself where there is one process."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return value
    total = value.detach().clone()
    group.all_reduce(total)
    return total / group.get_world_size()


def diffusion_kto_loss(
    error: Tensor,
    reference_error: Tensor,
    desirable: Tensor,
    beta: float,
    q_ref: Tensor | float | None = None,
    omega: Tensor | None = None,
    reduce: Reduce | None = None,
) -> tuple[Tensor, Diagnostics]:
    """-sigmoid(w * (beta * omega * (-d(y)) - Q_ref)) of each clip (Dual-IPO eq. 8, 9; Diffusion-KTO, Li et al.).

    w is +1 where `desirable`, a bool tensor [B], is true, else -1. `q_ref` is beta times the KL estimate; None takes it
    from this batch, reduced over ranks by `reduce`. No gradient flows through it. The paper's utility, a sigmoid (our
    reading of U), is to be maximised: hence the minus.

    Returns the losses, [B], and: `implicit_accuracy`, the share of clips that moved to their side of Q_ref, equality
    counting half; `error_winner` and `error_loser`, the means of d over desirable and undesirable clips, 0 where there
    are none; `margin`, loser less winner; `kl`, Q_ref / beta.
    Raises ValueError where the shapes differ or `desirable` is not boolean.
    """
    error, reference_error = examples(error, reference_error)
    if desirable.dtype != torch.bool or desirable.shape != error.shape:
        given = f"{desirable.dtype} of shape {tuple(desirable.shape)}"
        raise ValueError(f"desirable: a bool tensor of shape {tuple(error.shape)} is needed, {given} given")
    gap = error - reference_error
    if q_ref is None:
        q_ref = beta * kl_estimate(error, reference_error, omega, reduce)
    q_ref = torch.as_tensor(q_ref, dtype=gap.dtype, device=gap.device).detach()
    side = torch.where(desirable, 1.0, -1.0).to(gap.dtype)
    advantage = side * (beta * _weighted(-gap, omega) - q_ref)
    good, bad = (gap.detach()[mask].sum() / mask.sum().clamp(min=1) for mask in (desirable, ~desirable))
    return -torch.sigmoid(advantage), {
        "implicit_accuracy": win_rate(advantage),
        "margin": bad - good,
        "error_winner": good,
        "error_loser": bad,
        "kl": q_ref / beta,
    }


def rwr_loss(error: Tensor, reward: Tensor, bound: float = 3.0) -> tuple[Tensor, Diagnostics]:
    """exp(min(r, bound)) * error of each clip: reward-weighted regression (Flow-RWR, VideoAlign eq. 9).

    `reward` is standardised over the whole data set (`standardised`). Our reading: the exponent is bounded above, so
    that no clip weighs more than e^bound times an average one. No gradient flows through the weight.

    Returns the losses, [B], and: `reward_weight`, the mean weight; `effective_share`, (sum w)^2 / (B sum w^2) in
    [1/B, 1], the share of the batch that counts: near 1/B one clip is all that is learnt.
    """
    error, reward = examples(error, reward)
    exponent = reward.detach().clamp(max=bound)
    weight = exponent.exp()
    relative = (exponent - exponent.max()).exp()  # against the greatest: squares of small weights would vanish
    share = relative.sum().square() / (len(relative) * relative.square().sum())
    return weight * error, {"reward_weight": weight.mean(), "effective_share": share}


def standardised(rewards: Tensor) -> Tensor:
    """(r - mean) / standard deviation over all values, [N] -> [N]; zeros where all are equal."""
    wide = widen(rewards)
    if not len(wide) or wide.max() == wide.min():  # by values: a rounded mean would leave noise to be blown up
        return torch.zeros_like(wide)
    centred = wide.double() - wide.double().mean()
    return (centred / centred.square().mean().sqrt()).to(wide.dtype)


def sft_loss(error: Tensor) -> tuple[Tensor, Diagnostics]:
    """The diffusion loss itself, `error`, [B], for chosen clips only (supervised fine-tuning, VideoAlign section 5)."""
    return examples(error)[0], {}


def widen(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; float32 and float64 as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def examples(*tensors: Tensor) -> list[Tensor]:
    """Tensors of one value per example, widened. Raises ValueError unless all are [B] alike: nothing broadcasts."""
    if any(tensor.dim() != 1 or tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError(f"one value per example is needed, shapes {[tuple(t.shape) for t in tensors]} given")
    return [widen(tensor) for tensor in tensors]


def win_rate(margin: Tensor) -> Tensor:
    """Share of positive margins, zeros counting half, as a detached scalar: 0.5 where model and reference are equal."""
    return (margin.detach().sign().mean() + 1) / 2


def _weighted(values: Tensor, omega: Tensor | None) -> Tensor:
    return values if omega is None else torch.mul(*examples(values, omega))
