"""Answers to numbers: accuracy with and without ties, order, self-consistency, and how far a vote's share is to be
trusted. All intervals are of 95 percent and resample prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dualipo.critic.voting import INVALID, majority, swap_choice
from dualipo.evaluation.bootstrap import LEVEL, interval
from dualipo.evaluation.calibration import Calibration
from dualipo.evaluation.critics.answers import Answer
from dualipo.evaluation.ties import calibrate_ratings, calibrate_ties, ratings_at, ties_excluded_hits, verdicts_at

BINS = 10
"""Equal bins of the vote share in which accuracy is held against it."""
_CHUNK = 100
"""Resamples held at once."""
STATED = {
    "ties_excluded": "pairs on which people chose; the clip with the higher score or more votes is right or wrong, "
    "equal scores or votes count half",
    "ties_included.own": "three classes; the critic's own rule: the vote's majority, equal votes being a tie, or the "
    "thresholds stored with it",
    "ties_included.calibrated": "three classes; a tie where the difference is at most the threshold that is best on "
    "this very set (Deutsch et al. 2023, algorithm 1, as VideoAlign reports it): optimistic; its interval keeps the "
    "threshold",
    "ties_included.held_out": "the same, but each half of the prompts is judged with the threshold of the other half",
    "position": "changed: share of pairs whose verdict the other order changes; first_less_second: over both showings "
    "of every pair, the share of verdicts for the clip shown first less that for the one shown second; bias: its size",
    "self_consistency": "vote share: the largest number of a question's paths that agree, over all its paths, "
    "unreadable ones among them; of fewer paths the first of each order vote",
    "calibration": "vote share of the verdict given (of a pair: both orders together) against the share of such "
    f"verdicts that people give, in {BINS} equal bins; ece: mean distance of the two, weighted by answers; it is "
    "above 0 by chance alone where answers are few",
    "intervals": "95 percent, percentile bootstrap over prompts",
}


def measure(
    answers: Sequence[Answer], sweep: Sequence[int], calibration: Calibration | None, seed: int
) -> dict[str, Any]:
    """What record.json says of one set; `sweep` are the numbers of paths that vote, the last all of them."""
    choices = [a for a in answers if a.question.kind == "choice"]
    ratings = [a for a in answers if a.question.kind == "rating"]
    found: dict[str, Any] = {
        "prompts": len({a.question.prompt for a in answers}),
        "choices": {d: _choices(own, sweep[-1], calibration, seed) for d, own in _by_dimension(choices).items()},
        "ratings": {d: _ratings(own, sweep[-1], calibration, seed) for d, own in _by_dimension(ratings).items()},
    }
    for name, own in (("choices", choices), ("ratings", ratings)):
        if own and own[0].forward:
            found[f"self_consistency_{name}"] = [_consistency(own, k, seed) for k in sweep]
            found[f"calibration_{name}"] = reliability(own, sweep[-1], seed)
    return found


def _by_dimension(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.question.dimension, []).append(answer)
    return dict(sorted(found.items()))


# ---- what an answer comes to


def votes(answer: Answer, k: int) -> list[str | None]:
    """Verdicts of the first k paths of each order, in the words of the set's order."""
    backward = [word and swap_choice(word) for word in answer.backward[:k]]
    return [*answer.forward[:k], *backward]


def verdict(answer: Answer, k: int) -> str | None:
    """Of the vote; None where no path can be read."""
    return majority(votes(answer, k), answer.question.kind)


def difference(answer: Answer, k: int) -> float:
    """Of a pair: score(a) - score(b), or (votes for a - votes for b) / readable votes."""
    if answer.scores:
        return answer.scores[0] - answer.scores[1]
    words = [word for word in votes(answer, k) if word]
    return (words.count("a") - words.count("b")) / len(words) if words else 0.0


def _own_verdict(answer: Answer, k: int, calibration: Calibration | None) -> str | None:
    dimension = answer.question.dimension
    if not answer.scores:
        return verdict(answer, k) or INVALID
    if calibration is None:
        return None
    if answer.question.kind == "rating":
        return ratings_at(answer.scores, calibration.cuts(dimension))[0] if dimension in calibration.ratings else None
    return (
        verdicts_at([difference(answer, k)], calibration.ties[dimension])[0] if dimension in calibration.ties else None
    )


# ---- accuracy


def _choices(answers: Sequence[Answer], k: int, calibration: Calibration | None, seed: int) -> dict[str, Any]:
    people = [answer.people for answer in answers]
    gaps = np.array([difference(answer, k) for answer in answers])
    decided = [
        (answer, hit) for answer, hit in zip(answers, ties_excluded_hits(gaps, people), strict=True) if hit is not None
    ]
    included = _against_people(
        answers, k, calibration, seed, lambda rows: calibrate_ties(gaps[rows], [people[i] for i in rows])[0],
        lambda rows, threshold: verdicts_at(gaps[rows], threshold),
    )  # fmt: skip
    found = {
        "pairs": len(answers),
        "prompts": len({answer.question.prompt for answer in answers}),
        "ties": people.count("tie") / len(people),
        "ties_excluded": _interval([hit for _, hit in decided], [answer for answer, _ in decided], seed),
        "ties_included": included,
    }
    if answers[0].forward:
        found["position"] = _position(answers, k, seed)
    return found


def _ratings(answers: Sequence[Answer], k: int, calibration: Calibration | None, seed: int) -> dict[str, Any]:
    people = [answer.people for answer in answers]
    found = {"clips": len(answers), "prompts": len({answer.question.prompt for answer in answers})}
    if answers[0].forward:
        hits = [verdict(answer, k) == answer.people for answer in answers]
        return found | {"accuracy": {"own": _interval(hits, answers, seed), "calibrated": None, "held_out": None}}
    values = np.array([answer.scores[0] for answer in answers])
    return found | {
        "accuracy": _against_people(
            answers, k, calibration, seed, lambda rows: calibrate_ratings(values[rows], [people[i] for i in rows])[0],
            lambda rows, cuts: ratings_at(values[rows], cuts),
        )
    }  # fmt: skip


