"""How far people agree with each other, which is as far as a critic can agree with them; and agreement in parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualipo.critic.questions import Answered, Question
from dualipo.critic.voting import INVALID, WORDS, Kind, majority, tally
from dualipo.evaluation.bootstrap import interval
from dualipo.prompts.sampler import normal
from dualipo.records import HumanLabel, Prompt, clips_of, read_rows

LEVELS: dict[Kind, Literal["ordinal", "nominal"]] = {"rating": "ordinal", "choice": "nominal"}
"""Level of measurement for Krippendorff's alpha: bad, normal, good are in order; a, b, tie are three names."""
PROMPTS = "prompts.jsonl"
"""Beside human labels: rows of Prompt whose `categories` say what kind of prompt each text is."""


def agreement_of_people(rows: Sequence[HumanLabel], seed: int) -> list[dict[str, Any]]:
    """One entry for each question that an item got two annotators' verdicts on, the ceiling of a critic's agreement.

    `alpha`: Krippendorff's, at `level`; null where every verdict is the same. `mean`, `low`, `high`: share of verdicts
    that are the majority of the item's other annotators (equal votes are a tie, or `normal`), in the units of a
    critic's agreement, with its interval over prompts. `items` with two annotators or more, `annotators` at most.
    """
    items: dict[Question, list[HumanLabel]] = defaultdict(list)
    for row in rows:
        items[Question(row.dimension, row.prompt, clips_of(row))].append(row)
    shared: dict[tuple[str, Kind], list[list[HumanLabel]]] = defaultdict(list)
    for question, own in items.items():
        if len(own) > 1:
            shared[question.topic, question.kind].append(own)
    return [_people(topic, kind, own, seed) for (topic, kind), own in sorted(shared.items())]


def _people(topic: str, kind: Kind, items: Sequence[Sequence[HumanLabel]], seed: int) -> dict[str, Any]:
    import krippendorff

    # in order, from bad to good; of choices the order plays no part.
    words = WORDS[kind][::-1]
    counts = []
    hits, prompts = [], []
    for rows in items:
        verdicts = [row.verdict for row in rows]
        counted = tally(verdicts, words)
        counts.append([counted[word] for word in words])
        for index, row in enumerate(rows):
            others = [*verdicts[:index], *verdicts[index + 1 :]]
            hits.append(float(row.verdict == majority(others, kind)))
            prompts.append(row.prompt)
    table = np.array(counts)
    varied = np.count_nonzero(table.sum(0)) > 1
    alpha = krippendorff.alpha(value_counts=table, level_of_measurement=LEVELS[kind]) if varied else None
    return {
        "question": topic,
        "alpha": None if alpha is None else float(alpha),
        "level": LEVELS[kind],
        "items": len(items),
        "annotators": max(len(rows) for rows in items),
        **interval(hits, prompts, seed),
    }


def by_question(items: Sequence[Answered], hits: Sequence[float], seed: int) -> list[dict[str, Any]]:
    """Share of `hits`, 0 or 1 an item, for each question (`choice/overall`, `rating/motion`), with its interval."""
    parts: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for item, hit in zip(items, hits, strict=True):
        parts[item.question.topic].append((hit, item.question.prompt))
    return [{"question": topic, **_part(own, seed)} for topic, own in sorted(parts.items())]


def by_category(
    items: Sequence[Answered], hits: Sequence[float], categories: Mapping[str, Mapping[str, str]], seed: int
) -> list[dict[str, Any]]:
    """The same for each value of each category of `read_categories`; items of prompts that it lacks are left out."""
    parts: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for item, hit in zip(items, hits, strict=True):
        for pair in categories.get(normal(item.question.prompt), {}).items():
            parts[pair].append((hit, item.question.prompt))
    return [{"category": c, "value": v, **_part(own, seed)} for (c, v), own in sorted(parts.items())]


def _part(hits: Sequence[tuple[float, str]], seed: int) -> dict[str, Any]:
    return {**interval([hit for hit, _ in hits], [prompt for _, prompt in hits], seed), "items": len(hits)}


def read_categories(folder: Path) -> dict[str, dict[str, str]]:
    """Categories by normalised prompt text, where the folder of human labels says them; else nothing."""
    path = folder / PROMPTS
    return {normal(row.text): row.categories for row in read_rows(path, Prompt)} if path.is_file() else {}


def most_frequent(answered: Sequence[Answered]) -> dict[str, str]:
    """The most frequent verdict of each question; of equals the first in the order of WORDS."""
    verdicts: dict[tuple[str, Kind], list[str]] = defaultdict(list)
    for item in answered:
        verdicts[item.question.topic, item.question.kind].append(item.verdict)
    found = {}
    for (topic, kind), own in sorted(verdicts.items()):
        counts = tally(own, WORDS[kind])
        counts.pop(INVALID)
        found[topic] = max(counts, key=lambda word: counts[word])
    return found
