"""Real video files of any size, rate and timing, whose frames can be told apart after encoding."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def numbered(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frame k is filled with the grey `grey(k)`; the left half of its top half is white."""
    clip = np.empty((count, height, width, 3), np.uint8)
    for k in range(count):
        clip[k] = grey(k)
    clip[:, : height // 2, : width // 2] = 255
    return clip


def grey(number: int) -> int:
    return 10 + 3 * number


def numbers(clip: np.ndarray) -> list[int]:
    """Which numbered frames these are, read off the grey in their middle, low right."""
    height, width = clip.shape[1:3]
    shade = clip[:, 5 * height // 8 : 3 * height // 4, 5 * width // 8 : 3 * width // 4].mean((1, 2, 3))
    return [round((value - 10) / 3) for value in shade]


def write_clip(
    path: Path,
    frames: np.ndarray,
    fps: float = 8,
    milliseconds: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """An mp4 (or what the suffix says); `milliseconds` gives each frame a time of its own, a variable frame rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        if milliseconds is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if milliseconds is not None:
                frame.pts, frame.time_base = milliseconds[k], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def start_later(path: Path, ticks: int) -> None:
    """Moves the start in the mp4's edit list, as cutting a clip without encoding it anew does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 16
    data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] + ticks)
    path.write_bytes(data)


def turn(path: Path) -> None:
    """Says in the mp4's track header that the picture is to be turned clockwise by a quarter, as phones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def cut_short(path: Path, share: float = 0.5) -> None:
    """A download that broke off."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
