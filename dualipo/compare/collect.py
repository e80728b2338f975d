"""Gathers the versions, their scores, their differences prompt by prompt and the clips into one plain dict."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from dualipo import __version__
from dualipo.artifacts import read_json
from dualipo.compare.measured import ANEW, Measured, measured, require_same
from dualipo.compare.versions import Compared, find_versions, provenance
from dualipo.config import Config
from dualipo.evaluation.bootstrap import paired_difference
from dualipo.media.store import read_bytes
from dualipo.media.video import decode_clip, frame_times
from dualipo.records import Clip
from dualipo.report.clips import TINY, compact

SMALL_WORLD = "small_world"
MOST_TINY, MOST = 180, 60
"""Clips of each version on a page where nothing else is said: of tiny ones, and of larger ones."""
TOTAL = "total"
_NOT_DIMENSIONS = ("clip", "prompt_id", "prompt", TOTAL)

ByPrompt = dict[str, dict[str, float]]
"""Name of a score -> prompt -> mean over its clips, points of 100."""


def collect(
    root: Path,
    config: Config,
    references: Sequence[str],
    benchmark: Path,
    anew: int | None = None,
    max_clips: int | None = None,
) -> dict[str, Any]:
    """Everything the page shows, as plain values (clips as base64 mp4). Differences are to the first version.

    `benchmark` is the table of held-out prompts, read where `anew` says of how many of them clips are sampled anew.
    Raises UserError where a reference is not good, or versions can't be compared.
    """
    compared = find_versions(root, config, references)
    if anew is None:
        found = [measured(root, each) for each in compared]
        require_same(compared, found)
    else:
        from dualipo.compare.sampled import sample_anew

        found = sample_anew(root, config, compared, benchmark, anew)
    tables = [_by_prompt(each) for each in found]
    prompts = _prompts(found, tables)
    clips = _embed(found, prompts, max_clips)
    names = _dimensions(found)
    return {
        "version": __version__,
        "experiment": config.experiment.name,
        "suite": found[0].suite,
        "small_world": found[0].suite == SMALL_WORLD,
        "anew": anew is not None,
        "prompt_score": TOTAL if TOTAL in tables[0] else "dimensions",
        "dimensions": names,
        "versions": [
            _version(root, config, each, found, tables, names, number) for number, each in enumerate(compared)
        ],
        "prompts": prompts,
        "clips": clips,
        "count": {
            "prompts": len(prompts),
            "clips": len(found[0].store),
            "seeds": len(prompts[0]["seeds"]),
            "shown_prompts": sum(bool(prompt["seeds"][0]["shown"]) for prompt in prompts),
            "shown": len(clips) // len(found),
        },
        "warnings": _warnings(compared, found),
    }


# ---- scores


def _by_prompt(found: Measured) -> ByPrompt:
    """Every score's mean over the clips of each prompt. Where clips have no total, as VBench's, there is none here."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in found.rows.values():
        content = row.model_dump()
        for name in [TOTAL, *(key for key in content if key not in _NOT_DIMENSIONS)]:
            own = values.setdefault(name, {})
            if content[name] is not None:
                own.setdefault(row.prompt_id, []).append(content[name])
    return {name: {p: fmean(v) for p, v in prompts.items()} for name, prompts in values.items() if prompts}


def _dimensions(found: Sequence[Measured]) -> list[str]:
    """Dimensions that some version was scored on, in the suite's order where the clips' rows tell it."""
    rows = next((list(each.rows.values()) for each in found if each.rows), [])
    told = dict.fromkeys(key for row in rows for key in row.model_dump() if key not in _NOT_DIMENSIONS)
    scored = {name for each in found if each.scores for name, value in each.scores.dimensions.items() if value}
    return [name for name in told if name in scored] + sorted(scored - told.keys())


def _version(
    root: Path,
    config: Config,
    compared: Compared,
    found: Sequence[Measured],
    tables: Sequence[ByPrompt],
    names: Sequence[str],
    number: int,
) -> dict[str, Any]:
    own = found[number]
    scores = own.scores
    resamples = config.evaluate.bootstrap
    return {
        "name": compared.name,
        "experiment": compared.tracker.config.experiment.name,
        "total": scores.total.model_dump() if scores and scores.total else None,
        "dimensions": {
            name: value.model_dump() if scores and (value := scores.dimensions.get(name)) else None for name in names
        },
        "guided": scores.guided if scores else None,
        "difference": _difference(found[0], own, tables[0], tables[number], names, resamples) if number else None,
        "hashes": own.hashes,
        "settings": own.settings,
        "provenance": provenance(root, compared),
    }


