"""The small world's benchmark against clips of known quality, and two versions compared prompt by prompt."""

import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from click.testing import CliRunner

from dualipo.cli import cli
from dualipo.config import parse_config
from dualipo.errors import UserError
from dualipo.evaluation.benchmark import score_metrics
from dualipo.evaluation.bootstrap import interval, paired_difference
from dualipo.evaluation.paired import by_prompt_rows, by_prompt_table, paired_total
from dualipo.evaluation.power import compare, required_prompts, smallest_difference
from dualipo.evaluation.reading import FROZEN_MAXES
from dualipo.evaluation.suites import SmallWorld
from dualipo.evaluation.vbench import aggregate
from dualipo.generator.base import load_generator
from dualipo.media.store import ClipStore
from dualipo.media.video import encode_clip
from dualipo.prompts import load_space, sample_prompts
from dualipo.records import Clip, Prompt, write_rows
from dualipo.tracking.store import flatten
from dualipo.world.benchmark import DIMENSIONS, MIRRORED, NOT_MEASURED, WEIGHTS, score_clip
from dualipo.world.known import DAMAGES, FAULTS, MISTAKES, STRENGTHS, Damage, known_clip, ranked_rightly, score_known
from dualipo.world.oracle import take_apart
from dualipo.world.pixels import background_consistency, subject_consistency, temporal_flickering
from dualipo.world.scene import COLOURS, FRAMES, SIZE, Scene, paint, place, render

SINGLE = Scene("circle", "red", "black", "right", size="small", speed="slowly")
PAIR = Scene("circle", "red", "grey", "up", speed="slowly", shape2="bar", colour2="blue", relation="left_of")
STILL = Scene("pillar", "cyan", "grey", "still", size="large")
PROMPTS = list(sample_prompts(load_space("small_world"), 24, 11, prefix="p"))


def asking(scene: Scene) -> Prompt:
    return Prompt(id="p", text="t", attributes={key: value for key, value in asdict(scene).items() if value})


def frozen(scene: Scene) -> np.ndarray:
    return render(scene, 0)[:1].repeat(FRAMES, 0)


def score(clip: np.ndarray, scene: Scene) -> dict[str, float | None]:
    return score_clip(clip, asking(scene))


@pytest.fixture(scope="module")
def known():
    return score_known(PROMPTS)


# ---- dimensions


def test_every_dimension_of_vbench_is_mirrored_or_said_not_to_be():
    assert sorted([*MIRRORED, *NOT_MEASURED]) == sorted(aggregate.DIMENSIONS)
    assert set(MIRRORED.values()) | set(FROZEN_MAXES) | set(WEIGHTS) <= set(DIMENSIONS)
    assert not set(NOT_MEASURED) & set(DIMENSIONS)
    place = DIMENSIONS.index("dynamic_degree")
    assert DIMENSIONS[place - len(FROZEN_MAXES) : place] == FROZEN_MAXES, "shown beside it"


def test_temporal_flickering_is_vbenchs_formula():
    clip = np.random.default_rng(0).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    # in whole numbers: the mean over pairs of frames of the mean absolute difference.
    differences = [np.abs(a.astype(int) - b).sum() for a, b in itertools.pairwise(clip)]
    assert temporal_flickering(clip) == pytest.approx((255 - sum(differences) / 4 / clip[0].size) / 255, abs=1e-7)
    clip = np.zeros((3, 32, 32, 3), np.uint8)
    clip[1] = 51
    assert temporal_flickering(clip) == pytest.approx(0.8)
    assert temporal_flickering(clip[:2].repeat(5, 0)) == pytest.approx(1 - 0.2 / 9), "one change in nine"
    assert temporal_flickering(clip[:1]) is None


def test_flickering_is_asked_of_still_prompts_and_movement_counts_as_it():
    assert score(render(SINGLE, 0), SINGLE)["temporal_flickering"] is None
    assert score(frozen(STILL), STILL)["temporal_flickering"] == 100
    moves = replace(STILL, motion="down", speed="slowly")
    assert score(render(moves, 0), STILL)["temporal_flickering"] < 99.6, "as in VBench without its static filter"


