"""The small world: its renderer, its oracle, its annotators, its benchmark and its words."""

import ast
import itertools
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import norm

from dualipo.config import Label
from dualipo.critic.questions import Question, answer, human_answers
from dualipo.errors import UserError
from dualipo.media.video import decode_clip, encode_clip
from dualipo.prompts import load_space, sample_prompts
from dualipo.records import DIMENSIONS, HumanChoice, HumanRating, Prompt, RealClip, read_rows
from dualipo.world import annotators, benchmark
from dualipo.world.captions import mistaken, random_captions, sentence
from dualipo.world.corrupt import LOOK_FAULTS, MOTION_FAULTS, Fault, random_fault, render_with_faults
from dualipo.world.oracle import Judgement, judge, read
from dualipo.world.scene import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FPS,
    FRAMES,
    SIZE,
    Scene,
    paint,
    place,
    render,
)
from dualipo.world.words import word_tokenizer

SCENES = [scene for _, scene in random_captions(240, 7)]
SINGLE = Scene("circle", "red", "black", "right", size="small", speed="slowly")
PAIR = Scene("circle", "red", "grey", "up", speed="slowly", shape2="bar", colour2="blue", relation="left_of")
STILL = Scene("pillar", "cyan", "white", "still", size="large")
AREAS = {"circle": np.pi, "bar": 2.0, "triangle": 0.5 * 1.8 * (2 * 1.8 * 0.58), "pillar": 2.0}
"""Of a shape of radius 1."""


def wrong(judgement: Judgement) -> set[str]:
    return {key for key, holds in judgement.holds.items() if not holds}


def solid(clip: np.ndarray, colour: str) -> np.ndarray:
    return (clip == np.array(COLOURS[colour])).all(-1)


def centre(mask: np.ndarray) -> np.ndarray:
    """(x, y) of a mask's pixels."""
    return np.argwhere(mask).mean(0)[::-1]


# The renderer


def test_equal_scene_and_seed_give_equal_pixels_and_another_seed_others():
    for scene in SCENES[:12]:
        assert np.array_equal(render(scene, 3), render(scene, 3))
        assert not np.array_equal(render(scene, 3), render(scene, 4))
        assert np.array_equal(render_with_faults(scene, [], 3), render(scene, 3))


@pytest.mark.parametrize("scene", SCENES[:40], ids=lambda scene: "-".join(v for v in asdict(scene).values() if v))
def test_the_picture_is_what_the_scene_says(scene):
    clip = render(scene, 1)
    assert clip.shape == (FRAMES, SIZE, SIZE, 3) and clip.dtype == np.uint8
    assert (clip[:, [0, 0, -1, -1], [0, -1, 0, -1]] == BACKGROUNDS[scene.background]).all()
    pixels, ground = clip.astype(float), np.array(BACKGROUNDS[scene.background], float)
    tracks = []
    for shape, colour in scene.objects:
        others = [c for _, c in scene.objects if c != colour]
        masks = solid(clip, colour)
        tracks.append(np.array([centre(mask) for mask in masks]))
        if not others:
            line = np.array(COLOURS[colour]) - ground
            covered = ((pixels - ground) @ line / (line @ line)).sum((1, 2))
            assert covered == pytest.approx(AREAS[shape] * scene.radius**2, rel=0.04), "whole in every frame"
        assert np.diff(tracks[-1], axis=0).mean(0) == pytest.approx(scene.velocity, abs=0.15)
    if scene.relation:
        apart = (tracks[1] - tracks[0]).mean(0)
        near, far = (apart[1], apart[0]) if scene.relation == "left_of" else (apart[0], apart[1])
        assert far > abs(near)


# The oracle on clean clips


