"""The small world's base generator, trained from nothing: VAE, text encoder and CogVideoX transformer.

What train_wan.py shares with it, the clips to learn from and how both networks learn, stands here too.

Its training clips are uneven on purpose, as clips found in the wild are: a share of captions is wrong in one attribute,
a share of clips jumps, flickers or blurs. The base model learns the mixture, which leaves preference alignment
something real to do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from dualipo.artifacts import atomic
from dualipo.generator.base import Generator
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
    clean = encode(generator, sharp)
    if vae is None:
        codec.register_to_config(scaling_factor=float(1 / clean.std()))
        clean = clean * codec.config.scaling_factor
    found = encode(generator, np.stack([web_clip(scene, rng) for _, scene in tqdm(captions, desc="rendering")]))

    def text(tokens: Any) -> torch.Tensor:
        return generator.pipeline.text_encoder(tokens["input_ids"])[0]

    lessons = clean_lessons(clean, captions, steps)
    half = torch.bfloat16
    train_denoiser(generator, text, lessons, texts, batch_size, 1.5e-3, rng, seed, half)
    wild = [(found, np.arange(len(captions)))] * wild_steps
    train_denoiser(generator, text, wild, texts, batch_size, 1e-3, rng, seed + 1, half)
    with atomic(folder) as temporary:
        generator.save(temporary)


def encode(generator: Generator, clips: np.ndarray) -> torch.Tensor:
    """Latents of uint8 clips, as `Generator.encode_clips`, some at a time."""
    parts = tqdm(range(0, len(clips), 64), desc="encoding")
    return torch.cat([generator.encode_clips(clips[i : i + 64]) for i in parts])


Lesson = tuple[torch.Tensor, np.ndarray]
"""What a step learns from: latents (captions, ...) and the rows of them to draw from."""


def clean_lessons(clean: torch.Tensor, captions: list[tuple[str, Scene]], steps: int) -> list[Lesson]:
    """Easy clips first: on the uneven mixture from the start, shapes and directions are hardly learnt in this time."""
    alone = np.flatnonzero([scene.shape2 is None for _, scene in captions])
    every = np.arange(len(captions))
    return [(clean, alone)] * (steps * 2 // 5) + [(clean, every)] * (steps - steps * 2 // 5)


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


def _train_vae(clips: np.ndarray, steps: int, rng: np.random.Generator) -> Any:
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
    return train_vae(vae, clips, steps, rng, batch_size=8, rate=2.5e-3)


def train_vae(
    vae: Any,
    clips: np.ndarray,
    steps: int,
    rng: np.random.Generator,
    batch_size: int,
    rate: float,
    decode: Callable[[Any, torch.Tensor], torch.Tensor] = lambda vae, codes: vae.decode(codes).sample,
) -> Any:
    """Trains a VAE of diffusers on uint8 clips, in place, to decode what it encodes."""

    def loss(step: int) -> torch.Tensor:
        pixels = torch.from_numpy(clips[rng.integers(len(clips), size=batch_size)]).permute(0, 4, 1, 2, 3) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.mean
        decoded = decode(vae, latents + 0.03 * torch.randn_like(latents))
        # Objects cover little of a frame: unweighted, the codec would long be content with empty backgrounds.
        object_ = (pixels - pixels[:, :, :, :1, :1]).abs().amax(1, keepdim=True) > 0.15
        error = (decoded - pixels).abs() + 2 * (decoded - pixels).square()
        return ((1 + 6 * object_) * error).mean() + 1e-4 * latents.square().mean()

    optimize(vae.parameters(), loss, steps, rate, "VAE", weight_decay=0.0, betas=(0.9, 0.99))
    return vae.eval().requires_grad_(False)


def train_denoiser(
    generator: Generator,
    text: Callable[[Any], torch.Tensor],
    lessons: list[Lesson],
    texts: list[str],
    batch_size: int,
    rate: float,
    rng: np.random.Generator,
    seed: int,
    computed: torch.dtype = torch.float32,
) -> None:
    """Trains text encoder and denoiser, in place, one entry of `lessons` a step.

    `text` gives embeddings (batch, length, width) of tokens, with gradient; a tenth of the captions are left empty.
    `computed` is the type of matrix products; bfloat16 is slower on a CPU that lacks it.
    """
    denoiser, text_encoder = generator.denoiser, generator.pipeline.text_encoder
    tokens = generator.pipeline.tokenizer(
        [*texts, ""], padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    noise_source = torch.Generator().manual_seed(seed)

    @torch.autocast("cpu", computed, enabled=computed != torch.float32)
    def loss(step: int) -> torch.Tensor:
        latents, among = lessons[step]
        rows = torch.from_numpy(rng.choice(among, batch_size))
        clean = latents[rows]
        rows = torch.where(torch.from_numpy(rng.random(batch_size) < 0.1), len(texts), rows)
        noise = torch.randn(clean.shape, generator=noise_source)
        levels = generator.draw_levels(batch_size, noise_source)
        condition = text({name: value[rows] for name, value in tokens.items()})
        prediction = generator.predict(generator.noised(clean, noise, levels), levels, condition)
        return F.mse_loss(prediction.float(), generator.target(clean, noise, levels))

    denoiser.train()
    parameters = [*denoiser.parameters(), *text_encoder.parameters()]
    optimize(parameters, loss, len(lessons), rate, type(generator).__name__, weight_decay=0.01, average=denoiser)
    denoiser.eval()
