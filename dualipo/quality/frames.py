"""The tables that suites look at: rows as pandas frames, and one-row frames of numbers computed over them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import entropy

from dualipo.critic.voting import Kind, expected_rating, majority, parse_verdict
from dualipo.errors import UserError
from dualipo.quality.evidence import Agreement
from dualipo.quality.profile import vote_entropy
from dualipo.records import (
    CHOICES,
    RATINGS,
    HumanChoice,
    HumanRating,
    Preference,
    Prompt,
    PseudoChoice,
    PseudoRating,
    Record,
    joined,
)

PSEUDO_COUNT = 0.5
"""Added to each verdict's human count, so that a verdict that no human gave has a small share instead of none."""
Targets = Mapping[str, Mapping[str, float]]
"""Target share of each value of each prompt category."""


def table(rows: Iterable[Record], columns: Sequence[str]) -> pd.DataFrame:
    """One row a record; the columns are there without rows too."""
    return pd.DataFrame([[getattr(row, name) for name in columns] for row in rows], columns=list(columns))


def indicator(category: str, value: str) -> str:
    """Column that is 1 where a prompt's `category` is `value`, else 0: its mean is the value's share."""
    return f"{category} = {value}"


def prompts_frame(prompts: Sequence[Prompt], targets: Targets) -> pd.DataFrame:
    """`id`, `text`, a column for each targeted category (null where a prompt lacks it), and its indicators."""
    frame = table(prompts, ("id", "text"))
    for category, shares in targets.items():
        frame[category] = [prompt.categories.get(category) for prompt in prompts]
        for value in shares:
            frame[indicator(category, value)] = (frame[category] == value).astype(float)
    return frame


def ratings_frame(ratings: Sequence[PseudoRating]) -> pd.DataFrame:
    """Beside the rows' own fields: `voted`, the votes' majority, and what `_paths` adds."""
    frame = table(ratings, ("clip", "prompt_id", "dimension", "verdict", "certainty", "kept"))
    frame["voted"] = [majority(_words(rating.votes), "rating") for rating in ratings]
    return _paths(frame, ratings, "rating")


def choices_frame(choices: Sequence[PseudoChoice]) -> pd.DataFrame:
    """Beside the rows' own fields: `pair`, the same for both listings of two clips on one dimension, and what `_paths`
    adds. Votes of both orders together may have another majority than each order has."""
    fields = ("clip_a", "clip_b", "prompt_id", "dimension", "verdict", "forward", "backward", "consistent")
    frame = table(choices, (*fields, "certainty", "kept"))
    frame["pair"] = [f"{unordered(c.clip_a, c.clip_b)}, {c.dimension}" for c in choices]
    return _paths(frame, choices, "choice")


def _paths(frame: pd.DataFrame, labels: Sequence[PseudoRating] | Sequence[PseudoChoice], kind: Kind) -> pd.DataFrame:
    """Adds `chosen_says` and `rejected_says`: the verdicts that the two reasoning paths, which the critic learns, end
    in; null where there is no path, or no verdict in it."""
    frame["chosen_says"] = [parse_verdict(label.chosen, kind) for label in labels]
    frame["rejected_says"] = [label.rejected and parse_verdict(label.rejected, kind) for label in labels]
    return frame


def _words(votes: Mapping[str, int]) -> list[str]:
    return [word for word, count in votes.items() for _ in range(count)]


def preferences_frame(pairs: Sequence[Preference]) -> pd.DataFrame:
    """Beside the rows' own fields: `margin` of the two scores, and `pair`, the same whichever clip won."""
    frame = table(pairs, tuple(Preference.model_fields))
    frame["margin"] = [pair.winner_score - pair.loser_score for pair in pairs]
    frame["pair"] = [unordered(pair.winner, pair.loser) for pair in pairs]
    return frame


def unordered(first: str, second: str) -> str:
    return " / ".join(sorted((first, second)))


