"""Contact sheets: clips as strips of frames under their captions, in one PNG for people to look at."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

GAP, MARGIN, FONT_SIZE = 4, 16, 14
PAPER, INK, FAINT = (255, 255, 255), (24, 28, 36), (100, 108, 120)


def contact_sheet(
    clips: list[np.ndarray], captions: list[str], frames_per_clip: int = 5, scale: int = 3, columns: int = 1
) -> bytes:
    """PNG of one strip a clip, each uint8 (frames, height, width, 3): evenly spaced frames, first and last included.

    `scale` enlarges by whole pixels. Raises ValueError where there is no clip, or captions and clips differ in number.
    """
    _check(clips, captions)
    strips = [_strip(clip, frames_per_clip, scale) for clip in clips]
    width = max(strip.width for strip in strips)
    cells = [_cell([(caption, INK)], [strip], width) for caption, strip in zip(captions, strips, strict=True)]
    return _png(_grid(cells, columns))


def side_by_side(
    left: list[np.ndarray],
    right: list[np.ndarray],
    captions: list[str],
    titles: tuple[str, str] = ("base", "final"),
    frames_per_clip: int = 5,
    scale: int = 3,
) -> bytes:
    """PNG of one row a caption: the strip of `left` and, beside it, that of `right`, under the two titles.

    Raises ValueError where there is no clip, or clips and captions differ in number.
    """
    _check(left, captions)
    _check(right, captions)
    pairs = [[_strip(clip, frames_per_clip, scale) for clip in pair] for pair in zip(left, right, strict=True)]
    width = max(strip.width for pair in pairs for strip in pair)
    rows = [_cell([(titles[0], FAINT), (titles[1], FAINT)], [], width)]
    rows += [_cell([(caption, INK)], pair, width) for caption, pair in zip(captions, pairs, strict=True)]
    return _png(_grid(rows, 1))


def _check(clips: list[np.ndarray], captions: list[str]) -> None:
    if not clips or len(clips) != len(captions):
        raise ValueError(f"a sheet needs clips and as many captions; found {len(clips)} and {len(captions)}")


def _strip(clip: np.ndarray, frames_per_clip: int, scale: int) -> Image:
    from PIL import Image

    picked = clip[np.linspace(0, len(clip) - 1, min(frames_per_clip, len(clip))).round().astype(int)]
    picked = picked.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = picked.shape
    strip = Image.new("RGB", (count * (width + GAP) - GAP, height), PAPER)
    for index, frame in enumerate(picked):
        strip.paste(Image.fromarray(np.ascontiguousarray(frame)), (index * (width + GAP), 0))
    return strip


def _cell(texts: list[tuple[str, tuple[int, int, int]]], strips: list[Image], width: int) -> Image:
    """Strips beside each other, `width` pixels reserved for each, under texts that share the whole width evenly."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_SIZE)
    columns = max(len(strips), len(texts))
    total = columns * (width + MARGIN) - MARGIN
    line = FONT_SIZE + 8
    cell = Image.new("RGB", (total, line + max((strip.height for strip in strips), default=0)), PAPER)
    draw = ImageDraw.Draw(cell)
    step = (total + MARGIN) // len(texts)
    for index, (text, ink) in enumerate(texts):
        draw.text((index * step, 1), _fit(text, font, step - MARGIN), fill=ink, font=font)
    for index, strip in enumerate(strips):
        cell.paste(strip, (index * (width + MARGIN), line))
    return cell


def _fit(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _grid(cells: list[Image], columns: int) -> Image:
    from PIL import Image

    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    width = max(cell.width for cell in cells)
    heights = [max(cell.height for cell in row) for row in rows]
    columns = min(columns, len(cells))
    size = (columns * (width + MARGIN) + MARGIN, sum(heights) + MARGIN * (len(rows) + 1))
    sheet = Image.new("RGB", size, PAPER)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for index, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + index * (width + MARGIN), top))
        top += height + MARGIN
    return sheet


def _png(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
