"""CogVideoX: an MMDiT over 3D-VAE latents, noise or v prediction (2B and 5B alike)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dualipo.generator.base import Generator


class CogVideoX(Generator):
    pipeline_class = "CogVideoXPipeline"

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.pipeline.transformer

    @property
    def _device(self) -> torch.device:
        return self.denoiser.device

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
        return self.pipeline.text_encoder(tokens.input_ids.to(self._device))[0].to(self.denoiser.dtype)

    @torch.no_grad()
    def encode_clips(self, clips: np.ndarray) -> torch.Tensor:
        vae = self.pipeline.vae
        pixels = torch.from_numpy(clips).to(self._device, vae.dtype).permute(0, 4, 1, 2, 3) / 127.5 - 1
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        return latents.permute(0, 2, 1, 3, 4).to(self.denoiser.dtype)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        vae = self.pipeline.vae
        pixels = vae.decode(latents.permute(0, 2, 1, 3, 4).to(vae.dtype) / vae.config.scaling_factor).sample
        pixels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 4, 1).cpu().numpy()

    def draw_levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        total = self.pipeline.scheduler.config.num_train_timesteps
        return torch.randint(0, total, (count,), generator=generator).to(self._device)

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

    @torch.inference_mode()
    def sample(
        self, text: torch.Tensor, null_text: torch.Tensor, seeds: Sequence[int], steps: int, guidance: float
    ) -> torch.Tensor:
        scheduler, shape = self.pipeline.scheduler, self._latent_shape()
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        latents = torch.stack(noise).to(self._device, self.denoiser.dtype) * scheduler.init_noise_sigma
        both = torch.cat([null_text.expand_as(text), text]) if guidance != 1 else text
        scheduler.set_timesteps(steps, device=self._device)
        for level in scheduler.timesteps:
            doubled = torch.cat([latents, latents]) if guidance != 1 else latents
            output = self.predict(scheduler.scale_model_input(doubled, level), level.expand(len(doubled)), both).float()
            if guidance != 1:
                without, within = output.chunk(2)
                output = without + guidance * (within - without)
            latents = scheduler.step(output, level, latents, return_dict=False)[0].to(self.denoiser.dtype)
        return latents

    def _latent_shape(self) -> tuple[int, int, int, int]:
        config = self.denoiser.config
        frames = (config.sample_frames - 1) // self.pipeline.vae_scale_factor_temporal + 1
        return frames, config.in_channels, config.sample_height, config.sample_width
