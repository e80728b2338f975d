"""The small world's benchmark: the oracle's reading of one clip against its prompt, in points of 100.

It is not VBench. Its total is half prompt success (every attribute that the prompt names is seen) and half quality (the
mean of motion smoothness and video faithfulness). Dynamic degree stands beside smoothness, since a frozen clip would
max the latter; it is not part of the total.
"""

from __future__ import annotations

import numpy as np

from dualipo.errors import UserError
from dualipo.records import Prompt
from dualipo.world.oracle import judge
from dualipo.world.scene import Scene

_PARTS = {
    "object_class": ("shape", "shape2"),
    "colour": ("colour", "colour2"),
    "size": ("size",),
    "motion_direction": ("motion",),
    "speed": ("speed",),
    "scene": ("background",),
    "spatial_relationship": ("relation",),
}
DIMENSIONS = ("prompt_success", "motion_smoothness", "video_faithfulness", "dynamic_degree", *_PARTS)


def score_clip(clip: np.ndarray, prompt: Prompt) -> dict[str, float | None]:
    """`total` and every dimension; null where the prompt does not speak of it.

    Raises UserError where the prompt carries no attributes of the small world, or the clip is of another size.
    """
    try:
        scene = Scene.of(prompt.attributes)
        found = judge(clip, scene)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"benchmark prompt {prompt.id!r}: not a small-world prompt and clip ({error}); use another suite"
        ) from None
    success, smooth, faithful = float(all(found.holds.values())), found.smoothness, found.faithfulness
    scores: dict[str, float | None] = {
        "total": 50.0 * success + 25.0 * (smooth + faithful),
        "prompt_success": 100.0 * success,
        "motion_smoothness": 100.0 * smooth,
        "video_faithfulness": 100.0 * faithful,
        "dynamic_degree": 100.0 * float(found.dynamic > 0),
    }
    for name, keys in _PARTS.items():
        hits = [found.holds[key] for key in keys if key in found.holds]
        scores[name] = 100.0 * sum(hits) / len(hits) if hits else None
    return scores
