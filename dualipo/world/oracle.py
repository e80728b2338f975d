"""The oracle: reads a clip's pixels and says, exactly, what it shows and how well it holds together.

It never sees how a clip was made. It stands behind the simulated annotators and the small world's benchmark, and
nowhere else: no step that labels or trains may import it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from dualipo.world.scene import BACKGROUNDS, COLOURS, RADII, SHAPES, SIZE, SPEEDS, Scene, coverage

_PALETTE = np.array(list(COLOURS.values()), np.float32)
_NAMES = tuple(COLOURS)
_GROUNDS = np.array(list(BACKGROUNDS.values()), np.float32)
_MIN_PIXELS = 8
"""Pixels below which a patch of colour is no object."""
_BLURS = (0.0, 0.6, 1.2, 1.8)
"""Blurs under which a shape is still told from the others: standard deviations, pixels."""


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
    """Nominal speed of the fastest object, pixels a frame."""


@dataclass(frozen=True)
class Judgement:
    """A reading held against a prompt."""

    holds: dict[str, bool]
    """Whether each attribute the prompt names is seen; keys as in `Scene`, and `count` for an object too many."""
    seen: dict[str, str]
    """What is seen in its place; 'nothing' where the object is missing."""
    smoothness: float
    faithfulness: float
    dynamic: float

    @property
    def semantic(self) -> float:
        """Share of the prompt's attributes that hold."""
        return sum(self.holds.values()) / len(self.holds)


@dataclass(frozen=True)
class View:
    """A clip taken apart: what is background, and which pixels are whose."""

    frames: np.ndarray
    """float32 (frames, SIZE, SIZE, 3), levels of 255."""
    ground: np.ndarray
    """Colour of the background in each frame, (frames, 1, 1, 3)."""
    background: str
    alpha: np.ndarray
    """Share of foreground of each pixel, (frames, SIZE, SIZE)."""
    masks: np.ndarray
    """The same of each colour's solid patches, (colours, frames, SIZE, SIZE)."""
    groups: list[list[int]]
    """Colours of each object, the object with the largest area first."""

    @property
    def objects(self) -> list[np.ndarray]:
        """Each object's share of each pixel, (frames, SIZE, SIZE)."""
        return [self.masks[group].max(0) for group in self.groups]


def take_apart(clip: np.ndarray) -> View:
    """Of a uint8 (frames, SIZE, SIZE, 3) clip; raises ValueError on an array of another shape or type."""
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[1:] != (SIZE, SIZE, 3) or not len(clip):
        raise ValueError(f"a clip is uint8 (frames, {SIZE}, {SIZE}, 3); found {clip.dtype} {clip.shape}")
    frames = clip.astype(np.float32)
    border = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], axis=1)
    background = list(BACKGROUNDS)[int(np.abs(_GROUNDS - np.median(border, axis=(0, 1))).sum(1).argmin())]
    ground = np.median(border, axis=1)[:, None, None]
    alpha, owner = _segment(frames, ground)
    masks = np.stack([_solid(alpha * (owner == k)) for k in range(len(_NAMES))])
    return View(frames, ground, background, alpha, masks, _group(masks.sum((2, 3))))


def read(clip: np.ndarray) -> Reading:
    """Reads a uint8 (frames, SIZE, SIZE, 3) clip; raises ValueError on an array of another shape or type."""
    return read_view(take_apart(clip))


def read_view(view: View) -> Reading:
    frames, ground, masks, groups = view.frames, view.ground, view.masks, view.groups
    areas = masks.sum((2, 3))
    objects = tuple(_track(masks[group], frames, ground, [_NAMES[k] for k in group]) for group in groups)
    flicker = float(np.abs(np.diff(ground[:, 0, 0], axis=0)).mean()) if len(frames) > 1 else 0.0
    steady = float(np.exp(-flicker / 12.0))
    covered = sum(float(areas[group].sum()) for group in groups)
    stray = max(float(view.alpha.sum()) - covered, 0.0) / max(covered, 1.0)
    whole = min((o.faithfulness for o in objects), default=0.0) * float(np.exp(-2.0 * stray))
    return Reading(
        view.background,
        objects,
        steady * min((o.smoothness for o in objects), default=0.0),
        steady * whole,
        max((SPEEDS[o.speed] if o.speed else 0.0 for o in objects), default=0.0),
    )


def judge(clip: np.ndarray, scene: Scene) -> Judgement:
    """Says which of the scene's attributes a clip shows.

    Objects that are seen are matched with those asked for so that as many attributes hold as can: what is reported
    wrong is the least that explains the clip.
    """
    return judge_view(take_apart(clip), scene)


