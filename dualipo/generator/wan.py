"""Wan 2.1: a DiT that attends to UMT5's text, over the latents of a causal 3D VAE; rectified flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dualipo.errors import UserError
from dualipo.generator.base import Size, latent_sizes
from dualipo.generator.flow import RectifiedFlow


class Wan(RectifiedFlow):
    """Latents are (batch, channels, frames, height, width). Raises UserError for the two-stage models of Wan 2.2."""

    pipeline_class = "WanPipeline"
    text_length = 512
    """The pipeline's own; a tokenizer made for less sets less."""

    def __init__(self, pipeline: Any):
        super().__init__(pipeline)
        if pipeline.transformer_2 is not None or pipeline.config.boundary_ratio or pipeline.config.expand_timesteps:
            raise UserError("this WanPipeline is of Wan 2.2, whose stages are not supported; use a Wan 2.1 checkpoint")

    @property
    def fps(self) -> float:
        return 16.0

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        length = min(self.text_length, self.pipeline.tokenizer.model_max_length)
        return self.pipeline._get_t5_prompt_embeds(
            list(texts), max_sequence_length=length, device=self.device, dtype=self.denoiser.dtype
        )

    def _statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.pipeline.vae.config
        mean, deviation = (
            torch.tensor(v).view(1, -1, 1, 1, 1).to(like) for v in (config.latents_mean, config.latents_std)
        )
        return mean, deviation

    def to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._statistics(codes)
        return (codes - mean) / deviation

    def to_codes(self, latents: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._statistics(latents)
        return latents * deviation + mean

    def predict(self, noised: torch.Tensor, levels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.denoiser(noised, levels, text, return_dict=False)[0]

    def latent_shape(self, size: Size | None) -> tuple[int, ...]:
        pipeline, config = self.pipeline, self.denoiser.config
        factors = pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial
        return config.in_channels, *latent_sizes(size or (81, 480, 832), *factors, config.patch_size[1])
