"""What the small world's critic is pretrained on: clips that are described, of prompts that nobody tests it with."""

from __future__ import annotations

import numpy as np
import pytest

from dualipo.critic.voting import swap_choice
from dualipo.generator.base import load_generator
from dualipo.prompts import load_space, sample_prompts
from dualipo.records import HumanChoice, HumanRating, Prompt, write_rows
from dualipo.world import annotators, data
from dualipo.world.data import write_csv
from dualipo.world.examples import Examples, generated_pairs, rendered_pairs
from dualipo.world.oracle import judge
from dualipo.world.scene import FRAMES, SIZE, Scene


@pytest.fixture(scope="module")
def rendered():
    return rendered_pairs(60, seed=3)


def test_rendered_clips_are_described_as_drawn_and_the_oracle_mostly_agrees(rendered):
    prompts = {p.text: Scene.of(p.attributes) for p in sample_prompts(load_space("small_world"), 60, 3)}
    same = []
    for text, *both in rendered:
        for item in both:
            found = judge(item.clip, prompts[text])
            same += [found.holds[key] == value for key, value in item.holds.items()]
    assert np.mean(same) > 0.85
    assert {item.verdicts["semantic"] for _, *both in rendered for item in both} == {"good", "normal", "bad"}


def test_half_the_rendered_clips_pass_through_the_restorer():
    plain, passed = rendered_pairs(40, 3), rendered_pairs(40, 3, restore=lambda clips: clips // 2)
    for (_, *before), (_, *after) in zip(plain, passed, strict=True):
        np.testing.assert_array_equal(after[0].clip, before[0].clip // 2)
        np.testing.assert_array_equal(after[1].clip, before[1].clip)
        assert after[0].holds == before[0].holds


def test_drawn_answers_are_those_of_the_clips_named(rendered):
    examples = Examples(rendered, seed=0, prefix="r")
    described = dict(zip(examples.clips, examples.described, strict=True))
    drawn = examples.draw(40, 60)
    assert [item.question.kind for item in drawn] == ["rating"] * 40 + ["choice"] * 60
    for item in drawn:
        clips = [described[name] for name in item.question.clips]
        if item.question.kind == "rating":
            assert item.verdict == clips[0].verdicts[item.question.dimension]
            assert item.reason == clips[0].reasons[item.question.dimension]
        else:
            assert item.verdict == annotators.choose(clips[0].overall, clips[1].overall)
            assert item.verdict == swap_choice(annotators.choose(clips[1].overall, clips[0].overall))
            assert item.reason == annotators.choice_reason([clip.reasons for clip in clips])
    first = {int(item.question.clips[0][1:]) % 2 for item in drawn if item.question.kind == "choice"}
    assert first == {0, 1}, "both orders are asked"


def test_generated_clips_are_described_by_the_oracle_the_same_in_any_portion(generator_folder):
    generator = load_generator(generator_folder)
    prompts = list(sample_prompts(load_space("small_world"), 5, 0))
    whole = generated_pairs(generator, prompts, seed=1, steps=2, guidance=1.0)
    assert [text for text, *_ in whole] == [prompt.text for prompt in prompts]
    for (_, *both), prompt in zip(whole, prompts, strict=True):
        for item in both:
            assert item.clip.shape == (FRAMES, SIZE, SIZE, 3)
            found = judge(item.clip, Scene.of(prompt.attributes))
            assert (item.holds, item.seen) == (found.holds, found.seen)
    assert any((one.clip != two.clip).any() for _, one, two in whole)
    part = generated_pairs(generator, prompts[3:], seed=1, steps=2, guidance=1.0)
    for (_, *expected), (_, *found) in zip(whole[3:], part, strict=True):
        assert [item.verdicts for item in found] == [item.verdicts for item in expected]


def test_no_described_clip_answers_a_held_out_prompt(tmp_path, generator_folder, monkeypatch):
    monkeypatch.setattr(data, "DESCRIBED_PROMPTS", 10)
    monkeypatch.setattr(data, "STEPS", 1)
    (tmp_path / "test").mkdir()
    generator = load_generator(generator_folder)

    def described(test: Prompt, benchmark: Prompt) -> list[str]:
        rated = {"prompt": test.text, "annotator": "ann"}
        rating = HumanRating(clip="c", **rated, dimension="motion", verdict="good", reason="steady motion.")
        choice = HumanChoice(clip_a="c", clip_b="d", **rated, verdict="a", reason="a: b: steady motion.")
        write_csv(tmp_path / "test/ratings.csv", [rating])
        write_csv(tmp_path / "test/choices.csv", [choice])
        write_rows(tmp_path / "benchmark.jsonl", [benchmark])
        return [text for text, *_ in data.described_pairs(tmp_path, generator)]

    others = [Prompt(id="x", text="a dog"), Prompt(id="y", text="a cat")]
    first = described(*others)
    assert len(set(first)) == 10
    second = described(Prompt(id="x", text=first[1]), Prompt(id="y", text=first[4]))
    assert len(set(second)) == 10 and not {first[1], first[4]} & set(second)