def agreement_frame(agreement: Agreement, incumbent: Agreement | None, bound: str = "mean") -> pd.DataFrame:
    """One row: `agreement`, `pairs`, and where there is an incumbent `drop` against it, and `rating_drop_<dimension>`;
    with bound `low` also `agreement_low`, the lower end of the agreement's interval."""
    mean = agreement.agreement.mean
    row: dict[str, float | int | None] = {"agreement": mean, "pairs": agreement.pairs}
    if bound == "low":
        row["agreement_low"] = agreement.agreement.low
    if incumbent is not None:
        before = incumbent.agreement.mean
        row["drop"] = None if mean is None or before is None else before - mean
        rated = agreement.rating_agreement
        for dimension, share_before in incumbent.rating_agreement.items():
            if share_before is not None:
                share_now = rated.get(dimension)
                row[f"rating_drop_{dimension}"] = None if share_now is None else share_before - share_now
    return pd.DataFrame([row])


def balance_frame(
    ratings: Sequence[PseudoRating],
    choices: Sequence[PseudoChoice],
    human_ratings: Sequence[HumanRating],
    human_choices: Sequence[HumanChoice],
) -> pd.DataFrame:
    """One row: how many labels are kept, their tie share, the critic's position bias, and a divergence a question.

    A `kl_rating_<dimension>` or `kl_choice_<dimension>` is KL(kept pseudo-labels || human majorities) in nats, null
    where nothing is kept. Choices are compared with the human shares of `a` and `b` evened out, since which clip is
    listed first means nothing.

    Raises UserError where a dimension was asked that no human label speaks of.
    """
    kept_choices = [choice for choice in choices if choice.kept]
    row: dict[str, float | None] = {
        "ratings_kept": sum(rating.kept for rating in ratings),
        "choices_kept": len(kept_choices),
        "tie_share": share(sum(choice.verdict == "tie" for choice in kept_choices), len(kept_choices)),
        "position_bias": position_bias(choices),
    }
    for kind, words, labels, humans in (
        ("rating", RATINGS, ratings, majorities(human_ratings)),
        ("choice", CHOICES, choices, majorities(human_choices)),
    ):
        kept = verdict_counts(labels)
        for dimension in sorted({label.dimension for label in labels}):
            if dimension not in humans:
                raise UserError(
                    f"seed labels: no human {kind} on {dimension!r}, which the critic is asked; add some to {kind}s"
                )
            reference: Mapping[str, float] = humans[dimension]
            if kind == "choice":
                even = (reference["a"] + reference["b"]) / 2
                reference = {**reference, "a": even, "b": even}
            row[f"kl_{kind}_{dimension}"] = divergence(kept[dimension], reference, words)
    return pd.DataFrame([row])


def health_frame(
    ratings: Sequence[PseudoRating],
    choices: Sequence[PseudoChoice],
    drifts: Mapping[str, float | None],
    duplicates: float | None,
) -> pd.DataFrame:
    """One row of numbers on the pseudo-labels as a whole, null where there is nothing to compute one from.

    `vote_entropy_<kind>` (`profile.vote_entropy`; left out where every question got one vote: then nothing voted),
    `kept_share_<kind>`, `certainty_spread_<kind>`, the distance between the certainties' 10 and 90 percent quantiles,
    `choices_follow_ratings` (left out where no pair of rated clips was decided),
    `drift_rating_<dimension>` and `drift_choice_<dimension>` of `profile.drift`, and `duplicate_clips`, as given.
    """
    row: dict[str, float | None] = {}
    for kind, labels in (("ratings", ratings), ("choices", choices)):
        if (guessed := vote_entropy(label.votes for label in labels)) is not None:
            row[f"vote_entropy_{kind}"] = guessed
        row[f"kept_share_{kind}"] = share(sum(label.kept for label in labels), len(labels))
        low, high = np.quantile([label.certainty for label in labels], [0.1, 0.9]) if labels else (None, None)
        row[f"certainty_spread_{kind}"] = None if low is None else float(high - low)
    if (followed := choices_follow_ratings(ratings, choices)) is not None:
        row["choices_follow_ratings"] = followed
    row |= {f"drift_{topic.replace('/', '_')}": value for topic, value in drifts.items()}
    return pd.DataFrame([{**row, "duplicate_clips": duplicates}])


