"""Byte ranges of a clip (RFC 9110, 14): browsers ask for parts when they loop or seek."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
PIECE = 256 * 1024


class Unsatisfiable(Exception):
    """No byte of the range exists."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, byte after the last) of a `Range` header; None for the whole, also where the header is of a form
    that a server may pass over (several ranges, another unit, the end before the start)."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(size - int(match[2]), 0), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= size or start >= end:
        raise Unsatisfiable
    return start, end


def pieces(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The file's bytes from `start` to before `end`, some at a time."""
    with open(path, "rb") as file:
        file.seek(start)
        while start < end and (data := file.read(min(PIECE, end - start))):
            start += len(data)
            yield data
