"""The small world's benchmark: one clip against its prompt, read by the oracle, in points of 100.

It is not VBench. Its dimensions mirror VBench's where that can be done without a pretrained model (`MIRRORED`), each by
a definition of its own (docs/benchmark.md), and are neither normalised nor weighted as there: `WEIGHTS` make the total.
Consistency, flickering and smoothness are maxed by a frozen clip, so dynamic degree stands beside them.
"""

from __future__ import annotations

import numpy as np

from dualipo.errors import UserError
from dualipo.evaluation.reading import FROZEN_MAXES
from dualipo.records import Prompt
from dualipo.world.oracle import Judgement, judge_view, take_apart
from dualipo.world.pixels import background_consistency, subject_consistency, temporal_flickering
from dualipo.world.scene import Scene

NAMESPACE = "small_world/"
"""Begins the name of every metric; never `vbench/`."""
_SUCCESS, _QUALITY = 50.0, 25.0
WEIGHTS = {"prompt_success": _SUCCESS, "motion_smoothness": _QUALITY, "video_faithfulness": _QUALITY}
"""Points of 100 that a dimension is worth in the total; the others stand beside it."""
_PARTS = {
    "object_class": ("shape", "shape2"),
    "colour": ("colour", "colour2"),
    "size": ("size",),
    "motion_direction": ("motion",),
    "speed": ("speed",),
    "scene": ("background",),
    "spatial_relationship": ("relation",),
}
DIMENSIONS = (
    "prompt_success",
    "video_faithfulness",
    *FROZEN_MAXES,
    "dynamic_degree",
    "overall_consistency",
    *_PARTS,
    "multiple_objects",
)
MIRRORED = {
    "subject_consistency": "subject_consistency",
    "background_consistency": "background_consistency",
    "temporal_flickering": "temporal_flickering",
    "motion_smoothness": "motion_smoothness",
    "dynamic_degree": "dynamic_degree",
    "object_class": "object_class",
    "multiple_objects": "multiple_objects",
    "color": "colour",
    "spatial_relationship": "spatial_relationship",
    "scene": "scene",
    "overall_consistency": "overall_consistency",
}
"""VBench's dimension -> the one here that stands in for it."""
NOT_MEASURED = ("aesthetic_quality", "imaging_quality", "human_action", "appearance_style", "temporal_style")
"""VBench's dimensions without an honest stand-in among plain shapes: null, always."""


def score_clip(clip: np.ndarray, prompt: Prompt) -> dict[str, float | None]:
    """`total` and every dimension; null where the prompt does not speak of it.

    Raises UserError where the prompt carries no attributes of the small world, or the clip is of another size.
    """
    try:
        scene = Scene.of(prompt.attributes)
        view = take_apart(clip)
        found = judge_view(view, scene)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"benchmark prompt {prompt.id!r}: not a small-world prompt and clip ({error}); use another suite"
        ) from None
    success, smooth, faithful = float(all(found.holds.values())), found.smoothness, found.faithfulness
    shares: dict[str, float | None] = {
        "prompt_success": success,
        "video_faithfulness": faithful,
        "subject_consistency": subject_consistency(view),
        "background_consistency": background_consistency(view),
        "temporal_flickering": temporal_flickering(clip) if scene.motion == "still" else None,
        "motion_smoothness": smooth,
        "dynamic_degree": float(found.dynamic > 0),
        "overall_consistency": found.semantic,
        **{name: _share(found, keys) for name, keys in _PARTS.items()},
        "multiple_objects": float(found.holds["shape"] and found.holds["shape2"]) if scene.shape2 else None,
    }
    return {
        "total": _SUCCESS * success + _QUALITY * (smooth + faithful),
        **{name: None if value is None else 100.0 * value for name, value in shares.items()},
    }


def _share(found: Judgement, keys: tuple[str, ...]) -> float | None:
    hits = [found.holds[key] for key in keys if key in found.holds]
    return sum(hits) / len(hits) if hits else None