@pytest.mark.parametrize("scene", [SINGLE, PAIR, STILL])
def test_what_holds_together_is_consistent(scene):
    view = take_apart(render(scene, 1))
    assert subject_consistency(view) > 0.97, "wherever it moves"
    assert background_consistency(view) > 0.999


def test_a_subject_that_changes_is_not_consistent_and_the_background_still_is():
    clip = render(STILL, 0)
    clip[5:] = render(replace(STILL, shape="circle"), 0)[5:]
    morphed = take_apart(clip)
    clip = render(STILL, 0)
    clip[5:] = render(replace(STILL, colour="red"), 0)[5:]
    painted = take_apart(clip)
    clip = render(STILL, 0)
    clip[4] = paint(STILL, np.full((1, FRAMES, 2), -99.0))[0]
    gone = take_apart(clip)
    assert subject_consistency(morphed) < 0.95 and subject_consistency(painted) < 0.85
    # a frame without it is unlike the first and the one before it; the one after is unlike its neighbour.
    assert subject_consistency(gone) == pytest.approx(1 - 1.5 / 8, abs=0.01)
    for view in (morphed, painted, gone):
        assert background_consistency(view) > 0.99


def test_of_two_subjects_the_worse_one_counts():
    clip = render(PAIR, 1)
    clip[5:] = render(replace(PAIR, shape2="triangle"), 1)[5:]
    alone = render(replace(SINGLE, background="grey", motion="up"), 1)
    assert subject_consistency(take_apart(clip)) < 0.95 < subject_consistency(take_apart(alone))


def test_a_background_that_changes_is_not_consistent_and_a_wrong_one_is():
    clip = render(STILL, 0)
    clip[5:] = render(replace(STILL, background="white"), 0)[5:]
    # 124 levels apart: frame 5 is unlike both, the three after it unlike the first.
    assert background_consistency(take_apart(clip)) == pytest.approx(1 - (1 + 3 / 2) / 8 * 124 / 255, abs=0.01)
    wrong = score(render(replace(STILL, background="white"), 0), STILL)
    assert wrong["background_consistency"] > 99 and wrong["scene"] == 0


def test_a_frozen_clip_maxes_what_is_shown_beside_dynamic_degree():
    found = score(frozen(SINGLE), SINGLE)
    for name in FROZEN_MAXES:
        assert found[name] is None or found[name] > 99
    assert found["dynamic_degree"] == 0 and found["motion_direction"] == 0 and found["prompt_success"] == 0


def test_an_evenly_blurred_clip_is_consistent_and_unfaithful():
    clean, blurred = (score(known_clip(STILL, damage, 3), STILL) for damage in (None, Damage("blur")))
    assert blurred["subject_consistency"] > 95 and blurred["temporal_flickering"] > 99
    assert blurred["video_faithfulness"] < clean["video_faithfulness"] - 30


def test_an_empty_clip_has_no_subject_and_a_single_frame_nothing_to_compare():
    empty = paint(STILL, np.full((1, FRAMES, 2), -99.0))
    assert score(empty, STILL)["subject_consistency"] == 0 and score(empty, STILL)["background_consistency"] == 100
    one = take_apart(render(STILL, 0)[:1])
    assert subject_consistency(one) is None and background_consistency(one) is None
    full = np.full((FRAMES, SIZE, SIZE, 3), COLOURS["red"], np.uint8)
    assert 0 <= background_consistency(take_apart(full)) <= 1


def test_multiple_objects_wants_both_shapes_and_is_asked_of_pairs_alone():
    assert score(render(PAIR, 0), PAIR)["multiple_objects"] == 100
    assert score(render(replace(PAIR, colour="green"), 0), PAIR)["multiple_objects"] == 100, "colour is another matter"
    assert score(render(replace(PAIR, shape2="triangle"), 0), PAIR)["multiple_objects"] == 0
    assert score(render(replace(SINGLE, background="grey", motion="up"), 0), PAIR)["multiple_objects"] == 0
    assert score(render(SINGLE, 0), SINGLE)["multiple_objects"] is None


