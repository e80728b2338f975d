"""Clips inside a page: base64 of mp4 files that every browser plays."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from PIL import Image

from dualipo.media.video import encode_clip

TINY = 128
"""Pixels; of clips whose longer side is below, every pixel is shown as a square."""
LARGEST = 512
"""Pixels that the longer side of a larger clip is reduced to, where a page holds many."""
_COARSE = 20


def embedded(frames: np.ndarray, scale: int, fps: float = 8.0, crf: int = 8) -> dict[str, Any]:
    """`mp4` (base64), `width`, `height`, `frames` and `fps` of a clip that is enlarged `scale` times."""
    count, height, width, _ = frames.shape
    mp4 = base64.b64encode(encode_clip(frames, fps, scale, crf)).decode()
    return {"mp4": mp4, "width": width * scale, "height": height * scale, "frames": count, "fps": fps}


def compact(frames: np.ndarray, fps: float) -> dict[str, Any]:
    """A clip as a page of many holds it: tiny ones doubled, so that halved colour loses nothing, larger ones reduced to
    `LARGEST` pixels and compressed more."""
    longer = max(frames.shape[1:3])
    if longer < TINY:
        return embedded(frames, 2, fps)
    height, width = (max(2, round(side * min(1, LARGEST / longer) / 2) * 2) for side in frames.shape[1:3])
    if (height, width) != frames.shape[1:3]:
        reduced = [np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BOX)) for f in frames]
        frames = np.stack(reduced)
    return embedded(frames, 1, fps, _COARSE)
