"""mp4 in and out, through PyAV. A clip is a uint8 array (frames, height, width, 3), RGB."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dualipo.errors import UserError

Source = bytes | str | Path


def encode_clip(frames: np.ndarray, fps: float = 8.0, scale: int = 1, crf: int = 8) -> bytes:
    """mp4 bytes (H.264, single-threaded, so that equal frames give equal bytes).

    Frames under 128 pixels keep their full colour resolution (4:4:4), since halving it would blur what little there is;
    larger ones are 4:2:0, which every player shows. `scale` enlarges by whole pixels, for clips that people look at:
    those are 4:2:0 as well. `crf` is H.264's constant rate factor: the higher, the smaller and the coarser.
    Raises ValueError on an array of another shape or type, or of odd height or width.
    """
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"a clip is uint8 (frames, height, width, 3); found {frames.dtype} {frames.shape}")
    small = scale == 1 and max(frames.shape[1:3]) < 128
    if scale > 1:
        frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"height and width must be even for H.264; found {height}x{width}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        options = {"crf": str(crf), "preset": "veryfast", "tune": "fastdecode"}
        # x264's macroblock tree gives other bytes from call to call, and its fast paths other bytes from CPU to CPU.
        options["x264-params"] = "mbtree=0:cpu-independent=1"
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if small else "yuv420p"
        stream.codec_context.thread_count = 1
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@dataclass(frozen=True)
class ClipInfo:
    """What a clip holds, as it is shown: after its edit list and its rotation."""

    frames: int
    height: int
    width: int
    seconds: float
    """From the first frame's time to the last one's."""


def decode_clip(source: Source, name: str | None = None) -> np.ndarray:
    """Frames of an mp4 (or anything else FFmpeg reads), uint8 (frames, height, width, 3), upright.

    Raises UserError that names the clip where it is missing, truncated, holds no frame, or changes its size.
    """
    return np.stack([_pixels(frame) for frame in _frames(source, name)])


def sample_clip(source: Source, count: int, name: str | None = None) -> np.ndarray:
    """At most `count` frames of a clip, evenly spread over its time: uint8 (frames, height, width, 3), upright.

    Each moment is shown by the frame nearest to it, so clips of variable frame rate are sampled as they play, and a
    picture that stands still for long is shown several times. Only the sampled frames are held in memory. Clips of
    `count` frames or fewer come whole. Raises UserError as `decode_clip`.
    """
    return sample_rows(source, evenly_in_time(frame_times(source, name), count), name)


def sample_rows(source: Source, rows: Sequence[int], name: str | None = None) -> np.ndarray:
    """The frames of the given numbers, in the given order, some perhaps several times.

    The whole clip is decoded, so that a truncated one is found. Raises UserError as `decode_clip`.
    """
    wanted = set(rows)
    kept = {number: _pixels(frame) for number, frame in enumerate(_frames(source, name)) if number in wanted}
    return np.stack([kept[number] for number in rows])


def check_clip(source: Source, name: str | None = None) -> ClipInfo:
    """Decodes every frame and keeps none. Raises UserError as `decode_clip`."""
    shape = (0, 0)
    for frame in _frames(source, name):
        shape = _upright(frame)
    times = frame_times(source, name)
    return ClipInfo(len(times), *shape, float(times[-1] - times[0]))


def frame_times(source: Source, name: str | None = None) -> list[Fraction]:
    """Presentation times of all frames shown, in seconds and in order; nothing is decoded.

    A file without times (a bare H.264 stream) is taken to have a constant rate. Raises UserError as `decode_clip`.
    """
    with _Opened(source, name) as (container, stream, name):
        shown = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        if not shown:
            raise UserError(f"{name}: holds no frame; replace it or drop its rows")
        if any(packet.pts is None for packet in shown):
            rate = stream.average_rate or stream.base_rate or 1
            return [Fraction(number) / rate for number in range(len(shown))]
        return sorted(packet.pts * stream.time_base for packet in shown)


def evenly_in_time(times: Sequence[Fraction | float], count: int) -> list[int]:
    """Rows of ascending `times` nearest to `count` moments spread evenly from the first to the last, both included.

    All rows where there are no more than `count`.
    """
    if len(times) <= count:
        return list(range(len(times)))
    at = np.array([float(time - times[0]) for time in times])
    return nearest(at, np.linspace(0, at[-1], count))


def nearest(at: np.ndarray, moments: np.ndarray) -> list[int]:
    """For each moment the row of ascending `at` that is nearest to it; of two equally near ones the earlier."""
    if len(at) == 1:
        return [0] * len(moments)
    after = np.searchsorted(at, moments).clip(1, len(at) - 1)
    before = after - 1
    return np.where(moments - at[before] <= at[after] - moments, before, after).tolist()


class _Opened:
    """A clip opened for reading, (container, stream, name), with FFmpeg's errors turned into UserErrors."""

    def __init__(self, source: Source, name: str | None):
        self.source = source
        self.name = name or (str(source) if not isinstance(source, bytes) else "clip")

    def __enter__(self) -> tuple[Any, Any, str]:
        import av

        if not isinstance(self.source, bytes) and not Path(self.source).is_file():
            raise UserError(f"{self.name}: no such clip")
        try:
            self.container = av.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else str(self.source))
        except av.error.FFmpegError as error:
            raise self._unreadable(error) from None
        if not self.container.streams.video:
            self.container.close()
            raise self._unreadable("no picture in it")
        stream: Any = self.container.streams.video[0]
        stream.codec_context.thread_count = 1
        return self.container, stream, self.name

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        import av

        self.container.close()
        if isinstance(error, av.error.FFmpegError):
            raise self._unreadable(error) from None

    def _unreadable(self, why: object) -> UserError:
        return UserError(f"{self.name}: not a readable clip ({why}); replace it or drop its rows")


def _frames(source: Source, name: str | None) -> Iterator[Any]:
    """Decoded frames in order of presentation. Raises UserError at the end where some are missing.

    What the container declares is compared with the packets it holds, not with the frames: an edit list (a clip cut
    without encoding it anew) rightly hides some of them.
    """
    with _Opened(source, name) as (container, stream, name):
        declared, packets, hidden, shown, first = stream.frames, 0, 0, 0, None
        for packet in container.demux(stream):
            packets += bool(packet.size)
            hidden += bool(packet.size and packet.is_discard)
            for frame in packet.decode():
                shape = _upright(frame)
                if first is not None and shape != first:
                    sizes = " to ".join(f"{height}x{width}" for height, width in (first, shape))
                    raise UserError(f"{name}: its size changes from {sizes}; replace it or drop its rows")
                first, shown = shape, shown + 1
                yield frame
        whole = max(declared, packets) - hidden
        if shown < max(whole, 1):
            raise UserError(f"{name}: truncated, {shown} of {whole} frames decode; replace it or drop its rows")


def _quarters(frame: Any) -> int:
    """Quarter turns anticlockwise that set a frame upright; phones film sideways and say so in the file."""
    return round(frame.rotation / 90) % 4


def _upright(frame: Any) -> tuple[int, int]:
    """(height, width) as shown."""
    return (frame.width, frame.height) if _quarters(frame) % 2 else (frame.height, frame.width)


def _pixels(frame: Any) -> np.ndarray:
    return np.rot90(frame.to_ndarray(format="rgb24"), _quarters(frame))
