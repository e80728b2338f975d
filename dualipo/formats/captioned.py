"""Real clips, each with a caption of the same name beside it, as VidGen-1M and others are unpacked."""

from __future__ import annotations

import os
from pathlib import Path

from dualipo.errors import UserError
from dualipo.formats.base import Broken, Found, Item
from dualipo.records import RealClip

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


def clip_folder(source: Path) -> Found:
    """Assumed layout: `name.mp4` beside `name.txt`, at any depth; the text is the caption, UTF-8, its line breaks are
    taken for spaces. A clip without a text or a text without a clip is broken. Raises UserError where there is neither.
    """
    if not source.is_dir():
        raise UserError(f"{source}: a folder of clips and texts is needed, one .txt beside each .mp4")
    clips: dict[Path, Path] = {}
    texts: set[Path] = set()
    for folder, inner, names in os.walk(source):
        inner.sort()
        for path in (Path(folder) / name for name in sorted(names) if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES:
                clips[path.with_suffix("")] = path
            elif path.suffix == ".txt":
                texts.add(path.with_suffix(""))
    if not clips and not texts:
        raise UserError(f"{source}: neither clips nor texts here; one .txt beside each .mp4 is needed")
    for stem in sorted({*clips, *texts}):
        if stem not in clips:
            yield Broken(f"{stem}.txt", "no clip beside it")
        elif stem not in texts:
            yield Broken(f"{clips[stem]}", "no .txt beside it")
        else:
            yield _captioned(clips[stem], Path(f"{stem}.txt"))


def _captioned(clip: Path, text: Path) -> Item | Broken:
    try:
        caption = " ".join(text.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        return Broken(f"{text}", "the caption is not UTF-8")
    if not caption:
        return Broken(f"{text}", "the caption is empty")
    return Item(f"{clip}", (RealClip(clip=str(clip), prompt=caption),))
