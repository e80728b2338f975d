"""VideoReward over any critic's backbone: a query token for each dimension, one linear head (VideoAlign, section 3.2).

The clip comes first, then the tokens of the dimensions that judge the clip alone, the prompt, and the tokens of those
that judge it as an answer to the prompt. Attention is causal, so a token sees what stands before it and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dualipo.artifacts import write_json
from dualipo.critic.base import Critic, Features, Seen, load_critic
from dualipo.critic.questions import NAMES
from dualipo.critic.videoreward.scale import Scale, overall
from dualipo.critic.videoreward.settings import Settings, read_settings
from dualipo.errors import UserError

HEAD, BACKBONE = "head.safetensors", "backbone"
_SLOT = "\ue000"
"""Marks a query token's place in the text; a private-use character, dropped from prompts."""


class VideoReward(torch.nn.Module):
    """Scores of (prompt, clip). `queries` are the embeddings of the special tokens, which no tokenizer has to know."""

    def __init__(self, backbone: Critic, settings: Settings, seed: int = 0):
        super().__init__()
        self.backbone, self.settings = backbone, settings
        self.model = backbone.model
        table = backbone.model.get_input_embeddings().weight.detach().float()
        source = torch.Generator().manual_seed(seed)
        drawn = torch.randn(len(settings.dimensions), table.shape[1], generator=source)
        # Like any other word's embedding: a token of another size would be out of what the model knows.
        self.queries = torch.nn.Parameter((table.mean(0).cpu() + table.std().cpu() * drawn).to(table.device))
        self.head = torch.nn.Linear(table.shape[1], 1, device=table.device)
        with torch.no_grad():
            weight = torch.randn(self.head.weight.shape, generator=source) / table.shape[1] ** 0.5
            self.head.weight.copy_(weight)
            self.head.bias.zero_()

    def raw(self, asked: Sequence[tuple[str, str]], features: Features) -> torch.Tensor:
        """Scores of each (prompt, clip id) before normalisation, (B, dimensions), float32."""
        rows, slots = zip(*(self._row(prompt, features[clip]) for prompt, clip in asked), strict=True)
        _, inputs = self.backbone.assemble(rows, [(clip,) for _, clip in asked], features, pad_left=False)
        embeds = inputs["inputs_embeds"]
        places = torch.tensor(slots, device=embeds.device)[..., None].expand(-1, -1, embeds.shape[-1])
        queries = self.queries.to(embeds.dtype).expand(len(asked), -1, -1)
        inputs["inputs_embeds"] = embeds.scatter(1, places, queries)
        hidden, _ = self.backbone.hidden(**inputs, use_cache=False)
        return self.head(hidden.gather(1, places).to(self.head.weight.dtype)).squeeze(-1)

    @torch.inference_mode()
    def raw_scores(self, asked: Sequence[tuple[str, str]], features: Features, batch_size: int = 64) -> np.ndarray:
        """`raw` of any number of clips, (N, dimensions), float64."""
        parts = [self.raw(asked[i : i + batch_size], features).cpu() for i in range(0, len(asked), batch_size)]
        return torch.cat([torch.empty(0, len(self.settings.dimensions)), *parts]).double().numpy()

    def scores(
        self, asked: Sequence[tuple[str, str]], features: Features, batch_size: int = 64
    ) -> dict[tuple[str, str], dict[str, float]]:
        """Normalised scores of each (prompt, clip id) by dimension, and `overall`, their mean.

        Raises UserError where the model was never calibrated.
        """
        asked = list(dict.fromkeys(asked))
        settings = self.settings
        if settings.mean is None or settings.deviation is None:
            raise UserError("this VideoReward has no normalisation; calibrate it with `dualipo reward train`")
        normal = Scale(settings.mean, settings.deviation).normalise(self.raw_scores(asked, features, batch_size))
        whole = overall(normal)
        return {
            pair: {**dict(zip(settings.dimensions, map(float, row), strict=True)), "overall": float(total)}
            for pair, row, total in zip(asked, normal, whole, strict=True)
        }

    def see(self, clips: Mapping[str, np.ndarray]) -> dict[str, Seen]:
        return self.backbone.see(clips)

    def save(self, folder: str | Path) -> None:
        """config.json, head.safetensors, and backbone/, which plain transformers loads."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save(folder / BACKBONE)
        save_file({name: value.detach().cpu() for name, value in self.head_tensors().items()}, folder / HEAD)
        write_json(folder / "config.json", self.settings.model_dump(mode="json"))

    def head_tensors(self) -> dict[str, torch.Tensor]:
        """What a VideoReward adds to its backbone."""
        return {"queries": self.queries, "head.weight": self.head.weight, "head.bias": self.head.bias}

    def _row(self, prompt: str, seen: Seen) -> tuple[list[int], list[int]]:
        """Token ids of a text, and where in it the queries stand, in the settings' order. The text ends at the last."""
        settings, tokenizer = self.settings, self.backbone.tokenizer
        early = [d for d in settings.dimensions if d in settings.before_prompt]
        late = [d for d in settings.dimensions if d not in settings.before_prompt]
        words = [self.backbone.shown(seen), *(f"{_name(d)}: {_SLOT}" for d in early)]
        words += [f"Prompt: {prompt.replace(_SLOT, '')}.", *(f"{_name(d)}: {_SLOT}" for d in late)]
        parts = self.backbone.templated(" ".join(words)).split(_SLOT)[:-1]
        ids: list[int] = []
        places: dict[str, int] = {}
        for dimension, part in zip([*early, *late], parts, strict=True):
            ids += tokenizer(part, add_special_tokens=False).input_ids
            places[dimension] = len(ids)
            ids.append(tokenizer.eos_token_id)
        return ids, [places[dimension] for dimension in settings.dimensions]


def _name(dimension: str) -> str:
    return NAMES.get(dimension, dimension)


def load_videoreward(folder: str | Path) -> VideoReward:
    """Opens a folder that `VideoReward.save` wrote, ready to score.

    Raises UserError where it is none, or its head or backbone does not load.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    settings = read_settings(folder)
    model = VideoReward(load_critic(folder / BACKBONE), settings)
    try:
        tensors = load_file(folder / HEAD)
        own = {name: value.shape for name, value in model.head_tensors().items()}
        if {name: value.shape for name, value in tensors.items()} != own:
            raise ValueError(
                f"queries and a head of {len(settings.dimensions)} dimensions and the backbone's width needed"
            )
        model.load_state_dict(tensors, strict=False)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder / HEAD}: does not load ({' '.join(str(error).split())[:200]}); put the checkpoint's own there"
        ) from None
    return model.eval().requires_grad_(False)
