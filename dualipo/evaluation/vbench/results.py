"""VBench's result files: read, and held against the clips that had to be scored."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
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
_AGAIN = "score the dimension again"


@dataclass(frozen=True)
class Measured:
    """One dimension of one set of clips, in points of 100."""

    dimension: str
    value: float
    """The mean: VBench's own of scores that were imported, else that of `pooled`."""
    clips: dict[str, float]
    """By file name; clips that VBench left out are missing."""
    raw: Any
    """As VBench wrote it, file names in the place of paths."""


def check(dimension: str, content: Any, expected: Iterable[str], where: str) -> Measured:
    """`content` is [mean, one row a clip], as VBench writes them.

    Raises UserError as `check_rows`, and where the mean does not follow from the clips.
    """
    try:
        value, rows = content
        value = _number(value)
    except (TypeError, ValueError):
        raise _no_result(dimension, where) from None
    scores = check_rows(dimension, rows, expected, where)
    scale = 100.0 if dimension in _PERCENT else 1.0
    mean = math.fsum(scores.values()) / len(scores) / scale
    if abs(mean - value) > _TOLERANCE:
        raise UserError(
            f"{where}: {dimension} is {value:.4f}, but its clips' mean is {mean:.4f}; it is no result of the VBench "
            f"that is read here; {_AGAIN}"
        )
    clips = {name: 100 * score / scale for name, score in scores.items()}
    raw = [value, [{**row, "video_path": name} for row, name in zip(rows, scores, strict=True)]]
    return Measured(dimension, 100 * value, clips, raw)


def check_rows(dimension: str, rows: Any, expected: Iterable[str], where: str) -> dict[str, float]:
    """VBench's score of each clip by its file name, in the order of `rows`.

    Raises UserError where they have another shape, a number is NaN, or a clip of `expected` was not scored, one was
    scored twice, or an unknown one was.
    """
    try:
        names = [Path(row["video_path"]).name for row in rows]
        scores = [_number(row["video_results"]) for row in rows]
    except (TypeError, ValueError, KeyError):
        raise _no_result(dimension, where) from None
    wanted = set(expected)
    if unknown := sorted(set(names) - wanted):
        raise UserError(f"{where}: {dimension} scores {unknown[0]!r}, which is not among the clips; {_AGAIN}")
    if len(set(names)) != len(names):
        raise UserError(f"{where}: {dimension} scores a clip twice; {_AGAIN}")
    missing = sorted(wanted - set(names))
    if missing and dimension not in _MAY_SKIP:
        raise UserError(
            f"{where}: {dimension} is partial, {len(missing)} of {len(wanted)} clips have no score, {missing[0]!r} "
            f"among them; {_AGAIN}"
        )
    if not names:
        raise UserError(f"{where}: {dimension} has no scored clip; {_AGAIN}")
    return dict(zip(names, scores, strict=True))


def _no_result(dimension: str, where: str) -> UserError:
    return UserError(
        f"{where}: {dimension} is no result of VBench, [mean, [{{video_path, video_results}}, ...]] in finite numbers; "
        f"{_AGAIN}"
    )


def pooled(dimension: str, rows: Sequence[Mapping[str, Any]], where: str) -> float:
    """The mean that VBench 0.1.5 takes in one process, over what `rows` score, as a fraction of 1.

    It pools frames in seven dimensions and clips in nine. How many frames stands in the rows, but for subject
    consistency, where clips of equal length give the same. Summed without rounding: neither the order of the rows nor
    how many processes made them changes a bit. Raises UserError where a row lacks what is pooled.
    """
    try:
        if dimension in ("object_class", "multiple_objects", "scene"):
            parts = [(row["success_frame_count"], row["frame_count"]) for row in rows]
        elif dimension == "background_consistency":
            parts = [(row["video_sim"], row["cnt_per_video"]) for row in rows]
        elif dimension in ("appearance_style", "spatial_relationship"):
            parts = [(value, 1) for row in rows for value in row["frame_results"]]
        else:
            parts = [(row["video_results"], 1) for row in rows]
        mean = math.fsum(value for value, _ in parts) / sum(count for _, count in parts)
        return _number(mean / 100 if dimension in _PERCENT else mean)
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise UserError(f"{where}: a row of {dimension} lacks what VBench takes the mean of; {_AGAIN}") from None


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
