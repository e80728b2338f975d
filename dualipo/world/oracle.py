"""The oracle: reads a clip's pixels and says, exactly, what it shows and how well it holds together.

It never sees how a clip was made. It stands behind the simulated annotators and the small world's benchmark, and
nowhere else: no step that labels or trains may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from dualipo.world.scene import BACKGROUNDS, COLOURS, RADII, SHAPES, Scene, coverage

_PALETTE = np.array(list(COLOURS.values()), np.float32)
_NAMES = tuple(COLOURS)
_GROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)
_MIN_PIXELS = 8
"""Pixels below which a patch of colour is no object."""


@dataclass(frozen=True)
class Object:
    """One object as seen over the whole clip."""

    colour: str
    shape: str
    size: str
    motion: str
    speed: str | None
    position: tuple[float, float]
    """Mean centre (x, y), pixels."""
    smoothness: float
    """1 for steady movement, towards 0 with jumps and jitter of the centre or the area."""
    faithfulness: float
    """How well every frame is one crisp, whole piece of the same shape and colour, in [0, 1]."""


@dataclass(frozen=True)
class Reading:
    """What the oracle sees in a clip, without knowing the prompt."""

    background: str
    objects: tuple[Object, ...]
    """By area, the largest first; empty where nothing stands out from the background."""
    smoothness: float
    faithfulness: float
    dynamic: float
    """Movement of the objects' centres, pixels a frame."""


@dataclass(frozen=True)
class Judgement:
    """A reading held against a prompt."""

    holds: dict[str, bool]
    """Whether each attribute the prompt names is seen; keys as in `Scene`."""
    seen: dict[str, str]
    """What is seen in its place; 'nothing' where the object is missing."""
    smoothness: float
    faithfulness: float
    dynamic: float

    @property
    def semantic(self) -> float:
        """Share of the prompt's attributes that hold."""
        return sum(self.holds.values()) / len(self.holds)


def read(clip: np.ndarray) -> Reading:
    """Reads a uint8 (frames, SIZE, SIZE, 3) clip."""
    frames = clip.astype(np.float32)
    border = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], axis=1)
    ground = np.median(border, axis=(0, 1))
    background = list(BACKGROUNDS)[int(np.abs(_GROUNDS - ground).sum(1).argmin())]
    local = np.median(border, axis=1)[:, None, None]
    alpha, owner = _segment(frames, local)
    areas = np.array([alpha[owner == k].sum() for k in range(len(_NAMES))]) / len(frames)
    order = [k for k in np.argsort(-areas) if areas[k] >= _MIN_PIXELS][:2]
    if len(order) == 2 and areas[order[1]] < 0.25 * areas[order[0]]:
        order = order[:1]
    objects = tuple(_track(alpha * (owner == k), frames, local, _NAMES[k]) for k in order)
    flicker = float(np.abs(np.diff(local[:, 0, 0], axis=0)).mean()) if len(frames) > 1 else 0.0
    steady = float(np.exp(-flicker / 12.0))
    covered = sum(areas[k] for k in order)
    stray = float(areas.sum() - covered) / max(covered, 1.0)
    whole = min((o.faithfulness for o in objects), default=0.0) * float(np.exp(-2.0 * stray))
    return Reading(
        background,
        objects,
        steady * min((o.smoothness for o in objects), default=0.0),
        steady * whole,
        max((_speed_of(o) for o in objects), default=0.0),
    )


def judge(clip: np.ndarray, scene: Scene) -> Judgement:
    """Says which of the scene's attributes a clip shows."""
    reading = read(clip)
    by_colour = {o.colour: o for o in reading.objects}
    rest = list(reading.objects)
    matched: list[Object | None] = []
    for _, colour in scene.objects:
        found = by_colour.get(colour)
        if found in rest:
            rest.remove(found)
        matched.append(found)
    matched = [m if m is not None else (rest.pop(0) if rest else None) for m in matched]
    first = matched[0]
    seen = {"background": reading.background}
    wanted = {"background": scene.background}

    def note(key: str, want: str | None, have: str | None) -> None:
        if want is not None:
            wanted[key], seen[key] = want, have or "nothing"

    note("shape", scene.shape, first and first.shape)
    note("colour", scene.colour, first and first.colour)
    note("size", scene.size, first and first.size)
    note("motion", scene.motion, first and first.motion)
    note("speed", scene.speed, first and (first.speed or "still"))
    if scene.shape2:
        second = matched[1]
        note("shape2", scene.shape2, second and second.shape)
        note("colour2", scene.colour2, second and second.colour)
        note("relation", scene.relation, _relation(first, second))
    extra = len(reading.objects) - len(scene.objects)
    holds = {key: seen[key] == wanted[key] for key in wanted}
    if extra > 0:
        holds["count"], seen["count"] = False, f"{len(reading.objects)} objects"
    return Judgement(holds, seen, reading.smoothness, reading.faithfulness, reading.dynamic)


