"""omega(lambda_t): weights over noise levels, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from dualipo.alignment.losses import widen
from dualipo.errors import UserError


def snr_weight(alphas_cumprod: Tensor, timesteps: Tensor, prediction_type: str, cap: float = 5.0) -> Tensor:
    """omega(lambda_t) = min(SNR, cap) on the clean latent's error, as a weight on the predicted target's error, [B].

    SNR = a / (1 - a) with a = alphas_cumprod[t], [T]. An error of the clean latent is 1/SNR times that of the noise
    and 1/(SNR + 1) times that of v, so the weight is min(SNR, cap) over 1, SNR or SNR + 1 for `sample`, `epsilon` or
    `v_prediction` (Min-SNR, Hang et al. 2023). It is divided by its mean over all T timesteps, so that switching it on
    leaves beta's scale alone. Finite at SNR 0 and at infinity.

    Our reading: Dual-IPO eq. 6 names omega and gives no form. Raises UserError on any other prediction type.
    """
    signal = widen(alphas_cumprod)
    noise = 1 - signal
    if prediction_type == "sample":
        weight = (signal / noise).clamp(max=cap)
    elif prediction_type == "epsilon":
        weight = (cap * noise / signal).clamp(max=1)
    elif prediction_type == "v_prediction":
        weight = torch.minimum(signal, cap * noise)
    else:
        raise UserError(
            f"align.omega: no SNR weight for a scheduler that predicts {prediction_type!r}; "
            "use omega: constant, or a scheduler that predicts epsilon, v_prediction or sample"
        )
    weight = weight / weight.mean()
    return weight.to(timesteps.device)[timesteps]


def flow_snr_weight(times: Tensor, all_times: Tensor, cap: float = 5.0) -> Tensor:
    """The same on a velocity's error under rectified flow, [B], for times t in [0, 1] (0 clean, 1 noise).

    SNR = ((1 - t) / t)^2, and an error of the clean latent is t times that of the velocity, so the weight is
    min(SNR, cap) * t^2 = min((1 - t)^2, cap * t^2); without the cap it is Flow-DPO's derived schedule. It is divided by
    its mean over `all_times`, a fine grid of the times that training draws.
    """

    def weight(t: Tensor) -> Tensor:
        t = widen(t)
        return torch.minimum((1 - t).square(), cap * t.square())

    return weight(times) / weight(all_times).mean()