@pytest.mark.parametrize("encoded", [False, True], ids=["pixels", "mp4"])
def test_the_oracle_is_exact_on_clean_clips(encoded):
    assert {scene.motion for scene in SCENES} == set(DIRECTIONS) and {len(s.objects) for s in SCENES} == {1, 2}
    for index, scene in enumerate(SCENES):
        clip = render(scene, index)
        if encoded:
            clip = decode_clip(encode_clip(clip, FPS))
        found = judge(clip, scene)
        assert not wrong(found), f"{scene} with seed {index}: seen {found.seen}"
        assert found.semantic == 1.0
        assert found.holds.keys() == {key for key, value in asdict(scene).items() if value is not None}
        assert found.smoothness > 0.9 and found.faithfulness > 0.75, f"{scene} with seed {index}: {found}"
        assert (found.dynamic > 0) == (scene.motion != "still")


def descriptions(scene: Scene) -> list[Scene]:
    """The ways to say what a scene shows: with two objects, either may come first."""
    if not scene.shape2:
        return [scene]
    turned = {"left_of": "right_of", "above": "below"}[scene.relation]
    other = replace(
        scene, shape=scene.shape2, colour=scene.colour2, shape2=scene.shape, colour2=scene.colour, relation=turned
    )
    return [scene, other]


def test_a_mistaken_clip_is_reported_with_exactly_what_is_wrong():
    rng, met = np.random.default_rng(0), set()
    for index, asked in enumerate(SCENES[:160]):
        shown = mistaken(asked, rng)
        wanted = {key: value for key, value in asdict(asked).items() if value is not None}
        ways = [{key for key, value in wanted.items() if asdict(way)[key] != value} for way in descriptions(shown)]
        least = [way for way in ways if len(way) == min(map(len, ways))]
        found = judge(render(shown, index), asked)
        assert wrong(found) in least, f"asked {asked}, shown {shown}, seen {found.seen}"
        met |= wrong(found)
    assert met == {"shape", "colour", "background", "motion", "size", "speed", "shape2", "colour2", "relation"}


def test_what_is_seen_in_place_of_what_was_asked_is_named():
    shown = replace(SINGLE, colour="green", shape="bar", motion="still", speed=None, background="white")
    seen = judge(render(shown, 0), SINGLE).seen
    assert seen == {
        "shape": "bar",
        "colour": "green",
        "background": "white",
        "motion": "still",
        "size": "small",
        "speed": "still",
    }


# The oracle on faulty clips


@pytest.mark.parametrize("name", [*MOTION_FAULTS, *LOOK_FAULTS])
def test_a_fault_lowers_its_own_measure_the_more_the_worse_it_is(name):
    scenes = SCENES[:16]
    fault = Fault(name, 1.0)
    means = []
    for severity in (None, 0.25, 0.5, 0.75, 1.0):
        faults = [] if severity is None else [Fault(name, severity)]
        found = [judge(render_with_faults(scene, faults, 100 + i), scene) for i, scene in enumerate(scenes)]
        means.append(np.mean([(j.smoothness, j.faithfulness, j.semantic) for j in found], 0))
    smooth, faithful, semantic = np.array(means).T
    own, other = (smooth, faithful) if fault.dimension == "motion" else (faithful, smooth)
    assert own[1] < own[0] - 0.1 and own[-1] < 0.5
    assert (np.diff(own) <= 0.02).all(), f"{own}: worse clips look better"
    assert own[-1] < own[1] - 0.1
    if name in ("jitter", "blur", "recolour"):
        assert other.min() > 0.9, "a fault of the one kind alone"
    assert semantic[1] > 0.99, "a slight fault does not hide what a clip shows"


def test_a_frozen_clip_is_still_and_smooth_but_not_dynamic():
    clip = render(SINGLE, 0)[:1].repeat(FRAMES, 0)
    found = judge(clip, SINGLE)
    assert wrong(found) == {"motion", "speed"} and found.seen["motion"] == found.seen["speed"] == "still"
    assert found.smoothness > 0.99 and found.faithfulness > 0.9 and found.dynamic == 0


@pytest.mark.parametrize("scene", [SINGLE, PAIR, replace(SINGLE, motion="down", speed="quickly")])
def test_a_reversed_clip_moves_the_other_way_and_is_as_good_otherwise(scene):
    clip = render(scene, 2)
    there, back = judge(clip, scene), judge(clip[::-1].copy(), scene)
    assert wrong(back) == {"motion"}
    assert DIRECTIONS[back.seen["motion"]] == tuple(-step for step in DIRECTIONS[scene.motion])
    assert (back.smoothness, back.faithfulness) == pytest.approx((there.smoothness, there.faithfulness), abs=1e-3)


