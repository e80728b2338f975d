"""The interface every backbone offers: text and clips in, noise levels, predictions, and samples out."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from dualipo.errors import UserError

if TYPE_CHECKING:
    from diffusers import ModelMixin

Size = tuple[int, int, int]
"""Frames, height and width of a clip in pixels."""
Guide = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(latents, levels, text, prediction) of a sampling step -> the prediction to step with (see `guidance.py`)."""


class Generator(ABC):
    """A pipeline of diffusers, opened up for training and for batched sampling.

    Latents are float tensors, batch first and else in the backbone's own order, already scaled as the denoiser expects
    them.
    """

    pipeline_class: str
    """Class name in model_index.json that this backbone serves."""
    flow = False
    """Rectified flow: `predict` gives velocities, and levels have `times` in [0, 1]."""

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        self.folder: Path | None = None
        """Where it was loaded from, if it was."""

    @property
    def denoiser(self) -> ModelMixin:
        """The network that alignment trains."""
        return self.pipeline.transformer

    def with_denoiser(self, denoiser: ModelMixin) -> Self:
        """The same backbone over another denoiser; everything else is shared."""
        pipeline = copy(self.pipeline)
        pipeline.transformer = denoiser
        found = type(self)(pipeline)
        found.folder = self.folder
        return found

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def keep_denoiser(self) -> None:
        """Frees text encoder and VAE. `save` reads them once more from `folder`, which must still be there."""
        for name, part in self.pipeline.components.items():
            if isinstance(part, torch.nn.Module) and part is not self.denoiser:
                setattr(self.pipeline, name, None)

    @property
    def sampling_dtype(self) -> torch.dtype:
        """What `sample` keeps latents in between two steps."""
        return torch.float32

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Text embeddings (batch, length, width), without gradient; what `predict` takes and nobody else reads."""

    @abstractmethod
    def to_latents(self, codes: torch.Tensor) -> torch.Tensor:
        """Latents of what the VAE encodes, (batch, channels, frames, height, width)."""

    @abstractmethod
    def to_codes(self, latents: torch.Tensor) -> torch.Tensor:
        """What the VAE decodes of latents: the inverse of `to_latents`."""

    @abstractmethod
    def latent_shape(self, size: Size | None) -> tuple[int, ...]:
        """Shape of one clip's latents, without the batch; None is the backbone's own size.

        Raises UserError where the backbone cannot make clips of that size.
        """

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

    def times(self, levels: torch.Tensor) -> torch.Tensor:
        """t in [0, 1] of levels, 0 clean and 1 noise. Raises NotImplementedError where `flow` is false."""
        raise NotImplementedError(f"{type(self).__name__} is no rectified flow")

    def start_sampling(self, steps: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Sets the scheduler to a sampling of `steps` steps over latents of `shape`; the levels, (steps,)."""
        self.pipeline.scheduler.set_timesteps(steps, device=self.device)
        return self.pipeline.scheduler.timesteps

    @torch.no_grad()
    def encode_clips(self, clips: np.ndarray) -> torch.Tensor:
        """Latents of uint8 clips (batch, frames, height, width, 3), without gradient."""
        vae = self.pipeline.vae
        pixels = torch.from_numpy(clips).to(self.device, vae.dtype).permute(0, 4, 1, 2, 3) / 127.5 - 1
        return self.to_latents(vae.encode(pixels).latent_dist.mode()).to(self.denoiser.dtype)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 clips (batch, frames, height, width, 3) of latents."""
        pixels = self.decode_codes(self.to_codes(latents.to(self.pipeline.vae.dtype)))
        pixels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 4, 1).cpu().numpy()

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """The VAE's pixels in [-1, 1], (batch, 3, frames, height, width)."""
        return self.pipeline.vae.decode(codes).sample

    @torch.inference_mode()
    def sample(
        self,
        text: torch.Tensor,
        null_text: torch.Tensor,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        size: Size | None = None,
        guide: Guide | None = None,
    ) -> torch.Tensor:
        """Latents of one clip per row of `text` (batch, length, width) and seed, under classifier-free guidance.

        Raises UserError where the backbone cannot make clips of `size`.
        """
        scheduler, shape = self.pipeline.scheduler, self.latent_shape(size)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
        latents = torch.stack(noise).to(self.device, self.sampling_dtype)
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        both = torch.cat([null_text.expand_as(text), text]) if guidance != 1 else text
        for level in self.start_sampling(steps, shape):
            doubled = torch.cat([latents, latents]) if guidance != 1 else latents
            output = self.predict(doubled.to(self.denoiser.dtype), level.expand(len(doubled)), both).float()
            if guidance != 1:
                without, within = output.chunk(2)
                output = without + guidance * (within - without)
            if guide is not None:
                output = guide(latents, level.expand(len(latents)), text, output)
            latents = scheduler.step(output, level, latents, return_dict=False)[0].to(self.sampling_dtype)
        return latents

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        batch_size: int = 64,
        size: Size | None = None,
        guide: Guide | None = None,
    ) -> np.ndarray:
        """uint8 clips (len(prompts), frames, height, width, 3): all `batches` together."""
        return np.concatenate(list(self.batches(prompts, seeds, steps, guidance, batch_size, size, guide)))

    def batches(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        batch_size: int = 64,
        size: Size | None = None,
        guide: Guide | None = None,
    ) -> Iterator[np.ndarray]:
        """uint8 clips (at most `batch_size`, frames, height, width, 3), batch after batch, each made when it is asked
        for. Equal prompts are encoded once."""
        distinct = list(dict.fromkeys(prompts))
        rows = torch.cat([self.encode_text(distinct[i : i + 256]) for i in range(0, len(distinct), 256)])
        null_text = self.encode_text([""])
        row_of = {prompt: row for row, prompt in enumerate(distinct)}
        index = torch.tensor([row_of[prompt] for prompt in prompts])
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            yield self.decode(self.sample(rows[index[part]], null_text, seeds[part], steps, guidance, size, guide))

    @property
    def fps(self) -> float:
        """Frames a second that clips are written with."""
        return 8.0

    def save(self, folder: str | Path) -> None:
        """A folder that plain diffusers loads; safetensors only, and equal bytes wherever the model was loaded from."""
        pipeline = self.pipeline
        if self.folder is not None and pipeline.vae is None:
            pipeline = _open_pipeline(self.folder, transformer=self.denoiser)
        pipeline.save_pretrained(folder, safe_serialization=True)
        for path in [Path(folder) / "model_index.json", *Path(folder).glob("*/*config.json")]:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def latent_sizes(size: Size, frames: int, pixels: int, patch: int) -> Size:
    """Latent frames, height and width of a clip: `frames` and `pixels` to one latent, `patch` latents to one token.

    Raises UserError where the clip does not divide: frames after the first by `frames`, sides by `pixels * patch`.
    """
    count, height, width = size
    side = pixels * patch
    if count < 1 or (count - 1) % frames or height < 1 or height % side or width < 1 or width % side:
        raise UserError(
            f"size {list(size)}: this generator makes clips of 1 + n * {frames} frames with sides divisible by {side}; "
            "choose such a size"
        )
    return (count - 1) // frames + 1, height // pixels, width // pixels


def load_generator(folder: str | Path) -> Generator:
    """Opens a diffusers folder with the backbone its model_index.json names, on the best device there is.

    Raises UserError where the folder is no checkpoint, has no safetensors, or is of an unknown backbone.
    """
    from dualipo.generator.cogvideox import CogVideoX
    from dualipo.generator.ltx import LTX
    from dualipo.generator.wan import Wan

    backbones: dict[str, type[Generator]] = {backbone.pipeline_class: backbone for backbone in (CogVideoX, Wan, LTX)}
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
    pipeline = _open_pipeline(folder)
    generator = backbones[name](pipeline)
    generator.folder = Path(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return generator


def _open_pipeline(folder: str | Path, **parts: torch.nn.Module) -> Any:
    """The pipeline in a diffusers folder, on the CPU, with `parts` in place of its own. Raises UserError."""
    import diffusers
    from diffusers.utils import logging
    from safetensors import SafetensorError

    kind = getattr(diffusers, json.loads((Path(folder) / "model_index.json").read_text())["_class_name"])
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # an error is told once, below
    try:
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **parts)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the checkpoint does not load ({' '.join(str(error).split())[:200]}); "
            "put a whole one there, with weights as safetensors"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
