"""Ways in which a generated clip goes wrong, applied to rendered scenes with a known severity.

They make the base generator's training clips as uneven as clips found in the wild, and teach the base critic what a
fault looks like without the oracle's help.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from dualipo.world.scene import COLOURS, FRAMES, SHAPES, SIZE, Scene, paint, place

MOTION_FAULTS = ("jitter", "teleport", "vanish")
LOOK_FAULTS = ("blur", "morph", "recolour", "flicker", "speckle")


@dataclass(frozen=True)
class Fault:
    """A fault and how bad it is: severity in (0, 1]; at 0.5 and above nobody would miss it."""

    name: str
    severity: float

    @property
    def dimension(self) -> str:
        return "motion" if self.name in MOTION_FAULTS else "faithfulness"


def random_fault(rng: np.random.Generator, dimension: str | None = None) -> Fault:
    names = {"motion": MOTION_FAULTS, "faithfulness": LOOK_FAULTS, None: MOTION_FAULTS + LOOK_FAULTS}[dimension]
    return Fault(str(rng.choice(names)), float(rng.uniform(0.25, 1.0)))


def render_with_faults(scene: Scene, faults: list[Fault], seed: int) -> np.ndarray:
    """uint8 (FRAMES, SIZE, SIZE, 3). Without faults equal to `scene.render(scene, seed)`."""
    rng = np.random.default_rng(seed)
    centres = place(scene, rng)
    by_name = {fault.name: fault.severity for fault in faults}
    if "jitter" in by_name:
        centres = centres + rng.normal(0, 0.7 + 2.0 * by_name["jitter"], centres.shape)
    if "teleport" in by_name:
        jump = rng.choice([-1, 1], 2) * (3 + 7 * by_name["teleport"])
        cut = int(rng.integers(2, FRAMES - 2))
        moved = centres.copy()
        moved[:, cut:] += jump
        centres = moved
    centres = np.clip(centres, 1.5, SIZE - 1.5)
    frames = paint(scene, centres)
    if "morph" in by_name or "recolour" in by_name:
        other = scene
        if "morph" in by_name:
            other = replace(other, shape=_another(rng, SHAPES, scene.shape))
        if "recolour" in by_name:
            other = replace(other, colour=_another(rng, [c for c in COLOURS if c != scene.colour2], scene.colour))
        severity = max(by_name.get("morph", 0.0), by_name.get("recolour", 0.0))
        count = int(np.ceil(severity * FRAMES / 2))
        when = rng.choice(FRAMES, count, replace=False)
        frames[when] = paint(other, centres)[when]
    if "vanish" in by_name:
        empty = paint(scene, np.full_like(centres, -4 * SIZE))
        when = rng.choice(FRAMES, int(np.ceil(by_name["vanish"] * FRAMES / 3)), replace=False)
        frames[when] = empty[when]
    look: np.ndarray = frames.astype(np.float32)
    if "blur" in by_name:
        sigma = 0.5 + 1.8 * by_name["blur"]
        look = ndimage.gaussian_filter(look, (0, sigma, sigma, 0))
    if "flicker" in by_name:
        look = look * (1 + rng.normal(0, 0.12 + 0.25 * by_name["flicker"], (FRAMES, 1, 1, 1)))
    if "speckle" in by_name:
        look = look + rng.normal(0, 12 + 40 * by_name["speckle"], look.shape)
    return np.clip(np.rint(look), 0, 255).astype(np.uint8)


def _another(rng: np.random.Generator, values: tuple[str, ...] | list[str], but: str) -> str:
    return str(rng.choice([value for value in values if value != but]))