@pytest.mark.parametrize("scene", [SINGLE, PAIR, STILL])
def test_an_empty_clip_shows_nothing(scene):
    found = judge(paint(scene, np.full((len(scene.objects), FRAMES, 2), -99.0)), scene)
    assert wrong(found) == found.holds.keys() - {"background"}
    assert {found.seen[key] for key in wrong(found)} == {"nothing"}
    assert found.smoothness == found.faithfulness == found.dynamic == 0


def test_missing_and_extra_objects_are_reported():
    one, two = render(replace(SINGLE, background="grey", motion="up"), 1), render(PAIR, 1)
    lacking = judge(one, PAIR)
    assert wrong(lacking) == {"shape2", "colour2", "relation"} and lacking.seen["colour2"] == "nothing"
    asked = replace(SINGLE, background="grey", motion="up")
    extra = judge(two, asked)
    assert wrong(extra) == {"count"} and extra.seen["count"] == "2 objects"


def test_two_objects_that_do_not_move_together_do_not_move_as_asked():
    centres = place(PAIR, np.random.default_rng(0))
    centres[1] = centres[1, :1]
    assert wrong(judge(paint(PAIR, centres), PAIR)) == {"motion", "speed"}


def test_an_object_that_changes_its_colour_is_one_unfaithful_object():
    clip = render(SINGLE, 5)
    clip[6:] = render(replace(SINGLE, colour="blue"), 5)[6:]
    found = judge(clip, SINGLE)
    assert not wrong(found) and len(read(clip).objects) == 1
    assert found.smoothness > 0.9 and found.faithfulness < 0.5


def test_a_jump_is_uneven_motion_not_another_direction():
    centres = place(STILL, np.random.default_rng(0))
    centres[:, 4:] += 5
    found = judge(paint(STILL, np.clip(centres, 7, SIZE - 7)), STILL)
    assert not wrong(found) and found.smoothness < 0.4


def odd_clips():
    rng = np.random.default_rng(0)
    plain = [*COLOURS.values(), *BACKGROUNDS.values(), (0, 0, 0), (255, 255, 255)]
    yield from (np.full((FRAMES, SIZE, SIZE, 3), colour, np.uint8) for colour in plain)
    for ground, patch in itertools.permutations(COLOURS.values(), 2):
        clip = np.full((FRAMES, SIZE, SIZE, 3), ground, np.uint8)
        clip[:, 10:20, 10:20] = patch
        yield clip
    for frames in (1, 2, 9):
        yield rng.integers(0, 256, (frames, SIZE, SIZE, 3), dtype=np.uint8)
        yield rng.integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        yield render(SINGLE, 0)[:frames]
    seen_once = render(SINGLE, 0)
    seen_once[1:] = BACKGROUNDS["black"]
    yield seen_once


@pytest.mark.filterwarnings("error")
def test_no_clip_gives_nan():
    for clip in odd_clips():
        for scene in (SINGLE, PAIR, STILL):
            found = judge(clip, scene)
            for value in (found.smoothness, found.faithfulness, found.semantic):
                assert 0 <= value <= 1
            assert np.isfinite(found.dynamic)


