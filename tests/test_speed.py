"""The fast paths against the plain ones that benchmarks/ keeps, at tiny sizes; nothing here looks at a clock."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import noise_clip, save_family
from transformers.cache_utils import DynamicCache

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import dpo_step
import labelling
import measuring
import sampling
from random_models import CRITICS, SHAPES, build_critic, build_generator

from dualipo.critic import cache
from dualipo.critic.base import load_critic
from dualipo.critic.questions import Question
from dualipo.resume import chunk_size
from dualipo.sizes import BACKBONES

torch.set_num_threads(1)
TINY, TINY_WAN = SHAPES["tiny"], replace(SHAPES["tiny-wan"], dtype=torch.float32, settings={})


@pytest.mark.parametrize("shape", [TINY, TINY_WAN, replace(TINY_WAN, settings={"gradient_checkpointing": True})])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_dpo_step_gives_the_textbooks_losses(shape, tuning):
    own, plain = dpo_step.both(shape, tuning)
    losses = [(own(step), plain(step)) for step in range(4)]
    for found, expected in losses:
        assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(loss, 4) for loss, _ in losses}) == 4, "the steps differ"


@pytest.mark.parametrize("shape", [TINY, TINY_WAN])
def test_sampling_in_a_batch_gives_the_pipelines_latents(shape):
    generator, seeds = build_generator(shape), [3, 4, 5]
    both = sampling.ours(generator, seeds, shape), sampling.textbook(generator, seeds, shape)
    assert both[0][1].shape == (3, *generator.latent_shape(shape.size))
    assert sampling.difference(both) < 1e-4
    assert np.abs(both[0][0].astype(int) - both[1][0]).max() <= 1


@pytest.mark.parametrize("shared_from", [1, 1000])
def test_labelling_gives_the_paths_and_verdicts_of_generate(monkeypatch, shared_from):
    monkeypatch.setattr(cache, "SHARED_FROM", shared_from)
    work = labelling.prepare("tiny", prompts=1, paths=3, data=Path())
    own = labelling.ours(work, 7)
    assert labelling.differing(own, labelling.textbook(work, 7)) == 0
    assert len({path for kind in own for paths in kind.paths for path in paths}) > 16, "paths differ from each other"
    assert labelling.differing(own, labelling.ours(work, 8)) > 0, "a difference would be seen"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_other_families_share_what_was_read_too(family, tmp_path, monkeypatch):
    critic, answered = load_critic(save_family(tmp_path, family)), []
    clips = {name: noise_clip(n) for n, name in enumerate(("x", "y"))}
    # Of different lengths: the shorter question is padded.
    questions = [Question("motion", "a circle", ("x",)), Question("overall", "a blue pillar staying still", ("x", "y"))]
    attention = critic.language_model.config._attn_implementation
    for shared_from in (1, 1000):
        monkeypatch.setattr(cache, "SHARED_FROM", shared_from)
        answered.append(critic.paths(questions, critic.see(clips), 3, 1.0, 8, seed=5))
    assert answered[0] == answered[1] and len({path for paths in answered[0] for path in paths}) == 6
    assert critic.language_model.config._attn_implementation == attention


def test_a_spread_cache_holds_what_a_copied_one_does():
    source = torch.Generator().manual_seed(0)

    def layers(rows: int, length: int) -> list[torch.Tensor]:
        return [torch.randn(rows, 2, length, 4, generator=source) for _ in range(4)]

    caches, first = (DynamicCache(), DynamicCache()), layers(2, 5)
    for each in caches:
        for layer in range(2):
            each.update(*first[2 * layer : 2 * layer + 2], layer)
    caches[0].batch_repeat_interleave(3)
    with cache.spread(None, caches[1], 3, room=2) as besides:
        assert besides == {}
    places = [layer.keys.data_ptr() for layer in caches[1].layers]
    for grown in range(3):
        assert [each.get_seq_length() for each in caches] == [5 + grown] * 2
        for copied, placed in zip(caches[0].layers, caches[1].layers, strict=True):
            assert torch.equal(copied.keys, placed.keys) and torch.equal(copied.values, placed.values)
        if grown < 2:
            later = layers(6, 1)
            for layer in range(2):
                expected, found = (each.update(*later[2 * layer : 2 * layer + 2], layer) for each in caches)
                assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert places == [layer.keys.data_ptr() for layer in caches[1].layers], "nothing was copied"


def test_batches_are_made_when_asked_for(monkeypatch):
    generator, sampled = build_generator(TINY), []
    sample = generator.sample
    monkeypatch.setattr(generator, "sample", lambda *arguments: sampled.append(1) or sample(*arguments))
    batches = generator.batches(["a red circle"] * 5, range(5), 1, 1.0, batch_size=2)
    assert [len(next(batches)), len(sampled)] == [2, 1]
    assert [len(batch) for batch in batches] == [2, 1]


def test_chunks_of_labelling_hold_so_many_clips():
    assert [chunk_size([[0] * candidates] * 40, 16) for candidates in (2, 6, 8, 9, 64, 1000)] == [16, 16, 16, 14, 2, 1]


@pytest.mark.parametrize("name", ["cogvideox-2b", "wan-1.3b"])
def test_real_shapes_are_those_of_the_plan(name):
    shape, plan = SHAPES[name], BACKBONES[name.replace(".", "-")]
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

    kind = CogVideoXTransformer3DModel if shape.family == "cogvideox" else WanTransformer3DModel
    with torch.device("meta"):
        transformer = kind(**shape.transformer)
    assert sum(p.numel() for p in transformer.parameters()) == plan.parameters
    assert shape.size == (plan.frames, plan.height, plan.pixel_width)


def test_critics_of_the_benchmark_show_what_they_see():
    critic = build_critic(CRITICS["tiny"])
    clips = {str(n): np.random.default_rng(n).integers(256, size=(4, 32, 32, 3), dtype=np.uint8) for n in range(2)}
    seen = critic.see(clips)
    assert not torch.allclose(seen["0"].tokens, seen["1"].tokens, atol=1e-2)


def test_a_medians_interval_covers_it():
    assert measuring.median([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "coverage": 0.75}
    nine = measuring.median(list(range(9)))
    assert (nine["median"], nine["low"], nine["high"]) == (4, 1, 7) and nine["coverage"] == pytest.approx(1 - 20 / 512)
    source, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        found = measuring.median(source.exponential(size=9).tolist())
        hits += found["low"] <= np.log(2) <= found["high"]
    assert hits / 2000 == pytest.approx(nine["coverage"], abs=0.02)
