"""Clips of known quality, against which the benchmark itself is held: a prompt's clean render, or one damaged by a
known amount. Blur, flicker and teleport have a strength; a wrong colour, shape or direction has none, a set of clips
only a share of such clips."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualipo.records import Prompt
from dualipo.steps import derive_seed
from dualipo.world.benchmark import score_clip
from dualipo.world.corrupt import Fault, render_with_faults
from dualipo.world.scene import COLOURS, DIRECTIONS, SHAPES, Scene, render

FAULTS = ("blur", "flicker", "teleport")
MISTAKES = ("colour", "shape", "direction")
STRENGTHS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Damage:
    """`strength` in (0, 1] of one of FAULTS, 1 of one of MISTAKES."""

    name: str
    strength: float = 1.0


DAMAGES = (*(Damage(name, s) for name in FAULTS for s in STRENGTHS), *map(Damage, MISTAKES))


def known_clip(scene: Scene, damage: Damage | None, seed: int) -> np.ndarray:
    """uint8 (FRAMES, SIZE, SIZE, 3): the scene as asked, or damaged."""
    if damage is None:
        return render(scene, seed)
    if damage.name in FAULTS:
        return render_with_faults(scene, [Fault(damage.name, damage.strength)], seed)
    return render(_mistaken(scene, damage.name, np.random.default_rng(seed)), seed)


def _mistaken(scene: Scene, name: str, rng: np.random.Generator) -> Scene:
    if name == "colour":
        return replace(scene, colour=str(rng.choice([c for c in COLOURS if c not in (scene.colour, scene.colour2)])))
    if name == "shape":
        return replace(scene, shape=str(rng.choice([shape for shape in SHAPES if shape != scene.shape])))
    ways = [way for way in DIRECTIONS if way not in ("still", scene.motion)]
    return replace(scene, motion=str(rng.choice(ways)), speed=scene.speed or "slowly")


@dataclass(frozen=True)
class Known:
    """Scores of the same prompts' clips, clean and with each damage."""

    clean: list[dict[str, float | None]]
    damaged: dict[Damage, list[dict[str, float | None]]]

    def totals(self, damage: Damage | None) -> np.ndarray:
        return np.array([row["total"] for row in (self.clean if damage is None else self.damaged[damage])], float)

    def drawn(self, share: float, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Totals (prompts, samples) of a generator that damages that share of its clips, in ways drawn at random."""
        pool = np.stack([self.totals(damage) for damage in self.damaged])
        which = rng.integers(len(pool), size=(len(self.clean), samples))
        hit = rng.random((len(self.clean), samples)) < share
        places = np.arange(len(self.clean))[:, None]
        return np.where(hit, pool[which, places], self.totals(None)[:, None])


def score_known(prompts: Sequence[Prompt], seed: int = 0) -> Known:
    """Scores a clean clip and one of each damage for every prompt; all of a prompt's follow the same path."""

    def scores(damage: Damage | None) -> list[dict[str, float | None]]:
        return [
            score_clip(known_clip(Scene.of(p.attributes), damage, derive_seed(seed, "known", p.id)), p) for p in prompts
        ]

    return Known(scores(None), {damage: scores(damage) for damage in DAMAGES})


def ranked_rightly(known: Known, shares: Sequence[float], samples: int, rng: np.random.Generator) -> bool:
    """Whether generators that damage these rising shares of their clips come out in this order, the best first."""
    totals = [known.drawn(share, samples, rng).mean() for share in shares]
    return all(better > worse for better, worse in itertools.pairwise(totals))