def test_overall_consistency_is_the_share_of_attributes_that_hold():
    assert score(render(replace(SINGLE, colour="blue"), 0), SINGLE)["overall_consistency"] == pytest.approx(100 * 5 / 6)


# ---- clips of known quality


def test_clean_renders_stand_at_the_top(known):
    clean = known.totals(None)
    assert clean.min() > 85 and clean.mean() > 93
    assert {row["prompt_success"] for row in known.clean} == {100.0}
    for damage in DAMAGES:
        assert known.totals(damage).mean() < clean.mean() - 2, damage
        assert known.totals(damage).max() <= clean.max()


@pytest.mark.parametrize("name", FAULTS)
def test_the_total_falls_with_the_strength_of_a_fault(known, name):
    means = [known.totals(None).mean(), *(known.totals(Damage(name, s)).mean() for s in STRENGTHS)]
    assert (np.diff(means) < 0).all(), means


@pytest.mark.parametrize("name", MISTAKES)
def test_the_total_falls_with_the_share_of_clips_that_show_something_else(known, name):
    clean, damaged = known.totals(None), known.totals(Damage(name))
    assert (damaged < clean - 40).all(), "no such clip is worth what a right one is"
    shares = [np.where(np.arange(len(clean)) < count, damaged, clean).mean() for count in range(0, len(clean) + 1, 4)]
    assert (np.diff(shares) < 0).all()


@pytest.mark.parametrize(
    ("name", "own"), [("colour", "colour"), ("shape", "object_class"), ("direction", "motion_direction")]
)
def test_a_mistake_is_told_by_its_own_dimension(known, name, own):
    clean = np.array([row[own] for row in known.clean], float)
    shown = {d: np.array([row[own] for row in known.damaged[Damage(d)]], float) for d in MISTAKES}
    assert (shown[name] < clean).all()
    assert all((shown[d] == clean).mean() > 0.9 for d in MISTAKES if d != name)


def test_flicker_and_jumps_are_told_by_the_mirrored_dimensions(known):
    def mean(rows, name):
        return np.mean([row[name] for row in rows if row[name] is not None])

    for name in ("temporal_flickering", "background_consistency", "subject_consistency"):
        assert mean(known.damaged[Damage("flicker")], name) < mean(known.clean, name)
    assert mean(known.damaged[Damage("teleport")], "temporal_flickering") < mean(known.clean, "temporal_flickering")


def test_generators_of_known_quality_are_ranked_rightly_in_19_of_20_draws(known):
    shares = (0.0, 0.15, 0.3, 0.45)
    right = [ranked_rightly(known, shares, samples=8, rng=np.random.default_rng(k)) for k in range(20)]
    assert sum(right) >= 19


def test_a_generator_scores_above_its_noised_copy(repository):
    import torch

    model, totals = load_generator(repository / "data/generator"), []
    texts, seeds = [prompt.text for prompt in PROMPTS], list(range(len(PROMPTS)))
    for noise in (0.0, 0.5):
        source = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.denoiser.parameters():
                weight += (
                    noise * weight.std() * torch.randn(weight.shape, generator=source) if weight.numel() > 1 else 0
                )
        clips = model.generate(texts, seeds, 4, 1.0)
        totals.append({p.id: score_clip(clip, p)["total"] for p, clip in zip(PROMPTS, clips, strict=True)})
    assert paired_difference(*totals, seed=0)["high"] < 0


