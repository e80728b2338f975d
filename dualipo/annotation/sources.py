"""Where items come from: a folder of clips in any format that `dualipo import` reads, a round's candidates, golden
labels. Each function gives what to ask, most wanted first.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualipo.annotation.items import Ask, Place
from dualipo.errors import UserError
from dualipo.formats.base import Broken, Found, open_table
from dualipo.media.store import MANIFEST, ClipStore
from dualipo.records import (
    HumanChoice,
    PseudoChoice,
    PseudoLabel,
    PseudoRating,
    clips_of,
    joined,
    read_labels,
    read_rows,
    table_lines,
)
from dualipo.steps import derive_seed

TABLES = ("ratings", "choices", "captions")


@dataclass(frozen=True)
class Pool:
    """Clips to rate and pairs to compare, most wanted first."""

    ratings: list[Ask]
    choices: list[Ask]
    left_out: int = 0
    """Broken items of the source."""
    first: str = ""
    """What is wrong with the first of them."""


def clip_pool(folder: Path, seed: int) -> Pool:
    """Clips of a folder and pairs of those that share a prompt, in an order that goes round all prompts.

    FOLDER holds a manifest (candidates, benchmark clips), our own tables, a public set's table, or clips with texts.
    Of tables of pairs the listed pairs are asked, of anything else every pair is possible. Raises UserError where it
    holds none of these.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of clips")
    if (folder / MANIFEST).is_file():
        clips = [(clip.prompt_id, clip.prompt, Place(folder, clip.file)) for clip in ClipStore(folder).clips]
        return _pool(clips, None, seed)
    singles: dict[tuple[str, str], None] = {}
    pairs: dict[tuple[str, str, str], None] = {}
    broken: list[Broken] = []
    listed = False
    for item in _rows_of(folder):
        if isinstance(item, Broken):
            broken.append(item)
            continue
        for row in item.rows:
            if isinstance(row, HumanChoice):
                listed = True
                if (row.prompt, row.clip_b, row.clip_a) not in pairs:
                    pairs[row.prompt, row.clip_a, row.clip_b] = None
        for row in item.rows:
            for clip in item.clips:
                singles[row.prompt, clip] = None
    clips = [(prompt, prompt, _place(clip)) for prompt, clip in singles]
    asked = [Ask(prompt, prompt, (_place(a), _place(b))) for prompt, a, b in pairs] if listed else None
    pool = _pool(clips, asked, seed)
    first = f"{broken[0].where}: {broken[0].why}" if broken else ""
    if not pool.ratings:
        raise UserError(f"{folder}: no usable clip in it{f', first {first}' if first else ''}")
    return Pool(pool.ratings, pool.choices, len(broken), first)


def candidate_pool(candidates: Path, labels: Path, seed: int, uncertain: bool) -> Pool:
    """Clips and pairs of a round's candidates: at random, or those first of which its critic was least certain.

    Our reading of uncertainty: the smaller the verdict's share of all readable votes (both orders of a pair together),
    the less certain; of equal shares the smaller certainty (PCE, Dual-IPO eq. 3). A clip's three ratings count
    together, by their means. Raises UserError where there are no labels to tell.
    """
    store = ClipStore(candidates)
    if not uncertain:
        return clip_pool(candidates, seed)
    if not labels.is_dir():
        raise UserError(
            f"{labels}: no labels, so nothing tells what the critic is uncertain of; run `dualipo label`, "
            "or --select random"
        )
    places = {clip.id: Place(candidates, store.file(clip.id)) for clip in store.clips}

    def place(clip: str) -> Place:
        store.file(clip)  # names the clip where the labels are another round's
        return places[clip]

    rated: dict[str, list[PseudoRating]] = {}
    for row in read_rows(labels / "ratings.jsonl", PseudoRating, allow_empty=True):
        rated.setdefault(row.clip, []).append(row)
    clips = sorted(rated.values(), key=lambda rows: (*_certainty(rows), rows[0].clip))
    pairs = sorted(
        read_rows(labels / "choices.jsonl", PseudoChoice, allow_empty=True),
        key=lambda row: (*_certainty([row]), row.clip_a, row.clip_b),
    )
    return Pool(
        [Ask(rows[0].prompt_id, rows[0].prompt, (place(rows[0].clip),)) for rows in clips],
        [Ask(row.prompt_id, row.prompt, (place(row.clip_a), place(row.clip_b))) for row in pairs],
    )


