"""Measures of a clip's frames against each other, which know nothing of the prompt.

Each stands in for a dimension of VBench (Huang et al., CVPR 2024) and keeps its shape: a frame is held against the one
before it and against the first, and the mean of the two similarities is the frame's. VBench compares features of DINO
and CLIP; here pixels are compared, as VBench itself does for temporal flickering. A clip of one frame has nothing to
compare: None. A frozen clip maxes all three.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from scipy import ndimage

from dualipo.world.oracle import View

Seen = TypeVar("Seen")
"""What is compared of a frame."""


def temporal_flickering(clip: np.ndarray) -> float | None:
    """VBench's own formula (temporal_flickering.py of vbench 0.1.5), of 1: (255 - d) / 255, d being the mean over pairs
    of neighbouring frames of the mean absolute difference of their pixels, in float32 as there.

    `clip` is uint8 (frames, height, width, 3). VBench means it for clips in which nothing moves: movement counts too.
    """
    if len(clip) < 2:
        return None
    frames = clip.astype(np.float32)
    steps = np.array([np.mean(np.abs(a - b)) for a, b in itertools.pairwise(frames)])
    return (255.0 - np.mean(steps).item()) / 255.0


def subject_consistency(view: View) -> float | None:
    """How alike the subject looks in all frames, of 1; of two objects the worse one, 0 where there is none.

    A frame's subject is what stands out from the background inside the object's mask, moved to the middle of the
    canvas: where it is plays no part. Two of them are alike by 1 - sum|p - q| / (sum|p| + sum|q|), 0 where either is
    missing.
    """
    if len(view.frames) < 2:
        return None
    return min((_against_first_and_last(_subjects(view, mask), _overlap) for mask in view.objects), default=0.0)


def background_consistency(view: View) -> float | None:
    """How alike the background looks in all frames, of 1.

    Two frames are alike by 1 - d / 255, d being the mean absolute difference of the pixels that belong to no object in
    either; 0 where there is no such pixel.
    """
    if len(view.frames) < 2:
        return None
    covered = np.max([np.zeros_like(view.alpha), *view.objects], axis=0) > 0
    # An object's soft edge is not the background's doing.
    free = ~ndimage.binary_dilation(covered, np.ones((1, 3, 3), bool))
    return _against_first_and_last(list(zip(view.frames, free, strict=True)), _alike)


def _against_first_and_last(items: Sequence[Seen], similarity: Callable[[Seen, Seen], float]) -> float:
    """Mean over all items but the first of how similar each is to the one before it and to the first."""
    each = [(similarity(before, item) + similarity(items[0], item)) / 2 for before, item in itertools.pairwise(items)]
    return float(np.mean(each))


def _subjects(view: View, mask: np.ndarray) -> list[np.ndarray]:
    """One object's pixels less the background's colour, centred, of each frame: (SIZE, SIZE, 3)."""
    middle, grid = mask.shape[-1] / 2, np.arange(mask.shape[-1]) + 0.5
    found = []
    for frame, ground, share in zip(view.frames, view.ground, mask, strict=True):
        weight = max(float(share.sum()), 1e-6)
        cx, cy = float((share * grid).sum() / weight), float((share * grid[:, None]).sum() / weight)
        inside = (frame - ground) * (share > 0)[..., None]
        found.append(ndimage.shift(inside, (middle - cy, middle - cx, 0), order=1) if share.any() else inside)
    return found


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    total = float(np.abs(one).sum() + np.abs(other).sum())
    return max(1.0 - float(np.abs(one - other).sum()) / total, 0.0) if total else 0.0


def _alike(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    both = one[1] & other[1]
    return 1.0 - float(np.abs(one[0] - other[0])[both].mean()) / 255.0 if both.any() else 0.0
