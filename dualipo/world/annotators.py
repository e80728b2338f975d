"""Simulated annotators: they look through the oracle, err now and then, and say why they judge as they do.

They stand in for people. At least three label every item and the majority wins (Dual-IPO, appendix A.2); each verdict
carries a reason, from which the critic learns to reason before it judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from dualipo.records import HumanChoice, HumanRating
from dualipo.world.oracle import Judgement

ANNOTATORS = ("ann", "ben", "cho")
SLIP = 0.05
"""Chance that an annotator's verdict is a neighbouring one."""
BLUR = 0.03
"""Standard deviation of an annotator's impression of a quality, of 1."""
TIE = 0.12
"""Difference of how good two clips are, of 1, below which an annotator calls a tie."""
_GOOD, _BAD = 0.72, 0.45
_WORTH = {"good": 1.0, "normal": 0.5, "bad": 0.0}
_WEIGHTS = {"semantic": 0.8, "motion": 0.1, "faithfulness": 0.1}
_NEIGHBOURS = {"good": ["normal"], "normal": ["good", "bad"], "bad": ["normal"]}


def compare(seen: dict[str, str], holds: dict[str, bool]) -> str:
    """What is seen, in the prompt's order of words, and whether it was asked for: `small ok red ok circle wrong`."""
    words = []
    for key in ("size", "colour", "shape", "relation", "colour2", "shape2", "motion", "speed", "background", "count"):
        if key in holds:
            word = {"left_of": "left", "right_of": "right"}.get(seen[key], seen[key].split()[-1])
            words.append(f"{word} {'ok' if holds[key] else 'wrong'}")
    return " ".join(words)


def motion_words(smoothness: float) -> str:
    return "steady motion" if smoothness >= _GOOD else "uneven motion" if smoothness >= _BAD else "jumpy motion"


def look_words(faithfulness: float) -> str:
    return "clear object" if faithfulness >= _GOOD else "blurred object" if faithfulness >= _BAD else "broken object"


def rate_semantic(holds: dict[str, bool]) -> str:
    """Good if every attribute holds, Normal if one does not, Bad otherwise."""
    wrong = len(holds) - sum(holds.values())
    return ("good", "normal", "bad")[min(wrong, 2)]


def rate_quality(value: float) -> str:
    return "good" if value >= _GOOD else "normal" if value >= _BAD else "bad"


def ratings(holds: dict[str, bool], smoothness: float, faithfulness: float) -> dict[str, str]:
    """The guideline's verdict on each dimension."""
    return {
        "semantic": rate_semantic(holds),
        "motion": rate_quality(smoothness),
        "faithfulness": rate_quality(faithfulness),
    }


def overall(verdicts: Mapping[str, str]) -> float:
    """How good a clip is to an annotator, in [0, 1], from its three ratings: good 1, normal 0.5, bad 0.

    What it shows counts 0.8, how it moves and how it looks 0.1 each, so that a choice follows from its reason.
    """
    return sum(weight * _WORTH[verdicts[dimension]] for dimension, weight in _WEIGHTS.items())


def choose(first: float, second: float) -> str:
    return "tie" if abs(first - second) < TIE else "a" if first > second else "b"


def rating_reasons(
    seen: dict[str, str], holds: dict[str, bool], smoothness: float, faithfulness: float
) -> dict[str, str]:
    """One reason a dimension, as an annotator would note it down."""
    return {
        "semantic": f"{compare(seen, holds)}.",
        "motion": f"{motion_words(smoothness)}.",
        "faithfulness": f"{look_words(faithfulness)}.",
    }


def choice_reason(parts: list[dict[str, str]]) -> str:
    """Reason for a choice, out of the rating reasons of clip a and clip b."""
    each = [
        f"{name}: {part['semantic'][:-1]}, {part['motion'][:-1]}, {part['faithfulness']}"
        for name, part in zip("ab", parts, strict=True)
    ]
    return " ".join(each)


def annotate_clip(clip: str, prompt: str, judgement: Judgement, rng: np.random.Generator) -> Iterator[HumanRating]:
    """Three annotators' ratings of one clip on the three dimensions."""
    for annotator in ANNOTATORS:
        smooth, faithful = _impressions(judgement, rng)
        verdicts = ratings(judgement.holds, smooth, faithful)
        reasons = rating_reasons(judgement.seen, judgement.holds, smooth, faithful)
        for dimension, verdict in verdicts.items():
            if rng.random() < SLIP:
                verdict = str(rng.choice(_NEIGHBOURS[verdict]))
            yield HumanRating(
                clip=clip,
                prompt=prompt,
                annotator=annotator,
                dimension=dimension,
                verdict=verdict,
                reason=reasons[dimension],
            )


def annotate_pair(
    clips: tuple[str, str], prompt: str, judgements: tuple[Judgement, Judgement], rng: np.random.Generator
) -> Iterator[HumanChoice]:
    """Three annotators' choices between two clips of one prompt."""
    for annotator in ANNOTATORS:
        scores, parts = [], []
        for judgement in judgements:
            smooth, faithful = _impressions(judgement, rng)
            scores.append(overall(ratings(judgement.holds, smooth, faithful)))
            parts.append(rating_reasons(judgement.seen, judgement.holds, smooth, faithful))
        verdict = choose(*scores)
        if rng.random() < SLIP:
            verdict = str(rng.choice(["a", "b"])) if verdict == "tie" else "tie"
        yield HumanChoice(
            clip_a=clips[0],
            clip_b=clips[1],
            prompt=prompt,
            annotator=annotator,
            verdict=verdict,
            reason=choice_reason(parts),
        )


def _impressions(judgement: Judgement, rng: np.random.Generator) -> tuple[float, float]:
    smooth = float(np.clip(judgement.smoothness + rng.normal(0, BLUR), 0, 1))
    return smooth, float(np.clip(judgement.faithfulness + rng.normal(0, BLUR), 0, 1))
