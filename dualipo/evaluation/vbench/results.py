"""VBench's result files: read, and held against the clips that had to be scored."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualipo.errors import UserError
from dualipo.evaluation.vbench.aggregate import DIMENSIONS

SUFFIX = "_eval_results.json"
FILTER = "filtered_static_video.json"
"""What VBench's static filter left, by prompt."""
_PERCENT = ("imaging_quality",)
"""Dimensions whose clips VBench scores from 0 to 100 while their mean is a fraction of 1."""
_MAY_SKIP = ("color",)
"""Dimensions in which VBench leaves out clips itself: those where it sees no such object of any colour."""
_TOLERANCE = 0.01
"""Between VBench's own mean, which weighs frames here and clips there, and the mean over clips."""


@dataclass(frozen=True)
class Measured:
    """One dimension of one set of clips, in points of 100."""

    dimension: str
    value: float
    """VBench's own mean."""
    clips: dict[str, float]
    """By file name; clips that VBench left out are missing."""
    raw: Any
    """As VBench wrote it, file names in the place of paths."""


def check(dimension: str, content: Any, expected: Iterable[str], where: str) -> Measured:
    """`content` is [mean, one row a clip], as VBench writes them.

    Raises UserError where it has another shape, a number is NaN, a clip of `expected` was not scored or an unknown one
    was, or the mean does not follow from the clips.
    """
    again = "score the dimension again"
    try:
        value, rows = content
        names = [Path(row["video_path"]).name for row in rows]
        scores = [_number(row["video_results"]) for row in rows]
        value = _number(value)
    except (TypeError, ValueError, KeyError):
        raise UserError(
            f"{where}: {dimension} is no result of VBench, [mean, [{{video_path, video_results}}, ...]] in finite "
            f"numbers; {again}"
        ) from None
    wanted = set(expected)
    if unknown := sorted(set(names) - wanted):
        raise UserError(f"{where}: {dimension} scores {unknown[0]!r}, which is not among the clips; {again}")
    if len(set(names)) != len(names):
        raise UserError(f"{where}: {dimension} scores a clip twice; {again}")
    missing = sorted(wanted - set(names))
    if missing and dimension not in _MAY_SKIP:
        raise UserError(
            f"{where}: {dimension} is partial, {len(missing)} of {len(wanted)} clips have no score, {missing[0]!r} "
            f"among them; {again}"
        )
    if not names:
        raise UserError(f"{where}: {dimension} has no scored clip; {again}")
    scale = 100.0 if dimension in _PERCENT else 1.0
    mean = math.fsum(scores) / len(scores) / scale
    if abs(mean - value) > _TOLERANCE:
        raise UserError(
            f"{where}: {dimension} is {value:.4f}, but its clips' mean is {mean:.4f}; it is no result of the VBench "
            f"that is read here; {again}"
        )
    clips = {name: 100 * score / scale for name, score in zip(names, scores, strict=True)}
    raw = [value, [{**row, "video_path": name} for row, name in zip(rows, names, strict=True)]]
    return Measured(dimension, 100 * value, clips, raw)


def read_results(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """([mean, rows] by dimension, what the static filter left) of a JSON file, a folder of them, or a zip of them.

    The second is None where there is nothing of the filter. Raises UserError where there is no result of VBench, or a
    dimension stands in two files.
    """
    found: dict[str, Any] = {}
    left: dict[str, Any] | None = None
    for name, text in _texts(path):
        content = parse_json(text, f"{path}: {name}")
        if name.rpartition("/")[2] == FILTER:
            left = content
            continue
        if not isinstance(content, dict):
            continue  # VBench's <name>_full_info.json lies beside its results
        for dimension in content.keys() & set(DIMENSIONS):
            if dimension in found:
                raise UserError(f"{path}: {dimension} stands in two files, {name} being one; leave one")
            found[dimension] = content[dimension]
    if not found:
        raise UserError(
            f"{path}: no results of VBench in here; give its <name>{SUFFIX}, a folder or a zip of such files"
        )
    return found, left


def parse_json(text: str, where: str) -> Any:
    """Raises UserError where the text is no JSON, or says NaN: what VBench writes where no clip was found."""

    def refuse(word: str) -> Any:
        raise UserError(f"{where}: {word} in it: VBench found no clip to score; score it again")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error}); score it again") from None


def static_names(left: Mapping[str, Any], where: str) -> dict[str, str]:
    """File name that VBench's static filter gave -> the clip's own, from the contents of `FILTER`."""
    try:
        return {
            f"{prompt}-{number}.mp4": Path(path).name
            for prompt, entry in left.items()
            for number, path in enumerate(entry["static_path"])
        }
    except (AttributeError, TypeError, KeyError):
        raise UserError(f"{where}: not what VBench's static filter writes; filter again") from None


def _number(value: Any) -> float:
    """Dynamic degree and human action score clips with true and false."""
    number = float(value)
    if not math.isfinite(number) or isinstance(value, str):
        raise ValueError(value)
    return number


def _texts(path: Path) -> Iterable[tuple[str, str]]:
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*.json")):
                yield file.relative_to(path).as_posix(), file.read_text(encoding="utf-8")
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(".json") and not name.startswith("__"):
                        yield name, archive.read(name).decode("utf-8")
        else:
            yield path.name, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a file, folder or zip of VBench's results") from None
