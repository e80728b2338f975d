"""What rectified-flow backbones share: a straight path from clip to noise, and its velocity."""

from __future__ import annotations

import torch

from dualipo.generator.base import Generator


class RectifiedFlow(Generator):
    """x_t = (1 - t) x_0 + t x_1 with x_1 the noise, v = x_1 - x_0 (Liu et al. 2022; VideoAlign, section 4.1).

    A level is t times the scheduler's number of training steps, as a float.
    """

    flow = True

    @property
    def _scale(self) -> int:
        return self.pipeline.scheduler.config.num_train_timesteps

    def _shifted(self, uniform: torch.Tensor) -> torch.Tensor:
        """Uniform draws moved towards noise as the scheduler's static shift s does: s u / (1 + (s - 1) u).

        Our reading: where the scheduler shifts by the clip's length instead, training draws stay uniform.
        """
        config = self.pipeline.scheduler.config
        shift = config.get("flow_shift") or config.get("shift") or 1.0
        return shift * uniform / (1 + (shift - 1) * uniform)

    def times(self, levels: torch.Tensor) -> torch.Tensor:
        return levels.float() / self._scale

    def draw_levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        # 1 - [0, 1): pure noise, where sampling starts, is among them.
        return (self._shifted(1 - torch.rand(count, generator=generator)) * self._scale).to(self.device)

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        t = self.times(levels).view(-1, 1, 1, 1, 1)
        return ((1 - t) * latents + t * noise).to(latents.dtype)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return noise - latents

    def snr_weight(self, levels: torch.Tensor) -> torch.Tensor:
        from dualipo.alignment.omega import flow_snr_weight

        grid = self._shifted((torch.arange(1000, device=levels.device) + 0.5) / 1000)
        return flow_snr_weight(self.times(levels), grid)