def judge_view(view: View, scene: Scene) -> Judgement:
    reading = read_view(view)
    asked = len(scene.objects)
    missing = [None] * max(asked - len(reading.objects), 0)
    wanted = {key: value for key, value in asdict(scene).items() if value is not None}

    def hits(seen: dict[str, str]) -> tuple[int, int]:
        colours = [key for key in ("colour", "colour2") if key in wanted and seen[key] == wanted[key]]
        return sum(seen[key] == value for key, value in wanted.items()), len(colours)

    orders = itertools.permutations([*reading.objects, *missing], asked)
    seen = max((_seen(reading.background, order, wanted) for order in orders), key=hits)
    holds = {key: seen[key] == value for key, value in wanted.items()}
    if len(reading.objects) > asked:
        holds["count"], seen["count"] = False, f"{len(reading.objects)} objects"
    return Judgement(holds, seen, reading.smoothness, reading.faithfulness, reading.dynamic)


def _seen(background: str, objects: Sequence[Object | None], wanted: Mapping[str, str]) -> dict[str, str]:
    """What is seen of each wanted attribute, if `objects` are the subject and, where there are two, the other."""
    first, last = objects[0], objects[-1]
    both = [item for item in objects if item]
    # Two objects move together: one that does not is what is told.
    moving = [(item.motion, item.speed or "still") for item in both]
    motions = [motion for motion, _ in moving if motion != wanted["motion"]] or [motion for motion, _ in moving]
    speeds = [speed for _, speed in moving if speed != wanted.get("speed")] or [speed for _, speed in moving]
    found = {
        "background": background,
        "shape": first and first.shape,
        "colour": first and first.colour,
        "size": first and first.size,
        "motion": motions[0] if motions else None,
        "speed": speeds[0] if speeds else None,
        "shape2": last and last.shape,
        "colour2": last and last.colour,
        "relation": _relation(first, last),
    }
    return {key: found[key] or "nothing" for key in wanted}