def _difference(
    before: Measured, after: Measured, first: ByPrompt, own: ByPrompt, names: Sequence[str], resamples: int
) -> dict[str, Any]:
    """The second less the first, paired by prompt with 95 percent intervals over prompts, and how many prompts gain,
    lose, or stay (by less than half a point)."""
    found: dict[str, Any] = {
        name: paired_difference(first[name], own[name], seed=0, resamples=resamples)
        for name in (TOTAL, *names)
        if first.get(name, {}).keys() & own.get(name, {}).keys()
    }
    if TOTAL not in found and before.file and after.file:
        # the total of VBench is no mean over clips.
        from dualipo.evaluation.paired import paired_total

        found[TOTAL] = paired_total(read_json(before.file), read_json(after.file), 0, resamples)
    scores = [prompt_scores(table) for table in (first, own)]
    gains = [scores[1][prompt] - scores[0][prompt] for prompt in scores[0].keys() & scores[1].keys()]
    return {
        "total": found.pop(TOTAL, None),
        "dimensions": found,
        "gained": sum(gain >= 0.5 for gain in gains),
        "lost": sum(gain <= -0.5 for gain in gains),
        "same": sum(abs(gain) < 0.5 for gain in gains),
    }


def prompt_scores(table: ByPrompt) -> dict[str, float]:
    """One score a prompt: its clips' mean total, or where clips have none the mean of the prompt's dimensions."""
    if TOTAL in table:
        return table[TOTAL]
    values: dict[str, list[float]] = {}
    for prompts in table.values():
        for prompt, value in prompts.items():
            values.setdefault(prompt, []).append(value)
    return {prompt: fmean(own) for prompt, own in values.items()}


# ---- prompts and clips


def _prompts(found: Sequence[Measured], tables: Sequence[ByPrompt]) -> list[dict[str, Any]]:
    """A row a prompt: where the last version differs most from the first at the head; without scores by their text."""
    scores = [prompt_scores(table) for table in tables]
    rows: list[dict[str, Any]] = []
    for prompt_id, clips in found[0].store.by_prompt().items():
        others = [{clip.seed: clip for clip in each.store.by_prompt()[prompt_id]} for each in found]
        known = next((each.prompts[prompt_id] for each in found if prompt_id in each.prompts), None)
        asked = [name for name in tables[0] if name != TOTAL and prompt_id in tables[0][name]]
        own = [score.get(prompt_id) for score in scores]
        rows.append(
            {
                "id": prompt_id,
                "text": clips[0].prompt,
                "categories": known.categories if known else {},
                "asked": asked,
                "scores": own,
                "dimensions": {name: [table.get(name, {}).get(prompt_id) for table in tables] for name in asked},
                "seeds": [_seed(found, [other[clip.seed] for other in others]) for clip in clips],
            }
        )
    return sorted(rows, key=lambda row: (-abs(gain(row["scores"], 0, -1) or 0.0), row["text"]))


def gain(scores: Sequence[float | None], one: int, two: int) -> float | None:
    """Second less first; None where either is missing."""
    before, after = scores[one], scores[two]
    return None if before is None or after is None else after - before


def _seed(found: Sequence[Measured], clips: Sequence[Clip]) -> dict[str, Any]:
    rows = [each.rows.get(clip.id) for each, clip in zip(found, clips, strict=True)]
    return {
        "seed": clips[0].seed,
        "clips": [clip.id for clip in clips],
        "totals": [row.total if row else None for row in rows],
        "shown": [],
    }


def _embed(found: Sequence[Measured], prompts: Sequence[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """Clips for the page, at most `most` of each version; each seed's `shown` tells their places in it.

    Every prompt's first seed comes before any prompt's second one, and prompts that differ more before those that
    differ less, whichever versions differ.
    """

    def spread(row: dict[str, Any]) -> float:
        present = [score for score in row["scores"] if score is not None]
        return max(present) - min(present) if present else 0.0

    order = sorted(prompts, key=spread, reverse=True)
    longest = max(len(row["seeds"]) for row in order)
    asked = (row["seeds"][number] for number in range(longest) for row in order if number < len(row["seeds"]))
    if most is None:
        first = found[0].store
        most = MOST_TINY if max(first[first.clips[0].id].shape[1:3]) < TINY else MOST
    places: list[dict[str, Any]] = []
    chosen = list(islice(asked, most))
    for seed in tqdm(chosen, desc="clips", leave=False):
        for each, clip in zip(found, seed["clips"], strict=True):
            seed["shown"].append(len(places))
            places.append(_clip(each, clip))
    return places


def _clip(found: Measured, clip: str) -> dict[str, Any]:
    file = found.store.file(clip)
    data, name = read_bytes(found.store.folder, file), str(found.store.folder / file)
    times = frame_times(data, name)
    fps = float((len(times) - 1) / (times[-1] - times[0])) if len(times) > 1 else 8.0
    return compact(decode_clip(data, name), fps)


# ---- warnings


def _warnings(compared: Sequence[Compared], found: Sequence[Measured]) -> list[str]:
    warnings = []
    for key in found[0].settings:
        values = [each.settings.get(key) for each in found]
        if any(value != values[0] for value in values):
            told = ", ".join(f"{each.name} with {value}" for each, value in zip(compared, values, strict=True))
            warnings.append(
                f"Not sampled alike: {key} differs ({told}). What differs may be the sampling and not the generators; "
                f"to settle it, {ANEW}."
            )
    same = {each.version.md5 for each in compared}
    if len(same) < len(compared):
        warnings.append("Some of these versions hold the same bytes: they are the same generator.")
    return warnings
