"""What clips look like: statistics of known pixels, and shifts of known size."""

import numpy as np
import pytest

from dualipo.evaluation.appearance import STATISTICS, by_prompt, distinctness, effect, look, of_pairs, shifts
from dualipo.media.store import ClipStore, pack_shard
from dualipo.records import Clip


def clip(colour=(128, 128, 128), frames=9, size=16) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (frames, size, size, 3)).copy()


def noisy(amount: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, amount, (1, 16, 16, 1))
    return np.clip(clip().astype(float) + noise, 0, 255).astype(np.uint8)


def test_statistics_of_known_pixels():
    grey, red, white = look(clip()), look(clip((255, 0, 0))), look(clip((255, 255, 255)))
    assert white["brightness"] == pytest.approx(1, abs=1e-4) and red["brightness"] == pytest.approx(0.2126, abs=1e-4)
    assert (grey["saturation"], red["saturation"], look(clip((0, 0, 0)))["saturation"]) == (0, 1, 0)
    assert look(clip((200, 100, 100)))["saturation"] == pytest.approx(0.5)
    assert grey["sharpness"] == grey["motion"] == 0
    flicker = clip()
    flicker[::2] = 178
    assert look(flicker)["motion"] == pytest.approx(50 / 255, abs=1e-4)
    assert 0 < look(noisy(5))["sharpness"] < look(noisy(20))["sharpness"]
    blurred = noisy(20).astype(float)
    blurred = sum(np.roll(blurred, (a, b), (1, 2)) for a in (-1, 0, 1) for b in (-1, 0, 1)) / 9
    assert look(blurred.astype(np.uint8))["sharpness"] < look(noisy(20))["sharpness"] / 3
    assert len(red["small"]) == 48 and red["small"][:3] == [1, 0, 0]
    assert look(clip(frames=1))["motion"] == 0


def test_every_ninth_of_a_long_clip_is_enough_and_a_short_one_is_seen_whole():
    moving = np.stack([np.full((16, 16, 3), value, np.uint8) for value in range(0, 240, 2)])
    assert look(moving)["motion"] == pytest.approx(2 / 255, abs=1e-4)
    still = clip(frames=2)
    still[1] = 138
    assert look(still)["motion"] == pytest.approx(10 / 255, abs=1e-4)


def test_distinctness_is_the_distance_to_the_others():
    points = np.random.default_rng(0).normal(size=(7, 48))
    expected = [np.sqrt(np.mean([((a - b) ** 2).sum() for j, b in enumerate(points) if j != i]))
                for i, a in enumerate(points)]  # fmt: skip
    assert distinctness(points.tolist()) == pytest.approx(expected)
    assert distinctness([[0.5] * 48] * 3) == pytest.approx([0, 0, 0]) and distinctness([[0.5] * 48]) is None


def store(folder, samples: int, raised: float = 0.0):
    """Six prompts' clips; with `raised`, each brighter."""
    rows, frames = [], []
    for prompt in range(6):
        for sample in range(samples):
            name = f"p{prompt}-{sample}"
            rows.append(Clip(id=name, prompt_id=f"p{prompt}", prompt="a", file=f"clips.tar/{name}.mp4", seed=sample))
            frames.append((f"{name}.mp4", clip((60 + 20 * prompt + 4 * sample + raised,) * 3)))
    folder.mkdir(parents=True)
    pack_shard(folder / "clips.tar", frames, 8)
    ClipStore.write_manifest(folder, rows)
    return folder


def test_tables_of_two_clip_folders_and_their_shift(tmp_path):
    before, after = by_prompt(store(tmp_path / "a", 2)), by_prompt(store(tmp_path / "b", 2, raised=20))
    assert [row[0] for row in before] == [f"p{n}" for n in range(6)] and len(before[0]) == 1 + len(STATISTICS)
    assert before[0][1] == pytest.approx(62 / 255, abs=0.005)
    found = shifts(before, after)
    deviation = np.std([20 * n / 255 for n in range(6)], ddof=1)
    assert found["brightness"]["mean"] == pytest.approx(20 / 255 / deviation, abs=0.02)
    assert found["brightness"]["low"] > 0.4 and found["motion"] is None
    apart = by_prompt(store(tmp_path / "c", 1))
    assert apart[0][5] > before[0][5] > 0, "with one clip a prompt, prompts' clips are compared with each other"
    assert shifts(before, before[:1])["brightness"] is None and shifts([], [])["brightness"] is None


def test_an_effect_is_in_deviations_over_prompts_and_needs_two():
    before = {f"{n}": float(n) for n in range(50)}
    found = effect(before, {name: value + 14.5774 for name, value in before.items()})
    assert [found[name] for name in ("mean", "low", "high")] == pytest.approx([1, 1, 1], abs=1e-4)
    assert effect({"a": 1.0}, {"a": 2.0}) is None and effect({"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0}) is None
    assert effect({"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 3.0}) is None


def test_winners_against_losers():
    rng = np.random.default_rng(1)
    losers = {f"p{n}": look(clip(tuple(rng.integers(40, 200, 3)))) for n in range(30)}
    pale = {name: look(clip(tuple(int(255 * v) // 4 + 150 for v in seen["small"][:3])))
            for name, seen in losers.items()}  # fmt: skip
    found = of_pairs(pale, losers)
    assert found["brightness"]["low"] > 0 and found["saturation"]["high"] < 0
    assert found["diversity"]["high"] < 0, "winners are more alike than losers"
    assert of_pairs({}, {}) == dict.fromkeys(STATISTICS)
