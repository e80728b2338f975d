"""LTX-Video: a DiT over few, deep latents that attends to masked T5 text; rectified flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dualipo.generator.base import Size, latent_sizes
from dualipo.generator.flow import RectifiedFlow


class LTX(RectifiedFlow):
    """Latents are (batch, channels, frames, height, width); text has its attention mask as one more, last channel."""

    pipeline_class = "LTXPipeline"

    @property
    def fps(self) -> float:
        return 25.0

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        # 128 is the pipeline's own; a tokenizer made for less sets less.
        text, mask = self.pipeline._get_t5_prompt_embeds(
            list(texts),
            max_sequence_length=min(128, self.pipeline.tokenizer.model_max_length),
            device=self.device,
            dtype=self.denoiser.dtype,
        )
        return torch.cat([text, mask[..., None].to(text)], dim=-1)

    def to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        return self.pipeline._normalize_latents(codes, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    def to_codes(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        return self.pipeline._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        # Later VAEs finish the denoising themselves: told that nothing is left to do, as the pipeline tells them.
        level = torch.zeros(len(codes)).to(codes) if vae.config.timestep_conditioning else None
        return vae.decode(codes, level).sample

    def predict(self, noised: torch.Tensor, levels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        pipeline, sizes = self.pipeline, noised.shape[2:]
        patches = pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
        pixels = pipeline.vae_spatial_compression_ratio
        tokens = self.denoiser(
            pipeline._pack_latents(noised, *patches),
            text[..., :-1],
            levels,
            text[..., -1],
            *sizes,
            rope_interpolation_scale=(pipeline.vae_temporal_compression_ratio / self.fps, pixels, pixels),
            return_dict=False,
        )[0]
        return pipeline._unpack_latents(tokens, *sizes, *patches)

    def start_sampling(self, steps: int, shape: tuple[int, ...]) -> torch.Tensor:
        from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

        scheduler, tokens = self.pipeline.scheduler, int(np.prod(shape[1:]))
        keys = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        shift = calculate_shift(tokens, *(scheduler.config.get(key, default) for key, default in keys.items()))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift, device=self.device)
        return scheduler.timesteps

    def latent_shape(self, size: Size | None) -> tuple[int, ...]:
        pipeline = self.pipeline
        factors = pipeline.vae_temporal_compression_ratio, pipeline.vae_spatial_compression_ratio
        sizes = latent_sizes(size or (161, 512, 704), *factors, pipeline.transformer_spatial_patch_size)
        return self.denoiser.config.in_channels, *sizes
