"""Flow-DPO, reward-weighted regression, fine-tuning, rectified flow's omega and the mean over ranks."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import ERRORS, ROWS, autograd, central_differences, column, minus_log_sigmoid, random

from dualipo.alignment.losses import (
    denoising_error,
    derived_weight,
    diffusion_dpo_loss,
    diffusion_kto_loss,
    flow_dpo_loss,
    kl_estimate,
    mean_over_ranks,
    rwr_loss,
    sft_loss,
    standardised,
)
from dualipo.alignment.omega import flow_snr_weight

torch.set_num_threads(1)
TIMES = torch.tensor([0.0, 0.1, 0.4, 0.75, 0.99, 1.0], dtype=torch.float64)
REWARDS = random(6, seed=11, scale=2.0)


# Flow-DPO


@pytest.mark.parametrize("times", [None, TIMES])
@pytest.mark.parametrize("beta", [1.0, 500.0])
def test_flow_dpo_against_scalars(beta, times):
    losses, diagnostics = flow_dpo_loss(*ERRORS, beta, times)
    betas = [beta] * 6 if times is None else [beta * (1 - t) ** 2 for t in times.tolist()]
    gaps = [(w - ref_w, lost - ref_l) for w, lost, ref_w, ref_l in ROWS]
    expected = [minus_log_sigmoid(-b / 2 * (w - lost)) for b, (w, lost) in zip(betas, gaps, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9)
    assert diagnostics["margin"].item() == pytest.approx(sum(lost - w for w, lost in gaps) / 6)
    assert diagnostics["implicit_accuracy"].item() == pytest.approx(sum(w < lost for w, lost in gaps) / 6)


def test_flow_dpo_by_hand():
    # d(y_w) = -1, d(y_l) = 1, beta = 4 ln 3: sigmoid(4 ln 3) = 81/82; at t = 1/2 sigmoid(ln 3) = 3/4; at t = 1 1/2.
    errors = [column(*[value] * 3) for value in (1.0, 3.0, 2.0, 2.0)]
    assert flow_dpo_loss(*errors, 4 * math.log(3))[0].tolist() == pytest.approx([math.log(82 / 81)] * 3)
    derived = flow_dpo_loss(*errors, 4 * math.log(3), column(0.0, 0.5, 1.0))[0]
    assert derived.tolist() == pytest.approx([math.log(82 / 81), math.log(4 / 3), math.log(2)])


def test_the_derived_schedule_is_diffusion_dpo_on_the_noise():
    """Lemma B.1: the noise is x_t + (1 - t) v, so the derived beta_t turns velocity into noise errors."""
    clean, noise = random(2, 6, 5, seed=1), random(6, 5, seed=2)
    t = column(0.05, 0.2, 0.4, 0.6, 0.8, 0.95)[:, None]
    velocities, noises = [], []
    for guesses in (random(2, 6, 5, seed=3), random(2, 6, 5, seed=4)):
        for x, guess in zip(clean, guesses, strict=True):
            velocities.append(denoising_error(guess, noise - x))
            noisy = (1 - t) * x + t * noise
            noises.append(denoising_error(noisy + (1 - t) * guess, noise))
    found, _ = flow_dpo_loss(*velocities, 7.0, t[:, 0])
    expected, _ = diffusion_dpo_loss(*noises, 7.0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert (found - flow_dpo_loss(*velocities, 7.0)[0]).abs().max() > 1e-2


@pytest.mark.parametrize("times", [None, TIMES])
def test_flow_dpo_gradient(times):
    def mean_loss(*inputs):
        return flow_dpo_loss(*inputs, 20.0, times)[0].mean()

    found = autograd(mean_loss, ERRORS)
    torch.testing.assert_close(found, central_differences(mean_loss, ERRORS), rtol=1e-6, atol=1e-9)
    if times is not None:
        assert found[0][-1] == 0 and (found[0][:-1] > 0).all(), "pure noise teaches nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("time", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize(("winner", "loser"), [(0.0, 1e6), (1e6, 0.0), (1e6, 1e6), (0.0, 0.0)])
def test_flow_dpo_is_finite_at_extremes(dtype, winner, loser, time):
    inputs = [column(value, dtype=dtype).requires_grad_() for value in (winner, loser, 0.0, 0.0)]
    losses, diagnostics = flow_dpo_loss(*inputs, 500.0, None if time is None else column(time, dtype=dtype))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert all(value.isfinite().all() for value in (losses, *diagnostics.values(), *(leaf.grad for leaf in inputs)))
    share = 1.0 if time is None else (1 - time) ** 2
    # Half of beta_t where the pair is hopeless, none where it is won, a quarter where it is even.
    force = 250.0 * share * {1: 1.0, -1: 0.0 if share else 0.5, 0: 0.5}[(winner > loser) - (winner < loser)]
    assert inputs[0].grad.item() == pytest.approx(force, rel=1e-2)
    assert inputs[1].grad.item() == pytest.approx(-force, rel=1e-2)


@given(error=st.floats(0, 1e6), reference=st.floats(0, 1e6), time=st.floats(0, 1))
def test_flow_dpo_is_log_two_between_identical_clips(error, reference, time):
    losses, _ = flow_dpo_loss(*[column(v) for v in (error, error, reference, reference)], 500.0, column(time))
    assert losses.item() == pytest.approx(math.log(2), abs=1e-12)


def test_times_outside_the_path_and_of_another_shape_are_refused():
    for wrong in (-0.1, 1.1, 500.0):
        with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
            derived_weight(column(0.5, wrong))
    with pytest.raises(ValueError, match="one value per example"):
        flow_dpo_loss(*ERRORS, 1.0, column(0.5))
    with pytest.raises(ValueError, match="one value per example"):
        rwr_loss(ERRORS[0], column(0.5))


# Reward-weighted regression and fine-tuning


def test_rwr_against_scalars():
    losses, diagnostics = rwr_loss(ERRORS[0], REWARDS, bound=1.5)
    weights = [math.exp(min(r, 1.5)) for r in REWARDS.tolist()]
    assert max(REWARDS.tolist()) > 1.5 > min(REWARDS.tolist())
    expected = [weight * row[0] for weight, row in zip(weights, ROWS, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-12)
    assert diagnostics["reward_weight"].item() == pytest.approx(sum(weights) / 6)
    share = sum(weights) ** 2 / (6 * sum(weight**2 for weight in weights))
    assert diagnostics["effective_share"].item() == pytest.approx(share)


def test_rwr_by_hand():
    # Weights 1, 2 and 1/2, the last bounded: a mean of 7/6, and (7/2)^2 / (3 * 21/4) = 7/9 of the batch counts.
    losses, diagnostics = rwr_loss(column(3.0, 3.0, 3.0), column(0.0, 50.0, -math.log(2)), bound=math.log(2))
    assert losses.tolist() == pytest.approx([3.0, 6.0, 1.5])
    assert diagnostics["reward_weight"].item() == pytest.approx(7 / 6)
    assert diagnostics["effective_share"].item() == pytest.approx(7 / 9)


def test_rwr_gradient_reaches_the_error_alone():
    rewards = REWARDS.clone().requires_grad_()

    def mean_loss(error):
        return rwr_loss(error, rewards)[0].mean()

    found = autograd(mean_loss, [ERRORS[0]])
    torch.testing.assert_close(found, central_differences(mean_loss, [ERRORS[0]]), rtol=1e-6, atol=1e-9)
    assert found[0].tolist() == pytest.approx([math.exp(min(r, 3.0)) / 6 for r in REWARDS.tolist()])
    rwr_loss(ERRORS[0].clone().requires_grad_(), rewards)[0].sum().backward()
    assert rewards.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rewards", [(1e6, -1e6), (1e6, 1e6), (-1e6, -1e6), (0.0, 0.0)])
@pytest.mark.parametrize("error", [0.0, 1e6])
def test_rwr_is_finite_at_extremes(dtype, rewards, error):
    leaf = column(error, error, dtype=dtype).requires_grad_()
    losses, diagnostics = rwr_loss(leaf, column(*rewards, dtype=dtype))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert all(value.isfinite().all() for value in (losses, leaf.grad, *diagnostics.values()))
    assert leaf.grad.tolist() == pytest.approx([math.exp(min(r, 3.0)) for r in rewards], rel=1e-2)
    assert diagnostics["effective_share"].item() == pytest.approx(1.0 if rewards[0] == rewards[1] else 0.5)


def test_standardised_rewards():
    values = [0.25, 1.0, 0.5, 0.75, 0.5]
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    assert standardised(column(*values)).tolist() == pytest.approx([(v - mean) / deviation for v in values])
    assert standardised(column(0.1, 0.1, 0.1)).tolist() == [0, 0, 0], "equal rewards, though their mean is rounded"
    assert standardised(column(0.1, 0.1, 0.1, dtype=torch.float32)).tolist() == [0, 0, 0]
    far = standardised(column(-1e30, 1e30, dtype=torch.float32))
    assert far.dtype == torch.float32 and far.tolist() == pytest.approx([-1, 1])
    assert standardised(column()).tolist() == []


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-5, 5))
def test_standardised_rewards_do_not_depend_on_scale_and_origin(values, scale, origin):
    first = column(*values)
    if statistics.pstdev(values) > 1e-3:
        torch.testing.assert_close(standardised(first * scale + origin), standardised(first), rtol=1e-6, atol=1e-6)


def test_sft_is_the_diffusion_loss():
    leaf = ERRORS[0].clone().requires_grad_()
    losses, diagnostics = sft_loss(leaf)
    losses.mean().backward()
    assert losses.tolist() == ERRORS[0].tolist() and diagnostics == {}
    assert leaf.grad.tolist() == pytest.approx([1 / 6] * 6)
    assert sft_loss(column(1e6, dtype=torch.bfloat16))[0].dtype == torch.float32
    with pytest.raises(ValueError, match="one value per example"):
        sft_loss(torch.zeros(2, 3))


# omega of rectified flow


def test_flow_snr_weight_is_that_of_the_clean_latents_error():
    # Predict the velocity with a known error, rebuild the clean latent from it, and compare the two squared errors.
    grid = (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    clean, noise, slip = (random(8, seed=seed) for seed in range(3))
    raw = []
    for t in grid.tolist():
        rebuilt = (1 - t) * clean + t * noise - t * (noise - clean + slip)
        raw.append(min(((1 - t) / t) ** 2, 5) * float((rebuilt - clean).square().sum() / slip.square().sum()))
    expected = [value / (sum(raw) / 50) for value in raw]
    assert flow_snr_weight(grid, grid).tolist() == pytest.approx(expected, rel=1e-9)
    uncapped = flow_snr_weight(grid, grid, cap=math.inf)
    torch.testing.assert_close(uncapped, derived_weight(grid) / derived_weight(grid).mean())


def test_flow_snr_weight_at_the_ends_of_the_path():
    ends = flow_snr_weight(column(0.0, 1.0, dtype=torch.bfloat16), TIMES)
    assert ends.tolist() == [0, 0]


# Many processes


def _rank(rank: int, store: str, found) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    # One rank's mean is negative: clamping before the reduction would give 1.5 instead of 1.
    error, reference = [((2.0, 2.0), (1.0, 1.0)), ((1.0, 1.0), (3.0, 5.0))][rank]
    desirable = torch.tensor([[True, False], [False, True]][rank])
    losses, diagnostics = diffusion_kto_loss(column(*error), column(*reference), desirable, 0.7)
    found[rank] = (losses.tolist(), diagnostics["kl"].item())
    torch.distributed.destroy_process_group()


def test_two_processes_find_the_reference_point_of_the_whole_batch(tmp_path):
    import torch.multiprocessing as multiprocessing

    with multiprocessing.get_context("spawn").Manager() as manager:
        found = manager.dict()
        multiprocessing.spawn(_rank, (str(tmp_path / "store"), found), nprocs=2)
        losses, points = zip(*(found[rank] for rank in (0, 1)), strict=True)
    whole, diagnostics = diffusion_kto_loss(
        column(2.0, 2.0, 1.0, 1.0), column(1.0, 1.0, 3.0, 5.0), torch.tensor([True, False, False, True]), 0.7
    )
    assert points == pytest.approx((1.0, 1.0)) and diagnostics["kl"].item() == pytest.approx(1.0)
    assert [*losses[0], *losses[1]] == pytest.approx(whole.tolist(), rel=1e-12)


def test_one_process_reduces_nothing():
    value = column(2.5)
    assert mean_over_ranks(value) is value
    assert kl_estimate(column(1.0), column(3.0)).item() == 2.0