# ---- scores.json


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Clip folders of 12 prompts, two clips each, clean and with every other clip damaged, as the suite scores them."""
    root, prompts, found = tmp_path_factory.mktemp("scored"), PROMPTS[:12], []
    write_rows(root / "benchmark.jsonl", prompts)
    for name in ("clean", "worse"):
        (root / name).mkdir()
        rows = []
        for index, prompt in enumerate(prompts):
            for k in range(2):
                damage = Damage("blur", (index + 1) / 12) if name == "worse" and k else None
                clip = known_clip(Scene.of(prompt.attributes), damage, k)
                rows.append(
                    Clip(id=f"{prompt.id}-{k}", prompt_id=prompt.id, prompt=prompt.text, file=f"{prompt.id}-{k}.mp4")
                )
                (root / name / rows[-1].file).write_bytes(encode_clip(clip))
        ClipStore.write_manifest(root / name, rows)
        suite = SmallWorld(parse_config({"evaluate": {"bootstrap": 400}}), root / "benchmark.jsonl")
        found.append(suite.score(root / name, root))
        (root / f"{name}.json").write_text(json.dumps(found[-1]))
    return root, *found


def test_scores_json_has_a_namespace_intervals_nulls_and_every_prompt(scored):
    root, clean, _ = scored
    rows = [json.loads(line) for line in (root / "clean/scores.jsonl").read_text().splitlines()]
    assert clean["suite"] == "small_world" and clean["namespace"] == "small_world/"
    assert all(key.startswith("small_world/") for key in flatten(clean, clean["namespace"]))
    assert all(key.startswith("small_world/") for key in score_metrics(clean))
    assert set(clean["dimensions"]) == {*DIMENSIONS, *NOT_MEASURED}
    assert {name for name in NOT_MEASURED if clean["dimensions"][name] is not None} == set()
    by_prompt = by_prompt_table(clean["by_prompt"])
    for name in ("total", *DIMENSIONS):
        own = [row for row in rows if row[name] is not None]
        found = clean[name] if name == "total" else clean["dimensions"][name]
        expected = interval([r[name] for r in own], [r["prompt_id"] for r in own], suite_seed(root), 400)
        assert found == expected, "what it was before scores by prompt"
        assert {p: s / c for p, (s, c) in by_prompt[name].items()} == pytest.approx(
            {p: np.mean([r[name] for r in own if r["prompt_id"] == p]) for p in {r["prompt_id"] for r in own}}
        )


def suite_seed(root):
    return SmallWorld(parse_config({}), root / "benchmark.jsonl").seed()


def test_two_versions_are_paired_by_prompt(scored):
    _, clean, worse = scored
    found = paired_total(clean, worse, 0, 1000)
    assert found["high"] < 0 and found["mean"] == pytest.approx(worse["total"]["mean"] - clean["total"]["mean"])
    totals = [{p: s / c for p, (s, c) in by_prompt_table(x["by_prompt"])["total"].items()} for x in (clean, worse)]
    other = paired_difference(*totals, seed=5, resamples=4000)
    assert (found["low"], found["high"]) == pytest.approx((other["low"], other["high"]), abs=1.0)
    assert paired_total(clean, clean, 0, 100) == {"mean": 0, "low": 0, "high": 0}
    half = {**worse, "by_prompt": [row for row in worse["by_prompt"] if row[1] < "p-0007"]}
    assert {row.prompts for row in compare(clean, half, 2, 0.8) if row.name == "total"} == {6}, "those that both have"
    assert paired_total(clean, {**worse, "by_prompt": None}, 0, 100) is None


# ---- power


def test_power_says_how_many_prompts_it_takes():
    """In simulated comparisons of that many prompts the bootstrap's interval lies above 0 as often as was asked."""
    rng = np.random.default_rng(0)
    for deviation, difference, power in ((12.0, 4.0, 0.8), (5.0, 2.0, 0.6)):
        count = required_prompts(deviation, difference, power)
        assert (
            smallest_difference(deviation, count, power)
            <= difference
            < smallest_difference(deviation, count - 1, power)
        )
        names = [f"{k:04d}" for k in range(count)]
        seen = 0
        for draw in range(300):
            before = dict(zip(names, rng.normal(50, 20, count), strict=True))
            after = {name: value + rng.normal(difference, deviation) for name, value in before.items()}
            seen += paired_difference(before, after, draw, 300)["low"] > 0
        assert seen / 300 == pytest.approx(power, abs=0.08)
    with pytest.raises(ValueError, match="a difference other than 0"):
        required_prompts(1.0, 0.0, 0.8)


def made_up(gain: float, deviation: float, count: int, seed: int, suite: str = "small_world") -> dict:
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99).uniform(20, 80, count)
    table = {"total": {f"{k:03d}": (3 * value, 3) for k, value in enumerate(base + rng.normal(gain, deviation, count))}}
    mean = float(np.mean([s / c for s, c in table["total"].values()]))
    total = {"mean": mean, "low": mean - 1, "high": mean + 1}
    return {"suite": suite, "total": total, "dimensions": {}, "by_prompt": by_prompt_rows(table)}