def choices_follow_ratings(ratings: Sequence[PseudoRating], choices: Sequence[PseudoChoice]) -> float | None:
    """Of choices for one of two clips, kept or not, the share whose clip the same critic rates higher, in the mean over
    the dimensions and paths; equal ratings count half. Chance is 0.5, and labels of one kind turned round fall below.
    Null where no such choice is between rated clips."""
    scores: dict[str, list[float]] = defaultdict(list)
    for rating in ratings:
        if any(rating.votes.get(word) for word in RATINGS):
            scores[rating.clip].append(expected_rating(rating.votes))
    hits = []
    for choice in choices:
        if choice.verdict != "tie" and choice.clip_a in scores and choice.clip_b in scores:
            lead = float(np.mean(scores[choice.clip_a]) - np.mean(scores[choice.clip_b]))
            signed = lead if choice.verdict == "a" else -lead
            hits.append(0.5 if signed == 0 else float(signed > 0))
    return share(sum(hits), len(hits))


def duplicate_share(contents: Iterable[bytes]) -> float | None:
    """Share of clips whose file another clip has too, byte for byte; null without clips."""
    counts = Counter(hashlib.sha256(content).digest() for content in contents)
    return share(sum(count for count in counts.values() if count > 1), counts.total())


def coverage_frame(
    prompts: Sequence[Prompt], ratings: Sequence[PseudoRating], choices: Sequence[PseudoChoice], targets: Targets
) -> pd.DataFrame:
    """One row: for each value of each targeted category, the share of kept labels whose prompt has it, divided by the
    target share: 1 is as asked, 0 a value that nothing is learnt about. Values of target 0 are left out; null where
    nothing is kept."""
    categories = {prompt.id: prompt.categories for prompt in prompts}
    kept = [categories[label.prompt_id] for label in joined(ratings, choices) if label.kept]
    row = {
        indicator(category, value): share(sum(own.get(category) == value for own in kept), len(kept) * target)
        for category, shares in targets.items()
        for value, target in shares.items()
        if target > 0
    }
    return pd.DataFrame([row])


def position_bias(choices: Iterable[PseudoChoice]) -> float | None:
    """|share of answers for the clip shown first - share for the one shown second|, of all readable answers.

    `backward` was asked with clip_b first, so `b` there is an answer for the clip shown first. Null without answers.
    """
    first = second = answers = 0
    for choice in choices:
        for vote, shown_first, shown_second in ((choice.forward, "a", "b"), (choice.backward, "b", "a")):
            answers += vote is not None
            first += vote == shown_first
            second += vote == shown_second
    return share(abs(first - second), answers)


def divergence(counts: Mapping[str, float], reference: Mapping[str, float], words: Sequence[str]) -> float | None:
    """KL(counts || reference) of the two distributions over `words`, in nats; null without counts.

    The reference is smoothed by PSEUDO_COUNT a word (Krichevsky and Trofimov, 1981), so the value is always finite.
    """
    if not sum(counts.get(word, 0) for word in words):
        return None
    observed = [counts.get(word, 0) for word in words]
    return float(entropy(observed, [reference.get(word, 0) + PSEUDO_COUNT for word in words]))


def majorities(labels: Sequence[HumanRating] | Sequence[HumanChoice]) -> dict[str, Counter[str]]:
    """Items of each majority verdict, for each dimension; the annotators of one item vote."""
    items: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for label in labels:
        clips = (label.clip,) if isinstance(label, HumanRating) else (label.clip_a, label.clip_b)
        items[(label.dimension, *clips)].append(label.verdict)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for (dimension, *_), verdicts in items.items():
        if (winner := majority(verdicts)) is not None:
            counts[dimension][winner] += 1
    return dict(counts)


def verdict_counts(labels: Sequence[PseudoRating] | Sequence[PseudoChoice]) -> dict[str, Counter[str]]:
    """Kept labels of each verdict, for each dimension asked."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for label in labels:
        counts[label.dimension][label.verdict] += label.kept
    return counts


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
