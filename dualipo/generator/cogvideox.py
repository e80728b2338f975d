"""CogVideoX: an MMDiT over 3D-VAE latents, noise or v prediction (2B and 5B alike)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dualipo.errors import UserError
from dualipo.generator.base import Generator, Size, latent_sizes


class CogVideoX(Generator):
    pipeline_class = "CogVideoXPipeline"

    @property
    def sampling_dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        # The pipeline's own encoding: padded to the full length and attended without a mask.
        tokens = self.pipeline.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.denoiser.config.max_text_seq_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.pipeline.text_encoder(tokens.input_ids.to(self.device))[0].to(self.denoiser.dtype)

    def to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes * self.pipeline.vae.config.scaling_factor).permute(0, 2, 1, 3, 4)

    def to_codes(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.permute(0, 2, 1, 3, 4) / self.pipeline.vae.config.scaling_factor

    def draw_levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        total = self.pipeline.scheduler.config.num_train_timesteps
        return torch.randint(0, total, (count,), generator=generator).to(self.device)

    def _signal(self, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self.pipeline.scheduler.alphas_cumprod.to(levels.device)[levels].float()
        shape = (-1, 1, 1, 1, 1)
        return alphas.sqrt().view(shape), (1 - alphas).sqrt().view(shape)

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        signal, sigma = self._signal(levels)
        return (signal * latents + sigma * noise).to(latents.dtype)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        if self.pipeline.scheduler.config.prediction_type == "epsilon":
            return noise
        signal, sigma = self._signal(levels)
        return (signal * noise - sigma * latents).to(latents.dtype)

    def predict(self, noised: torch.Tensor, levels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        rotary = self._rotary(noised)
        return self.denoiser(noised, text, levels, image_rotary_emb=rotary, return_dict=False)[0]

    def _rotary(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not self.denoiser.config.use_rotary_positional_embeddings:
            return None
        scale = self.pipeline.vae_scale_factor_spatial
        height, width = latents.shape[-2] * scale, latents.shape[-1] * scale
        return self.pipeline._prepare_rotary_positional_embeddings(height, width, latents.shape[1], latents.device)

    def snr_weight(self, levels: torch.Tensor) -> torch.Tensor:
        from dualipo.alignment.omega import snr_weight

        scheduler = self.pipeline.scheduler
        return snr_weight(scheduler.alphas_cumprod.to(levels.device), levels, scheduler.config.prediction_type)

    def latent_shape(self, size: Size | None) -> tuple[int, ...]:
        config, pipeline = self.denoiser.config, self.pipeline
        own = (
            (config.sample_frames - 1) // pipeline.vae_scale_factor_temporal + 1,
            config.sample_height,
            config.sample_width,
        )
        if size is None:
            frames, height, width = own
        else:
            factors = pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial
            frames, height, width = latent_sizes(size, *factors, config.patch_size)
            if config.use_learned_positional_embeddings and (frames, height, width) != own:
                raise UserError(f"size {list(size)}: this generator has learnt the places of one size; leave size null")
        return frames, config.in_channels, height, width
