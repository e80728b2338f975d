"""Wan and LTX-Video against plain diffusers: sampling, noise levels, sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import noise_clip

from dualipo.errors import UserError
from dualipo.generator.base import Generator, load_generator
from dualipo.generator.ltx import LTX
from dualipo.generator.wan import Wan

torch.set_num_threads(1)
TEXTS = ["a small red circle moving left slowly on a black background", "a blue pillar staying still"]
SIZE = (9, 32, 32)
CALL = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 24, "num_inference_steps": 3}
SHAPES = {"wan": (16, 3, 4, 4), "ltx": (8, 3, 8, 8)}


@pytest.fixture(params=["wan", "ltx"])
def name(request) -> str:
    return request.param


@pytest.fixture
def folder(name, request) -> Path:
    return request.getfixturevalue(f"{name}_folder")


@pytest.fixture
def generator(folder) -> Generator:
    return load_generator(folder)


@pytest.fixture
def pipeline(folder):
    """The same folder, opened by diffusers alone."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise_of(shape: tuple[int, ...], seeds: list[int]) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def test_the_index_names_the_backbone(name, generator):
    assert type(generator) is {"wan": Wan, "ltx": LTX}[name] and generator.flow


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_latents_and_clips_equal_those_of_the_pipelines_own_call(name, generator, pipeline, guidance):
    noise = noise_of(SHAPES[name], [11, 12])
    given = noise if name == "wan" else pipeline._pack_latents(noise)
    call = {**CALL, "guidance_scale": guidance, "latents": given}
    expected = pipeline(TEXTS, output_type="latent", **call).frames
    if name == "ltx":
        expected = pipeline._unpack_latents(expected, 3, 8, 8)
    text, null_text = generator.encode_text(TEXTS), generator.encode_text([""])
    found = generator.sample(text, null_text, [11, 12], 3, guidance, SIZE)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - noise).abs().max() > 0.1 and (found[0] - found[1]).abs().max() > 0.1
    other = generator.sample(text.flip(0), null_text, [11, 12], 3, guidance, SIZE)
    assert (found - other).abs().max() > 1e-3, "text matters here"
    clips = pipeline(TEXTS, output_type="np", **call).frames
    made = generator.generate(TEXTS, [11, 12], steps=3, guidance=guidance, size=SIZE)
    assert made.shape == (2, 9, 32, 32, 3) and made.dtype == np.uint8 and made.std() > 1
    np.testing.assert_allclose(made, clips * 255, atol=0.51 + 0.1)


def test_guidance_is_that_of_two_separate_forwards(generator):
    text, null_text = generator.encode_text(TEXTS), generator.encode_text([""])
    plain, weak, strong = (generator.sample(text, null_text, [3, 4], 1, g, SIZE) for g in (1.0, 2.0, 5.0))
    # One step is linear in the prediction: guidance 5 lies four times as far from guidance 1 as guidance 2 does.
    torch.testing.assert_close(strong - plain, 4 * (weak - plain), rtol=1e-3, atol=1e-4)
    assert (weak - plain).abs().max() > 1e-3


def test_encoding_is_the_vaes_mode_normalised(name, generator, pipeline):
    clips = np.stack([noise_clip(1), noise_clip(2)])
    latents = generator.encode_clips(clips)
    assert latents.shape == (2, *SHAPES[name])
    pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
    vae = pipeline.vae
    with torch.no_grad():
        codes = vae.encode(pixels).latent_dist.mean
    if name == "wan":
        pairs = zip(vae.config.latents_mean, vae.config.latents_std, strict=True)
    else:
        pairs = zip(vae.latents_mean.tolist(), vae.latents_std.tolist(), strict=True)
    expected = torch.stack([(codes[:, c] - mean) / deviation for c, (mean, deviation) in enumerate(pairs)], dim=1)
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generator.to_codes(latents), codes, rtol=1e-4, atol=1e-5)


# Noise levels


def test_noise_is_that_of_the_flow_scheduler_and_the_target_its_slope(name, generator):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    clean, noise = (noise_of(SHAPES[name], [seed, seed + 1, seed + 2]) for seed in (1, 4))
    levels = scheduler.timesteps[[0, 400, 998]]
    found = generator.noised(clean, noise, levels)
    torch.testing.assert_close(found, scheduler.scale_noise(clean, levels, noise))
    assert generator.times(levels).tolist() == pytest.approx((levels / 1000).tolist())
    torch.testing.assert_close(generator.noised(clean, noise, torch.tensor([0.0, 0.0, 0.0])), clean)
    torch.testing.assert_close(generator.noised(clean, noise, torch.tensor([1000.0] * 3)), noise)
    # A level of 1 is a thousandth of the path.
    slope = (generator.noised(clean, noise, levels / 2 + 100) - generator.noised(clean, noise, levels / 2 - 100)) / 0.2
    torch.testing.assert_close(slope, generator.target(clean, noise, levels), rtol=1e-3, atol=1e-4)


