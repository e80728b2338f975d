"""A data folder cut down to a few prompts, labels and clips, beside the models as they are."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

from dualipo.records import HumanChoice, HumanRating, RealClip, Record, clips_of, find_table, joined, read_rows

MODELS = ("generator", "critic", "critic_reference")


def shrink(
    data: Path, target: Path, seed_prompts: int = 3, test_prompts: int = 3, benchmark: int = 6, real: int = 12
) -> Path:
    """Copies part of the data folder `data` to `target`: ten pairs and eight rated clips go with each prompt."""
    for name in MODELS:
        shutil.copytree(data / name, target / name)
    for name, prompts in (("seed", seed_prompts), ("test", test_prompts)):
        ratings = read_rows(find_table(data / name, "ratings"), HumanRating)
        choices = read_rows(find_table(data / name, "choices"), HumanChoice)
        kept = list(dict.fromkeys(row.prompt for row in choices))[:prompts]
        ratings = [row for row in ratings if row.prompt in kept]
        choices = [row for row in choices if row.prompt in kept]
        _write(target / name / "ratings.csv", ratings)
        _write(target / name / "choices.csv", choices)
        named = {clip for row in joined(ratings, choices) for clip in clips_of(row)}
        _copy_clips(data / name, target / name, sorted(named))
    captions = read_rows(find_table(data / "real", "captions"), RealClip)[:real]
    _write(target / "real/captions.csv", captions)
    _copy_clips(data / "real", target / "real", [row.clip for row in captions])
    lines = (data / "benchmark.jsonl").read_text().splitlines(keepends=True)
    (target / "benchmark.jsonl").write_text("".join(lines[:benchmark]))
    return target


def _write(path: Path, rows: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(type(rows[0]).model_fields), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.model_dump() for row in rows)


def _copy_clips(source: Path, target: Path, clips: Sequence[str]) -> None:
    for clip in clips:
        (target / clip).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / clip, target / clip)
