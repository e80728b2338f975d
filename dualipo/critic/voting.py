"""Verdicts as words: reading, counting, voting, and agreement between the two orders of a pair.

Self-consistency: K sampled reasoning paths vote on one question, and the same rule joins the annotators of one item
(Dual-IPO, appendix A.2). Every pair is asked in both orders; only a verdict that survives the swap is kept (IPO 4.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from dualipo.records import CHOICES, RATINGS, Choice

Kind = Literal["rating", "choice"]
"""What is asked: good / normal / bad of one clip, or a / b / tie of two."""
WORDS: dict[Kind, tuple[str, ...]] = {"rating": RATINGS, "choice": CHOICES}
"""The allowed verdicts of each kind."""
INVALID = "invalid"
"""Key of a tally that counts the paths without a readable verdict."""

_MIDDLE: dict[Kind, str] = {"rating": "normal", "choice": "tie"}
_TURNED: dict[str, Choice] = {"a": "b", "b": "a", "tie": "tie"}
_VALUE = {"good": 1.0, "normal": 0.5, "bad": 0.0}
_MARKER = re.compile(r"""\bverdict[\s*_"'`]*:[\s*_"'`(\[]*""", re.IGNORECASE)
# A word that runs on is no verdict: the "a" of "Verdict: a red circle" is an article.
_WORD = re.compile(r"([a-z]+)(?![-\w]|'\w|[ \t]+\w)", re.IGNORECASE)


def majority(verdicts: Iterable[str | None], kind: Kind | None = None) -> str | None:
    """The verdict with the most votes; a tie of votes gives the middle verdict: `normal` of ratings, `tie` of choices.

    So the outcome depends neither on the votes' order nor on chance, and choices tie alike when clips are swapped. The
    middle verdict of a tie need not be among `verdicts`. Whatever is not a verdict of `kind` (None, `invalid`) does
    not vote; without any vote the outcome is None. `kind` is inferred from the words where it is not given.

    Raises ValueError where `kind` is unknown, or is not given and verdicts of both kinds are mixed.
    """
    verdicts = list(verdicts)
    if kind is None:
        kinds = [name for name, words in WORDS.items() if any(verdict in words for verdict in verdicts)]
        if len(kinds) > 1:
            raise ValueError(f"ratings and choices are mixed in one vote: {verdicts!r}")
        if not kinds:
            return None
        kind = kinds[0]
    counts = tally(verdicts, _words(kind))
    counts.pop(INVALID)
    most = max(counts.values())
    if most == 0:
        return None
    leaders = [verdict for verdict, count in counts.items() if count == most]
    return leaders[0] if len(leaders) == 1 else _MIDDLE[kind]


def tally(verdicts: Iterable[str | None], allowed: Iterable[str]) -> dict[str, int]:
    """Votes for each allowed verdict, in the order of `allowed`, zeros included; all others count as `invalid`."""
    counts = {**dict.fromkeys(allowed, 0), INVALID: 0}
    for verdict in verdicts:
        counts[verdict if verdict in counts else INVALID] += 1
    return counts


def swap_choice(verdict: str) -> Choice:
    """The same choice when the two clips change places. Raises ValueError where `verdict` is no choice."""
    if verdict not in _TURNED:
        raise ValueError(f"{verdict!r} is no choice; one of {', '.join(CHOICES)} is needed")
    return _TURNED[verdict]


def reconcile(forward: str | None, backward_as_shown: str | None) -> tuple[Choice | None, bool]:
    """(verdict, consistent) of a pair asked in both orders (IPO 4.3).

    `forward` is the vote with clip_a shown first. `backward_as_shown` is the vote with clip_b shown first, in the words
    of that showing: `a` there means clip_b. The verdict, in terms of clip_a and clip_b, is kept only if both orders
    agree once turned back; else, and where either order gave no verdict, the answer is (None, False).

    Raises ValueError where a verdict is neither a choice nor None.
    """
    for verdict in (forward, backward_as_shown):
        if verdict is not None and verdict not in CHOICES:
            raise ValueError(f"{verdict!r} is no choice; one of {', '.join(CHOICES)}, or None, is needed")
    turned = None if backward_as_shown is None else swap_choice(backward_as_shown)
    return (turned, True) if turned is not None and turned == forward else (None, False)


def parse_verdict(text: str, kind: Kind) -> str | None:
    """Reads the verdict off a reasoning path that ends in, say, `Verdict: Good`; case and spaces do not matter.

    The last `Verdict:` of the text decides. None where there is none, or where no verdict of `kind` stands after it
    alone: `Verdict: a red circle` does not choose `a`. Raises ValueError where `kind` is unknown.
    """
    words = _words(kind)
    end = None
    for marker in _MARKER.finditer(text):
        end = marker.end()
    found = _WORD.match(text, end) if end is not None else None
    verdict = found[1].lower() if found else None
    return verdict if verdict in words else None


def expected_rating(votes: Mapping[str, int]) -> float:
    """Mean rating of a tally, in [0, 1]: good 1, normal 0.5, bad 0; paths without a readable verdict do not count.

    Raises ValueError where no readable rating was cast: such a clip has no score.
    """
    counts = {verdict: votes.get(verdict, 0) for verdict in _VALUE}
    total = sum(counts.values())
    if total <= 0 or min(counts.values()) < 0:
        raise ValueError(f"no readable rating among the votes {dict(votes)!r}")
    return sum(_VALUE[verdict] * count for verdict, count in counts.items()) / total


def _words(kind: Kind) -> tuple[str, ...]:
    if kind not in WORDS:
        raise ValueError(f"{kind!r} is no kind of verdict; one of {', '.join(WORDS)} is needed")
    return WORDS[kind]
