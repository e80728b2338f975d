"""How far annotators agree with each other, which is as far as a critic can agree with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dualipo.critic.questions import Question
from dualipo.critic.voting import WORDS, majority, tally
from dualipo.evaluation.bootstrap import interval
from dualipo.records import HumanChoice, HumanRating

LEVELS = {"rating": "ordinal", "choice": "nominal"}
"""Level of measurement for Krippendorff's alpha: bad, normal, good are in order; a, b, tie are three names."""


def agreement_of_people(rows: Sequence[HumanRating | HumanChoice], seed: int) -> list[dict[str, Any]]:
    """One entry for each question (`choice/overall`) that an item got two annotators' verdicts on.

    `alpha`: Krippendorff's, at `level`; null where every verdict is the same. `mean`, `low`, `high`: share of verdicts
    that are the majority of the item's other annotators (equal votes are a tie, or `normal`), with its interval over
    prompts. `items` with two annotators or more, `annotators` at most.
    """
    items: dict[Question, list[str]] = defaultdict(list)
    for row in rows:
        clips = (row.clip,) if isinstance(row, HumanRating) else (row.clip_a, row.clip_b)
        items[Question(row.dimension, row.prompt, clips)].append(row.verdict)
    topics: dict[str, list[tuple[Question, list[str]]]] = defaultdict(list)
    for question, verdicts in items.items():
        if len(verdicts) > 1:
            topics[question.topic].append((question, verdicts))
    return [_agreement(topic, own, seed) for topic, own in sorted(topics.items())]


def _agreement(topic: str, items: Sequence[tuple[Question, list[str]]], seed: int) -> dict[str, Any]:
    kind = items[0][0].kind
    hits, prompts = [], []
    for question, verdicts in items:
        for index, verdict in enumerate(verdicts):
            hits.append(float(verdict == majority([*verdicts[:index], *verdicts[index + 1 :]], kind)))
            prompts.append(question.prompt)
    return {
        "question": topic,
        "alpha": _alpha([verdicts for _, verdicts in items], WORDS[kind][::-1], LEVELS[kind]),
        "level": LEVELS[kind],
        "items": len(items),
        "annotators": max(len(verdicts) for _, verdicts in items),
        **interval(hits, prompts, seed),
    }


def _alpha(verdicts: Sequence[Sequence[str]], words: Sequence[str], level: str) -> float | None:
    import krippendorff

    counts = [tally(own, words) for own in verdicts]
    table = [[own[word] for word in words] for own in counts]
    if sum(any(column) for column in zip(*table, strict=True)) < 2:
        return None
    return float(krippendorff.alpha(value_counts=table, level_of_measurement=level))