def test_a_perfect_prediction_leads_back_to_the_clean_clip(name, generator, monkeypatch):
    """Ties target, levels and scheduler together: the way back from noise ends where it began."""
    clean, noise = noise_of(SHAPES[name], [5]), noise_of(SHAPES[name], [9])
    seen = []

    def perfect(x, levels, text):
        seen.append(float(generator.times(levels)[0]))
        # UniPC starts at 0.999 and rounds levels to whole numbers: a thousandth of the path each.
        torch.testing.assert_close(x, generator.noised(clean, noise, levels), rtol=0, atol=2e-2)
        return generator.target(clean, noise, levels)

    monkeypatch.setattr(generator, "predict", perfect)
    text = generator.encode_text(TEXTS[:1])
    found = generator.sample(text, text, [9], steps=4, guidance=1.0, size=SIZE)
    assert len(seen) == 4 and seen[0] > 0.99 and seen == sorted(seen, reverse=True)
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-2)


def test_levels_are_uniform_draws_shifted_as_the_scheduler_shifts(name, generator):
    levels = generator.draw_levels(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(levels, generator.draw_levels(20_000, torch.Generator().manual_seed(0)))
    assert levels.dtype == torch.float32 and levels.min() > 0 and levels.max() <= 1000
    shift = {"wan": 3.0, "ltx": 1.0}[name]
    for share in (0.1, 0.5, 0.9):
        # The share of draws below the image of u is u.
        bound = shift * share / (1 + (shift - 1) * share) * 1000
        assert (levels < bound).float().mean().item() == pytest.approx(share, abs=0.015)


def test_snr_weight_has_mean_one_over_the_draws(generator):
    levels = generator.draw_levels(50_000, torch.Generator().manual_seed(1))
    weights = generator.snr_weight(levels)
    assert weights.mean().item() == pytest.approx(1, abs=0.02)
    times = [0.05, 0.2, 0.5, 0.9]
    raw = [min((1 - t) ** 2, 5 * t**2) for t in times]
    found = generator.snr_weight(torch.tensor(times) * 1000).tolist()
    assert [value / found[2] for value in found] == pytest.approx([value / raw[2] for value in raw], rel=1e-4)


def test_the_times_of_a_diffusion_model_are_not_given(generator_folder):
    generator = load_generator(generator_folder)
    assert not generator.flow
    with pytest.raises(NotImplementedError, match="CogVideoX is no rectified flow"):
        generator.times(torch.tensor([1]))


# Sizes


def test_clips_have_the_size_asked_for(name, generator):
    made = generator.generate(TEXTS[:1], [1], steps=1, guidance=1.0, size=(5, 32, 64))
    assert made.shape == (1, 5, 32, 64, 3)
    own = {"wan": (16, 21, 60, 104), "ltx": (8, 41, 128, 176)}
    assert generator.latent_shape(None) == own[name], "81x480x832 and 161x512x704, as the pipelines have it"


@pytest.mark.parametrize("size", [(8, 32, 32), (9, 33, 32), (9, 32, 30), (0, 32, 32), (9, 0, 32)])
def test_sizes_that_do_not_divide_are_refused(generator, size):
    with pytest.raises(UserError, match=r"size \[.*clips of 1 \+ n \* 4 frames with sides divisible by"):
        generator.latent_shape(size)


def test_learnt_places_know_one_size(generator_folder):
    generator = load_generator(generator_folder)
    assert generator.latent_shape((9, 32, 32)) == generator.latent_shape(None) == (3, 12, 8, 8)
    with pytest.raises(UserError, match="learnt the places of one size"):
        generator.latent_shape((13, 32, 32))


# Folders


def test_saved_folders_open_in_plain_diffusers(name, generator, pipeline, tmp_path):
    import diffusers

    generator.save(tmp_path / "again")
    opened = getattr(diffusers, generator.pipeline_class).from_pretrained(tmp_path / "again")
    for part in ("transformer", "vae", "text_encoder"):
        first, second = getattr(opened, part).state_dict(), getattr(pipeline, part).state_dict()
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert not list((tmp_path / "again").rglob("*.bin"))


def test_wan_of_two_stages_is_refused(wan_folder, tmp_path):
    folder = tmp_path / "wan"
    shutil.copytree(wan_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": 0.875}))
    with pytest.raises(UserError, match=r"use a Wan 2\.1 checkpoint"):
        load_generator(folder)
