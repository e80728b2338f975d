"""Clips as every browser plays them: kept as they are where that will do, else encoded anew with the same timing."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from dualipo.media.video import Source, _frames, _Opened, _pixels

TINY = 128
"""Pixels; a clip whose longer side is below is enlarged, by whole pixels."""
_SHOWN = 256
"""Pixels that the longer side of such a clip is brought to, at least."""
_CLOCK = Fraction(1, 90000)


@dataclass(frozen=True)
class Playable:
    media_type: str
    tiny: bool
    """Its pixels are meant to be seen as squares."""
    data: bytes | None
    """None where the file plays as it is."""


def playable(source: Source, name: str | None = None) -> Playable:
    """H.264 with halved colour in mp4, and VP8, VP9 and AV1 in WebM, play everywhere; anything else is made the former.

    4:4:4, which tiny clips are stored in, does not play in Firefox or Safari. Every frame keeps its time. Raises
    UserError as `decode_clip`.
    """
    with _Opened(source, name) as (container, stream, _):
        codec, pixels, form = stream.codec_context.name, stream.codec_context.pix_fmt, container.format.name
        tiny = max(stream.height, stream.width) < TINY
    if "mp4" in form and codec == "h264" and pixels in ("yuv420p", "yuvj420p"):
        return Playable("video/mp4", tiny, None)
    # FFmpeg calls both by one name; only the name of the file tells WebM from Matroska.
    if "webm" in form and str(name or source).endswith(".webm") and codec in ("vp8", "vp9", "libdav1d", "av1"):
        return Playable("video/webm", tiny, None)
    return Playable("video/mp4", tiny, _encoded(source, name, tiny))


def _encoded(source: Source, name: str | None, tiny: bool) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = None
        start = 0.0
        for number, frame in enumerate(_frames(source, name)):
            image = _enlarged(_pixels(frame), tiny)
            if stream is None:
                start = frame.time or 0.0
                stream = container.add_stream("libx264", rate=30, options={"crf": "10", "preset": "veryfast"})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = stream.time_base = _CLOCK
                stream.codec_context.thread_count = 1
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            seconds = frame.time - start if frame.time is not None else number / 8
            shown.pts, shown.time_base = round(seconds / _CLOCK), _CLOCK
            container.mux(stream.encode(shown))
        container.mux(stream.encode())
    return buffer.getvalue()


def _enlarged(image: np.ndarray, tiny: bool) -> np.ndarray:
    """By an even number of pixels each way where it is tiny, so that colour is not blurred; else made even in size."""
    if tiny:
        scale = 2 * math.ceil(_SHOWN / max(image.shape[:2]) / 2)
        return image.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
