"""The generator against plain diffusers, and clip folders that survive an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import noise_clip, rotary

from dualipo.artifacts import digest
from dualipo.errors import UserError
from dualipo.generator import sampling
from dualipo.generator.base import Generator, load_generator
from dualipo.generator.cogvideox import CogVideoX
from dualipo.generator.sampling import sample_clips
from dualipo.media.store import ClipStore
from dualipo.media.video import decode_clip, encode_clip
from dualipo.records import Prompt
from dualipo.world.train_generator import TEXT_LENGTH, WIDTH

torch.set_num_threads(1)
TEXTS = ["a small red circle moving left slowly on a black background", "a blue pillar staying still"]
HOW = SimpleNamespace(steps=2, guidance=2.0, batch_size=4, size=None)


@pytest.fixture
def generator(generator_folder: Path) -> Generator:
    return load_generator(generator_folder)


@pytest.fixture
def pipeline(generator_folder: Path):
    """The same folder, opened by diffusers alone."""
    from diffusers import CogVideoXPipeline

    pipeline = CogVideoXPipeline.from_pretrained(generator_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents_of(seed: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 12, 8, 8, generator=torch.Generator().manual_seed(seed))


# Plain diffusers


def test_plain_diffusers_makes_a_clip_of_the_folder(generator, tmp_path):
    from diffusers import CogVideoXPipeline

    generator.save(tmp_path / "again")
    weights = {path.suffix for path in (tmp_path / "again").rglob("*") if path.stat().st_size > 50_000}
    assert weights == {".safetensors"} and not list((tmp_path / "again").rglob("*.bin"))
    pipeline = CogVideoXPipeline.from_pretrained(tmp_path / "again")
    pipeline.set_progress_bar_config(disable=True)
    clip = pipeline(
        TEXTS[0],
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=2,
        output_type="np",
        max_sequence_length=TEXT_LENGTH,
    ).frames  # fmt: skip
    assert clip.shape == (1, 9, 32, 32, 3) and np.isfinite(clip).all() and clip.std() > 0


def test_a_denoiser_alone_is_saved_with_the_encoders_it_came_with(generator_folder, tmp_path):
    whole, alone = load_generator(generator_folder), load_generator(generator_folder)
    alone.keep_denoiser()
    assert alone.pipeline.vae is None and alone.pipeline.text_encoder is None
    for model in (whole, alone):
        with torch.no_grad():
            next(model.denoiser.parameters()).add_(1)
        model.save(tmp_path / ("alone" if model is alone else "whole"))
    assert digest(tmp_path / "alone") == digest(tmp_path / "whole") != digest(generator_folder)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("rotates", [False, True])
def test_clips_equal_those_of_the_pipelines_own_call(generator, pipeline, guidance, rotates):
    """Without rotary positions, as CogVideoX-2B, and with them, as 5B."""
    switches = dict.fromkeys(("use_rotary_positional_embeddings", "use_learned_positional_embeddings"), rotates)
    pipeline.transformer = type(pipeline.transformer).from_config({**pipeline.transformer.config, **switches}).eval()
    generator.pipeline.transformer = pipeline.transformer
    seeds = [11, 12]
    noise = torch.cat([torch.randn(1, 3, 12, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    expected = pipeline(
        TEXTS, height=32, width=32, num_frames=9, num_inference_steps=3, guidance_scale=guidance, latents=noise,
        output_type="np", max_sequence_length=TEXT_LENGTH,
    ).frames  # fmt: skip
    found = generator.generate(TEXTS, seeds, steps=3, guidance=guidance)
    assert found.shape == (2, 9, 32, 32, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found, expected * 255, atol=0.51 + 0.1)


def test_fused_guidance_equals_two_separate_forwards(generator, pipeline):
    """The textbook loop: one clip at a time, conditional and unconditional passes apart."""
    scheduler, guidance, seeds = pipeline.scheduler, 2.5, [3, 4]
    text, null_text = generator.encode_text(TEXTS), generator.encode_text([""])
    places = rotary(pipeline.transformer)
    found = generator.sample(text, null_text, seeds, steps=4, guidance=guidance)
    for row, seed in enumerate(seeds):
        x = torch.randn(1, 3, 12, 8, 8, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            with torch.no_grad():
                within = pipeline.transformer(x, text[row : row + 1], t[None], image_rotary_emb=places).sample
                without = pipeline.transformer(x, null_text, t[None], image_rotary_emb=places).sample
            x = scheduler.step(without + guidance * (within - without), t, x).prev_sample
        torch.testing.assert_close(found[row], x[0], rtol=1e-4, atol=1e-4)
    unguided = generator.sample(text, null_text, seeds, steps=4, guidance=1.0)
    assert (unguided - found).abs().max() > 1e-3, "guidance matters here"
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_text_is_encoded_as_the_pipeline_does(generator, pipeline):
    expected = pipeline._get_t5_prompt_embeds(TEXTS, max_sequence_length=TEXT_LENGTH)
    torch.testing.assert_close(generator.encode_text(TEXTS), expected)
    assert expected.shape == (2, TEXT_LENGTH, WIDTH)


def test_encoding_and_decoding_scale_latents_alike(generator, pipeline):
    clips = np.stack([noise_clip(1), noise_clip(2)])
    latents = generator.encode_clips(clips)
    assert latents.shape == (2, 3, 12, 8, 8)
    pixels = torch.from_numpy(clips[:1]).permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist.mean * 0.8
        decoded = pipeline.video_processor.postprocess_video(pipeline.decode_latents(latents[:1]), output_type="np")
    torch.testing.assert_close(latents[:1], expected.permute(0, 2, 1, 3, 4), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(generator.decode(latents[:1]), decoded * 255, atol=0.51)


# Noise levels


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_noise_and_target_equal_the_schedulers(generator, prediction):
    scheduler = generator.pipeline.scheduler
    scheduler.register_to_config(prediction_type=prediction)
    clean, noise = latents_of(1, 5), latents_of(2, 5)
    levels = torch.tensor([0, 1, 400, 998, 999])
    torch.testing.assert_close(generator.noised(clean, noise, levels), scheduler.add_noise(clean, noise, levels))
    target = scheduler.get_velocity(clean, noise, levels) if prediction == "v_prediction" else noise
    torch.testing.assert_close(generator.target(clean, noise, levels), target, rtol=1e-5, atol=1e-5)


def test_a_perfect_prediction_leads_back_to_the_clean_clip(generator, monkeypatch):
    """Sampling with the true target at every level must undo the noise, which ties `target` to the scheduler's step."""
    seed, scheduler = 9, generator.pipeline.scheduler
    clean = latents_of(5, 1)
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed))[None]
    monkeypatch.setattr(generator, "predict", lambda x, levels, text: generator.target(clean, noise, levels))
    text = generator.encode_text(TEXTS[:1])
    found = generator.sample(text, text, [seed], steps=5, guidance=1.0)
    assert scheduler.alphas_cumprod[-1] < 1e-6, "sampling starts from noise alone"
    torch.testing.assert_close(found, clean, rtol=1e-3, atol=1e-2)