def test_the_deviation_is_that_of_the_differences_over_prompts():
    before, after = made_up(0, 0, 80, 0), made_up(3, 6, 80, 1)
    (row,) = compare(before, after, 2, 0.8, resamples=4000)
    tables = [by_prompt_table(x["by_prompt"])["total"] for x in (before, after)]
    gains = [tables[1][p][0] / 3 - tables[0][p][0] / 3 for p in tables[0]]
    assert row.difference["mean"] == pytest.approx(np.mean(gains))
    assert row.deviation == pytest.approx(np.std(gains, ddof=1), rel=0.05)
    assert row.needed == required_prompts(row.deviation, 2, 0.8)
    (same,) = compare(before, before, 2, 0.8)
    assert same.needed is None and same.difference == {"mean": 0, "low": 0, "high": 0}


def power(*arguments) -> str:
    result = CliRunner().invoke(cli, ["power", *map(str, arguments)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_every_score_with_its_interval(scored):
    root = scored[0]
    shown = power(root / "clean.json", root / "worse.json", "--difference", 3)
    lines = [line.split() for line in shown.splitlines()]
    names = [line[0] for line in lines if line and line[0] in ("total", *DIMENSIONS)]
    assert names[0] == "total" and set(names) >= {"total", *DIMENSIONS} - {"multiple_objects", "spatial_relationship"}
    place = names.index("dynamic_degree")
    assert tuple(names[place - 4 : place]) == FROZEN_MAXES, "never without it"
    assert "needed for 3" in shown and "read them beside dynamic_degree" in shown
    rows = json.loads(power(root / "clean.json", root / "worse.json", "--json"))
    total = next(row for row in rows if row["name"] == "total")
    assert total["difference"]["high"] < 0 and total["needed"] > 1 and total["prompts"] == 12


def test_power_of_vbench_speaks_of_its_totals(tmp_path):
    from dualipo.evaluation.vbench.prompts import official
    from dualipo.evaluation.vbench.resampling import intervals

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        table = {}
        for entry in official():
            for dimension in entry.dimensions:
                table.setdefault(dimension, {})[entry.prompt_id] = (5 * rng.uniform(20, 80), 5)
        found = intervals(table, 0, 50)
        scores = {"suite": "vbench", "dimensions": found, "by_prompt": by_prompt_rows(table)}
        (tmp_path / name).write_text(json.dumps({**scores, **{k: found[k] for k in ("total", "quality", "semantic")}}))
    rows = json.loads(power(tmp_path / "a", tmp_path / "b", "--json"))
    assert [row["name"] for row in rows[:3]] == ["total", "quality", "semantic"] and len(rows) == 19
    assert rows[0]["prompts"] == 944


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: [], "no scores.json of a benchmark"),
        (lambda s: {**s, "by_prompt": None}, r"no scores of every prompt \(`by_prompt`\)"),
        (lambda s: {**s, "by_prompt": [["total", "p", "high", 1]]}, "no scores of every prompt"),
        (
            lambda s: {**s, "suite": "vbench"},
            "scored by 'small_world' and by 'vbench': compare two scores of one suite",
        ),
        (lambda s: {**s, "by_prompt": [["total", "another", 3.0, 1]]}, "no prompt in common"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(tmp_path, change, sentence):
    before = made_up(0, 1, 5, 0)
    (tmp_path / "a.json").write_text(json.dumps(before))
    (tmp_path / "b.json").write_text(json.dumps(change(before)))
    with pytest.raises(UserError, match=sentence):
        power(tmp_path / "a.json", tmp_path / "b.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.json: no such file"):
        power(tmp_path / "nothing.json", tmp_path / "nothing.json")


def test_paths_of_known_clips_are_those_of_the_clean_ones():
    scene, rng = SINGLE, np.random.default_rng(4)
    assert np.array_equal(known_clip(scene, None, 4), paint(scene, place(scene, rng)))
    assert (known_clip(scene, Damage("blur", 0.25), 4) != known_clip(scene, None, 4)).any()
