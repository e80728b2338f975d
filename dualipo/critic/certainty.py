"""Implicit reward, preference certainty and SRPO of the critic, as pure functions (Dual-IPO, section 3.2).

x is the frames, the prompt and the question; y a reasoning path that ends in a verdict; y_w one that ends in the
majority verdict and y_l one that ends in another (our reading). Log-probabilities are of whole paths, in nats, shape
[B]. float16 and bfloat16 are computed in float32; float64 stays.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dualipo.alignment.losses import Diagnostics, examples, widen, win_rate


def sequence_logprob(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each row's tokens under `mask`, [B, T, V], [B, T], [B, T] -> [B], in nats; no length norm.

    logits[:, t] must predict labels[:, t]: the *caller* shifts, `logits[:, :-1]` against `labels[:, 1:]` and
    `mask[:, 1:]`. Labels and logits outside the mask are never read, so -100 or anything else may stand there; a row
    with an empty mask gives 0. Raises ValueError where the shapes do not fit.
    """
    if logits.shape[:-1] != labels.shape or labels.shape != mask.shape or labels.dim() != 2:
        shapes = [tuple(tensor.shape) for tensor in (logits, labels, mask)]
        raise ValueError(f"logits [B, T, V], labels [B, T] and mask [B, T] are needed, shapes {shapes} given")
    mask = mask.bool()
    # Selected first: the float32 copy then holds the answer's tokens only, and padding cannot turn gradients to NaN.
    logprobs = widen(logits[mask]).log_softmax(dim=-1).gather(-1, labels[mask].unsqueeze(-1)).squeeze(-1)
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs).sum(dim=1)


def implicit_reward(policy_logprob: Tensor, reference_logprob: Tensor) -> Tensor:
    """R(y|x) = log pi(y|x) - log ref(y|x), [B] (Dual-IPO eq. 2)."""
    policy, reference = examples(policy_logprob, reference_logprob)
    return policy - reference


def certainty(reward: Tensor, mean_reward: Tensor | float, beta: float) -> Tensor:
    """PCE(y_w|x) = sigmoid(beta * (R(y_w|x) - Q)), [B] (Dual-IPO eq. 3 and 4); Q is the data set's mean reward.

    Our reading: the paper writes P(R > Q) and gives no form. Here PCE > 0.5 iff R > Q, and `beta`, the DPO temperature,
    sets how fast certainty saturates. Differentiable; `srpo_loss` detaches it.
    """
    return torch.sigmoid(beta * (widen(reward) - mean_reward))


def dpo_loss(policy_w: Tensor, policy_l: Tensor, reference_w: Tensor, reference_l: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * (R(y_w|x) - R(y_l|x))) of each pair, [B] (Dual-IPO eq. 1 and L_DPO)."""
    return -F.logsigmoid(beta * (implicit_reward(policy_w, reference_w) - implicit_reward(policy_l, reference_l)))


def srpo_loss(
    policy_w: Tensor,
    policy_l: Tensor,
    reference_w: Tensor,
    reference_l: Tensor,
    mean_reward: Tensor | float,
    beta: float,
    weighted: bool = True,
) -> tuple[Tensor, Diagnostics]:
    """PCE(y_w|x) * L_DPO of each pair (Dual-IPO eq. 5); with `weighted` off, L_DPO alone (the paper's ablation).

    The certainty is a constant of the step: no gradient flows through it (our reading; else the loss would also fall
    by making the winner less likely). `mean_reward` is Q over the data set, not over the batch.

    Returns the losses, [B], and detached means over the batch: `margin` R(y_w) - R(y_l) in nats, `accuracy` the share
    of pairs with R(y_w) > R(y_l), equality counting half, `certainty` the PCE.
    """
    reward_w, reward_l = implicit_reward(policy_w, reference_w), implicit_reward(policy_l, reference_l)
    weight = certainty(reward_w, mean_reward, beta).detach()
    loss = dpo_loss(policy_w, policy_l, reference_w, reference_l, beta)
    margin = (reward_w - reward_l).detach()
    diagnostics = {"margin": margin.mean(), "accuracy": win_rate(margin), "certainty": weight.mean()}
    return (weight * loss if weighted else loss), diagnostics
