"""What a small-world clip shows: the attributes of a scene, their vocabulary, and how they are drawn to pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FRAMES, SIZE, FPS = 9, 32, 8.0
SHAPES = ("circle", "bar", "triangle", "pillar")
COLOURS = {
    "red": (225, 45, 40),
    "green": (45, 190, 60),
    "blue": (50, 85, 235),
    "yellow": (240, 220, 50),
    "magenta": (215, 60, 215),
    "cyan": (60, 220, 230),
}
BACKGROUNDS = {"black": (14, 14, 18), "grey": (118, 118, 118), "white": (242, 242, 242)}
RADII = {"small": 5.0, "large": 7.5}
"""Half the longer side of a shape, pixels."""
SPEEDS = {"slowly": 1.0, "quickly": 2.0}
"""Pixels a frame."""
DIRECTIONS = {"still": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
WANDER = 1.5
"""How far the middle of a path lies from the middle of the canvas, pixels at most."""
RELATIONS = ("left_of", "above")


@dataclass(frozen=True)
class Scene:
    """Attributes of a clip, as a prompt asks for them.

    `speed` is None when still, `size` where there are two objects, the last three where there is one.
    """

    shape: str
    colour: str
    background: str
    motion: str
    size: str | None = None
    speed: str | None = None
    shape2: str | None = None
    colour2: str | None = None
    relation: str | None = None

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> Scene:
        return cls(**attributes)

    @property
    def objects(self) -> list[tuple[str, str]]:
        """(shape, colour) of each object, the subject first."""
        first = [(self.shape, self.colour)]
        return [*first, (self.shape2, self.colour2)] if self.shape2 and self.colour2 else first

    @property
    def radius(self) -> float:
        return RADII[self.size or "small"]

    @property
    def velocity(self) -> np.ndarray:
        """(x, y), pixels a frame."""
        return np.array(DIRECTIONS[self.motion], float) * SPEEDS[self.speed or "slowly"]


def shape_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Whether points lie inside a shape of half-length `radius` centred at the origin; boolean, shape of x and y."""
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "bar":
        return (np.abs(x) <= radius) & (np.abs(y) <= 0.5 * radius)
    if shape == "pillar":
        return (np.abs(x) <= 0.5 * radius) & (np.abs(y) <= radius)
    if shape == "triangle":
        return (y <= 0.8 * radius) & (y >= -radius) & (np.abs(x) <= (y + radius) * 0.58)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


@lru_cache(maxsize=4096)
def coverage(shape: str, cx: float, cy: float, radius: float, size: int = SIZE, samples: int = 4) -> np.ndarray:
    """Share of each pixel that the shape covers, float32 (size, size); centre in pixels from the top left corner."""
    axis = (np.arange(size * samples) + 0.5) / samples
    inside = shape_distance(shape, axis[None, :] - cx, axis[:, None] - cy, radius)
    return inside.reshape(size, samples, size, samples).mean(axis=(1, 3), dtype=np.float32)


def place(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Centres of every object in every frame, float (objects, FRAMES, 2), inside the canvas throughout."""
    radius, steps = scene.radius, np.arange(FRAMES)[:, None] * scene.velocity
    offsets = [np.zeros(2)]
    if len(scene.objects) == 2:
        gap = 2 * radius + rng.uniform(0.8, 2.5)
        drift = rng.uniform(-1.5, 1.5)
        offsets.append(np.array([gap, drift]) if scene.relation == "left_of" else np.array([drift, gap]))
    path = np.stack([offset + steps for offset in offsets])
    low, high = path.reshape(-1, 2).min(0), path.reshape(-1, 2).max(0)
    middle = SIZE / 2 - (low + high) / 2
    room = np.clip((SIZE - 2 * radius - 1 - (high - low)) / 2, 0.0, WANDER)
    return path + middle + rng.uniform(-1, 1, 2) * room


def render(scene: Scene, seed: int) -> np.ndarray:
    """uint8 (FRAMES, SIZE, SIZE, 3); equal scene and seed give equal pixels."""
    return paint(scene, place(scene, np.random.default_rng(seed)))


def paint(scene: Scene, centres: np.ndarray) -> np.ndarray:
    """Draws the scene's objects at given centres (objects, FRAMES, 2); uint8 (FRAMES, SIZE, SIZE, 3)."""
    frames = np.empty((FRAMES, SIZE, SIZE, 3), np.float32)
    frames[:] = BACKGROUNDS[scene.background]
    for (shape, colour), track in zip(scene.objects, centres, strict=True):
        for frame, (cx, cy) in zip(frames, track, strict=True):
            alpha = coverage(shape, round(float(cx), 3), round(float(cy), 3), scene.radius)[..., None]
            frame += alpha * (np.array(COLOURS[colour], np.float32) - frame)
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)
