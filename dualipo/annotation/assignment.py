"""Who is asked what, and how it is shown: functions of the session's seed and of what is answered so far.

Every annotator has an order and sides of their own, which nobody else's answers change. Golden items stand among the
others at a set share, at places that only the seed knows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence

from dualipo.annotation.items import AnnotationItem
from dualipo.steps import derive_seed


def own_order(seed: int, annotator: str, items: Iterable[AnnotationItem]) -> list[AnnotationItem]:
    """Earlier waves first; within a wave in an order that differs from annotator to annotator."""
    return sorted(items, key=lambda item: (item.wave, derive_seed(seed, "order", annotator, item.id)))


def sides_swapped(seed: int, annotator: str, item: AnnotationItem) -> bool:
    """Whether this annotator sees clip b of a pair as A."""
    return item.kind == "choice" and bool(derive_seed(seed, "sides", annotator, item.id) & 1)


def golden_turn(seed: int, annotator: str, number: int, share: float) -> bool:
    """Whether the annotator's `number`-th item, from 0, is a golden one: one of every round(1 / share)."""
    if not share:
        return False
    block, place = divmod(number, round(1 / share))
    return place == random.Random(derive_seed(seed, "golden", annotator, block)).randrange(round(1 / share))


def upcoming(
    seed: int,
    annotator: str,
    share: float,
    seen: Collection[str],
    ordinary: Sequence[AnnotationItem],
    golden: Sequence[AnnotationItem],
    wanted: Callable[[AnnotationItem], bool],
) -> list[AnnotationItem]:
    """What the annotator is asked from now on, golden items included, if nobody else answers meanwhile.

    `seen` are ids of items that they answered or skipped; `ordinary` and `golden` are in their own order; `wanted` says
    whether an item still lacks annotators. A golden item is of the kind of the item that it stands before.
    """
    number = len(seen)
    spare = {kind: [g for g in golden if g.kind == kind and g.id not in seen] for kind in ("rating", "choice")}
    found = []
    for item in ordinary:
        if item.id in seen or not wanted(item):
            continue
        while golden_turn(seed, annotator, number, share) and spare[item.kind]:
            found.append(spare[item.kind].pop(0))
            number += 1
        found.append(item)
        number += 1
    return found
