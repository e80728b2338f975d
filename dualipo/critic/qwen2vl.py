"""Critics of the Qwen2-VL family: native video tokens, three-axis rotary positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dualipo.critic.base import Critic, Features, Seen
from dualipo.critic.frames import pad_to_multiple, sample_frames
from dualipo.critic.questions import Question

# CLIP's statistics: what Qwen2-VL was trained with.
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Qwen2VL(Critic):
    model_type = "qwen2_vl"

    @property
    def language_model(self) -> torch.nn.Module:
        return self.model.model.language_model

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
        values = (clips.astype(np.float32) / 255 - _MEAN) / _STD
        patches = values.reshape(len(clips), grid_t, tps, grid_h // merge, merge, ps, grid_w // merge, merge, ps, 3)
        patches = patches.transpose(0, 1, 3, 6, 4, 7, 9, 2, 5, 8).reshape(-1, 3 * tps * ps * ps)
        return torch.from_numpy(np.ascontiguousarray(patches)), (grid_t, grid_h, grid_w)

    def embed(
        self, questions: Sequence[Question], features: Features, answers: Sequence[str] | None, pad_left: bool
    ) -> dict[str, torch.Tensor]:
        rows, starts = [], []
        for index, question in enumerate(questions):
            ids = self._question_ids(question, features)
            starts.append(len(ids))
            rows.append(ids if answers is None else [*ids, *self._answer_ids(answers[index])])
        length, device = max(map(len, rows)), self.model.device
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id, device=device)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, -100)
        for index, row in enumerate(rows):
            at = length - len(row) if pad_left else 0
            ids[index, at : at + len(row)] = torch.tensor(row, device=device)
            mask[index, at : at + len(row)] = 1
            labels[index, at + starts[index] : at + len(row)] = ids[index, at + starts[index] : at + len(row)]
        video = ids == self.model.config.video_token_id
        seen = torch.cat([features[clip].tokens for question in questions for clip in question.clips])
        embeds = self.model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter(video[..., None].expand_as(embeds), seen.to(embeds.dtype))
        grids = torch.tensor([features[clip].grid for question in questions for clip in question.clips], device=device)
        positions, _ = self.model.model.get_rope_index(ids, video.int() * 2, video_grid_thw=grids, attention_mask=mask)
        inputs = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
        return inputs if answers is None else {**inputs, "labels": labels}

    def hidden(self, **inputs: Any) -> tuple[torch.Tensor, Any]:
        output = self.language_model(**inputs)
        return output.last_hidden_state, output.past_key_values

    def next_positions(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return inputs["position_ids"].amax((0, 2), keepdim=True).expand(3, -1, 1) + 1

    def _question_ids(self, question: Question, features: Features) -> list[int]:
        token = self.tokenizer.convert_ids_to_tokens(self.model.config.video_token_id)
        shown = [f"<|vision_start|>{token * len(features[clip].tokens)}<|vision_end|>" for clip in question.clips]
        content = " ".join([*shown, question.text()])
        if self.tokenizer.chat_template:
            messages = [{"role": "user", "content": content}]
            content = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(content, add_special_tokens=False).input_ids
