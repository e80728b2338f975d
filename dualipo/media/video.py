"""mp4 in and out, through PyAV. A clip is a uint8 array (frames, height, width, 3), RGB."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dualipo.errors import UserError


def encode_clip(frames: np.ndarray, fps: float = 8.0, scale: int = 1) -> bytes:
    """mp4 bytes (H.264, single-threaded, so that equal frames give equal bytes).

    Frames under 128 pixels keep their full colour resolution (4:4:4), since halving it would blur what little there is;
    larger ones are 4:2:0, which every player shows. `scale` enlarges by whole pixels, for clips that people look at.
    Raises ValueError on an array of another shape or type, or of odd height or width.
    """
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"a clip is uint8 (frames, height, width, 3); found {frames.dtype} {frames.shape}")
    if scale > 1:
        frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"height and width must be even for H.264; found {height}x{width}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        options = {"crf": "8", "preset": "veryfast", "tune": "fastdecode"}
        # x264's macroblock tree gives other bytes from call to call, and its fast paths other bytes from CPU to CPU.
        options["x264-params"] = "mbtree=0:cpu-independent=1"
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if max(height, width) < 128 else "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_clip(source: bytes | str | Path, name: str | None = None) -> np.ndarray:
    """Frames of an mp4 (or anything else FFmpeg reads), uint8 (frames, height, width, 3).

    Raises UserError that names the clip where it is missing, truncated or holds no frame.
    """
    import av

    name = name or (str(source) if not isinstance(source, bytes) else "clip")
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise UserError(f"{name}: no such clip")
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
            stream: Any = container.streams.video[0]
            stream.codec_context.thread_count = 1
            declared = stream.frames
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"{name}: not a readable clip ({error}); replace it or drop its rows") from None
    if not frames or (declared and len(frames) < declared):
        raise UserError(f"{name}: truncated, {len(frames)} of {declared} frames decode; replace it or drop its rows")
    return np.stack(frames)
