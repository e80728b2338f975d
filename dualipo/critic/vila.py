"""Critics of the VILA family, read without VILA's own code: a SigLIP tower, its projector, a causal language model.

A checkpoint holds `llm/`, `vision_tower/` and `mm_projector/`, as VILA saves them, and names all three in config.json.
Frames go in one by one as images, each followed by a line break.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dualipo.artifacts import read_json
from dualipo.critic.base import Seen
from dualipo.critic.llava import FrameCritic
from dualipo.errors import UserError

LLM, TOWER, PROJECTOR = "llm", "vision_tower", "mm_projector"
PROJECTORS = {"mlp_downsample": True, "mlp_downsample_2x2_fix": False}
"""Known projectors, and whether their features run column by column."""
PLACE = "<image>"
"""Stands for a feature in a text; VILA 1.5's tokenizers lack it, and the unknown token, which no text holds, serves."""


class Projector(torch.nn.Module):
    """Two by two features become one, then an MLP, (B, n, C) -> (B, m, W). Weights are named as VILA's are."""

    def __init__(self, kind: str, width: int, out: int):
        super().__init__()
        self.columns_first = PROJECTORS[kind]
        self.layers = torch.nn.Sequential(
            torch.nn.Identity(),
            torch.nn.LayerNorm(4 * width),
            torch.nn.Linear(4 * width, out),
            torch.nn.GELU(),
            torch.nn.Linear(out, out),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(downsample(features, self.columns_first))


def downsample(features: torch.Tensor, columns_first: bool) -> torch.Tensor:
    """Blocks of two by two features of a square, side by side, (B, n, C) -> (B, m, 4C); an odd side is padded by zeros.

    VILA 1.5 lists the blocks column by column; its later projectors row by row.
    """
    side = round(features.shape[1] ** 0.5)
    square = features.unflatten(1, (side, side))
    square = F.pad(square, (0, 0, 0, side % 2, 0, side % 2))
    half = square.shape[1] // 2
    blocks = square.unflatten(2, (half, 2)).unflatten(1, (half, 2)).transpose(2, 3)
    if columns_first:
        blocks = blocks.transpose(1, 2)
    return blocks.flatten(3).flatten(1, 2)


class VilaModel(torch.nn.Module):
    """The three parts under the names by which a critic asks a model of transformers."""

    def __init__(self, llm: Any, vision_tower: Any, mm_projector: Projector, config: SimpleNamespace):
        super().__init__()
        self.llm, self.vision_tower, self.mm_projector, self.config = llm, vision_tower, mm_projector, config

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def dtype(self) -> torch.dtype:
        return self.llm.dtype

    @property
    def lm_head(self) -> torch.nn.Module:
        return self.llm.lm_head

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.llm.get_input_embeddings()


class Vila(FrameCritic):
    model_type = "vila"
    mean = deviation = (0.5, 0.5, 0.5)

    @property
    def language_model(self) -> torch.nn.Module:
        return self.model.llm.model

    @property
    def vision(self) -> list[torch.nn.Module]:
        return [self.model.vision_tower, self.model.mm_projector]

    def see_batch(self, clips: np.ndarray) -> list[Seen]:
        pixels = self.pixels(clips)
        count = pixels.shape[1]
        found = self.model.vision_tower(
            pixels.flatten(0, 1).to(self.model.device, self.model.dtype), output_hidden_states=True
        )
        features = self.model.mm_projector(found.hidden_states[self.model.config.select_layer])
        side = round(features.shape[1] ** 0.5)
        return [Seen(tokens, (count, side, side)) for tokens in features.flatten(0, 1).chunk(len(clips))]

    def shown(self, seen: Seen) -> str:
        frames, height, width = seen.grid
        return (self.video_token * (height * width) + "\n") * frames

    def save(self, folder: str | Path) -> None:
        """A folder that VILA loads; safetensors only."""
        from safetensors.torch import save_file

        folder, model = Path(folder), self.model
        model.llm.save_pretrained(folder / LLM, safe_serialization=True)
        self.tokenizer.save_pretrained(folder / LLM)
        model.vision_tower.save_pretrained(folder / TOWER, safe_serialization=True)
        (folder / PROJECTOR).mkdir(exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in model.mm_projector.state_dict().items()}
        save_file(weights, folder / PROJECTOR / "model.safetensors", {"format": "pt"})
        for name, content in model.config.files.items():
            (folder / name).write_bytes(content)
        for name, content in self.processor_files.items():
            (folder / TOWER / name).write_bytes(content)


def is_vila(content: Any) -> bool:
    """Whether a config.json names VILA's three parts."""
    return isinstance(content, dict) and {f"{part}_cfg" for part in (LLM, TOWER, PROJECTOR)} <= content.keys()


def load_vila(folder: Path) -> tuple[VilaModel, Any]:
    """Model and tokenizer. Raises UserError where a part is of a kind that is not known, or whose code is its own, and
    what transformers and safetensors raise where one does not load."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel

    content, tower = read_json(folder / "config.json"), read_json(folder / TOWER / "config.json")
    kind = read_json(folder / PROJECTOR / "config.json").get("mm_projector_type")
    if tower.get("model_type") != "siglip_vision_model":
        raise UserError(
            f"{folder}: its vision tower is of type {tower.get('model_type')}, which needs code of its own; "
            "known: a VILA with a SigLIP tower"
        )
    if content.get("s2") or content.get("dynamic_s2") or kind not in PROJECTORS:
        found = "frames at several scales (S2)" if kind in PROJECTORS else f"projector {kind}"
        raise UserError(f"{folder}: a VILA with {found} is not read; known: one scale and {', '.join(PROJECTORS)}")
    local: Any = {"local_files_only": True, "trust_remote_code": False}
    llm = AutoModelForCausalLM.from_pretrained(folder / LLM, use_safetensors=True, dtype="auto", **local)
    vision = SiglipVisionModel.from_pretrained(
        folder / TOWER, use_safetensors=True, dtype=llm.dtype, local_files_only=True
    )
    projector = Projector(kind, vision.config.hidden_size, llm.config.hidden_size).to(llm.dtype)
    projector.load_state_dict(load_file(folder / PROJECTOR / "model.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(folder / LLM, **local)
    place = tokenizer.convert_tokens_to_ids(PLACE) if PLACE in tokenizer.get_vocab() else tokenizer.unk_token_id
    if place is None:
        raise UserError(f"{folder / LLM}: the tokenizer has neither {PLACE} nor an unknown token; add {PLACE} to it")
    if tokenizer.pad_token_id in (None, place):
        tokenizer.pad_token = tokenizer.eos_token  # what is padding and what a feature must differ
    files = {name: (folder / name).read_bytes() for name in ("config.json", f"{PROJECTOR}/config.json")}
    config = SimpleNamespace(
        model_type="vila",
        video_token_id=place,
        vision_config=vision.config,
        select_layer=content.get("mm_vision_select_layer", -2),
        files=files,
    )
    return VilaModel(llm, vision, projector, config), tokenizer
