"""Latents of clips and embeddings of texts, encoded once, before training.

They lie in shards of safetensors in a folder, and are read row by row through a memory map: memory stays flat in the
number of clips. Each shard is named after what it holds and what made it, so that an encoding goes on where it was
stopped, and a changed clip or encoder is encoded anew. Processes share the shards out and read each other's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dualipo.artifacts import atomic
from dualipo.errors import UserError
from dualipo.generator.base import Generator
from dualipo.training.ranks import barrier, world

CLIPS = 64
"""Clips encoded at once, and held by a shard."""
TEXTS = 256
PIXELS = 2**24
"""Pixels in all frames of the clips encoded at once: one clip of 49 frames of 480x720 is 17e6."""
Encoding = tuple[list[int], torch.Tensor]
"""Places of equally shaped items, and their rows."""


class Rows(Protocol):
    """Equally or differently shaped rows: a tensor, or shards on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: torch.Tensor, /) -> torch.Tensor:
        """Equally shaped rows, (n,) -> (n, ...)."""


class Shards:
    """Rows in safetensors files, read where they lie."""

    def __init__(self, places: Sequence[tuple[Path, int]], device: torch.device):
        self.places, self.device = places, device
        """File and row of each row."""
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __add__(self, more: Shards) -> Shards:
        return Shards([*self.places, *more.places], self.device)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._slice(path)[row] for path, row in self._of(rows)]).to(self.device)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of every row."""
        by_file = {path: tuple(self._slice(path).get_shape()[1:]) for path in dict.fromkeys(p for p, _ in self.places)}
        return [by_file[path] for path, _ in self.places]

    def _of(self, rows: torch.Tensor) -> list[tuple[Path, int]]:
        return [self.places[row] for row in rows.tolist()]

    def _slice(self, path: Path) -> Any:
        from safetensors import safe_open

        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt").get_slice("rows")
        return self._open[path]


def shapes(rows: Rows) -> list[tuple[int, ...]]:
    """The shape of every row."""
    return rows.shapes if isinstance(rows, Shards) else [tuple(rows[torch.tensor([0])].shape[1:])] * len(rows)


def encode_clips(
    generator: Generator, clips: Sequence[str], read: Callable[[str], np.ndarray], content: Callable[[str], bytes],
    folder: Path,
) -> Shards:  # fmt: skip
    """Latents of clips, (clips, ...), in `folder`.

    `read` gives a clip as uint8 (frames, height, width, 3), called for those not yet encoded; `content` gives the bytes
    that it is stored as. Clips of one shape are encoded together, as many as `PIXELS` allows.
    """
    identity = _identity(generator.pipeline.vae, generator.denoiser.dtype)

    def encode(part: Sequence[str]) -> list[Encoding]:
        waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        done: dict[tuple[int, ...], list[Encoding]] = {}

        def flush(shape: tuple[int, ...]) -> None:
            if alike := waiting.pop(shape, []):
                rows = generator.encode_clips(np.stack([clip for _, clip in alike])).cpu()
                done.setdefault(shape, []).append(([item for item, _ in alike], rows))

        for item, name in enumerate(part):
            clip = read(name)
            _check_size(generator, name, clip)
            waiting.setdefault(clip.shape, []).append((item, clip))
            if len(waiting[clip.shape]) * math.prod(clip.shape[:3]) >= PIXELS:
                flush(clip.shape)
        for shape in list(waiting):
            flush(shape)
        return [([i for items, _ in own for i in items], torch.cat([rows for _, rows in own])) for own in done.values()]

    contents = [hashlib.sha256(content(name)).hexdigest() for name in clips]
    return _encoded(clips, CLIPS, contents, identity, encode, folder / "latents", generator)


def encode_texts(generator: Generator, texts: Sequence[str], folder: Path) -> Shards:
    """Embeddings of distinct texts, (texts, length, width), in `folder`."""
    identity = _identity(generator.pipeline.text_encoder, generator.denoiser.dtype)

    def encode(part: Sequence[str]) -> list[Encoding]:
        return [(list(range(len(part))), generator.encode_text(part))]

    return _encoded(texts, TEXTS, list(texts), identity, encode, folder / "text", generator)


def _encoded(
    items: Sequence[str],
    size: int,
    contents: Sequence[str],
    identity: str,
    encode: Callable[[Sequence[str]], list[Encoding]],
    folder: Path,
    generator: Generator,
) -> Shards:
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    here, keys = world(), []
    for number, begin in enumerate(range(0, len(items), size)):
        part = items[begin : begin + size]
        key = hashlib.sha256("\0".join([identity, *contents[begin : begin + size]]).encode()).hexdigest()[:32]
        keys.append((key, part))
        if number % here.size == here.rank and not (folder / f"{key}-0.safetensors").is_file():
            made = encode(part)
            # The first file is written last: where it is, the others are.
            for index, (numbers, rows) in reversed(list(enumerate(made))):
                order = ",".join(map(str, numbers))
                with atomic(folder / f"{key}-{index}.safetensors") as temporary:
                    save_file({"rows": rows.cpu().contiguous()}, temporary, {"items": order, "files": str(len(made))})
    barrier()
    places: list[tuple[Path, int]] = []
    for key, part in keys:
        found: dict[int, tuple[Path, int]] = {}
        index, files = 0, 1
        while index < files:
            path = folder / f"{key}-{index}.safetensors"
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            files = int(metadata["files"])
            found |= {int(item): (path, row) for row, item in enumerate(metadata["items"].split(","))}
            index += 1
        places += [found[item] for item in range(len(part))]
    return Shards(places, generator.device)


def _check_size(generator: Generator, name: str, clip: np.ndarray) -> None:
    frames, height, width, _ = clip.shape
    try:
        generator.latent_shape((frames, height, width))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _identity(encoder: torch.nn.Module, dtype: torch.dtype) -> str:
    """What an encoder is: its configuration and weights."""
    summary = hashlib.sha256(repr((type(encoder).__name__, str(getattr(encoder, "config", "")), dtype)).encode())
    for name, value in encoder.state_dict().items():
        summary.update(name.encode())
        summary.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return summary.hexdigest()