def _against_people(
    answers: Sequence[Answer],
    k: int,
    calibration: Calibration | None,
    seed: int,
    fit: Callable[[np.ndarray], Any],
    apply: Callable[[np.ndarray, Any], list[str]],
) -> dict[str, Any]:
    """Three-class accuracy by the critic's own rule, by thresholds that `fit` finds on all of the answers (by index),
    and by those of the other half of the prompts."""
    people = np.array([answer.people for answer in answers])
    own = [_own_verdict(answer, k, calibration) for answer in answers]
    every = np.arange(len(answers))
    best = fit(every)
    half = np.array([_half(answer.question.prompt) for answer in answers])
    held_out = None
    if 0 < half.sum() < len(half):
        words, thresholds = np.empty(len(answers), object), {}
        for side in (0, 1):
            thresholds[str(side)] = fit(every[half != side])
            words[half == side] = apply(every[half == side], thresholds[str(side)])
        held_out = {"accuracy": _interval(words == people, answers, seed), "thresholds": thresholds}
    return {
        "own": None if None in own else _interval(np.array(own) == people, answers, seed),
        "calibrated": {
            "accuracy": _interval(np.array(apply(every, best)) == people, answers, seed),
            "threshold": best,
        },
        "held_out": held_out,
    }


def _half(prompt: str) -> int:
    """Which half a prompt belongs to: the same in every record."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 2


# ---- order and paths


def _position(answers: Sequence[Answer], k: int, seed: int) -> dict[str, Any]:
    changed, lead = [], []
    for answer in answers:
        showings = [majority(answer.forward[:k], "choice"), majority(answer.backward[:k], "choice")]
        back = swap_choice(showings[1]) if showings[1] else None
        changed.append(showings[0] is None or showings[0] != back)
        lead.append((showings.count("a") - showings.count("b")) / 2)
    signed = _interval(lead, answers, seed)
    return {
        "changed": _interval(changed, answers, seed),
        "first_less_second": signed,
        "bias": abs(signed["mean"]) if signed else None,
    }


def _consistency(answers: Sequence[Answer], k: int, seed: int) -> dict[str, Any]:
    shares, unreadable = [], []
    for answer in answers:
        orders = [words[:k] for words in (answer.forward, answer.backward) if words]
        shares.append(np.mean([max(words.count(w) for w in {*words, ""} if w is not None) / k for words in orders]))
        unreadable.append(np.mean([words.count(None) / k for words in orders]))
    found: dict[str, Any] = {
        "paths": k,
        "vote_share": _interval(shares, answers, seed),
        "unreadable": float(np.mean(unreadable)),
        "accuracy": _interval([verdict(answer, k) == answer.people for answer in answers], answers, seed),
    }
    if answers[0].question.kind == "choice":
        people = [answer.people for answer in answers]
        hits = ties_excluded_hits([difference(answer, k) for answer in answers], people)
        decided = [(answer, hit) for answer, hit in zip(answers, hits, strict=True) if hit is not None]
        found["ties_excluded"] = _interval([hit for _, hit in decided], [answer for answer, _ in decided], seed)
        found["changed"] = _position(answers, k, seed)["changed"]
    return found


def reliability(answers: Sequence[Answer], k: int, seed: int, resamples: int = 2000) -> dict[str, Any]:
    """{"bins", "ece"}: of each bin with answers in it its edges, their number, mean vote share, and accuracy with its
    interval; the expected calibration error with its own."""
    shares, hits = [], []
    for answer in answers:
        words = votes(answer, k)
        said = verdict(answer, k)
        shares.append(words.count(said) / len(words) if said else 0.0)
        hits.append(float(said == answer.people))
    places = np.minimum((np.array(shares) * BINS + 1e-9).astype(int), BINS - 1)
    _, prompts = np.unique([answer.question.prompt for answer in answers], return_inverse=True)
    table = np.zeros((3, prompts.max() + 1, BINS))
    for row, values in enumerate((np.ones(len(answers)), np.array(shares), np.array(hits))):
        np.add.at(table[row], (prompts, places), values)
    count, share, hit = table.sum(1)
    rng = np.random.default_rng(seed)
    drawn_errors, drawn_hits = [], []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = rng.multinomial(table.shape[1], np.full(table.shape[1], 1 / table.shape[1]), size)
        counts, shared, right = (weights @ part for part in table)
        drawn_errors.append(np.abs(right - shared).sum(1) / counts.sum(1))
        drawn_hits.append(np.where(counts > 0, right / np.maximum(counts, 1), np.nan))
    low, high = _ends(np.concatenate(drawn_errors))
    spread = np.concatenate(drawn_hits)
    bins = []
    for place in np.flatnonzero(count):
        bottom, top = _ends(spread[:, place])
        accuracy = {"mean": float(hit[place] / count[place]), "low": bottom, "high": top}
        bins.append(
            {
                "from": round(place / BINS, 3),
                "to": round((place + 1) / BINS, 3),
                "answers": int(count[place]),
                "vote_share": float(share[place] / count[place]),
                "accuracy": accuracy,
            }
        )
    error = float(np.abs(hit - share).sum() / count.sum())
    return {"bins": bins, "ece": {"mean": error, "low": low, "high": high}}


def _ends(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _interval(values: Any, answers: Sequence[Answer], seed: int) -> dict[str, float] | None:
    prompts = [answer.question.prompt for answer in answers]
    return interval(np.asarray(values, float), prompts, seed) if prompts else None
