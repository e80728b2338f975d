"""SRPO and its parts, against scalar arithmetic in 60 digits and central differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import autograd, central_differences, column, minus_log_sigmoid, random, sigmoid

from dualipo.critic.certainty import certainty, dpo_loss, implicit_reward, sequence_logprob, srpo_loss

torch.set_num_threads(1)
LOGPROBS = [random(5, seed=seed, scale=4.0) - 20 for seed in range(4)]
"""policy_w, policy_l, reference_w, reference_l of five pairs."""
REWARDS = [
    (policy_w - reference_w, policy_l - reference_l)
    for policy_w, policy_l, reference_w, reference_l in zip(*(tensor.tolist() for tensor in LOGPROBS), strict=True)
]
"""R of winner and loser of each pair, as plain numbers."""
nats = st.floats(-1e6, 1e6)


def test_sequence_logprobs_of_all_sequences_sum_to_one():
    vocabulary, length = 3, 3
    sequences = torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))
    logits = random(1, length, vocabulary, seed=0).expand(len(sequences), -1, -1)
    logprobs = sequence_logprob(logits, sequences, torch.ones_like(sequences))
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-12)


def test_sequence_logprob_by_hand():
    # Probabilities 1/4, 3/4 and 1/2, 1/2 of the two tokens at each place; the second row answers with its last only.
    logits = torch.tensor([[[0.0, math.log(3)], [7.0, 7.0]]] * 2, dtype=torch.float64)
    labels = torch.tensor([[1, 0], [-100, 1]])
    mask = torch.tensor([[1, 1], [0, 1]])
    expected = [math.log(3 / 8), math.log(1 / 2)]
    assert sequence_logprob(logits, labels, mask).tolist() == pytest.approx(expected, abs=1e-12)
    assert sequence_logprob(logits, labels, torch.zeros_like(mask)).tolist() == [0, 0]


def test_sequence_logprob_ignores_whatever_stands_outside_the_mask():
    logits, labels = random(2, 4, 5, seed=1), torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]])
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    clean = sequence_logprob(logits, labels, mask)
    spoilt = logits.masked_fill(~mask.unsqueeze(-1), math.nan).requires_grad_()
    dirty = sequence_logprob(spoilt, labels.masked_fill(~mask, -100), mask)
    assert torch.equal(clean, dirty)
    dirty.sum().backward()
    assert spoilt.grad.isfinite().all()
    assert (spoilt.grad[~mask] == 0).all()
    assert (spoilt.grad[mask] != 0).all()


def test_sequence_logprob_gradient():
    labels, mask = torch.tensor([[1, 2, 0], [2, 2, 1]]), torch.tensor([[1, 0, 1], [1, 1, 0]])
    inputs = [random(2, 3, 4, seed=2)]

    def total(logits):
        return (sequence_logprob(logits, labels, mask) * column(1.0, -2.0)).sum()

    torch.testing.assert_close(autograd(total, inputs), central_differences(total, inputs), rtol=1e-6, atol=1e-8)


def test_sequence_logprob_of_half_precision_logits_is_computed_in_float32():
    logits, labels = random(2, 6, 50, seed=3).bfloat16(), torch.arange(12).view(2, 6)
    found = sequence_logprob(logits, labels, torch.ones_like(labels))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), sequence_logprob(logits.double(), labels, torch.ones_like(labels)))


def test_sequence_logprob_refuses_shapes_that_do_not_fit():
    logits, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    for wrong in ((logits[:, :-1], labels, labels), (logits, labels, labels[:, 1:]), (logits[0], labels[0], labels[0])):
        with pytest.raises(ValueError, match="are needed"):
            sequence_logprob(*wrong)


def test_implicit_reward_by_hand():
    assert implicit_reward(column(-3.0, -2.0), column(-5.0, -1.5)).tolist() == [2.0, -0.5]


@given(reward=nats, mean=nats, beta=st.floats(1e-3, 10))
def test_certainty_is_the_logistic_function_of_the_reward_above_the_mean(reward, mean, beta):
    found = certainty(column(reward), mean, beta).item()
    assert found == pytest.approx(sigmoid(beta * (reward - mean)), rel=1e-12, abs=1e-300)
    if abs(beta * (reward - mean)) > 1e-12:
        assert (found > 0.5) == (reward > mean)


def test_certainty_by_hand():
    found = certainty(column(2.0, 1.0, 0.0), 1.0, math.log(3))
    assert found.tolist() == pytest.approx([3 / 4, 1 / 2, 1 / 4], abs=1e-12)


def test_certainty_of_extreme_rewards_stays_in_bounds():
    for dtype in (torch.float32, torch.bfloat16):
        assert certainty(column(1e6, 0, -1e6, dtype=dtype), 0.0, 0.1).tolist() == [1.0, 0.5, 0.0]


def test_dpo_loss_against_scalars():
    found = dpo_loss(*LOGPROBS, beta=0.3)
    expected = [minus_log_sigmoid(0.3 * (winner - loser)) for winner, loser in REWARDS]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_dpo_loss_by_hand():
    # Rewards 2 and -1, beta ln(2)/3: the winner is preferred with probability 2/3.
    found = dpo_loss(column(-1.0), column(-5.0), column(-3.0), column(-4.0), beta=math.log(2) / 3)
    assert found.item() == pytest.approx(math.log(3 / 2), abs=1e-12)


@given(winner=nats, loser=nats, beta=st.floats(1e-3, 10))
def test_dpo_loss_is_log_two_where_policy_and_reference_are_equal(winner, loser, beta):
    equal = column(winner), column(loser), column(winner), column(loser)
    assert dpo_loss(*equal, beta).item() == pytest.approx(math.log(2), abs=1e-12)


def test_exchanging_winner_and_loser_changes_the_loss_by_the_margin():
    policy_w, policy_l, reference_w, reference_l = LOGPROBS
    margin = implicit_reward(policy_w, reference_w) - implicit_reward(policy_l, reference_l)
    turned = dpo_loss(policy_l, policy_w, reference_l, reference_w, 0.3)
    torch.testing.assert_close(turned - dpo_loss(*LOGPROBS, 0.3), 0.3 * margin)


def test_srpo_loss_and_diagnostics_against_scalars():
    beta, mean_reward = 0.2, 0.7
    losses, diagnostics = srpo_loss(*LOGPROBS, mean_reward, beta)
    weights = [sigmoid(beta * (winner - mean_reward)) for winner, _ in REWARDS]
    plain = [minus_log_sigmoid(beta * (winner - loser)) for winner, loser in REWARDS]
    assert losses.tolist() == pytest.approx([w * loss for w, loss in zip(weights, plain, strict=True)], rel=1e-12)
    assert diagnostics["certainty"].item() == pytest.approx(sum(weights) / 5, rel=1e-12)
    assert diagnostics["margin"].item() == pytest.approx(sum(w - lose for w, lose in REWARDS) / 5, rel=1e-12)
    assert diagnostics["accuracy"].item() == pytest.approx(sum(w > lose for w, lose in REWARDS) / 5)


def test_srpo_loss_without_weight_is_dpo():
    losses, diagnostics = srpo_loss(*LOGPROBS, 0.7, 0.2, weighted=False)
    assert torch.equal(losses, dpo_loss(*LOGPROBS, 0.2))
    assert torch.equal(diagnostics["certainty"], srpo_loss(*LOGPROBS, 0.7, 0.2)[1]["certainty"])


@pytest.mark.parametrize("weighted", [True, False])
def test_srpo_gradient_is_that_of_dpo_under_constant_weights(weighted):
    beta, mean_reward = 0.4, 0.5
    constant = certainty(LOGPROBS[0] - LOGPROBS[2], mean_reward, beta) if weighted else torch.ones(5).double()

    def with_constant_weight(*logprobs):
        return (constant * dpo_loss(*logprobs, beta)).mean()

    def srpo(*logprobs):
        return srpo_loss(*logprobs, mean_reward, beta, weighted)[0].mean()

    found = autograd(srpo, LOGPROBS)
    torch.testing.assert_close(found, central_differences(with_constant_weight, LOGPROBS), rtol=1e-6, atol=1e-9)
    if weighted:
        # The whole expression does depend on the weight: a gradient through it would be another one.
        through_the_weight = central_differences(srpo, LOGPROBS)
        assert (found[0] - through_the_weight[0]).abs().max() > 1e-3


def test_the_mean_reward_takes_no_gradient():
    mean_reward = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    policy_w = LOGPROBS[0].clone().requires_grad_()
    losses, diagnostics = srpo_loss(policy_w, *LOGPROBS[1:], mean_reward, 0.2)
    losses.sum().backward()
    assert mean_reward.grad is None
    assert policy_w.grad.abs().min() > 0
    assert not any(value.requires_grad for value in diagnostics.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [0.0, 1e6, -1e6])
def test_srpo_is_finite_at_extremes(dtype, gap):
    inputs = [column(value, dtype=dtype).requires_grad_() for value in (gap - 3, -3.0, -3.0, -3.0)]
    losses, diagnostics = srpo_loss(*inputs, mean_reward=0.0, beta=0.1)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert all(value.isfinite().all() for value in (losses, *diagnostics.values(), *(leaf.grad for leaf in inputs)))
    assert diagnostics["accuracy"].item() == {0.0: 0.5, 1e6: 1.0, -1e6: 0.0}[gap]
    if gap == 0:
        assert losses.item() == pytest.approx(math.log(2) / 2, rel=1e-6)
        assert inputs[0].grad.item() == pytest.approx(-0.1 / 4, rel=1e-2)


def test_a_hopeless_pair_still_pulls_with_full_force_in_dpo():
    inputs = [column(value).requires_grad_() for value in (-1e6, 0.0, 0.0, 0.0)]
    loss = dpo_loss(*inputs, beta=0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(1e5)
    assert [leaf.grad.item() for leaf in inputs] == pytest.approx([-0.1, 0.1, 0.1, -0.1])


def test_nothing_broadcasts():
    with pytest.raises(ValueError, match="one value per example"):
        dpo_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3), torch.zeros(1), 0.1)
    with pytest.raises(ValueError, match="one value per example"):
        implicit_reward(torch.zeros(3, 1), torch.zeros(3, 1))
