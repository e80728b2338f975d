"""The small world's second base generator: a tiny Wan 2.1, trained from nothing on the clips of the first.

The same captions, clips, curriculum and mixture (train_generator.py), the same tokenizer; another VAE, another text
encoder, another transformer and rectified flow. The critic judges pixels, and serves both.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dualipo.artifacts import atomic
from dualipo.generator.wan import Wan
from dualipo.steps import derive_seed
from dualipo.world.captions import random_captions
from dualipo.world.scene import SIZE, render
from dualipo.world.train_generator import (
    TEXT_LENGTH,
    clean_lessons,
    encode,
    train_denoiser,
    train_vae,
    web_clip,
)
from dualipo.world.words import word_tokenizer

WIDTH, TEXT_WIDTH, CHANNELS = 256, 128, 4
CAPTIONS = 3000


def train_wan(
    folder: Path,
    seed: int = 0,
    vae_steps: int = 2000,
    steps: int = 5500,
    wild_steps: int = 1500,
    batch_size: int = 32,
    vae: Path | None = None,
) -> None:
    """Trains and saves a Wan as a diffusers folder. Deterministic from the seed on one machine.

    Arguments as `train_generator`'s. Each stage has random streams of its own: a VAE that the same call trained before
    gives, handed back as `vae`, the same generator.
    """
    captions = random_captions(CAPTIONS, seed)
    texts = [text for text, _ in captions]
    sharp = np.stack([render(scene, i) for i, (_, scene) in enumerate(tqdm(captions, desc="rendering"))])
    codec = _load_vae(vae) if vae else make_vae(sharp, vae_steps, seed)
    rng = _stream(seed, "denoiser")
    generator = build(codec)
    clean = encode(generator, sharp)
    found = encode(generator, np.stack([web_clip(scene, rng) for _, scene in tqdm(captions, desc="rendering")]))
    text = partial(embed, generator)
    train_denoiser(generator, text, clean_lessons(clean, captions, steps), texts, batch_size, 1.5e-3, rng, seed)
    wild = [(found, np.arange(len(captions)))] * wild_steps
    train_denoiser(generator, text, wild, texts, batch_size, 1e-3, rng, seed + 1)
    with atomic(folder) as temporary:
        generator.save(temporary)


def embed(generator: Wan, tokens: Any) -> torch.Tensor:
    """Embeddings as the pipeline makes them, with gradient: behind the text they are zero, and attended unmasked."""
    mask = tokens["attention_mask"]
    return generator.pipeline.text_encoder(tokens["input_ids"], mask).last_hidden_state * mask[..., None]


def make_vae(clips: np.ndarray, steps: int, seed: int) -> Any:
    """A VAE trained on uint8 clips, with the mean and deviation of their latents' channels in its configuration."""
    from diffusers import AutoencoderKLWan

    rng = _stream(seed, "vae")
    vae = AutoencoderKLWan(
        base_dim=24,
        z_dim=CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        in_channels=12,  # three colours of 2 by 2 pixels
        out_channels=12,
        patch_size=2,
        is_residual=True,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )
    # The first frames hold every case of the causal convolutions; the whole clip comes last.
    train_vae(vae, clips[:, :5], steps * 3 // 4, rng, 8, 2e-3, _decode)
    vae.train().requires_grad_(True)
    train_vae(vae, clips, steps - steps * 3 // 4, rng, 8, 1e-3, _decode)
    codes = encode(build(vae), clips[:1024])
    deviation, mean = torch.std_mean(codes, dim=(0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
    return vae


def _decode(vae: Any, codes: torch.Tensor) -> torch.Tensor:
    """`vae.decode` without its clamp, in which no gradient leads back from too bright or too dark a pixel."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    codes, frames = vae.post_quant_conv(codes), []
    for index in range(codes.shape[2]):
        vae._conv_idx = [0]
        one = codes[:, :, index : index + 1]
        frames.append(vae.decoder(one, vae._feat_map, vae._conv_idx, first_chunk=index == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(frames, dim=2), vae.config.patch_size)


def build(vae: Any) -> Wan:
    """A Wan with fresh weights over a VAE."""
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = word_tokenizer(TEXT_LENGTH)
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
    )
    transformer = WanTransformer3DModel(
        # A frame is one token: rotary positions tell places apart only from each other, and of so few they tell little.
        patch_size=(1, SIZE // 4, SIZE // 4),
        num_attention_heads=WIDTH // 32,
        attention_head_dim=32,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=WIDTH,
        num_layers=3,
        rope_max_seq_len=32,
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return Wan(WanPipeline(tokenizer, text_encoder, vae, scheduler, transformer))


def _load_vae(folder: Path) -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)


def _stream(seed: int, stage: str) -> np.random.Generator:
    """A stage's own random streams: torch's, and the one returned."""
    torch.manual_seed(derive_seed(seed, stage))
    return np.random.default_rng(derive_seed(seed, stage))
