"""The small world's base generator, trained from nothing: VAE, text encoder and CogVideoX transformer.

Its training clips are uneven on purpose, as clips found in the wild are: a share of captions is wrong in one attribute,
a share of clips jumps, flickers or blurs. The base model learns the mixture, which leaves preference alignment
something real to do.
"""

from __future__ import annotations

import math
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
from dualipo.world.scene import FRAMES, SIZE
from dualipo.world.words import word_tokenizer

WIDTH, TEXT_LENGTH, CHANNELS = 128, 24, 12
WRONG_CAPTIONS, FAULTY_CLIPS = 0.04, 0.06


def web_clip(text: str, scene: Any, rng: np.random.Generator) -> np.ndarray:
    """A clip as it might be found for a caption: mostly right, sometimes wrong or faulty."""
    if rng.random() < WRONG_CAPTIONS:
        scene = mistaken(scene, rng)
    faults = [random_fault(rng)] if rng.random() < FAULTY_CLIPS else []
    return render_with_faults(scene, faults, int(rng.integers(2**31)))


def train_generator(
    folder: Path, seed: int = 0, vae_steps: int = 1300, steps: int = 2200, batch_size: int = 32
) -> None:
    """Trains and saves a base generator as a diffusers folder. Deterministic from the seed on one machine."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    captions = random_captions(8000, seed)
    clips = np.stack([web_clip(text, scene, rng) for text, scene in tqdm(captions, desc="rendering")])
    sharp = np.stack([render_with_faults(scene, [], i) for i, (_, scene) in enumerate(captions)])
    vae = _train_vae(sharp, vae_steps, rng)
    generator = _build(vae)
    latents = torch.cat([generator.encode_clips(clips[i : i + 64]) for i in range(0, len(clips), 64)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    latents = latents * vae.config.scaling_factor
    _train_denoiser(generator, latents, [text for text, _ in captions], steps, batch_size, rng, seed)
    with atomic(folder) as temporary:
        generator.save(temporary)


def _build(vae: Any) -> CogVideoX:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = word_tokenizer(TEXT_LENGTH)
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=WIDTH, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
        )
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=WIDTH // 4,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=WIDTH,
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
    rate = 2.5e-3
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 20, 0.5 * (1 + math.cos(math.pi * s / steps)) + 0.02)
    )
    for _ in (bar := tqdm(range(steps), desc="VAE")):
        pixels = torch.from_numpy(clips[rng.integers(len(clips), size=batch_size)]).permute(0, 4, 1, 2, 3) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.mean
        decoded = vae.decode(latents + 0.03 * torch.randn_like(latents)).sample
        # Objects cover little of a frame: unweighted, the codec would long be content with empty backgrounds.
        object_ = (pixels - pixels[:, :, :, :1, :1]).abs().amax(1, keepdim=True) > 0.15
        error = (decoded - pixels).abs() + 2 * (decoded - pixels).square()
        loss = ((1 + 6 * object_) * error).mean() + 1e-4 * latents.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return vae.eval().requires_grad_(False)


def _train_denoiser(
    generator: CogVideoX,
    latents: torch.Tensor,
    texts: list[str],
    steps: int,
    batch_size: int,
    rng: np.random.Generator,
    seed: int,
) -> None:
    denoiser, text_encoder = generator.denoiser, generator.pipeline.text_encoder
    tokens = generator.pipeline.tokenizer(
        [*texts, ""], padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    parameters = [*denoiser.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 100, 0.5 * (1 + math.cos(math.pi * s / steps)) + 0.02)
    )
    noise_source = torch.Generator().manual_seed(seed)
    average = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
    denoiser.train()
    for step in (bar := tqdm(range(steps), desc="CogVideoX")):
        rows = torch.from_numpy(rng.integers(len(latents), size=batch_size))
        clean = latents[rows]
        rows = torch.where(torch.from_numpy(rng.random(batch_size) < 0.1), len(latents), rows)
        text = text_encoder(tokens[rows])[0]
        noise = torch.randn(clean.shape, generator=noise_source)
        levels = generator.draw_levels(batch_size, noise_source)
        prediction = generator.predict(generator.noised(clean, noise, levels), levels, text)
        loss = F.mse_loss(prediction, generator.target(clean, noise, levels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.995, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, parameter in denoiser.named_parameters():
                average[name].lerp_(parameter, 1 - decay)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    denoiser.load_state_dict(average, strict=False)
    denoiser.eval()
