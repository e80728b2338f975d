"""Clips to the frames a critic looks at: uniformly sampled, padded, never cropped (Dual-IPO 4.1)."""

from __future__ import annotations

import numpy as np

MAX_FRAMES = 16


def sample_frames(clips: np.ndarray, count: int = MAX_FRAMES) -> np.ndarray:
    """At most `count` frames of (batch, frames, height, width, 3), evenly spread, first and last included."""
    total = clips.shape[1]
    if total <= count:
        return clips
    return clips[:, np.linspace(0, total - 1, count).round().astype(int)]


def pad_to_multiple(clips: np.ndarray, frames: int, pixels: int) -> np.ndarray:
    """Pads a batch so that frames and sides divide evenly: the last frame repeats, sides grow by black borders."""
    _, t, h, w, _ = clips.shape
    clips = np.pad(clips, ((0, 0), (0, 0), (0, -h % pixels), (0, -w % pixels), (0, 0)))
    return np.pad(clips, ((0, 0), (0, -t % frames), (0, 0), (0, 0), (0, 0)), mode="edge")


def pad_to_square(clips: np.ndarray) -> np.ndarray:
    """Pads the shorter side of (batch, frames, height, width, 3) to the longer with black, the clip in the middle."""
    _, _, h, w, _ = clips.shape
    side = max(h, w)
    top, left = (side - h) // 2, (side - w) // 2
    return np.pad(clips, ((0, 0), (0, 0), (top, side - h - top), (left, side - w - left), (0, 0)))
