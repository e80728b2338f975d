"""Clip folders: a manifest of rows beside mp4 files, loose or packed into tar shards.

Generated clips are packed, since object stores and DVC are slow with many small files; people's own folders hold loose
mp4 files. Both are read the same way.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from dualipo.errors import UserError
from dualipo.media.video import decode_clip, encode_clip
from dualipo.records import Clip, read_rows, write_rows

MANIFEST = "manifest.jsonl"


def pack_shard(path: str | Path, clips: Iterable[tuple[str, np.ndarray]], fps: float) -> None:
    """Writes `(member name, frames)` pairs as one tar of mp4 files; equal clips give equal bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, frames in clips:
            data = encode_clip(frames, fps)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


class ClipStore:
    """Reads the clips of a folder by id. Shards are indexed once; clips are decoded when asked for."""

    def __init__(self, folder: str | Path, clips: Iterable[Clip] | None = None):
        """`clips` stand for the manifest of a folder that is still being made."""
        self.folder = Path(folder)
        self.clips: list[Clip] = read_rows(self.folder / MANIFEST, Clip) if clips is None else list(clips)
        self._by_id = {clip.id: clip for clip in self.clips}
        if len(self._by_id) != len(self.clips):
            raise UserError(f"{self.folder / MANIFEST}: two clips share an id; ids must differ")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """uint8 (frames, height, width, 3)."""
        return read_clip(self.folder, self.file(clip_id))

    def read(self, clip_ids: Sequence[str], at_once: int = 64) -> Iterator[dict[str, np.ndarray]]:
        """Clips by id, so many decoded at once."""
        for start in range(0, len(clip_ids), at_once):
            yield {clip_id: self[clip_id] for clip_id in clip_ids[start : start + at_once]}

    def file(self, clip_id: str) -> str:
        """Where the clip lies in the folder, as `read_clip` and `read_bytes` take it."""
        clip = self._by_id.get(clip_id)
        if clip is None:
            raise UserError(f"{self.folder / MANIFEST}: no clip {clip_id!r}; labels and clips do not belong together")
        return clip.file

    def by_prompt(self) -> dict[str, list[Clip]]:
        """Clips of each prompt, in the manifest's order."""
        groups: dict[str, list[Clip]] = {}
        for clip in self.clips:
            groups.setdefault(clip.prompt_id, []).append(clip)
        return groups

    @staticmethod
    def write_manifest(folder: str | Path, clips: Iterable[Clip]) -> None:
        write_rows(Path(folder) / MANIFEST, clips)


def read_clip(folder: Path, file: str) -> np.ndarray:
    """A clip by its path inside `folder`: `clip.mp4`, or `shard.tar/clip.mp4`."""
    if ".tar/" not in file:
        return decode_clip(folder / file)
    return decode_clip(read_bytes(folder, file), f"{folder / file}")


def read_bytes(folder: Path, file: str) -> bytes:
    """The mp4 file itself, by the same path. Raises UserError where it is missing."""
    path, offset, size = locate(folder, file)
    try:
        with open(path, "rb") as handle:
            handle.seek(offset)
            return handle.read(size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make the clips again") from None


def locate(folder: Path, file: str) -> tuple[Path, int, int]:
    """(file on disk, offset, size) of a clip's bytes, by the same path. Raises UserError where it is missing."""
    shard, separator, member = file.partition(".tar/")
    if not separator:
        try:
            return folder / file, 0, (folder / file).stat().st_size
        except OSError as error:
            raise UserError(f"{folder / file}: cannot be read ({error.strerror}); make the clips again") from None
    path = folder / f"{shard}.tar"
    if not path.is_file():
        raise UserError(f"{path}: no such shard; make the clips again")
    stat = path.stat()
    try:
        return (path, *_index(str(path), stat.st_mtime_ns, stat.st_size)[member])
    except KeyError:
        raise UserError(f"{path}/{member}: not in the shard; make the clips again") from None


@lru_cache(maxsize=256)
def _index(path: str, _mtime: int, _size: int) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(path) as tar:
            return {member.name: (member.offset_data, member.size) for member in tar}
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a readable shard ({error}); make the clips again") from None