def golden_pool(folder: Path, seed: int) -> Pool:
    """Items of a folder of human labels on which all its annotators agree, with the answers."""
    ratings, choices = read_labels(folder)
    votes: dict[tuple[str, tuple[str, ...]], dict[str, set[str]]] = {}
    for row in joined(ratings, choices):
        clips = clips_of(row)
        votes.setdefault((row.prompt, clips), {}).setdefault(row.dimension, set()).add(row.verdict)
    alone: list[Ask] = []
    pairs: list[Ask] = []
    for (prompt, clips), said in votes.items():
        if known := {dimension: min(words) for dimension, words in said.items() if len(words) == 1}:
            places = tuple(_place(os.path.join(folder, clip)) for clip in clips)
            (alone if len(clips) == 1 else pairs).append(Ask(prompt, prompt, places, known))
    if not (alone or pairs):
        raise UserError(f"{folder}: on no item do all annotators agree, so none can be golden; use other labels")
    return Pool(round_robin(alone, seed), round_robin(pairs, seed))


def round_robin(asks: Sequence[Ask], seed: int) -> list[Ask]:
    """One ask of every prompt, then a second one of each, and so on; prompts and their asks in random order."""
    rng = random.Random(derive_seed(seed, "items"))
    groups: dict[str, list[Ask]] = {}
    for ask in rng.sample(asks, len(asks)):
        groups.setdefault(ask.prompt_id, []).append(ask)
    return [ask for turn in itertools.zip_longest(*groups.values()) for ask in turn if ask is not None]


def _pool(clips: Iterable[tuple[str, str, Place]], pairs: list[Ask] | None, seed: int) -> Pool:
    singles = [Ask(prompt_id, prompt, (place,)) for prompt_id, prompt, place in clips]
    if pairs is None:
        rng = random.Random(derive_seed(seed, "pairs"))
        groups: dict[str, list[Ask]] = {}
        for ask in singles:
            groups.setdefault(ask.prompt_id, []).append(ask)
        pairs = [
            Ask(first.prompt_id, first.prompt, tuple(rng.sample(first.clips + second.clips, 2)))
            for group in groups.values()
            for first, second in itertools.combinations(group, 2)
        ]
    return Pool(round_robin(singles, seed), round_robin(pairs, seed))


def _place(path: str) -> Place:
    folder, file = os.path.split(path)
    return Place(Path(folder), file)


def _rows_of(folder: Path) -> Found:
    """The folder's items in its own format, found by its tables' names and columns."""
    from dualipo.formats.captioned import clip_folder
    from dualipo.formats.own import own_tables
    from dualipo.formats.pairs import genai_bench, videoalign, videogen_rewardbench

    if any((folder / f"{stem}{suffix}").is_file() for stem in TABLES for suffix in (".csv", ".jsonl")):
        return own_tables(folder)
    if not any(path.suffix in (".csv", ".jsonl") for path in folder.iterdir()):
        return clip_folder(folder)
    table = open_table(folder)
    columns = next((set(row) for _, row in table_lines(table) if isinstance(row, dict)), set())
    if "left_video" in columns:
        return genai_bench(table)
    if "path_A" in columns:
        return (videogen_rewardbench if "Overall" in columns else videoalign)(table)
    raise UserError(f"{table}: of no known format; `dualipo import` lists them, docs/data.md has their columns")


def _certainty(rows: Sequence[PseudoLabel]) -> tuple[float, float]:
    """(share of the verdict's votes, PCE), means over the rows."""
    shares = []
    for row in rows:
        readable = sum(count for word, count in row.votes.items() if word != "invalid")
        shares.append(row.votes.get(row.verdict, 0) / readable if readable else 0.0)
    return sum(shares) / len(rows), sum(row.certainty for row in rows) / len(rows)