def _segment(frames: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of foreground of each pixel (frames, h, w), and the colour that owns it.

    A pixel is taken as a mixture of background and one palette colour: the colour whose line from the background passes
    nearest owns it, and the place on the line is its share.
    """
    delta = frames - ground
    lines = (_PALETTE[None] - ground[:, 0, 0][:, None])[:, None, None]
    share = (delta[..., None, :] * lines).sum(-1) / np.maximum((lines**2).sum(-1), 1.0)
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


def _solid(mask: np.ndarray) -> np.ndarray:
    """A colour's mask (frames, h, w) without what lies apart from its solid patches: noise is no part of an object."""
    core = ndimage.uniform_filter((mask > 0.4).astype(np.float32), (1, 3, 3)) > 0.5
    return mask * ndimage.binary_dilation(core, np.ones((1, 3, 3), bool), iterations=2)


def _group(areas: np.ndarray) -> list[list[int]]:
    """Colours (areas over colours and frames) to objects, at most two, the largest first.

    Colours that are never seen at the same time are one object that changes its colour; the one most seen is first.
    """
    present = areas >= _MIN_PIXELS
    groups: list[list[int]] = []
    for k in np.argsort(-areas.sum(1), kind="stable"):
        if not present[k].any():
            continue
        apart = next((group for group in groups if not (present[group].any(0) & present[k]).any()), None)
        if apart is not None:
            apart.append(int(k))
        elif areas[k].mean() >= _MIN_PIXELS:
            groups.append([int(k)])
    groups = sorted(groups, key=lambda group: -areas[group].sum())[:2]
    if len(groups) == 2 and areas[groups[1]].sum() < 0.25 * areas[groups[0]].sum():
        groups.pop()
    return groups


def _track(masks: np.ndarray, frames: np.ndarray, ground: np.ndarray, colours: list[str]) -> Object:
    """Follows an object through the clip: masks (colours, frames, h, w) of the colours it takes, the main one first."""
    mask = masks.max(0)
    grid = np.arange(mask.shape[-1]) + 0.5
    areas = mask.sum((1, 2))
    index = np.flatnonzero(areas >= _MIN_PIXELS / 2)
    weight = np.maximum(areas, 1e-6)
    centres = np.stack([(mask * grid).sum((1, 2)) / weight, (mask * grid[:, None]).sum((1, 2)) / weight], -1)
    motion, speed, jitter = _movement(centres[index], index)
    shape, radius, fits, keeps = _shape(mask[index], centres[index])
    there = len(index) / len(mask)
    breathing = float(areas[index].std() / areas[index].mean())
    smoothness = float(np.exp(-jitter / 0.9) * np.exp(-1.5 * max(breathing - 0.08, 0.0)) * there**2)
    own = index[masks[:, index].sum((2, 3)).argmax(0) == 0]
    pure = _purity(mask[own], frames[own], ground[own], colours[0])
    constant = (len(own) / len(index) * keeps) ** 2
    faithfulness = float(np.clip((np.mean(fits) - 0.35) / 0.55, 0, 1) * pure * constant * there)
    size = min(RADII, key=lambda name: abs(RADII[name] - radius))
    position = centres[index].mean(0)
    return Object(
        colours[0], shape, size, motion, speed, (float(position[0]), float(position[1])), smoothness, faithfulness
    )


def _movement(centres: np.ndarray, index: np.ndarray) -> tuple[str, str | None, float]:
    """Direction, speed and jitter of a track of centres.

    Jitter is the RMS distance from the best straight, even path, pixels. Direction and speed allow for one jump: where
    a path with a jump fits far better than one without, they are those of the movement before and after it.
    """
    if len(index) < 2:
        return "still", None, 3.0
    line = np.stack([np.ones(len(index)), index - index.mean()], 1)
    velocity, jitter = _fit(line, centres)
    cuts = [np.column_stack([line, index >= index[at]]) for at in range(2, len(index) - 1)]
    if cuts:
        without, rest = min((_fit(cut, centres) for cut in cuts), key=lambda fit: fit[1])
        if jitter > 0.5 and rest < 0.3 * jitter:
            velocity = without
    vx, vy = velocity
    rate = max(abs(vx), abs(vy))
    if rate < 0.45:
        return "still", None, jitter
    direction = ("right" if vx > 0 else "left") if abs(vx) >= abs(vy) else ("down" if vy > 0 else "up")
    return direction, "slowly" if rate < 1.5 else "quickly", jitter


def _fit(design: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares: velocity (x, y) and RMS residual."""
    solution, *_ = np.linalg.lstsq(design, centres, rcond=None)
    return solution[1], float(np.sqrt(((centres - design @ solution) ** 2).sum(1).mean()))


def _shape(masks: np.ndarray, centres: np.ndarray) -> tuple[str, float, np.ndarray, float]:
    """Best shape and radius over all frames, the overlap (soft IoU) of each frame with that one crisp shape, and the
    share of frames that do not plainly show another."""
    half = masks.shape[-1] // 2
    aligned = np.stack(
        [ndimage.shift(m, (half - cy, half - cx), order=1) for m, (cx, cy) in zip(masks, centres, strict=True)]
    )
    shapes, templates = _templates(masks.shape[-1])
    _, best = np.unravel_index(_distance(aligned.mean(0), templates).argmin(), templates.shape[:2])
    shape, radius = shapes[best]
    each = _distance(aligned, templates).min(-2)
    same = np.array([name == shape for name, _ in shapes])
    lead = each[:, same].min(1) - each[:, ~same].min(1)
    changed = lead > 0.02 * aligned.sum((1, 2))
    crisp = templates[0, best]
    fits = np.minimum(aligned, crisp).sum((1, 2)) / np.maximum(aligned, crisp).sum((1, 2))
    return shape, radius, fits, 1.0 - float(changed.mean())


def _distance(masks: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Squared distance of each mask (..., h, w) from each template (blurs, templates, h, w)."""
    flat, rows = masks.reshape(*masks.shape[:-2], -1), templates.reshape(-1, masks.shape[-1] * masks.shape[-2])
    # einsum rather than @: no threads, so that sums are the same everywhere.
    squares = (flat**2).sum(-1, keepdims=True) + (rows**2).sum(-1) - 2 * np.einsum("...p,tp->...t", flat, rows)
    return squares.reshape(*masks.shape[:-2], *templates.shape[:2])


@lru_cache(maxsize=2)
def _templates(size: int) -> tuple[list[tuple[str, float]], np.ndarray]:
    """(shape, radius) of every template, and the templates, centred by their centroids, crisp and ever more blurred:
    coverage (blurs, templates, size, size)."""
    names, images = [], []
    grid = np.arange(size) + 0.5
    for shape in SHAPES:
        for radius in np.arange(2.5, 10.01, 0.5):
            image = coverage(shape, size / 2, size / 2, float(radius), size)
            cx, cy = (image * grid).sum() / image.sum(), (image * grid[:, None]).sum() / image.sum()
            images.append(coverage(shape, float(size - cx), float(size - cy), float(radius), size))
            names.append((shape, float(radius)))
    crisp = np.stack(images)
    return names, np.stack([ndimage.gaussian_filter(crisp, (0, blur, blur)) for blur in _BLURS])


def _purity(masks: np.ndarray, frames: np.ndarray, ground: np.ndarray, colour: str) -> float:
    """How near the object's core stays to its colour, in [0, 1].

    1 up to a mean error of 0.15 of half the contrast with the background, 0 from 1.15 of it on.
    """
    target = np.array(COLOURS[colour], np.float32)
    core = masks > 0.75
    if not core.any():
        core = masks > 0.4
    if not core.any():
        return 0.0
    error = np.abs(frames[core] - target).mean()
    contrast = np.abs(target - ground.mean((0, 1, 2))).mean()
    return float(np.clip(1.15 - error / max(0.5 * contrast, 1.0), 0, 1))


def _relation(first: Object | None, second: Object | None) -> str | None:
    if first is None or second is None:
        return None
    dx, dy = second.position[0] - first.position[0], second.position[1] - first.position[1]
    if abs(dx) >= abs(dy):
        return "left_of" if dx > 0 else "right_of"
    return "above" if dy > 0 else "below"
