"""Critics of the Qwen2-VL and Qwen2.5-VL families: native video tokens, three-axis rotary positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dualipo.critic.base import Critic, Seen
from dualipo.critic.frames import pad_to_multiple, sample_frames


class Qwen2VL(Critic):
    model_type = "qwen2_vl"

    @property
    def vision(self) -> list[torch.nn.Module]:
        return [self.model.model.visual]

    def see_batch(self, clips: np.ndarray) -> list[Seen]:
        pixels, grid = self.pixels(clips)
        grids = torch.tensor([grid] * len(clips), device=self.model.device)
        output = self.model.model.visual(pixels.to(self.model.device, self.model.dtype), grid_thw=grids)
        return [Seen(tokens, grid) for tokens in output.pooler_output.chunk(len(clips))]

    def pixels(self, clips: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Flattened patches, as Qwen2-VL's processor lays them out, and each clip's grid (time, height, width)."""
        vision = self.model.config.vision_config
        tps, ps, merge = vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size
        clips = pad_to_multiple(sample_frames(clips), tps, ps * merge)
        _, frames, height, width, _ = clips.shape
        grid_t, grid_h, grid_w = frames // tps, height // ps, width // ps
        mean, deviation = np.array(self.mean, np.float32), np.array(self.deviation, np.float32)
        values = (clips.astype(np.float32) / 255 - mean) / deviation
        patches = values.reshape(len(clips), grid_t, tps, grid_h // merge, merge, ps, grid_w // merge, merge, ps, 3)
        patches = patches.transpose(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).reshape(-1, 3 * tps * ps * ps)
        return torch.from_numpy(np.ascontiguousarray(patches)), (grid_t, grid_h, grid_w)

    def shown(self, seen: Seen) -> str:
        return f"<|vision_start|>{self.video_token * len(seen.tokens)}<|vision_end|>"

    def positions(self, ids: torch.Tensor, mask: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """Time, height and width of every token, (3, B, L)."""
        kinds = (ids == self.model.config.video_token_id).int() * 2
        sizes = torch.tensor(grids, device=ids.device)
        positions, _ = self.model.model.get_rope_index(ids, kinds, video_grid_thw=sizes, attention_mask=mask)
        return positions

    def next_positions(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return inputs["position_ids"].amax((0, 2), keepdim=True).expand(3, -1, 1) + 1


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL differs inside its tower (windows) and in its positions' unit of time; both are transformers' own.

    A clip is taken to have one second per temporal patch, transformers' default, since clips come without a frame rate.
    """

    model_type = "qwen2_5_vl"
