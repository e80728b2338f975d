"""What a set of labels looks like as a whole, so that one set can be compared with another: label_profile.json."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import binom, entropy

from dualipo.artifacts import write_json
from dualipo.critic.questions import Question
from dualipo.critic.voting import WORDS, majority, tally
from dualipo.quality.evidence import Strict, load
from dualipo.records import (
    HumanChoice,
    HumanLabel,
    HumanRating,
    PseudoChoice,
    PseudoLabel,
    PseudoRating,
    clips_of,
    joined,
)

QUANTILES = (0.1, 0.5, 0.9)


class QuestionProfile(Strict):
    """The labels of one question, such as `rating/motion`."""

    asked: int
    kept: int
    """Those that may be trained on; of human labels all."""
    asked_shares: dict[str, float]
    """Share of each verdict; empty where there is none."""
    kept_shares: dict[str, float]
    vote_entropy: float | None
    """`vote_entropy` of the answers; null where every question got a single vote."""
    certainty: dict[str, float] | None
    """Quantiles of the preference certainty (PCE), e.g. `{"0.5": 0.49}`; null of human labels."""


class LabelProfile(Strict):
    source: str
    """Whose labels: `human seed labels`, or `round 2`."""
    questions: dict[str, QuestionProfile]


class ProfileFile(Strict):
    """label_profile.json."""

    own: LabelProfile
    """Of this round's labels; before the first round, of the human seed labels."""
    accepted: LabelProfile
    """Of the last set that passed the label gate, from which the next round's labels may drift so far: poisoned labels
    set no standard."""


def profile_humans(ratings: Sequence[HumanRating], choices: Sequence[HumanChoice]) -> LabelProfile:
    """Each item counts once, by its annotators' majority; their votes are its votes."""
    items: dict[Question, list[str]] = defaultdict(list)
    for row in joined(ratings, choices):
        items[Question(row.dimension, row.prompt, clips_of(row))].append(row.verdict)
    votes: dict[str, list[dict[str, int]]] = defaultdict(list)
    verdicts: dict[str, list[str]] = defaultdict(list)
    for question, given in items.items():
        votes[question.topic].append(tally(given, WORDS[question.kind]))
        verdicts[question.topic].append(majority(given, question.kind) or "")
    found = {topic: _question(own, own, votes[topic], None) for topic, own in sorted(verdicts.items())}
    return LabelProfile(source="human seed labels", questions=found)


def profile_labels(source: str, ratings: Sequence[PseudoRating], choices: Sequence[PseudoChoice]) -> LabelProfile:
    """Of pseudo-labels, whose questions are grouped as in `topic_of`."""
    labels: dict[str, list[PseudoLabel]] = defaultdict(list)
    for row in joined(ratings, choices):
        labels[topic_of(row)].append(row)
    found = {
        topic: _question(
            [row.verdict for row in own],
            [row.verdict for row in own if row.kept],
            [row.votes for row in own],
            [row.certainty for row in own],
        )
        for topic, own in sorted(labels.items())
    }
    return LabelProfile(source=source, questions=found)


def topic_of(row: HumanLabel | PseudoLabel) -> str:
    """`rating/motion`, `choice/overall`: questions of one topic are comparable."""
    return f"{'rating' if isinstance(row, HumanRating | PseudoRating) else 'choice'}/{row.dimension}"


def _question(
    asked: list[str], kept: list[str], votes: list[dict[str, int]], certainties: list[float] | None
) -> QuestionProfile:
    return QuestionProfile(
        asked=len(asked),
        kept=len(kept),
        asked_shares=_shares(asked),
        kept_shares=_shares(kept),
        vote_entropy=vote_entropy(votes),
        certainty=None
        if certainties is None
        else {str(q): float(v) for q, v in zip(QUANTILES, np.quantile(certainties, QUANTILES), strict=True)},
    )


def _shares(verdicts: Sequence[str]) -> dict[str, float]:
    return {verdict: count / len(verdicts) for verdict, count in sorted(Counter(verdicts).items())}


def vote_entropy(votes: Iterable[Mapping[str, int]]) -> float | None:
    """Mean entropy of the readable votes on one question, as a share of what as many random votes have on average.

    0 where every vote is unanimous, 1 where the voters guess. Null where no question has two readable votes.
    """
    found = expected = 0.0
    for each in votes:
        counts = [
            count for word, count in each.items() if count and (word in WORDS["rating"] or word in WORDS["choice"])
        ]
        if (total := sum(counts)) > 1:
            found += float(entropy(counts))
            expected += _guessed_entropy(total)
    return found / expected if expected else None


_guessed: dict[int, float] = {}


def _guessed_entropy(total: int) -> float:
    """Expected entropy, in nats, of `total` votes that fall on three words at random."""
    if total not in _guessed:
        counts = np.arange(1, total + 1)
        shares = counts / total
        _guessed[total] = float(-3 * (binom.pmf(counts, total, 1 / 3) * shares * np.log(shares)).sum())
    return _guessed[total]


def drift(new: LabelProfile, reference: LabelProfile) -> dict[str, float | None]:
    """Total variation distance of the kept labels' verdict shares, by question that both have: the part of the labels,
    0 to 1, whose verdict would have to change. Null where one of the two keeps nothing.

    `a` and `b` count as one verdict: which clip is listed first means nothing.
    """
    return {
        topic: _distance(own.kept_shares, reference.questions[topic].kept_shares)
        for topic, own in new.questions.items()
        if topic in reference.questions
    }


def _distance(new: Mapping[str, float], old: Mapping[str, float]) -> float | None:
    if not new or not old:
        return None
    first, second = (_unlisted(shares) for shares in (new, old))
    return sum(abs(first.get(word, 0.0) - second.get(word, 0.0)) for word in sorted({*first, *second})) / 2


def _unlisted(shares: Mapping[str, float]) -> dict[str, float]:
    decided = {word: share for word, share in shares.items() if word not in ("a", "b")}
    return {**decided, "a or b": shares.get("a", 0.0) + shares.get("b", 0.0)}


def write_profile(path: str | Path, profile: ProfileFile) -> None:
    write_json(path, profile.model_dump())


def read_profile(path: str | Path) -> ProfileFile:
    """Raises UserError where the file is missing or malformed."""
    return load(ProfileFile, path)
