"""Critics that see frames one by one through an image tower, and count positions plainly: LLaVA-OneVision's family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dualipo.critic.base import Critic, Seen
from dualipo.critic.frames import pad_to_square, sample_frames


class FrameCritic(Critic):
    """What such families share. `model.config.vision_config` says how large a frame the tower takes."""

    def pixels(self, clips: np.ndarray) -> torch.Tensor:
        """Frames as the tower takes them, (batch, frames, 3, size, size): padded to a square, then resized."""
        clips = pad_to_square(sample_frames(clips))
        size = self.model.config.vision_config.image_size
        frames = torch.from_numpy(clips).permute(0, 1, 4, 2, 3)
        if frames.shape[-1] != size:
            flat = F.interpolate(frames.flatten(0, 1).float(), size=(size, size), mode="bicubic", antialias=True)
            frames = flat.clamp(0, 255).round().unflatten(0, frames.shape[:2])
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.deviation))
        return (frames / 255 - mean) / deviation

    def positions(self, ids: torch.Tensor, mask: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """Places among the tokens that are no padding, (B, L)."""
        return (mask.cumsum(-1) - 1).clamp(min=0)


class LlavaOnevision(FrameCritic):
    model_type = "llava_onevision"

    @property
    def vision(self) -> list[torch.nn.Module]:
        return [self.model.model.vision_tower, self.model.model.multi_modal_projector]

    def see_batch(self, clips: np.ndarray) -> list[Seen]:
        pixels = self.pixels(clips)
        output = self.model.model.get_video_features(pixels.to(self.model.device, self.model.dtype))
        vision = self.model.config.vision_config
        # Two by two features become one, and a clip ends in one more: the learned line break.
        side = -(-(vision.image_size // vision.patch_size) // 2)
        return [Seen(tokens, (pixels.shape[1], side, side)) for tokens in output.pooler_output]

    def shown(self, seen: Seen) -> str:
        return self.video_token * len(seen.tokens)

    def _message(self, content: str) -> Any:
        # This family's templates read a list of parts; a bare string would be dropped.
        return [{"type": "text", "text": content}]