def test_levels_cover_the_whole_schedule(generator):
    levels = generator.draw_levels(20_000, torch.Generator().manual_seed(0))
    assert levels.min() == 0 and levels.max() == 999
    assert torch.equal(levels, generator.draw_levels(20_000, torch.Generator().manual_seed(0)))
    counts = torch.bincount(levels // 100, minlength=10)
    assert (counts - 2000).abs().max() < 250


def test_snr_weight_is_min_snr_with_mean_one(generator):
    alphas = generator.pipeline.scheduler.alphas_cumprod.tolist()
    # min(SNR, 5) / (SNR + 1) of v, written with a and 1 - a, since SNR is infinite at one end of the schedule.
    weights = [min(a, 5 * (1 - a)) for a in alphas]
    mean = sum(weights) / len(weights)
    levels = torch.tensor([0, 10, 500, 999])
    expected = [weights[level] / mean for level in levels]
    assert generator.snr_weight(levels).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


# Seeds


def test_equal_seeds_give_equal_clips(generator):
    first = generator.generate([TEXTS[0]] * 3, [1, 2, 1], 2, 2.0)
    assert np.array_equal(first[0], first[2]) and not np.array_equal(first[0], first[1])
    again = generator.generate([TEXTS[0]] * 3, [1, 2, 1], 2, 2.0)
    assert np.array_equal(first, again)
    one_by_one = generator.generate([TEXTS[0]] * 3, [1, 2, 1], 2, 2.0, batch_size=1)
    np.testing.assert_allclose(first.astype(int), one_by_one, atol=1)
    other_text = generator.generate([TEXTS[1]], [1], 2, 2.0)
    assert not np.array_equal(other_text[0], first[0])


def test_a_seed_belongs_to_its_prompt_whatever_stands_beside_it(generator):
    mixed = generator.generate([TEXTS[1], TEXTS[0], TEXTS[1]], [5, 6, 7], 2, 2.0)
    for row, (text, seed) in enumerate(((TEXTS[1], 5), (TEXTS[0], 6), (TEXTS[1], 7))):
        np.testing.assert_allclose(mixed[row].astype(int), generator.generate([text], [seed], 2, 2.0)[0], atol=1)


# Clip folders

PROMPTS = [Prompt(id=f"p{i}", text=TEXTS[i % 2]) for i in range(5)]
SEEDS = [[100 * i + k for k in range(2)] for i in range(5)]


@pytest.fixture(scope="module")
def whole(generator_folder, tmp_path_factory) -> Path:
    """Five prompts of two clips, made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "SHARD_PROMPTS", 2)
        sample_clips(generator_folder, PROMPTS, SEEDS, HOW, folder / "work", folder / "out")
    return folder / "out"


def test_clip_folders_hold_what_was_asked(whole, generator):
    store = ClipStore(whole)
    assert sorted(path.name for path in whole.iterdir()) == [
        "clips-00000.tar", "clips-00001.tar", "clips-00002.tar", "manifest.jsonl",
    ]  # fmt: skip
    assert [(c.id, c.prompt_id, c.prompt, c.seed) for c in store.clips] == [
        (f"p{i}-{k}", f"p{i}", TEXTS[i % 2], 100 * i + k) for i in range(5) for k in range(2)
    ]
    # The first shard's batch, by hand.
    clips = generator.generate([TEXTS[0]] * 2 + [TEXTS[1]] * 2, [0, 1, 100, 101], 2, 2.0)
    for name, clip in zip(("p0-0", "p0-1", "p1-0", "p1-1"), clips, strict=True):
        assert np.array_equal(store[name], decode_clip(encode_clip(clip, 8.0)))


@pytest.mark.parametrize("stopped_at", [1, 2, 3])
def test_an_interrupted_sampling_equals_an_unbroken_one(whole, generator_folder, tmp_path, monkeypatch, stopped_at):
    monkeypatch.setattr(sampling, "SHARD_PROMPTS", 2)
    batches, calls = CogVideoX.batches, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        return batches(*arguments)

    monkeypatch.setattr(CogVideoX, "batches", killed)
    work, out = tmp_path / "work", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sample_clips(generator_folder, PROMPTS, SEEDS, HOW, work, out)
    assert not out.exists()
    # What kill -9 leaves: a shard half written, and one whose rows are not written down yet.
    (work / "shards" / ".clips-00002.tar.4711.partial").write_bytes(b"half a shard")
    (work / "shards" / f"clips-{stopped_at - 1:05d}.tar").write_bytes(b"another shard")
    sample_clips(generator_folder, PROMPTS, SEEDS, HOW, work, out)
    assert len(calls) == 4, "finished shards are not sampled again"
    assert digest(out) == digest(whole)


# Checkpoints that do not load


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def _nameless_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{}")


def _other_backbone(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "MochiPipeline"}))


def _weights(folder: Path) -> Path:
    return folder / "transformer" / "diffusion_pytorch_model.safetensors"


def _no_weights(folder: Path) -> None:
    _weights(folder).unlink()


def _pickled_weights(folder: Path) -> None:
    _weights(folder).rename(folder / "transformer" / "diffusion_pytorch_model.bin")


def _truncated_weights(folder: Path) -> None:
    _weights(folder).write_bytes(_weights(folder).read_bytes()[:1000])


def _other_shapes(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time_embed_dim": 64}))


def _no_part(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_no_index, r"no generator checkpoint here \(model_index.json is missing\); put a diffusers folder there"),
        (_broken_index, "not a diffusers index; download the checkpoint again"),
        (_nameless_index, "not a diffusers index"),
        (_other_backbone, "no backbone for MochiPipeline; known: CogVideoXPipeline"),
        (_no_weights, "the checkpoint does not load"),
        (_pickled_weights, "the checkpoint does not load"),
        (_truncated_weights, "the checkpoint does not load"),
        (_other_shapes, "the checkpoint does not load"),
        (_no_part, "the checkpoint does not load"),
    ],
)
def test_a_checkpoint_that_does_not_load_is_named(generator_folder, tmp_path, spoil, sentence):
    folder = tmp_path / "generator"
    shutil.copytree(generator_folder, folder)
    spoil(folder)
    with pytest.raises(UserError, match=f"^{folder}.*: .*{sentence}") as raised:
        load_generator(folder)
    assert "\n" not in str(raised.value)
