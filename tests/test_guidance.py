"""Flow-NRG: where the shifted velocity leads, against a Gaussian that is solved in closed form; its reward model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from numeric import central_differences, minus_log_sigmoid, random

from dualipo.errors import UserError
from dualipo.generator.base import load_generator
from dualipo.generator.guidance import RewardGuidance
from dualipo.generator.latent_reward import LatentReward, bradley_terry_loss

torch.set_num_threads(1)
SIZE = (9, 32, 32)
TEXTS = ["a red circle", "a blue cross"]
FLOW = SimpleNamespace(flow=True, times=lambda levels: levels / 1000)


def test_guided_sampling_of_a_gaussian_ends_where_the_tilted_one_lies():
    """x_0 ~ N(0, 1) tilted by exp(w a x_0) is N(w a, 1): every path must end w a further on, in the direction of a.

    The reward on noisy latents that belongs to it is a * E[x_0 | x_t] = a (1 - t) x / ((1 - t)^2 + t^2).
    """
    slopes, shares, scale = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.5, 0.25, 0.25]), 0.7

    def reward(x, levels, text):
        t = (levels / 1000)[:, None]
        return slopes * ((1 - t) * x / ((1 - t) ** 2 + t**2))

    guide = RewardGuidance(FLOW, reward, [2, 1, 1], scale, latest=1.0)
    start = random(5, 1, seed=1)
    ends = []
    for steered in (False, True):
        x, steps = start.clone(), 4000
        for step in range(steps):
            t = 1 - step / steps
            velocity = (2 * t - 1) / ((1 - t) ** 2 + t**2) * x
            if steered:
                velocity = guide(x, torch.full((5,), 1000 * t, dtype=torch.float64), torch.zeros(5, 1, 1), velocity)
            x = x - velocity / steps
        ends.append(x)
    shift = scale * float(slopes @ shares)
    torch.testing.assert_close(ends[1] - ends[0], torch.full((5, 1), shift, dtype=torch.float64), rtol=5e-3, atol=0)


def test_the_shift_by_hand_and_none_near_pure_noise():
    guide = RewardGuidance(FLOW, lambda x, levels, text: torch.stack([x.flatten(1).sum(1)] * 3, 1) * 3, [1, 0, 0], 0.5)
    latents, velocity = torch.zeros(4, 2, 1, 1, 1), torch.ones(4, 2, 1, 1, 1)
    levels = torch.tensor([0.0, 500.0, 900.0, 1000.0])
    found = guide(latents, levels, torch.zeros(4, 1, 1), velocity)
    # w = 1/2, a gradient of 3, and t / (1 - t) = 0, 1, 9; at t = 1 nothing.
    assert found[:, 0].flatten().tolist() == pytest.approx([1, 1 - 1.5, 1 - 13.5, 1], rel=1e-4)
    assert guide(latents, torch.full((4,), 995.0), torch.zeros(4, 1, 1), velocity) is velocity
    off = RewardGuidance(FLOW, guide.reward, [1, 1, 1], 0.0)
    assert off(latents, levels, torch.zeros(4, 1, 1), velocity) is velocity


@pytest.mark.parametrize("weights", [[1, 1], [1, -1, 1], [0, 0, 0]])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(UserError, match="semantic, motion, faithfulness"):
        RewardGuidance(FLOW, lambda *_: None, weights, 1.0)


def test_guidance_of_a_diffusion_model_is_refused(generator_folder):
    with pytest.raises(UserError, match="CogVideoX is none"):
        RewardGuidance(load_generator(generator_folder), lambda *_: None, [1, 1, 1], 1.0)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_rewards_rise_and_the_users_weights_choose_which(name, request):
    generator = load_generator(request.getfixturevalue(f"{name}_folder"))
    torch.manual_seed(3)
    reward = LatentReward(generator, layers=1).eval().requires_grad_(False)
    text, null_text = generator.encode_text(TEXTS), generator.encode_text([""])

    def ends(weights, scale):
        guide = RewardGuidance(generator, reward, weights, scale) if scale else None
        latents = generator.sample(text, null_text, [1, 2], 6, 2.0, SIZE, guide)
        with torch.no_grad():
            return reward(latents.clone(), torch.zeros(2), text.clone()).mean(0)

    plain = ends([1, 1, 1], 0.0)
    # A gradient of a mean over tokens is small: the scale makes up for it.
    axes = torch.eye(3)
    gains = torch.stack([ends(axis.tolist(), 30.0) - plain for axis in axes])
    drops = torch.stack([ends(axis.tolist(), -30.0) - plain for axis in axes])
    assert (gains.diagonal() > 0).all() and (drops.diagonal() < 0).all(), "asked for rises, shunned falls"


# The reward model


@pytest.mark.parametrize("name", ["wan", "ltx", "generator"])
def test_the_reward_stands_on_the_first_layers(name, request):
    generator = load_generator(request.getfixturevalue(f"{name}_folder"))
    reward = LatentReward(generator, layers=1).requires_grad_(False)
    denoiser = generator.denoiser
    for key, value in reward.trunk.state_dict().items():
        assert torch.equal(value, denoiser.state_dict()[key])
    assert sum(p.numel() for p in reward.trunk.parameters()) < sum(p.numel() for p in denoiser.parameters())
    blocks = denoiser.blocks if name == "wan" else denoiser.transformer_blocks
    hidden = []
    handle = blocks[0].register_forward_hook(lambda block, given, out: hidden.append(out))
    x = torch.randn(2, *generator.latent_shape(SIZE), generator=torch.Generator().manual_seed(1))
    levels, text = torch.tensor([100, 700]), generator.encode_text(TEXTS)
    with torch.no_grad():
        generator.predict(x, levels, text)
        handle.remove()
        tokens = hidden[0][0] if isinstance(hidden[0], tuple) else hidden[0]
        expected = tokens.mean(1) @ reward.head.weight.T + reward.head.bias
        found = reward(x, levels, text)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.shape == (2, 3) and (found - reward(x, levels.flip(0), text)).abs().max() > 1e-4, "time matters"
    assert generator.denoiser is denoiser
    for layers in (0, 99):
        with pytest.raises(ValueError, match="layers: 1 to"):
            LatentReward(generator, layers)


def test_bradley_terry_against_scalars_and_differences():
    first, second = random(3, 3, seed=1), random(3, 3, seed=2)
    preferred = torch.tensor([[1, -1, 0], [0, 0, 1], [-1, 1, 1]])
    rows = zip(first.flatten().tolist(), second.flatten().tolist(), preferred.flatten().tolist(), strict=True)
    terms = [minus_log_sigmoid(sign * (a - b)) for a, b, sign in rows if sign]
    assert len(terms) == 6
    assert bradley_terry_loss(first, second, preferred).item() == pytest.approx(sum(terms) / 6, rel=1e-12)

    def value(a, b):
        return bradley_terry_loss(a, b, preferred)

    leaves = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    found = torch.autograd.grad(value(*leaves), leaves)
    torch.testing.assert_close(list(found), central_differences(value, [first, second]), rtol=1e-6, atol=1e-9)


def test_bradley_terry_at_extremes():
    leaf = torch.tensor([[1e6, -1e6, 1e6]], requires_grad=True)
    loss = bradley_terry_loss(leaf, torch.zeros(1, 3), torch.tensor([[1, 1, 0]]))
    loss.backward()
    assert loss.item() == pytest.approx(5e5) and leaf.grad.tolist() == [[0, -0.5, 0]]
    ties = bradley_terry_loss(leaf, torch.zeros(1, 3), torch.zeros(1, 3))
    assert ties.item() == 0
    even = bradley_terry_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3))
    assert even.item() == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="shapes differ"):
        bradley_terry_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))
