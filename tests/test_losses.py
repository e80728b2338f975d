"""The generator's losses, against scalar arithmetic in 60 digits and central differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import ERRORS, ROWS, autograd, central_differences, column, minus_log_sigmoid, random, sigmoid

from dualipo.alignment.losses import (
    denoising_error,
    diffusion_dpo_loss,
    diffusion_kto_loss,
    kl_estimate,
)
from dualipo.alignment.omega import snr_weight
from dualipo.errors import UserError

torch.set_num_threads(1)
OMEGA = random(6, seed=9).abs() + 0.1
DESIRABLE = torch.tensor([True, False, True, True, False, False])
SIDES = [1, -1, 1, 1, -1, -1]
errors = st.floats(0, 1e6)


def all_finite(*tensors: torch.Tensor) -> bool:
    return all(tensor.isfinite().all() for tensor in tensors)


# The error


def test_denoising_error_against_numpy():
    prediction, target = random(3, 2, 4, 5, seed=1), random(3, 2, 4, 5, seed=2)
    expected = [np.sum((p - t) ** 2) / p.size for p, t in zip(prediction.numpy(), target.numpy(), strict=True)]
    assert denoising_error(prediction, target).tolist() == pytest.approx(expected, rel=1e-12)
    assert denoising_error(prediction[:, 0, 0, 0], target[:, 0, 0, 0]).shape == (3,)


def test_denoising_error_does_not_depend_on_the_size_of_the_clip():
    for frames in (1, 3, 7):
        assert denoising_error(torch.full((2, frames, 4, 8), 3.0), torch.ones(2, frames, 4, 8)).tolist() == [4, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_denoising_error_of_half_precision_is_computed_in_float32(dtype):
    prediction, target = random(2, 100, seed=1, scale=300).to(dtype), random(2, 100, seed=2).to(dtype)
    found = denoising_error(prediction, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, denoising_error(prediction.double(), target.double()).float())


def test_denoising_error_gradient_and_shapes():
    inputs = [random(2, 3, seed=1), random(2, 3, seed=2)]

    def total(prediction, target):
        return (denoising_error(prediction, target) * column(1.0, 3.0)).sum()

    torch.testing.assert_close(autograd(total, inputs), central_differences(total, inputs), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="differ in shape"):
        denoising_error(torch.zeros(2, 3), torch.zeros(2, 1))


# Diffusion-DPO


@pytest.mark.parametrize("omega", [None, OMEGA])
@pytest.mark.parametrize("beta", [1.0, 1000.0])
def test_dpo_against_scalars(beta, omega):
    losses, diagnostics = diffusion_dpo_loss(*ERRORS, beta, omega)
    weights = [1.0] * 6 if omega is None else omega.tolist()
    gaps = [(error_w - ref_w, error_l - ref_l) for error_w, error_l, ref_w, ref_l in ROWS]
    expected = [
        minus_log_sigmoid(-beta / 2 * weight * (gap_w - gap_l))
        for weight, (gap_w, gap_l) in zip(weights, gaps, strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-9)
    means = {
        "implicit_accuracy": sum(gap_w < gap_l for gap_w, gap_l in gaps) / 6,
        "margin": sum(gap_l - gap_w for gap_w, gap_l in gaps) / 6,
        "error_winner": sum(gap_w for gap_w, _ in gaps) / 6,
        "error_loser": sum(gap_l for _, gap_l in gaps) / 6,
        "kl": max(0.0, -sum(gap_w + gap_l for gap_w, gap_l in gaps) / 12),
    }
    assert {name: value.item() for name, value in diagnostics.items()} == pytest.approx(means)
    assert not any(value.requires_grad for value in diagnostics.values())


def test_dpo_by_hand():
    # d(y_w) = -0.1, d(y_l) = 0.3 and beta = 5 ln 3: sigmoid(5 ln 3 / 2 * 0.4) = sigmoid(ln 3) = 3/4.
    losses, diagnostics = diffusion_dpo_loss(column(0.9), column(1.5), column(1.0), column(1.2), 5 * math.log(3))
    assert losses.item() == pytest.approx(math.log(4 / 3), abs=1e-12)
    assert {name: value.item() for name, value in diagnostics.items()} == pytest.approx(
        {"implicit_accuracy": 1.0, "margin": 0.4, "error_winner": -0.1, "error_loser": 0.3, "kl": 0.0}, abs=1e-12
    )


@given(winner=errors, loser=errors, beta=st.floats(0.1, 5000))
def test_dpo_is_log_two_where_model_and_reference_are_equal(winner, loser, beta):
    losses, diagnostics = diffusion_dpo_loss(column(winner), column(loser), column(winner), column(loser), beta)
    assert losses.item() == pytest.approx(math.log(2), abs=1e-12)
    assert diagnostics["implicit_accuracy"].item() == 0.5


@given(winner=errors, reference=errors, beta=st.floats(0.1, 5000))
def test_dpo_is_log_two_between_identical_clips(winner, reference, beta):
    losses, _ = diffusion_dpo_loss(column(winner), column(winner), column(reference), column(reference), beta)
    assert losses.item() == pytest.approx(math.log(2), abs=1e-12)


def test_exchanging_winner_and_loser_changes_the_loss_by_half_beta_margin():
    error_w, error_l, reference_w, reference_l = ERRORS
    loss, diagnostics = diffusion_dpo_loss(*ERRORS, 30.0)
    turned, turned_diagnostics = diffusion_dpo_loss(error_l, error_w, reference_l, reference_w, 30.0)
    torch.testing.assert_close(turned - loss, 15.0 * ((error_l - reference_l) - (error_w - reference_w)))
    assert turned_diagnostics["implicit_accuracy"] == 1 - diagnostics["implicit_accuracy"]
    assert turned_diagnostics["kl"] == pytest.approx(diagnostics["kl"].item())


@pytest.mark.parametrize("omega", [None, OMEGA])
def test_dpo_gradient(omega):
    def mean_loss(*inputs):
        return diffusion_dpo_loss(*inputs, 20.0, omega)[0].mean()

    found = autograd(mean_loss, ERRORS)
    torch.testing.assert_close(found, central_differences(mean_loss, ERRORS), rtol=1e-6, atol=1e-9)
    assert (found[0] > 0).all() and (found[1] < 0).all(), "a descent step lowers the winner's error, not the loser's"


def test_dpo_gradient_through_a_model():
    noisy, target = random(2, 4, 3, seed=5), random(2, 4, 3, seed=6)
    reference = random(3, 3, seed=7)

    def mean_loss(weights):
        model = [denoising_error(x @ weights, y) for x, y in zip(noisy, target, strict=True)]
        frozen = [denoising_error(x @ reference, y) for x, y in zip(noisy, target, strict=True)]
        return diffusion_dpo_loss(*model, *frozen, 5.0)[0].mean()

    weights = [reference + random(3, 3, seed=8, scale=0.3)]
    torch.testing.assert_close(
        autograd(mean_loss, weights), central_differences(mean_loss, weights), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("winner", "loser"), [(0.0, 1e6), (1e6, 0.0), (1e6, 1e6), (0.0, 0.0)])
def test_dpo_is_finite_at_extremes(dtype, winner, loser):
    inputs = [column(value, dtype=dtype).requires_grad_() for value in (winner, loser, 0.0, 0.0)]
    losses, diagnostics = diffusion_dpo_loss(*inputs, beta=5000.0)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert all_finite(losses, *diagnostics.values(), *(leaf.grad for leaf in inputs))
    # Half of beta where the pair is hopeless, none where it is won, a quarter of beta where it is even.
    force = {1: 2500.0, -1: 0.0, 0: 1250.0}[int(np.sign(winner - loser))]
    assert inputs[0].grad.item() == pytest.approx(force, rel=1e-2)
    assert inputs[1].grad.item() == pytest.approx(-force, rel=1e-2)
    if winner > loser:
        assert losses.item() == pytest.approx(2500 * float(column(1e6, dtype=dtype)), rel=1e-6)


def test_dpo_in_half_precision_is_that_of_the_rounded_inputs():
    rounded = [tensor.bfloat16() for tensor in ERRORS]
    found, _ = diffusion_dpo_loss(*rounded, 100.0, OMEGA.bfloat16())
    exact, _ = diffusion_dpo_loss(*(tensor.double() for tensor in rounded), 100.0, OMEGA.bfloat16().double())
    torch.testing.assert_close(found, exact.float())


def test_nothing_broadcasts():
    one, three = torch.zeros(1), torch.zeros(3)
    for call in (
        lambda: diffusion_dpo_loss(three, three, three, one, 1.0),
        lambda: diffusion_dpo_loss(three, three, three, three, 1.0, one),
        lambda: diffusion_dpo_loss(*[torch.zeros(3, 1)] * 4, 1.0),
        lambda: diffusion_kto_loss(three, one, torch.ones(3, dtype=torch.bool), 1.0),
        lambda: kl_estimate(three, one),
    ):
        with pytest.raises(ValueError, match="one value per example"):
            call()


# Diffusion-KTO


def kto_by_hand(beta: float, omega: list[float], q_ref: float | None = None) -> tuple[list[float], float]:
    """Losses of ERRORS[0] against ERRORS[2] with DESIRABLE, and the reference point, in plain numbers."""
    ratios = [weight * (row[2] - row[0]) for weight, row in zip(omega, ROWS, strict=True)]
    if q_ref is None:
        q_ref = beta * max(0.0, math.fsum(ratios) / 6)
    return [-sigmoid(side * (beta * ratio - q_ref)) for side, ratio in zip(SIDES, ratios, strict=True)], q_ref


@pytest.mark.parametrize("omega", [None, OMEGA])
@pytest.mark.parametrize("q_ref", [None, 0.0, 0.8])
@pytest.mark.parametrize("beta", [1.0, 300.0])
def test_kto_against_scalars(beta, q_ref, omega):
    losses, diagnostics = diffusion_kto_loss(ERRORS[0], ERRORS[2], DESIRABLE, beta, q_ref, omega)
    expected, reference_point = kto_by_hand(beta, [1.0] * 6 if omega is None else omega.tolist(), q_ref)
    assert losses.tolist() == pytest.approx(expected, rel=1e-9)
    sides = {True: [], False: []}
    for side, (error, _, reference, _) in zip(SIDES, ROWS, strict=True):
        sides[side > 0].append(error - reference)
    good, bad = sum(sides[True]) / 3, sum(sides[False]) / 3
    means = {
        "implicit_accuracy": sum(loss < -0.5 for loss in expected) / 6,
        "margin": bad - good,
        "error_winner": good,
        "error_loser": bad,
        "kl": reference_point / beta,
    }
    assert {name: value.item() for name, value in diagnostics.items()} == pytest.approx(means)
    assert not any(value.requires_grad for value in diagnostics.values())


def test_kto_by_hand():
    # d = -3 and 1: KL = 1, Q_ref = ln 2 at beta ln 2. The first is good: sigmoid(3 ln 2 - ln 2) = 4/5.
    # The second is bad: sigmoid(-(-ln 2 - ln 2)) = 4/5.
    losses, diagnostics = diffusion_kto_loss(
        column(1.0, 5.0), column(4.0, 4.0), torch.tensor([True, False]), math.log(2)
    )
    assert losses.tolist() == pytest.approx([-4 / 5, -4 / 5], abs=1e-12)
    assert diagnostics["kl"].item() == pytest.approx(1)
    assert diagnostics["margin"].item() == pytest.approx(4)


@given(error=errors, desirable=st.booleans(), beta=st.floats(0.1, 5000))
def test_kto_is_minus_one_half_where_model_and_reference_are_equal(error, desirable, beta):
    losses, _ = diffusion_kto_loss(column(error), column(error), torch.tensor([desirable]), beta)
    assert losses.item() == -0.5


def test_the_reference_point_carries_no_gradient():
    # The batch's own KL is positive and the sides do not balance, so a gradient through it would show.
    mostly = torch.tensor([True] * 5 + [False])
    beta, (error, reference) = 5.0, (ERRORS[0], ERRORS[0] + ERRORS[2])
    q_ref = beta * kl_estimate(error, reference)
    assert q_ref > 1

    def loss_at(point):
        return lambda *inputs: diffusion_kto_loss(*inputs, mostly, beta, point)[0].mean()

    found = autograd(loss_at(None), [error, reference])
    torch.testing.assert_close(found, central_differences(loss_at(q_ref), [error, reference]), rtol=1e-6, atol=1e-9)
    through_the_point = central_differences(loss_at(None), [error, reference])
    assert (found[0] - through_the_point[0]).abs().max() > 1e-3
    given = q_ref.clone().requires_grad_()
    diffusion_kto_loss(error.clone().requires_grad_(), reference, mostly, beta, given)[0].sum().backward()
    assert given.grad is None
    assert not kl_estimate(error.clone().requires_grad_(), reference).requires_grad


@pytest.mark.parametrize("omega", [None, OMEGA])
def test_kto_gradient(omega):
    def mean_loss(*inputs):
        return diffusion_kto_loss(*inputs, DESIRABLE, 10.0, 0.3, omega)[0].mean()

    inputs = [ERRORS[0], ERRORS[2]]
    found = autograd(mean_loss, inputs)
    torch.testing.assert_close(found, central_differences(mean_loss, inputs), rtol=1e-6, atol=1e-9)
    assert ((found[0] > 0) == DESIRABLE).all(), "a descent step lowers the errors of desirable clips only"


@given(st.permutations(range(6)))
def test_kto_does_not_depend_on_the_order_of_clips(order):
    losses, diagnostics = diffusion_kto_loss(ERRORS[0], ERRORS[2], DESIRABLE, 20.0, omega=OMEGA)
    turned, turned_diagnostics = diffusion_kto_loss(
        ERRORS[0][order], ERRORS[2][order], DESIRABLE[order], 20.0, omega=OMEGA[order]
    )
    torch.testing.assert_close(turned, losses[order], rtol=1e-12, atol=0)
    torch.testing.assert_close(turned_diagnostics, diagnostics, rtol=1e-12, atol=1e-15)


def test_kl_estimate_is_clamped_at_zero():
    assert kl_estimate(column(3.0, 2.0), column(1.0, 1.0)).item() == 0
    assert kl_estimate(column(1.0, 1.0), column(3.0, 2.0)).item() == 1.5
    assert kl_estimate(column(1.0, 1.0), column(3.0, 2.0), column(2.0, 0.5)).item() == 2.25


def test_two_ranks_find_the_reference_point_of_the_whole_batch():
    # One rank's mean is negative: clamping before the reduction would give 1.5 instead of 1.
    halves = [(column(2.0, 2.0), column(1.0, 1.0)), (column(1.0, 1.0), column(3.0, 5.0))]
    means = [(reference - error).mean() for error, reference in halves]
    seen = []

    def average(mean):
        seen.append(mean.item())
        return torch.stack(means).mean()

    whole = [torch.cat(side) for side in zip(*halves, strict=True)]
    desirable = torch.tensor([True, False, False, True])
    losses, diagnostics = diffusion_kto_loss(*whole, desirable, 0.7)
    split = [
        diffusion_kto_loss(error, reference, mask, 0.7, reduce=average)
        for (error, reference), mask in zip(halves, desirable.split(2), strict=True)
    ]
    assert seen == [-1.0, 3.0]
    assert [part["kl"].item() for _, part in split] == pytest.approx([1.0, 1.0])
    assert diagnostics["kl"].item() == pytest.approx(1.0)
    torch.testing.assert_close(torch.cat([part for part, _ in split]), losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sides", [[True, False], [True, True], [False, False]])
@pytest.mark.parametrize("values", [(1e6, 0.0), (0.0, 1e6), (1e6, 1e6), (0.0, 0.0)])
def test_kto_is_finite_at_extremes(dtype, sides, values):
    error = column(*values, dtype=dtype).requires_grad_()
    for reference in (torch.zeros(2, dtype=dtype), torch.full((2,), 1e6, dtype=dtype)):
        losses, diagnostics = diffusion_kto_loss(error, reference, torch.tensor(sides), 5000.0)
        losses.sum().backward()
        assert losses.dtype == torch.float32
        assert all_finite(losses, *diagnostics.values(), error.grad)
        assert ((losses >= -1) & (losses <= 0)).all()


def test_kto_refuses_what_is_no_mask():
    for wrong in (torch.ones(6), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="bool tensor"):
            diffusion_kto_loss(ERRORS[0], ERRORS[2], wrong, 1.0)


# Noise levels

ALPHAS = torch.linspace(0.999, 0.0, 50, dtype=torch.float64) ** 2
"""A schedule that ends in pure noise, as CogVideoX's does."""
STEPS = torch.arange(50)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_snr_weight_is_that_of_the_clean_latents_error(prediction_type):
    # Predict the target with a known error, rebuild the clean latent from it, and compare the two squared errors.
    clean, noise, slip = (random(8, seed=seed) for seed in range(3))
    raw = []
    for a in ALPHAS[:-1].tolist():
        noisy = a**0.5 * clean + (1 - a) ** 0.5 * noise
        target = {"sample": clean, "epsilon": noise, "v_prediction": a**0.5 * noise - (1 - a) ** 0.5 * clean}
        guess = target[prediction_type] + slip
        rebuilt = {
            "sample": guess,
            "epsilon": (noisy - (1 - a) ** 0.5 * guess) / a**0.5,
            "v_prediction": a**0.5 * noisy - (1 - a) ** 0.5 * guess,
        }[prediction_type]
        raw.append(min(a / (1 - a), 5) * float((rebuilt - clean).square().sum() / slip.square().sum()))
    # The last step is pure noise: SNR 0, where min(SNR, 5) / SNR tends to 1.
    raw.append({"sample": 0.0, "epsilon": 1.0, "v_prediction": 0.0}[prediction_type])
    expected = np.array(raw) / np.mean(raw)
    assert snr_weight(ALPHAS, STEPS, prediction_type).tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_snr_weight_by_hand():
    # SNR 1/3, 1, 9; v: min(SNR, 2) / (SNR + 1) = 1/4, 1/2, 1/5.
    found = snr_weight(column(0.25, 0.5, 0.9), torch.tensor([2, 0, 0, 1]), "v_prediction", cap=2)
    mean = (1 / 4 + 1 / 2 + 1 / 5) / 3
    assert found.tolist() == pytest.approx([0.2 / mean, 0.25 / mean, 0.25 / mean, 0.5 / mean])


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_snr_weight_has_mean_one_and_is_finite_from_no_noise_to_pure_noise(prediction_type, dtype):
    alphas = torch.cat([torch.ones(1), ALPHAS.float()]).to(dtype)
    weights = snr_weight(alphas, torch.arange(51), prediction_type)
    assert weights.dtype == torch.float32
    assert all_finite(weights) and (weights >= 0).all()
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)


def test_snr_weight_refuses_a_flow_scheduler():
    with pytest.raises(UserError, match="flow_prediction"):
        snr_weight(ALPHAS, STEPS, "flow_prediction")