@pytest.mark.parametrize(
    "shape", [(0, SIZE, SIZE, 3), (FRAMES, 64, 64, 3), (FRAMES, SIZE, SIZE), (FRAMES, SIZE, 30, 3)]
)
def test_an_array_that_is_no_clip_of_this_world_is_refused(shape):
    with pytest.raises(ValueError, match=r"uint8 \(frames, 32, 32, 3\)"):
        read(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float64"):
        read(np.zeros((FRAMES, SIZE, SIZE, 3)))


def test_only_the_world_itself_and_the_benchmark_know_the_oracle(repository):
    package = repository / "dualipo"
    users = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", None) or ""
            if any("oracle" in f"{module}.{name}" for name in names):
                users.add(file.relative_to(package).as_posix())
    assert users == {f"world/{name}.py" for name in ("annotators", "benchmark", "data", "examples", "pixels")}


# The annotators


def looks(smooth: float, faithful: float, scene: Scene = SINGLE, missed: tuple[str, ...] = ()) -> Judgement:
    seen = {key: value for key, value in asdict(scene).items() if value is not None}
    return Judgement({key: key not in missed for key in seen}, seen, smooth, faithful, 1.0)


def ratings(judgement: Judgement, count: int, seed: int = 0):
    """(clip, annotator, dimension) rows of `count` clips that all look alike."""
    rng = np.random.default_rng(seed)
    return [row for k in range(count) for row in annotators.annotate_clip(f"{k}", "p", judgement, rng)]


def test_without_noise_verdicts_follow_the_guideline(monkeypatch):
    monkeypatch.setattr(annotators, "SLIP", 0.0)
    monkeypatch.setattr(annotators, "BLUR", 0.0)
    cases = {
        (1.0, 0.0, ()): ("good", "good", "bad"),
        (0.72, 0.719, ("shape",)): ("normal", "good", "normal"),
        (0.45, 0.449, ("shape", "size")): ("bad", "normal", "bad"),
        (0.0, 1.0, ("shape", "motion", "size")): ("bad", "bad", "good"),
    }
    words = {"motion": ("steady", "uneven", "jumpy"), "faithfulness": ("clear", "blurred", "broken")}
    for (smooth, faithful, missed), verdicts in cases.items():
        rows = ratings(looks(smooth, faithful, missed=missed), 1)
        assert [row.annotator for row in rows] == [name for name in annotators.ANNOTATORS for _ in DIMENSIONS]
        for start in (0, 3, 6):
            assert tuple(row.verdict for row in rows[start : start + 3]) == verdicts
        told = [(key, getattr(SINGLE, key)) for key in ("size", "colour", "shape", "motion", "speed", "background")]
        marks = [f"{word} {'wrong' if key in missed else 'ok'}" for key, word in told]
        assert rows[0].reason == " ".join(marks) + "."
        for row in rows[1:3]:
            assert row.reason.startswith(words[row.dimension][("good", "normal", "bad").index(row.verdict)])


def test_every_caption_is_the_sentence_of_its_scene():
    captions = random_captions(300, 5)
    assert [sentence(scene) for _, scene in captions] == [text for text, _ in captions]
    rng = np.random.default_rng(0)
    for _, scene in captions:
        assert sentence(mistaken(scene, rng, 2))
    with pytest.raises(ValueError, match="no prompt of the small world"):
        sentence(replace(SINGLE, shape="cube"))


def test_without_noise_the_better_clip_is_chosen_and_close_ones_tie(monkeypatch):
    monkeypatch.setattr(annotators, "SLIP", 0.0)
    monkeypatch.setattr(annotators, "BLUR", 0.0)

    def verdicts(first, second):
        rng = np.random.default_rng(0)
        rows = annotators.annotate_pair(("x", "y"), "p", (first, second), rng)
        return {(row.clip_a, row.clip_b, row.dimension, row.verdict) for row in rows}

    best, worse = looks(0.9, 0.9), looks(0.9, 0.9, missed=("size",))
    assert verdicts(best, worse) == {("x", "y", "overall", "a")}, "0.4 apart"
    assert verdicts(worse, best) == {("x", "y", "overall", "b")}
    assert verdicts(best, looks(0.9, 0.75)) == {("x", "y", "overall", "tie")}, "both look good"
    assert verdicts(best, looks(0.6, 0.6)) == {("x", "y", "overall", "tie")}, "good against normal in both, 0.1 apart"
    assert verdicts(best, looks(0.4, 0.6)) == {("x", "y", "overall", "a")}, "0.15 apart"
    assert verdicts(worse, looks(0.4, 0.4)) == {("x", "y", "overall", "b")}, "what it shows outweighs how, by 0.2"
    both = looks(0.9, 0.9, missed=("size", "shape")), looks(0.9, 0.9, missed=("size", "shape", "motion"))
    assert verdicts(*both) == {("x", "y", "overall", "tie")}, "both bad"
    levels = {"semantic": "normal", "motion": "good", "faithfulness": "bad"}
    assert annotators.overall(levels) == pytest.approx(0.8 * 0.5 + 0.1)
    assert annotators.overall(dict.fromkeys(levels, "bad")) == 0
    assert annotators.overall(dict.fromkeys(levels, "good")) == pytest.approx(1)


def test_annotators_err_as_often_as_declared_and_the_majority_less():
    rows = ratings(looks(0.95, 0.1), 700)
    right = {"semantic": "good", "motion": "good", "faithfulness": "bad"}
    slips = np.array([row.verdict != right[row.dimension] for row in rows])
    assert slips.mean() == pytest.approx(annotators.SLIP, abs=4 * np.sqrt(0.05 * 0.95 / len(rows)))
    assert {row.verdict for row in rows if row.verdict != right[row.dimension]} == {"normal"}
    joined = human_answers(rows)
    assert len(joined) == 3 * 700
    both_slip = 3 * annotators.SLIP**2 * (1 - annotators.SLIP) + annotators.SLIP**3
    failed = np.mean([item.verdict != right[item.question.dimension] for item in joined])
    assert failed == pytest.approx(both_slip, abs=4 * np.sqrt(both_slip / len(joined)))


def test_impressions_blur_as_declared():
    value = 0.72 + annotators.BLUR
    rows = [row for row in ratings(looks(value, 0.95), 700, seed=1) if row.dimension == "motion"]
    steady = np.mean([row.reason == "steady motion." for row in rows])
    assert steady == pytest.approx(norm.cdf(1), abs=4 * np.sqrt(0.16 * 0.84 / len(rows)))


def test_choices_slip_as_declared():
    rng = np.random.default_rng(0)
    pair = (looks(0.95, 0.95), looks(0.1, 0.1))
    rows = [row for k in range(700) for row in annotators.annotate_pair((f"{k}", "z"), "p", pair, rng)]
    assert {row.verdict for row in rows} == {"a", "tie"}
    slips = np.mean([row.verdict == "tie" for row in rows])
    assert slips == pytest.approx(annotators.SLIP, abs=4 * np.sqrt(0.05 * 0.95 / len(rows)))


# The benchmark


def asking(scene: Scene) -> Prompt:
    return Prompt(
        id="p", text="t", attributes={key: value for key, value in asdict(scene).items() if value is not None}
    )


def test_a_clean_clip_scores_full_success_and_its_quality():
    clip = render(SINGLE, 0)
    found, scores = judge(clip, SINGLE), benchmark.score_clip(clip, asking(SINGLE))
    assert tuple(scores) == ("total", *benchmark.DIMENSIONS)
    assert scores["total"] == pytest.approx(50 + 25 * (found.smoothness + found.faithfulness))
    assert scores["motion_smoothness"] == pytest.approx(100 * found.smoothness)
    assert scores["video_faithfulness"] == pytest.approx(100 * found.faithfulness)
    full = ("prompt_success", "dynamic_degree", "object_class", "colour", "size", "motion_direction", "speed", "scene")
    assert {scores[name] for name in full} == {100.0}
    assert scores["spatial_relationship"] is None


def test_one_wrong_attribute_costs_all_of_success_and_its_own_share():
    shown = replace(PAIR, colour2="green")
    clip = render(shown, 0)
    found, scores = judge(clip, PAIR), benchmark.score_clip(clip, asking(PAIR))
    assert scores["prompt_success"] == 0 and scores["colour"] == 50 and scores["object_class"] == 100
    assert scores["total"] == pytest.approx(25 * (found.smoothness + found.faithfulness))
    assert scores["size"] is None and scores["spatial_relationship"] == 100


def test_what_a_prompt_does_not_speak_of_is_null_and_a_frozen_clip_has_no_dynamics():
    scores = benchmark.score_clip(render(STILL, 0), asking(STILL))
    silent = {name for name, value in scores.items() if value is None}
    assert silent == {"speed", "spatial_relationship", "multiple_objects"}
    assert scores["dynamic_degree"] == 0 and scores["total"] > 90


def test_an_extra_object_costs_success():
    scores = benchmark.score_clip(render(PAIR, 1), asking(replace(SINGLE, background="grey", motion="up")))
    assert scores["prompt_success"] == 0 and scores["colour"] == 100


@pytest.mark.parametrize(
    ("prompt", "clip"),
    [
        (Prompt(id="p", text="a dog"), render(SINGLE, 0)),
        (Prompt(id="p", text="a dog", attributes={"animal": "dog"}), render(SINGLE, 0)),
        (asking(SINGLE), np.zeros((FRAMES, 64, 64, 3), np.uint8)),
    ],
)
def test_a_foreign_prompt_or_clip_is_refused_with_a_sentence(prompt, clip):
    with pytest.raises(UserError, match="benchmark prompt 'p'"):
        benchmark.score_clip(clip, prompt)


# The words


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer(512)


def reasoned(count: int):
    """Ratings and choices about clips that are right, mistaken, faulty and empty."""
    rng = np.random.default_rng(3)
    for index, scene in enumerate(SCENES[:count]):
        wrong_ones = mistaken(scene, rng, 4)
        clips = [
            render_with_faults(scene, [random_fault(rng)], index),
            render(wrong_ones, index),
            render(SCENES[-1 - index], index),
            paint(scene, np.full((len(scene.objects), FRAMES, 2), -99.0)),
        ]
        judged = [judge(clip, scene) for clip in clips]
        rows = [row for j in judged for row in annotators.annotate_clip("c", "p", j, rng)]
        for first, second in itertools.pairwise(judged):
            rows += annotators.annotate_pair(("c", "d"), "p", (first, second), rng)
        yield rows


def test_every_reason_is_made_of_known_words_and_fits_a_reasoning_path(tokenizer):
    reasons = {(row.reason, row.verdict) for rows in reasoned(60) for row in rows}
    assert len(reasons) > 300
    for reason, verdict in reasons:
        ids = tokenizer(answer(reason, verdict), add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids, f"unknown word in {reason!r}"
        assert len(ids) < Label().max_new_tokens, f"{reason!r} is longer than a path may be"


def test_every_prompt_and_question_is_made_of_known_words(tokenizer):
    prompts = [prompt.text for prompt in sample_prompts(load_space("small_world"), 1500, 1)]
    asked = [
        Question(dimension, prompts[k], clips).text()
        for k, clips in enumerate([("a",), ("a", "b")])
        for dimension in (DIMENSIONS if len(clips) == 1 else [*DIMENSIONS, "overall"])
    ]
    for text in [*prompts, *asked]:
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text
    assert max(len(tokenizer(text).input_ids) for text in prompts) <= 24, "the text encoder's length"
    assert tokenizer.unk_token_id in tokenizer("an elephant").input_ids
    assert tokenizer.decode(tokenizer("Verdict: good").input_ids, skip_special_tokens=True) == "verdict : good"


# The pages


def test_the_data_page_shows_rows_that_are_read(repository, tmp_path):
    blocks = re.findall(r"```(csv|json)\n(.*?)```", (repository / "docs/data.md").read_text(), re.S)
    for (suffix, text), kind in zip(blocks, (HumanRating, HumanChoice, RealClip, Prompt), strict=True):
        path = tmp_path / f"{kind.__name__}.{suffix.replace('json', 'jsonl')}"
        path.write_text(text)
        (row,) = read_rows(path, kind)
    assert Scene.of(row.attributes).velocity == pytest.approx((-1, 0))


def test_the_world_page_states_the_annotators_constants(repository):
    page = " ".join((repository / "docs/small-world.md").read_text().split())
    assert f"({', '.join(annotators.ANNOTATORS)})" in page
    assert f"probability {annotators.SLIP} (`SLIP`)" in page and f"deviation {annotators.BLUR} (`BLUR`)" in page
    assert f"closer than {annotators.TIE} is a tie" in page
    assert f"good from {annotators._GOOD} on, normal from {annotators._BAD} on" in page
    assert f"{FRAMES} frames of {SIZE}x{SIZE} pixels at {FPS:g} frames a second" in page
