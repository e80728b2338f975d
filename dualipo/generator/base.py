"""The interface every backbone offers: text and clips in, noise levels, predictions, and samples out."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dualipo.errors import UserError


class Generator(ABC):
    """A pipeline of diffusers, opened up for training and for batched sampling.

    Latents are float tensors (batch, frames, channels, height, width), already scaled as the denoiser expects them.
    """

    pipeline_class: str
    """Class name in model_index.json that this backbone serves."""

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    @property
    @abstractmethod
    def denoiser(self) -> torch.nn.Module:
        """The network that alignment trains."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Text embeddings (batch, length, width), without gradient."""

    @abstractmethod
    def encode_clips(self, clips: np.ndarray) -> torch.Tensor:
        """Latents of uint8 clips (batch, frames, height, width, 3), without gradient."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 clips (batch, frames, height, width, 3) of latents."""

    @abstractmethod
    def draw_levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Noise levels for training, (count,), as `predict` takes them."""

    @abstractmethod
    def noised(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """x_t of clean latents at the given levels."""

    @abstractmethod
    def target(self, latents: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict there: noise, v or velocity, as its scheduler says."""

    @abstractmethod
    def predict(self, noised: torch.Tensor, levels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The denoiser's prediction; same shape as `noised`."""

    @abstractmethod
    def snr_weight(self, levels: torch.Tensor) -> torch.Tensor:
        """omega(lambda_t) of the given levels, (batch,), with mean 1 over all levels."""

    @abstractmethod
    def sample(
        self, text: torch.Tensor, null_text: torch.Tensor, seeds: Sequence[int], steps: int, guidance: float
    ) -> torch.Tensor:
        """Latents of one clip per row of `text` (batch, length, width) and seed, under classifier-free guidance."""

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, batch_size: int = 64
    ) -> np.ndarray:
        """uint8 clips (len(prompts), frames, height, width, 3). Equal prompts next to each other are encoded once."""
        distinct = list(dict.fromkeys(prompts))
        with torch.inference_mode():
            rows = torch.cat([self.encode_text(distinct[i : i + 256]) for i in range(0, len(distinct), 256)])
            null_text = self.encode_text([""])
            index = torch.tensor([distinct.index(prompt) for prompt in prompts])
            clips = []
            for start in range(0, len(prompts), batch_size):
                part = slice(start, start + batch_size)
                latents = self.sample(rows[index[part]], null_text, seeds[part], steps, guidance)
                clips.append(self.decode(latents))
        return np.concatenate(clips)

    @property
    def fps(self) -> float:
        """Frames a second that clips are written with."""
        return 8.0

    def save(self, folder: str | Path) -> None:
        """A folder that plain diffusers loads; safetensors only, and equal bytes wherever the model was loaded from."""
        self.pipeline.save_pretrained(folder, safe_serialization=True)
        for path in [Path(folder) / "model_index.json", *Path(folder).glob("*/*config.json")]:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_generator(folder: str | Path) -> Generator:
    """Opens a diffusers folder with the backbone its model_index.json names, on the best device there is.

    Raises UserError where the folder is no checkpoint, has no safetensors, or is of an unknown backbone.
    """
    from dualipo.generator.cogvideox import CogVideoX

    backbones: dict[str, type[Generator]] = {backbone.pipeline_class: backbone for backbone in (CogVideoX,)}
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{folder}: no generator checkpoint here (model_index.json is missing); put a diffusers folder there"
        )
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (json.JSONDecodeError, KeyError):
        raise UserError(f"{index}: not a diffusers index; download the checkpoint again") from None
    if name not in backbones:
        raise UserError(f"{index}: no backbone for {name}; known: {', '.join(backbones)}")
    import diffusers
    from diffusers.utils import logging
    from safetensors import SafetensorError

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # an error is told once, below
    try:
        pipeline = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the checkpoint does not load ({' '.join(str(error).split())[:200]}); "
            "put a whole one there, with weights as safetensors"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    generator = backbones[name](pipeline)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return generator