def _segment(frames: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of foreground of each pixel (frames, h, w), and the colour that owns it.

    A pixel is taken as a mixture of background and one palette colour: the colour whose line from the background passes
    nearest owns it, and the place on the line is its share.
    """
    delta = frames - ground
    lines = (_PALETTE[None] - ground[:, 0, 0][:, None])[:, None, None]
    share = (delta[..., None, :] * lines).sum(-1) / (lines**2).sum(-1)
    share = np.clip(share, 0.0, 1.15)
    residual = np.abs(delta[..., None, :] - share[..., None] * lines).sum(-1)
    owner = residual.argmin(-1)
    alpha = np.take_along_axis(share, owner[..., None], -1)[..., 0]
    alpha = np.clip(alpha, 0.0, 1.0)
    alpha[np.abs(delta).sum(-1) < 60.0] = 0.0
    # Edge pixels mix with the background and can be claimed by a neighbouring hue: they follow their surroundings.
    solid = alpha > 0.6
    votes = np.stack(
        [ndimage.uniform_filter(((owner == k) & solid).astype(np.float32), (1, 3, 3)) for k in range(len(_PALETTE))], -1
    )
    settled = votes.sum(-1) > 0
    owner = np.where(settled, votes.argmax(-1), owner)
    return alpha, owner


def _track(mask: np.ndarray, frames: np.ndarray, ground: np.ndarray, colour: str) -> Object:
    """Follows one colour's mask (frames, h, w) through the clip."""
    grid = np.arange(mask.shape[-1]) + 0.5
    areas = mask.sum((1, 2))
    present = areas >= _MIN_PIXELS / 2
    weight = np.maximum(areas, 1e-6)
    centres = np.stack([(mask * grid).sum((1, 2)) / weight, (mask * grid[:, None]).sum((1, 2)) / weight], -1)
    index = np.flatnonzero(present)
    mean_area = float(areas[present].mean())
    motion, speed, jitter = _movement(centres[index], index)
    shape, radius, fits = _shape(mask[index], centres[index])
    gone = 1.0 - len(index) / len(mask)
    breathing = float(areas[present].std() / mean_area)
    smoothness = float(np.exp(-jitter / 0.9) * np.exp(-1.5 * max(breathing - 0.08, 0.0)) * (1 - gone) ** 2)
    pure = _purity(mask[index], frames[index], ground[index], colour)
    faithfulness = float(np.clip((np.mean(fits) - 0.35) / 0.55, 0, 1) * pure * (1 - gone))
    size = min(RADII, key=lambda name: abs(RADII[name] - radius))
    position = centres[index].mean(0)
    return Object(colour, shape, size, motion, speed, (float(position[0]), float(position[1])), smoothness, faithfulness)


def _movement(centres: np.ndarray, index: np.ndarray) -> tuple[str, str | None, float]:
    """Direction, speed and jitter (RMS distance from the best straight, even path; pixels) of a track of centres."""
    if len(index) < 2:
        return "still", None, 3.0
    design = np.stack([np.ones(len(index)), index - index.mean()], 1)
    solution, *_ = np.linalg.lstsq(design, centres, rcond=None)
    jitter = float(np.sqrt(((centres - design @ solution) ** 2).sum(1).mean()))
    vx, vy = solution[1]
    rate = max(abs(vx), abs(vy))
    if rate < 0.45:
        return "still", None, jitter
    direction = ("right" if vx > 0 else "left") if abs(vx) >= abs(vy) else ("down" if vy > 0 else "up")
    return direction, "slowly" if rate < 1.5 else "quickly", jitter


def _shape(masks: np.ndarray, centres: np.ndarray) -> tuple[str, float, np.ndarray]:
    """Best shape and radius over all frames, and its overlap (IoU, soft) in each frame under that one shape."""
    half = masks.shape[-1] // 2
    aligned = np.stack(
        [ndimage.shift(m, (half - cy, half - cx), order=1) for m, (cx, cy) in zip(masks, centres, strict=True)]
    )
    mean = aligned.mean(0)
    shapes, templates = _templates(masks.shape[-1])
    overlap = np.minimum(mean, templates).sum((1, 2)) / np.maximum(mean, templates).sum((1, 2))
    best = int(overlap.argmax())
    shape, radius = shapes[best]
    template = templates[best]
    fits = np.minimum(aligned, template).sum((1, 2)) / np.maximum(aligned, template).sum((1, 2))
    return shape, radius, fits


@lru_cache(maxsize=2)
def _templates(size: int) -> tuple[list[tuple[str, float]], np.ndarray]:
    """Every shape at every radius, centred by its centroid; coverage (templates, size, size)."""
    names, images = [], []
    grid = np.arange(size) + 0.5
    for shape in SHAPES:
        for radius in np.arange(2.5, 10.01, 0.5):
            image = coverage(shape, size / 2, size / 2, float(radius), size)
            cx, cy = (image * grid).sum() / image.sum(), (image * grid[:, None]).sum() / image.sum()
            image = coverage(shape, float(size - cx), float(size - cy), float(radius), size)
            names.append((shape, float(radius)))
            images.append(image)
    return names, np.stack(images)


def _purity(masks: np.ndarray, frames: np.ndarray, ground: np.ndarray, colour: str) -> float:
    """How near the object's core stays to its colour, in [0, 1]: 1 at the palette's colour, 0 half-way to the ground."""
    target = np.array(COLOURS[colour], np.float32)
    core = masks > 0.75
    if not core.any():
        core = masks > 0.4
    if not core.any():
        return 0.0
    error = np.abs(frames[core] - target).mean()
    contrast = np.abs(target - ground.mean((0, 1, 2))).mean()
    return float(np.clip(1.15 - error / (0.5 * contrast), 0, 1))


def _relation(first: Object | None, second: Object | None) -> str | None:
    if first is None or second is None:
        return None
    dx, dy = second.position[0] - first.position[0], second.position[1] - first.position[1]
    if abs(dx) >= abs(dy):
        return "left_of" if dx > 0 else "right_of"
    return "above" if dy > 0 else "below"


def _speed_of(item: Object) -> float:
    return {None: 0.0, "slowly": 1.0, "quickly": 2.0}[item.speed]
