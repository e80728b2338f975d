"""VideoReward's losses, its scale, and accuracies with and without ties, against sums done by hand and brute force."""

from __future__ import annotations

import decimal
import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from numeric import autograd, central_differences, minus_log_sigmoid, random, sigmoid

from dualipo.critic.videoreward.losses import bt_loss, btt_loss, regression_loss, tie_logprobs
from dualipo.critic.videoreward.scale import Scale, overall
from dualipo.evaluation.ties import (
    calibrate_ratings,
    calibrate_ties,
    ratings_at,
    ties_excluded_accuracy,
    ties_excluded_hits,
    ties_included_accuracy,
    verdicts_at,
)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def printed_formula(a: float, b: float, k: float) -> list[float]:
    """log P(a), log P(b), log P(tie) by the paper's fractions of exponentials, in 60 digits."""
    with decimal.localcontext(decimal.Context(prec=60, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)):
        ea, eb, k = Decimal(a).exp(), Decimal(b).exp(), Decimal(k)
        shares = [ea / (ea + k * eb), eb / (eb + k * ea), (k * k - 1) * ea * eb / ((ea + k * eb) * (k * ea + eb))]
        assert abs(sum(shares) - 1) < Decimal("1e-50"), "the three outcomes are all there are"
        return [float(share.ln()) for share in shares]


SCORES = [(0.0, 0.0), (1.0, 0.0), (-0.3, 2.1), (7.5, 7.4), (40.0, -40.0), (1e4, -1e4), (-3e5, 3e5), (1e8, 1e8 + 1)]


@pytest.mark.parametrize(("a", "b"), SCORES)
@pytest.mark.parametrize("k", [5.0, 1.0001, 1e6])
def test_the_three_outcomes_are_the_papers_fractions_at_any_score(a, b, k):
    found = tie_logprobs(float64(a), float64(b), k)[0]
    assert found.isfinite().all()
    np.testing.assert_allclose(found.numpy(), printed_formula(a, b, k), rtol=1e-9, atol=1e-15)


def test_two_equal_clips_tie_two_times_in_three():
    # k = 5: P(a) = P(b) = 1 / 6, P(tie) = 24 / 36.
    np.testing.assert_allclose(tie_logprobs(float64(3), float64(3)).exp()[0].numpy(), [1 / 6, 1 / 6, 2 / 3])
    # a ahead by ln 5: P(a) = 1/2, P(b) = 1 / (1 + 25), P(tie) = 24 / 52.
    found = tie_logprobs(float64(math.log(5)), float64(0)).exp()[0]
    np.testing.assert_allclose(found.numpy(), [1 / 2, 1 / 26, 24 / 52])


def test_each_loss_of_a_batch_by_hand():
    a, b, said = float64(0, 0, 0, 2), float64(0, 0, 0, 0.5), torch.tensor([0, 1, 2, 2])
    tie = (24 * math.exp(2.5)) / ((math.exp(2) + 5 * math.exp(0.5)) * (5 * math.exp(2) + math.exp(0.5)))
    expected = [math.log(6), math.log(6), math.log(1.5), -math.log(tie)]
    np.testing.assert_allclose(btt_loss(a, b, said).numpy(), expected)
    plain = bt_loss(float64(1, 1, 1), float64(-1, -1, -1), torch.tensor([0, 1, 2]))
    np.testing.assert_allclose(plain.numpy(), [minus_log_sigmoid(2), minus_log_sigmoid(-2), 0])
    np.testing.assert_allclose(regression_loss(float64(0.5, -1), float64(1, 1)).numpy(), [0.25, 4])


