"""How far annotators agree with each other: the ceiling of what a critic can reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dualipo.critic.voting import Kind

ORDER: dict[Kind, tuple[str, ...]] = {"rating": ("bad", "normal", "good"), "choice": ("a", "tie", "b")}


def annotator_agreement(votes: Sequence[Sequence[str]], kind: Kind) -> dict[str, Any]:
    """`votes` holds the verdicts on each item. {"items", "plain", "alpha"}; items with one vote do not count.

    `plain` is the chance that two annotators of one item said the same, over all pairs of them. `alpha` is
    Krippendorff's (2011), on the ordinal scale: a tie lies between a and b. Null where there is nothing to compare, or
    all said the same everywhere.
    """
    counts = [Counter(own) for own in votes if len(own) > 1]
    pairs = sum(c.total() * (c.total() - 1) for c in counts)
    same = sum(n * (n - 1) for c in counts for n in c.values())
    return {"items": len(counts), "plain": same / pairs if pairs else None, "alpha": _alpha(counts, kind)}


def _alpha(counts: Sequence[Counter[str]], kind: Kind) -> float | None:
    try:
        import krippendorff
    except ModuleNotFoundError:
        return None
    table = [[own[word] for word in ORDER[kind]] for own in counts]
    if not table or sum(any(column) for column in zip(*table, strict=True)) < 2:
        return None
    found = krippendorff.alpha(value_counts=table, level_of_measurement="ordinal", value_domain=[0, 1, 2])
    return float(found)
