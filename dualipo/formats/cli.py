"""`dualipo import`: one command for each format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dualipo.errors import UserError

if TYPE_CHECKING:
    from dualipo.cli import Decorated
    from dualipo.formats.base import Found
    from dualipo.media.conform import Shape

SHOWN = 20
"""Broken items named on the terminal; the rest stand in skipped.jsonl."""


@click.group("import")
def imports() -> None:
    """Bring labels and clips of other formats into a folder that `dualipo run --data` reads."""


def _common(command: Decorated) -> Decorated:
    """Arguments and options that all formats share."""
    path = click.Path(path_type=Path)
    for decorate in (
        click.option("--add", is_flag=True, help="Keep what DEST holds and add to it."),
        click.option("--link", is_flag=True, help="Hard-link clips where the file system can, instead of copying."),
        click.option(
            "--max-broken",
            default="0",
            show_default=True,
            metavar="N|SHARE",
            help="Broken items to skip before stopping: a number (5), or a share of all (0.02, 2%).",
        ),
        click.argument("dest", type=path),
        click.argument("source", type=path),
    ):
        command = decorate(command)
    return command


def _clips(command: Decorated) -> Decorated:
    where = "Folder that the table's clip paths are relative to."
    return click.option("--clips", type=click.Path(file_okay=False, path_type=Path), help=where)(command)


def _shaped(command: Decorated) -> Decorated:
    """Options that re-encode clips to one shape."""
    for decorate in (
        click.option(
            "--fit",
            type=click.Choice(["pad", "crop"]),
            default="pad",
            show_default=True,
            help="Black borders, or what sticks out cut off.",
        ),
        click.option("--size", metavar="HxW", help="Re-encode to this height and width, e.g. 480x720; both even."),
        click.option(
            "--fps", type=click.FloatRange(min=0, min_open=True), help="Re-encode to this many frames a second."
        ),
        click.option("--frames", type=click.IntRange(min=1), help="Re-encode to this many frames from the start."),
    ):
        command = decorate(command)
    return command


@imports.command()
@_common
@_clips
@click.option("--overall", type=click.Choice(["none", "majority"]), default="none", show_default=True,
              help="Derive an overall choice: the clip that wins more of the three dimensions.")  # fmt: skip
def videoalign(clips: Path | None, overall: str, **common: Any) -> None:
    """VideoAlign's training CSV and its clips: choices.

    SOURCE is the CSV or its folder: path_A,path_B,prompt,VQ,MQ,TA, labels A, B or same.
    """
    from dualipo.formats.pairs import videoalign as read

    _import(read(common["source"], clips, overall == "majority"), **common)


@imports.command()
@_common
@_clips
def videogen_rewardbench(clips: Path | None, **common: Any) -> None:
    """VideoGen-RewardBench: choices.

    SOURCE is the CSV or its folder: path_A,path_B,prompt,VQ,MQ,TA,Overall, labels A, B or same.
    """
    from dualipo.formats.pairs import videogen_rewardbench as read

    _import(read(common["source"], clips), **common)


@imports.command()
@_common
@_clips
def genai_bench(clips: Path | None, **common: Any) -> None:
    """GenAI-Bench's video part: choices, overall only.

    SOURCE is the CSV or JSON lines, or its folder: left_video,right_video,prompt,vote_type.
    """
    from dualipo.formats.pairs import genai_bench as read

    _import(read(common["source"], clips), **common)


@imports.command()
@_common
@_shaped
def clip_folder(frames: int | None, fps: float | None, size: str | None, fit: str, **common: Any) -> None:
    """A folder of clip.mp4 and clip.txt (VidGen-1M and others): real clips.

    The generator needs real clips of one shape: --frames, --fps and --size bring them to its own.
    """
    from dualipo.formats.captioned import clip_folder as read

    _import(read(common["source"]), shape=_shape(frames, fps, size, fit), **common)


@imports.command()
@_common
@_clips
@_shaped
def own(clips: Path | None, frames: int | None, fps: float | None, size: str | None, fit: str, **common: Any) -> None:
    """dualipo's own tables, JSON lines or CSV: ratings, choices, captions, whichever are there.

    SOURCE is their folder.
    """
    from dualipo.formats.own import own_tables as read

    _import(read(common["source"], clips), shape=_shape(frames, fps, size, fit), **common)


def _shape(frames: int | None, fps: float | None, size: str | None, fit: str) -> Shape | None:
    from dualipo.media.conform import Shape

    given = {"--frames": frames, "--fps": fps, "--size": size}
    if all(value is None for value in given.values()):
        return None
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(f"{', '.join(missing)}: needed too, to bring clips to one shape")
    height, _, width = str(size).lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()) or not int(height) or not int(width):
        raise UserError(f"--size {size}: write HEIGHTxWIDTH in pixels, e.g. 480x720")
    if int(height) % 2 or int(width) % 2:
        raise UserError(f"--size {size}: height and width must be even for H.264")
    return Shape(frames or 1, fps or 1.0, int(height), int(width), "crop" if fit == "crop" else "pad")


def _import(
    items: Found, source: Path, dest: Path, max_broken: str, link: bool, add: bool, shape: Shape | None = None
) -> None:
    from dualipo.formats.budget import Budget
    from dualipo.formats.importing import SKIPPED, import_items
    from dualipo.runtime import disk_trouble

    budget = Budget.parse(max_broken)
    with disk_trouble("import", dest.parent):
        done = import_items(items, source, dest, budget, shape=shape, link=link, add=add)
    for item in done.skipped[:SHOWN]:
        click.echo(f"skipped {item.where}: {item.why}", err=True)
    if len(done.skipped) > SHOWN:
        click.echo(f"and {len(done.skipped) - SHOWN} more", err=True)
    if done.skipped:
        click.echo(
            f"skipped {len(done.skipped)} items in all, {done.broken_clips} broken clips: {dest / SKIPPED}", err=True
        )
    rows = ", ".join(f"{count} {stem}" for stem, count in done.rows.items())
    click.echo(f"{dest}: {rows}, {done.clips} clips")
    for note in _notes(dest, done.shapes):
        click.echo(f"note: {note}")


def _notes(dest: Path, shapes: dict[tuple[int, int, int], int]) -> Iterator[str]:
    """What the folder still lacks as part of a data folder."""
    tables = {path.stem: path for path in dest.glob("*.jsonl")}
    if "captions" in tables and len(shapes) > 1:
        first, second = sorted(shapes)[:2]
        shown = " and ".join(f"{frames} frames of {height}x{width}" for frames, height, width in (first, second))
        yield f"real clips of {len(shapes)} shapes ({shown}); a generator takes one: see --frames, --fps, --size"
    if "choices" in tables:
        with open(tables["choices"], encoding="utf-8") as file:
            overall = any('"dimension":"overall"' in line for line in file)
        if "ratings" not in tables or not overall:
            lacking = [*(["ratings"] if "ratings" not in tables else []), *([] if overall else ["overall choices"])]
            yield f"as seed/ this still lacks {' and '.join(lacking)}; add them with --add (docs/data.md)"