@pytest.mark.parametrize("verdict", [0, 1, 2])
@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
def test_gradients_equal_finite_differences(verdict, scale):
    said = torch.full((4,), verdict)
    inputs = [random(4, seed=1, scale=scale), random(4, seed=2, scale=scale)]
    for loss in (lambda a, b: btt_loss(a, b, said).sum(), lambda a, b: bt_loss(a, b, said).sum()):
        for exact, found in zip(central_differences(loss, inputs), autograd(loss, inputs), strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-7)
    squares = [lambda a, b: regression_loss(a, b).sum()]
    for loss in squares:
        for exact, found in zip(central_differences(loss, inputs), autograd(loss, inputs), strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


def test_gradients_stay_finite_and_right_where_exponentials_would_not():
    a = float64(2e4, -2e4, 2e4).requires_grad_()
    (gradient,) = torch.autograd.grad(btt_loss(a, torch.zeros_like(a), torch.tensor([1, 0, 2])).sum(), a)
    # Far from the truth each loss grows by 1 for each unit of score; a tie's pulls the clips together.
    np.testing.assert_allclose(gradient.numpy(), [1, -1, 1])
    settled = float64(2e4).requires_grad_()
    (gradient,) = torch.autograd.grad(btt_loss(settled, float64(0), torch.tensor([0])).sum(), settled)
    assert gradient.item() == 0


def test_bradley_terry_is_the_limit_without_ties():
    a, b, said = random(6, seed=3), random(6, seed=4), torch.tensor([0, 1, 0, 1, 0, 1])
    torch.testing.assert_close(btt_loss(a, b, said, k=1 + 1e-12), bt_loss(a, b, said), rtol=1e-9, atol=1e-9)


def test_swapping_the_clips_swaps_the_verdict():
    a, b = random(3, seed=5), random(3, seed=6)
    torch.testing.assert_close(
        btt_loss(a, b, torch.tensor([0, 1, 2])), btt_loss(b, a, torch.tensor([1, 0, 2])), rtol=0, atol=0
    )


def test_low_precision_is_computed_in_float32():
    a = torch.tensor([3.0], dtype=torch.bfloat16)
    found = btt_loss(a, torch.zeros_like(a), torch.tensor([0]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(-math.log(sigmoid(3 - math.log(5))), rel=1e-6)


@pytest.mark.parametrize("k", [1.0, 0.5, -5.0, float("nan"), float("inf")])
def test_a_tendency_that_is_none_is_refused(k):
    with pytest.raises(ValueError, match="k must be a number above 1"):
        tie_logprobs(float64(0), float64(0), k)


def test_shapes_do_not_broadcast():
    with pytest.raises(ValueError, match="one value per example"):
        tie_logprobs(float64(0, 1), float64(0))
    with pytest.raises(ValueError, match="one verdict a pair"):
        btt_loss(float64(0, 1), float64(0, 1), torch.tensor([0]))


# Scale


def test_normalised_scores_have_mean_0_and_deviation_1_in_each_dimension():
    raw = np.array([[1.0, 100.0], [3.0, 300.0], [5.0, 200.0], [3.0, 200.0]])
    scale = Scale.of(raw)
    assert scale.mean == (3.0, 200.0)
    assert scale.deviation == pytest.approx((math.sqrt(2), math.sqrt(5000)))
    normal = scale.normalise(raw)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(normal.std(0), 1)
    np.testing.assert_allclose(scale.normalise([4.0, 250.0]), [1 / math.sqrt(2), 1 / math.sqrt(2)])
    np.testing.assert_allclose(overall([[1.0, -2.0], [0.5, 0.5]]), [-0.5, 0.5])
    assert overall([1.0, -2.0], (3, 1)) == pytest.approx(0.25)


@pytest.mark.parametrize("raw", [np.zeros((0, 3)), np.full((4, 2), 0.1), np.array([[1.0], [np.nan]]), np.ones(3)])
def test_scores_that_nothing_normalises_are_refused(raw):
    with pytest.raises(ValueError, match=r"needed|all equal"):
        Scale.of(raw)


# Accuracies


def test_accuracies_by_hand():
    differences = [2.0, -1.0, 0.5, 0.0, -3.0, 0.0]
    people = ["a", "a", "tie", "tie", "b", "a"]
    assert verdicts_at(differences, 0.0) == ["a", "b", "a", "tie", "b", "tie"]
    assert verdicts_at(differences, 0.5) == ["a", "b", "tie", "tie", "b", "tie"]
    assert ties_excluded_hits(differences, people) == [1.0, 0.0, None, None, 1.0, 0.5]
    assert ties_excluded_accuracy(differences, people) == 2.5 / 4
    assert ties_included_accuracy(differences, people, 0.0) == 3 / 6
    assert ties_included_accuracy(differences, people, 0.5) == 4 / 6
    assert calibrate_ties(differences, people) == (0.5, 4 / 6)
    assert ties_excluded_accuracy([1.0, -1.0], ["tie", "tie"]) is None


def counted(predicted: list[str], people: list[str]) -> float:
    return sum(x == y for x, y in zip(predicted, people, strict=True)) / len(people)


@pytest.mark.parametrize("seed", range(40))
def test_tie_calibration_equals_trying_every_threshold(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 30))
    # Rounded: equal sizes and zeros are where a sweep goes wrong.
    differences = rng.normal(size=count).round(int(rng.integers(0, 3)))
    people = rng.choice(["a", "b", "tie"], count).tolist()
    thresholds = sorted({0.0, *np.abs(differences).tolist()})
    tried = []
    for threshold in thresholds:
        said = ["tie" if -threshold <= d <= threshold else "b" if d < 0 else "a" for d in differences.tolist()]
        tried.append(counted(said, people))
    threshold, accuracy = calibrate_ties(differences, people)
    assert accuracy == max(tried)
    assert threshold == thresholds[tried.index(max(tried))]
    assert ties_included_accuracy(differences, people, threshold) == accuracy


def test_extremes_of_tie_calibration():
    assert calibrate_ties([1e-300, -1e300], ["tie", "tie"]) == (1e300, 1.0)
    assert calibrate_ties([3.0, -2.0], ["a", "b"]) == (0.0, 1.0)
    assert calibrate_ties([3.0, -2.0], ["b", "a"]) == (0.0, 0.0)
    for bad in ([], [float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="finite score differences"):
            calibrate_ties(bad, ["a"] * len(bad))


@pytest.mark.parametrize("seed", range(40))
def test_rating_cuts_equal_trying_every_two(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 14))
    scores = rng.normal(size=count).round(int(rng.integers(0, 3)))
    people = rng.choice(["good", "normal", "bad"], count, p=[0.5, 0.2, 0.3]).tolist()
    grid = sorted({*scores.tolist(), float(scores.min()) - 0.5})
    best = max(
        counted([("bad", "normal", "good")[(s > low) + (s > high)] for s in scores.tolist()], people)
        for low, high in itertools.combinations_with_replacement(grid, 2)
    )
    cuts, accuracy = calibrate_ratings(scores, people)
    assert cuts[0] <= cuts[1]
    assert accuracy == pytest.approx(best)
    assert counted(ratings_at(scores, cuts), people) == pytest.approx(best)


def test_rating_cuts_by_hand():
    (low, high), accuracy = calibrate_ratings([1, 2, 3, 4, 5], ["bad", "bad", "normal", "good", "good"])
    assert (low, high, accuracy) == (2.5, 3.5, 1.0)
    (low, high), accuracy = calibrate_ratings([1.0, 2.0], ["good", "good"])
    assert accuracy == 1.0 and low <= high < 1.0, "nothing is bad or normal"
    near = [1.0, math.nextafter(1.0, 2.0)]
    cuts, accuracy = calibrate_ratings(near, ["bad", "good"])
    assert accuracy == 1.0 and ratings_at(near, cuts) == ["bad", "good"]
    assert ratings_at([1e300], calibrate_ratings([1e300], ["good"])[0]) == ["good"]
    with pytest.raises(ValueError, match="finite scores"):
        calibrate_ratings([], [])
