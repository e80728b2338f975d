"""The small world's base generator, trained from nothing: VAE, text encoder and CogVideoX transformer.

Its training clips are uneven on purpose, as clips found in the wild are: a share of captions is wrong in one attribute,
a share of clips jumps, flickers or blurs. The base model learns the mixture, which leaves preference alignment
something real to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from dualipo.artifacts import atomic
from dualipo.generator.cogvideox import CogVideoX
from dualipo.world.captions import mistaken, random_captions
from dualipo.world.corrupt import random_fault, render_with_faults
from dualipo.world.optimizing import optimize
from dualipo.world.scene import FRAMES, SIZE, Scene, render
from dualipo.world.words import word_tokenizer

WIDTH, TEXT_LENGTH, CHANNELS = 160, 20, 12
CAPTIONS = 8000
WRONG_CAPTIONS, FAULTY_CLIPS = 0.15, 0.6


def web_clip(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A clip as it might be found for a caption: mostly right, sometimes wrong or faulty."""
    if rng.random() < WRONG_CAPTIONS:
        scene = mistaken(scene, rng)
    faults = [random_fault(rng)] if rng.random() < FAULTY_CLIPS else []
    return render_with_faults(scene, faults, int(rng.integers(2**31)))


def train_generator(
    folder: Path,
    seed: int = 0,
    vae_steps: int = 1300,
    steps: int = 7000,
    wild_steps: int = 3000,
    batch_size: int = 32,
    vae: Path | None = None,
) -> None:
    """Trains and saves a base generator as a diffusers folder. Deterministic from the seed on one machine.

    `steps` on clean clips, then `wild_steps` on clips as found (`web_clip`). `vae`: a trained VAE's folder to use
    instead of training one.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    captions = random_captions(CAPTIONS, seed)
    texts = [text for text, _ in captions]
    sharp = np.stack([render(scene, i) for i, (_, scene) in enumerate(tqdm(captions, desc="rendering"))])
    codec = _load_vae(vae) if vae else _train_vae(sharp, vae_steps, rng)
    generator = _build(codec)
    clean = _encode(generator, sharp)
    if vae is None:
        codec.register_to_config(scaling_factor=float(1 / clean.std()))
        clean = clean * codec.config.scaling_factor
    found = _encode(generator, np.stack([web_clip(scene, rng) for _, scene in tqdm(captions, desc="rendering")]))
    alone = np.flatnonzero([scene.shape2 is None for _, scene in captions])
    every = np.arange(len(captions))
    # Easy clips first: on the uneven mixture from the start, shapes and directions are hardly learnt in this time.
    lessons = [(clean, alone)] * (steps * 2 // 5) + [(clean, every)] * (steps - steps * 2 // 5)
    _train_denoiser(generator, lessons, texts, batch_size, 1.5e-3, rng, seed)
    _train_denoiser(generator, [(found, every)] * wild_steps, texts, batch_size, 1e-3, rng, seed + 1)
    with atomic(folder) as temporary:
        generator.save(temporary)


def _encode(generator: CogVideoX, clips: np.ndarray) -> torch.Tensor:
    parts = tqdm(range(0, len(clips), 64), desc="encoding")
    return torch.cat([generator.encode_clips(clips[i : i + 64]) for i in parts])


def _load_vae(folder: Path) -> Any:
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)


def _build(vae: Any) -> CogVideoX:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = word_tokenizer(TEXT_LENGTH)
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=WIDTH, d_kv=32, d_ff=320, num_layers=2, num_heads=4, dropout_rate=0.0
        )
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=WIDTH // 32,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=128,
        text_embed_dim=WIDTH,
        num_layers=4,
        patch_size=2,
        sample_width=SIZE // 4,
        sample_height=SIZE // 4,
        sample_frames=FRAMES,
        max_text_seq_length=TEXT_LENGTH,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    # Sine codes of a 4 by 4 grid hardly differ in so few channels: places get codes of their own.
    places = transformer.patch_embed.pos_embedding
    places[:, TEXT_LENGTH:] = 0.5 * torch.randn_like(places[:, TEXT_LENGTH:])
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=0.4,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return CogVideoX(CogVideoXPipeline(tokenizer, text_encoder, vae, transformer, scheduler))


def _train_vae(clips: np.ndarray, steps: int, rng: np.random.Generator, batch_size: int = 8) -> Any:
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_height=SIZE,
        sample_width=SIZE,
        scaling_factor=1.0,
    )

    def loss(step: int) -> torch.Tensor:
        pixels = torch.from_numpy(clips[rng.integers(len(clips), size=batch_size)]).permute(0, 4, 1, 2, 3) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.mean
        decoded = vae.decode(latents + 0.03 * torch.randn_like(latents)).sample
        # Objects cover little of a frame: unweighted, the codec would long be content with empty backgrounds.
        object_ = (pixels - pixels[:, :, :, :1, :1]).abs().amax(1, keepdim=True) > 0.15
        error = (decoded - pixels).abs() + 2 * (decoded - pixels).square()
        return ((1 + 6 * object_) * error).mean() + 1e-4 * latents.square().mean()

    optimize(vae.parameters(), loss, steps, 2.5e-3, "VAE", weight_decay=0.0, betas=(0.9, 0.99))
    return vae.eval().requires_grad_(False)


def _train_denoiser(
    generator: CogVideoX,
    lessons: list[tuple[torch.Tensor, np.ndarray]],
    texts: list[str],
    batch_size: int,
    rate: float,
    rng: np.random.Generator,
    seed: int,
) -> None:
    """One entry of `lessons` a step: latents (texts, ...) and the rows of them to draw from."""
    denoiser, text_encoder = generator.denoiser, generator.pipeline.text_encoder
    tokens = generator.pipeline.tokenizer(
        [*texts, ""], padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    noise_source = torch.Generator().manual_seed(seed)

    @torch.autocast("cpu", torch.bfloat16)
    def loss(step: int) -> torch.Tensor:
        latents, among = lessons[step]
        rows = torch.from_numpy(rng.choice(among, batch_size))
        clean = latents[rows]
        rows = torch.where(torch.from_numpy(rng.random(batch_size) < 0.1), len(texts), rows)
        noise = torch.randn(clean.shape, generator=noise_source)
        levels = generator.draw_levels(batch_size, noise_source)
        text = text_encoder(tokens[rows])[0]
        prediction = generator.predict(generator.noised(clean, noise, levels), levels, text)
        return F.mse_loss(prediction.float(), generator.target(clean, noise, levels))

    denoiser.train()
    parameters = [*denoiser.parameters(), *text_encoder.parameters()]
    optimize(parameters, loss, len(lessons), rate, "CogVideoX", weight_decay=0.01, average=denoiser)
    denoiser.eval()
