"""The small world's Wan, trained for a step or two: its folder, its stages and its command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dualipo.artifacts import digest
from dualipo.config import load_config
from dualipo.generator.base import load_generator
from dualipo.generator.wan import Wan
from dualipo.records import Prompt, read_rows
from dualipo.world import train_wan
from dualipo.world.benchmark import score_clip
from dualipo.world.captions import random_captions
from dualipo.world.cli import world
from dualipo.world.scene import FRAMES, SIZE, render

torch.set_num_threads(1)
CALL = {"height": SIZE, "width": SIZE, "num_frames": FRAMES, "max_sequence_length": train_wan.TEXT_LENGTH}
TEXT = "a small red circle moving left slowly on a black background"


@pytest.fixture(scope="module")
def few_captions():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_wan, "CAPTIONS", 12)
        yield


@pytest.fixture(scope="module")
def folder(few_captions, tmp_path_factory) -> Path:
    """By the command."""
    data = tmp_path_factory.mktemp("data")
    command = [
        "generator",
        "--family",
        "wan",
        "--data",
        str(data),
        "--vae-steps",
        "4",
        "--steps",
        "3",
        "--wild-steps",
        "2",
    ]
    ended = CliRunner().invoke(world, command, catch_exceptions=False)
    assert ended.exit_code == 0 and {path.name for path in data.iterdir()} == {"generator_wan"}
    return data / "generator_wan"


def test_plain_diffusers_makes_a_clip_of_the_folder_which_is_the_one_we_make(folder, repository):
    from diffusers import WanPipeline

    size = load_config(repository / "params.yaml", repository / "params/small-world-wan.yaml").generate.size
    generator = load_generator(folder)
    assert type(generator) is Wan and size == (FRAMES, SIZE, SIZE)
    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(generator.latent_shape(size), generator=torch.Generator().manual_seed(5))[None]
    expected = pipeline(TEXT, num_inference_steps=2, guidance_scale=1.0, latents=noise, output_type="np", **CALL).frames
    made = generator.generate([TEXT], [5], steps=2, guidance=1.0, size=size)
    assert made.shape == (1, FRAMES, SIZE, SIZE, 3)
    np.testing.assert_allclose(made, expected * 255, atol=0.6)
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < 15e6


def test_the_latents_it_learns_from_have_mean_0_and_deviation_1(folder):
    generator = load_generator(folder)
    clips = np.stack([render(scene, i) for i, (_, scene) in enumerate(random_captions(12, 0))])
    deviation, mean = torch.std_mean(generator.encode_clips(clips), dim=(0, 2, 3, 4))
    torch.testing.assert_close(mean, torch.zeros(train_wan.CHANNELS), rtol=0, atol=1e-3)
    torch.testing.assert_close(deviation, torch.ones(train_wan.CHANNELS), rtol=1e-3, atol=0)


def test_its_text_is_encoded_in_training_as_when_it_is_used(folder):
    generator = load_generator(folder)
    tokens = generator.pipeline.tokenizer(
        [TEXT, ""], padding="max_length", max_length=train_wan.TEXT_LENGTH, return_tensors="pt"
    )
    found = train_wan.embed(generator, tokens)
    torch.testing.assert_close(found, generator.encode_text([TEXT, ""]), rtol=1e-5, atol=1e-6)


def test_a_vae_that_was_trained_before_gives_the_same_generator(folder, few_captions, tmp_path):
    train_wan.train_wan(tmp_path / "again", vae_steps=0, steps=3, wild_steps=2, vae=folder / "vae")
    assert digest(tmp_path / "again") == digest(folder)


def test_the_vae_learns_with_its_clamp_left_out_and_nothing_else(folder):
    vae = load_generator(folder).pipeline.vae
    codes = 3 * torch.randn(1, train_wan.CHANNELS, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        bare, clamped = train_wan._decode(vae, codes), vae.decode(codes).sample
    torch.testing.assert_close(bare.clamp(-1, 1), clamped)


def test_the_shipped_one_follows_prompts_better_than_chance_and_imperfectly(repository):
    """Chance is the same clips held against other prompts."""
    prompts = read_rows(repository / "data/benchmark.jsonl", Prompt)[::2]
    generator = load_generator(repository / "data/generator_wan")
    texts, seeds = [prompt.text for prompt in prompts], list(range(len(prompts)))
    clips = generator.generate(texts, seeds, steps=12, guidance=1.0, size=(FRAMES, SIZE, SIZE)).round().astype(np.uint8)

    def follows(held_against: list[Prompt]) -> float:
        found = [
            score_clip(clip, prompt)["overall_consistency"] for clip, prompt in zip(clips, held_against, strict=True)
        ]
        return float(np.mean(found))

    assert len(prompts) == 30 and follows(prompts[7:] + prompts[:7]) + 15 < follows(prompts) < 95
