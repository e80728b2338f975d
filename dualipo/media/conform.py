"""Clips of any size, rate and length brought to one shape, as a generator needs its real clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dualipo.errors import UserError
from dualipo.media.video import Source, frame_times, nearest, sample_rows


@dataclass(frozen=True)
class Shape:
    """What every clip is brought to."""

    frames: int
    fps: float
    height: int
    width: int
    fit: Literal["pad", "crop"] = "pad"
    """`pad`: the whole picture, with black borders; `crop`: no borders, what sticks out is cut off evenly."""


def conform(source: Source, shape: Shape, name: str | None = None) -> np.ndarray:
    """The first `frames / fps` seconds of a clip, uint8 (frames, height, width, 3).

    Time is resampled by the nearest frame, pictures are scaled evenly in both directions. Raises UserError where the
    clip is shorter than that, or as `decode_clip`.
    """
    times = frame_times(source, name)
    at = np.array([float(time - times[0]) for time in times])
    moments = np.arange(shape.frames) / shape.fps
    # the last frame is shown for as long as the one before it.
    shown = at[-1] + (at[-1] - at[-2] if len(at) > 1 else 0)
    if moments[-1] > shown:
        label = name or (source if not isinstance(source, bytes) else "clip")
        raise UserError(
            f"{label}: lasts {shown:.2f} s, {moments[-1]:.2f} s are needed; ask for fewer frames or leave it"
        )
    return fit(sample_rows(source, nearest(at, moments), name), shape)


def fit(frames: np.ndarray, shape: Shape) -> np.ndarray:
    """Scales uint8 (frames, height, width, 3) evenly until it just fits into `shape` (pad) or just covers it (crop)."""
    from PIL import Image

    _, height, width, _ = frames.shape
    ratios = shape.height / height, shape.width / width
    ratio = min(ratios) if shape.fit == "pad" else max(ratios)
    new = max(round(height * ratio), 1), max(round(width * ratio), 1)
    if new != (height, width):
        images = [Image.fromarray(frame).resize(new[::-1], Image.Resampling.LANCZOS) for frame in frames]
        frames = np.stack([np.asarray(image) for image in images])
    top, left = (shape.height - new[0]) // 2, (shape.width - new[1]) // 2
    if shape.fit == "crop":
        return frames[:, -top : -top + shape.height, -left : -left + shape.width]
    out = np.zeros((len(frames), shape.height, shape.width, 3), np.uint8)
    out[:, top : top + new[0], left : left + new[1]] = frames
    return out
