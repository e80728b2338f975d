"""Sentences of small-world scenes, and random scenes, for training the base models."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np

from dualipo.prompts.sampler import sample_prompts
from dualipo.prompts.space import Cell, load_space
from dualipo.world.scene import BACKGROUNDS, COLOURS, DIRECTIONS, RADII, RELATIONS, SHAPES, SPEEDS, Scene

_CHOICES = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "motion": tuple(DIRECTIONS),
    "size": tuple(RADII),
    "speed": tuple(SPEEDS),
    "shape2": SHAPES,
    "colour2": tuple(COLOURS),
    "relation": RELATIONS,
}


def random_captions(count: int, seed: int) -> list[tuple[str, Scene]]:
    """(prompt, scene) pairs drawn from the small world's prompt space."""
    prompts = sample_prompts(load_space("small_world"), count, seed)
    return [(prompt.text, Scene.of(prompt.attributes)) for prompt in prompts]


def sentence(scene: Scene) -> str:
    """The prompt that asks for a scene; raises ValueError where the small world's prompt space has none."""
    named = {key: value for key, value in asdict(scene).items() if value is not None}
    for cell in _cells():
        words = {
            factor: {value.name: value for value in vocabulary}.get(named.get(factor, ""))
            for factor, vocabulary in zip(cell.factors, cell.vocabularies, strict=True)
        }
        if words.keys() == named.keys() and all(words.values()):
            parts = cell.template.parts()
            said = [(text, words[name] if name else None, article) for text, name, article in parts]
            return "".join(
                text + ((word.with_article if article else word.text) if word else "") for text, word, article in said
            )
    raise ValueError(f"no prompt of the small world asks for {scene}")


@lru_cache(maxsize=1)
def _cells() -> tuple[Cell, ...]:
    return tuple(load_space("small_world").cells())


def mistaken(scene: Scene, rng: np.random.Generator, count: int = 1) -> Scene:
    """The scene with `count` of its attributes replaced by other values, still a possible one."""
    for _ in range(count):
        named = [key for key, value in asdict(scene).items() if value is not None and key != "speed"]
        key = str(rng.choice(named))
        value = str(rng.choice([v for v in _CHOICES[key] if v != getattr(scene, key)]))
        if key == "colour" and value == scene.colour2:
            scene = replace(scene, colour=value, colour2=scene.colour)
        elif key == "colour2" and scene.colour2 and value == scene.colour:
            scene = replace(scene, colour2=value, colour=scene.colour2)
        elif key == "motion":
            speed = (
                None
                if value == "still"
                else scene.speed or ("slowly" if scene.shape2 else str(rng.choice(_CHOICES["speed"])))
            )
            scene = replace(scene, motion=value, speed=speed)
        else:
            scene = replace(scene, **{key: value})
    return scene
