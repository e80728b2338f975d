"""Structured prompts: exact shares, rules, exclusions, schedule, audit, and the step."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from dualipo.artifacts import read_json
from dualipo.config import Config, Prompts
from dualipo.errors import UserError
from dualipo.prompts import draw_prompts, load_space, round_target, sample_prompts, write_pool
from dualipo.prompts.audit import audit_prompts
from dualipo.prompts.quotas import largest_remainder
from dualipo.prompts.sampler import normal
from dualipo.prompts.space import SPACES, Value, shipped_spaces
from dualipo.records import HumanChoice, HumanRating, Prompt, read_rows, write_rows
from dualipo.steps import Job
from dualipo.steps.prompts import prompts as prompts_step

SHAPES = ("circle", "bar", "triangle", "pillar")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
SCENES = {"black": "dark", "grey": "mid", "white": "bright"}


def small_world_by_hand() -> dict[str, tuple[dict, dict]]:
    """Every sentence of the small world with its attributes and categories, written out without the space file."""
    found = {}
    movements = [("still", None), *itertools.product(("left", "right", "up", "down"), ("slowly", "quickly"))]
    difficulty = {None: "simple", "slowly": "medium", "quickly": "difficult"}
    for (motion, speed), (background, scene) in itertools.product(movements, SCENES.items()):
        end = ("staying still" if speed is None else f"moving {motion} {speed}") + f" on a {background} background"
        common = {"motion": motion, "background": background} | ({"speed": speed} if speed else {})
        categories = {"difficulty": difficulty[speed], "scene": scene}
        for shape, colour, size in itertools.product(SHAPES, COLOURS, ("small", "large")):
            attributes = common | {"shape": shape, "colour": colour, "size": size}
            found[f"a {size} {colour} {shape} {end}"] = attributes, categories | {"subjects": "single"}
        if speed == "quickly":
            continue
        for shape, colour, shape2, colour2 in itertools.product(SHAPES, COLOURS, SHAPES, COLOURS):
            for relation, words in (("left_of", "to the left of"), ("above", "above")):
                if colour != colour2:
                    first = {"shape": shape, "colour": colour, "relation": relation}
                    attributes = common | first | {"shape2": shape2, "colour2": colour2}
                    text = f"a {colour} {shape} {words} a {colour2} {shape2} {end}"
                    found[text] = attributes, categories | {"subjects": "multi"}
    return found


def space_of(tmp_path, **changes):
    """A space of two categories and two factors, with changes; loaded from a file."""
    content = {
        "categories": {"kind": {"plain": 0.5, "fancy": 0.5}, "difficulty": {"simple": 0.5, "difficult": 0.5}},
        "factors": {
            "thing": {"values": {"soft": ["apple", "pear"], "hard": ["stone", "umbrella"]}},
            "act": {
                "by": "difficulty",
                "values": {"simple": ["rests", "rolls"], "difficult": ["dances", "sings", "drifts"]},
            },
            "style": {
                "by": "kind",
                "values": {"plain": [{"live": ""}], "fancy": [{"none": " in pencil"}, {"toon": " in ink"}]},
            },
        },
        "templates": [{"text": "{thing:a} {act}{style}"}],
    }
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return load_space(path)


def refuses(tmp_path, sentence, **changes):
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, **changes)
    assert sentence in str(caught.value) and "space.yaml" in str(caught.value) and "\n" not in str(caught.value)


def counts(rows, category):
    return Counter(row.categories[category] for row in rows)


def test_small_world_is_exactly_the_world_written_out_by_hand():
    rows = sample_prompts(load_space("small_world"), 60_000, 0, {"subjects": {"single": 0.3, "multi": 0.7}})
    assert {row.text: (row.attributes, row.categories) for row in rows} == small_world_by_hand()


def test_the_briefs_sentences():
    texts = small_world_by_hand()
    for text in (
        "a small red circle moving left slowly on a black background",
        "a small red circle staying still on a black background",
        "a red circle to the left of a blue bar moving up slowly on a black background",
    ):
        assert text in texts


@pytest.mark.parametrize("name", shipped_spaces())
@pytest.mark.parametrize("count", [1, 7, 96, 97, 1003])
def test_every_share_is_its_target_to_within_one_prompt(name, count):
    space = load_space(name)
    for seed in range(3):
        draw = draw_prompts(space, count, seed)
        rows = list(draw.prompts())
        assert len(rows) == len(draw) == count
        for category, shares in draw.target.items():
            found = counts(rows, category)
            for value, share in shares.items():
                assert abs(found[value] - share * count) < 1
        assert len({row.text for row in rows}) == count - draw.repeated


def test_shares_are_the_largest_remainders_when_nothing_forbids_them():
    rows = sample_prompts(load_space("small_world"), 96, seed=3)
    # 96 * (0.34, 0.33, 0.33) = 32.64, 31.68, 31.68; 96 * (0.4, 0.4, 0.2) = 38.4, 38.4, 19.2
    assert sorted(counts(rows, "scene").values()) == [32, 32, 32]
    assert [counts(rows, "difficulty")[k] for k in ("simple", "medium", "difficult")] == [39, 38, 19]
    assert counts(rows, "subjects") == {"single": 77, "multi": 19}


def test_largest_remainder_by_hand():
    assert largest_remainder(np.array([0.47, 0.16, 0.158, 0.12, 0.061, 0.031]), 10).tolist() == [5, 2, 1, 1, 1, 0]
    assert largest_remainder(np.array([1 / 3] * 3), 9).tolist() == [3, 3, 3]


def test_categories_are_independent_where_no_rule_binds_them():
    rows = sample_prompts(load_space("open_world"), 20_000, seed=1)
    both = Counter((row.categories["group"], row.categories["subjects"]) for row in rows)
    assert abs(both["humans", "multi"] / 20_000 - 0.45 * 0.3) < 0.002
    assert abs(both["objects", "single"] / 20_000 - 0.25 * 0.7) < 0.002


def test_no_repeats_while_the_space_allows_and_even_repeats_beyond(tmp_path):
    small = load_space("small_world")
    for seed in range(5):
        assert len({row.text for row in sample_prompts(small, 96, seed)}) == 96
    # Single still scenes on black: 4 shapes x 6 colours x 2 sizes = 48 prompts and no more.
    corner = {"subjects": {"single": 1.0}, "difficulty": {"simple": 1.0}, "scene": {"dark": 1.0}}
    assert len({row.text for row in sample_prompts(small, 48, 0, corner)}) == 48
    times = Counter(row.text for row in sample_prompts(small, 100, 0, corner))
    assert len(times) == 48 and set(times.values()) == {2, 3}
    # Four cells of 8, 12, 16 and 24 prompts: the whole space, each once.
    whole = {"kind": {"plain": 20 / 60, "fancy": 40 / 60}, "difficulty": {"simple": 24 / 60, "difficult": 36 / 60}}
    assert len({row.text for row in sample_prompts(space_of(tmp_path), 60, 0, whole)}) == 60


def test_capacity_bends_the_joint_table_but_not_the_shares(tmp_path):
    # Independence would put 0.8 * 0.5 * 25 = 10 prompts into (plain, simple), which holds 8.
    target = {"kind": {"plain": 0.8, "fancy": 0.2}, "difficulty": {"simple": 0.52, "difficult": 0.48}}
    draw = draw_prompts(space_of(tmp_path), 25, 0, target)
    rows = list(draw.prompts())
    cells = Counter(tuple(row.categories.values()) for row in rows)
    assert draw.repeated == 0 and cells["plain", "simple"] == 8
    assert counts(rows, "kind") == {"plain": 20, "fancy": 5} and counts(rows, "difficulty")["simple"] == 13


def test_excluded_texts_never_appear_whatever_their_case_spacing_or_full_stop():
    space = load_space("small_world")
    corner = {"subjects": {"single": 1.0}, "difficulty": {"simple": 1.0}, "scene": {"dark": 1.0}}
    every = sorted(row.text for row in sample_prompts(space, 48, 0, corner))
    held = {*every[:10], every[10].upper(), f"  {every[11]}. ", every[12].replace(" ", "  ")}
    draw = draw_prompts(space, 35, 5, corner, held)
    assert {row.text for row in draw.prompts()} == set(every[13:])
    assert draw.repeated == 0 and draw.dropped["held_out"] > 0
    assert normal("A  red\tcircle. ") == "a red circle"
    with pytest.raises(UserError, match="held-out prompts"):
        draw_prompts(space, 5, 0, corner, set(every))


def test_excluded_texts_never_appear_in_grids_too_large_to_list():
    space = load_space("open_world")
    first = [row.text for row in sample_prompts(space, 400, 0)]
    again = {row.text for row in sample_prompts(space, 400, 0, exclude=set(first[::2]))}
    assert not again & set(first[::2]) and again & set(first[1::2]) and len(again) == 400


def test_equal_arguments_equal_prompts_and_other_seeds_others():
    space = load_space("open_world")
    assert sample_prompts(space, 300, 11) == sample_prompts(load_space("open_world"), 300, 11)
    assert sample_prompts(space, 300, 11) != sample_prompts(space, 300, 12)
    assert sample_prompts(space, 3, 2**62)
    with pytest.raises(UserError, match="count 0"):
        sample_prompts(space, 0, 1)


def holds(space, row, condition):
    """A rule's condition, read off a prompt one value at a time."""
    for key, wanted in condition.items():
        value = row.categories.get(key) or row.attributes.get(key)
        accepted = set()
        for name in wanted:
            factor = space.factors.get(key)
            plain = name.removeprefix("not ")
            members = set(factor.tags.get(plain, ())) if factor else set()
            if factor and not factor.by:
                members |= {word.name for word in factor.values.get(plain, ())}
            members = members or {plain}
            if value is not None and (value in members) == (plain == name):
                accepted.add(value)
        if value not in accepted:
            return False
    return True


def test_no_prompt_of_the_open_world_breaks_a_rule():
    space = load_space("open_world")
    rows = sample_prompts(space, 20_000, 4)
    remaps = {rule.name: rule.to for rule in space.remap}
    for rule in space.rules:
        hit = [r for r in rows if holds(space, r, rule.when) and not (rule.unless and holds(space, r, rule.unless))]
        if rule.equal:
            hit = [r for r in hit if len({r.attributes.get(f, f) for f in rule.equal}) == 1]
        if rule.name in remaps:
            hit = [r for r in hit if not holds(space, r, remaps[rule.name])]
        assert not hit, (rule.name, hit[0].text)
    assert not [row.text for row in rows if "  " in row.text or "{" in row.text or row.text != row.text.strip()]
    ages = Counter(row.attributes["age"] for row in rows if row.categories["group"] == "humans")
    assert len(ages) == 5 and min(ages.values()) > 0.9 * max(ages.values())


def test_impossible_pairs_move_to_a_stylised_domain():
    space = load_space("open_world")
    rows = sample_prompts(space, 20_000, 2)
    things = [r for r in rows if r.categories["group"] == "objects"]
    lifelike = [r for r in things if r.attributes["action"] == "performing a backflip"]
    stylised = set(space.factors["style"].tags["stylised"])
    assert lifelike and {r.categories["scene"] for r in lifelike} == {"abstract"}
    assert {r.attributes["style"] for r in lifelike} <= stylised
    assert "live action" in {r.attributes["style"] for r in rows}


def test_remap_keeps_the_mass_that_an_exclusion_loses(tmp_path):
    rule = {"name": "stones sing in ink", "when": {"thing": "stone"}}
    fancy = {"kind": {"fancy": 1.0}, "difficulty": {"difficult": 1.0}}
    moved = space_of(tmp_path, remap=[rule | {"to": {"style": "toon"}}])
    rows = sample_prompts(moved, 21, 0, fancy)
    assert {r.attributes["style"] for r in rows if r.attributes["thing"] == "stone"} == {"toon"}
    assert len({r.text for r in rows}) == 21  # 24 less the three plain stones
    gone = space_of(tmp_path, exclude=[rule])
    draw = draw_prompts(gone, 18, 0, fancy)
    assert "stone" not in {r.attributes["thing"] for r in draw.prompts()} and draw.dropped["stones sing in ink"] > 0
    refused = space_of(tmp_path, remap=[rule | {"to": {"kind": "fancy", "style": "toon"}}])
    rows = sample_prompts(refused, 36, 0)
    assert {r.categories["kind"] for r in rows if r.attributes["thing"] == "stone"} == {"fancy"}


def test_not_and_unless_and_equal(tmp_path):
    only_stone = [{"name": "only stones roll", "when": {"act": "rolls"}, "unless": {"thing": ["not soft", "pear"]}}]
    rows = sample_prompts(space_of(tmp_path, exclude=only_stone), 400, 0)
    assert {r.attributes["thing"] for r in rows if r.attributes["act"] == "rolls"} == {"stone", "umbrella", "pear"}
    texts = {r.text for r in rows}
    assert "an apple rests" in texts and "an umbrella rolls in ink" in texts and "a stone rolls" in texts


@pytest.mark.parametrize(
    ("text", "article"),
    [("apple", "an"), ("hour", "an"), ("unicorn", "a"), ("uninteresting hat", "an"), ("umbrella", "an"),
     ("used car", "a"), ("European", "a"), ("Siamese cat", "a"), ("elderly", "an"), ("one-legged stool", "a")],
)  # fmt: skip
def test_articles(text, article):
    assert Value(name="x", text=text).with_article == f"{article} {text}"


def test_impossible_targets_name_value_and_rule():
    space = load_space("small_world")
    with pytest.raises(UserError) as caught:
        sample_prompts(space, 100, 0, {"subjects": {"multi": 1.0}, "difficulty": {"difficult": 1.0}})
    message = str(caught.value)
    assert "cannot be met" in message and "two objects never move quickly" in message and "\n" not in message
    assert "difficulty 'difficult' wants 100 of 100" in message or "subjects 'multi' wants 100 of 100" in message
    # Only 50 single objects are there to move quickly.
    half = {"single": 0.5, "multi": 0.5}
    with pytest.raises(UserError, match=r"wants 70 of 100 prompts and 50 fit|wants 50 of 100 prompts and 30 fit"):
        sample_prompts(space, 100, 0, {"subjects": half, "difficulty": {"simple": 0.3, "difficult": 0.7}})
    assert sample_prompts(space, 100, 0, {"subjects": half, "difficulty": {"simple": 0.5, "difficult": 0.5}})


def test_a_cell_emptied_value_by_value_is_seen(tmp_path):
    exclude = [{"name": "nothing rests", "when": {"act": "rests"}}, {"name": "nothing rolls", "when": {"act": "rolls"}}]
    space = space_of(tmp_path, exclude=exclude)
    with pytest.raises(UserError, match=r"difficulty 'simple' wants 5 of 10 .*'nothing rests', rule 'nothing rolls'"):
        sample_prompts(space, 10, 0)
    assert len(sample_prompts(space, 10, 0, {"difficulty": {"difficult": 1.0}})) == 10


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"mood": {"gay": 1.0}}, "no category 'mood'; known: subjects, difficulty, scene"),
        ({"scene": {"pitch": 1.0}}, "scene has no value 'pitch'; known: dark, mid, bright"),
        ({"scene": {"dark": 0.5}}, "the shares of scene sum to 0.5; they must sum to 1"),
        ({"scene": {"dark": -0.5, "mid": 1.5}}, "the share of scene 'dark' is -0.5"),
        ({"scene": {"dark": float("nan"), "mid": 1.0}}, "the share of scene 'dark' is nan"),
    ],
)
def test_unusable_targets(target, sentence):
    with pytest.raises(UserError, match=sentence):
        sample_prompts(load_space("small_world"), 10, 0, target)


def test_malformed_space_files(tmp_path):
    kind = {"plain": 0.5, "fancy": 0.5}
    thing = {"values": ["apple", "stone"]}
    refuses(tmp_path, "unknown key 'colour'; known here: name, about, categories, factors", colour=["red"])
    refuses(tmp_path, "unknown key 'factors.thing.vals'; known here: when, by, values, tags",
            factors={"thing": thing | {"vals": []}})  # fmt: skip
    refuses(tmp_path, "unknown key 'exclude.0.then'; known here: name, when, unless, equal",
            exclude=[{"name": "x", "when": {"thing": "apple"}, "then": 1}])  # fmt: skip
    refuses(tmp_path, "the shares of kind sum to 0.9", categories={"kind": kind | {"plain": 0.4}})
    refuses(tmp_path, "exclude 'x': unknown category or factor 'hue'", exclude=[{"name": "x", "when": {"hue": "red"}}])
    refuses(tmp_path, "thing has no value or tag 'plum'", exclude=[{"name": "x", "when": {"thing": "plum"}}])
    refuses(tmp_path, "a rule needs `when`", exclude=[{"name": "x"}])
    refuses(tmp_path, "'x' is used twice", exclude=[{"name": "x", "when": {"thing": "stone"}}] * 2)
    refuses(tmp_path, "remap.0.to", remap=[{"name": "x", "when": {"thing": "stone"}}])
    refuses(tmp_path, "{hue} is no factor", templates=[{"text": "{hue}"}])
    refuses(tmp_path, "only {factor} and {factor:a}", templates=[{"text": "{thing:>9}"}])
    refuses(tmp_path, "never says {act}", templates=[{"text": "{thing}{style}"}])
    refuses(tmp_path, "no template holds for kind fancy", templates=[
        {"text": "{thing} {act}{style}", "when": {"kind": "plain"}}])  # fmt: skip
    refuses(tmp_path, "'a sharp stone' holds the forbidden word 'sharp'", forbidden=["sharp"],
            factors={"thing": {"values": [{"stone": "a sharp stone"}]}}, templates=[{"text": "{thing}"}])  # fmt: skip
    refuses(tmp_path, "name 'apple' stands twice", factors={"thing": {"values": ["apple", "apple"]}},
            templates=[{"text": "{thing}"}])  # fmt: skip
    refuses(tmp_path, "by names 'mood'", factors={"thing": thing | {"by": "mood"}})
    refuses(tmp_path, "possible keys: fancy, plain", factors={"thing": {"by": "kind", "values": {"plane": ["a"]}}})
    refuses(tmp_path, "uses {act}, which has no values there", factors={"thing": thing, "act": {
        "by": "kind", "values": {"plain": ["sits"]}}}, templates=[{"text": "{thing} {act}"}])  # fmt: skip
    refuses(tmp_path, "factors.thing.values", factors={"thing": {"values": [1, 2]}})
    refuses(tmp_path, "'kind' names both a category and a factor", factors={"kind": thing})


def test_files_that_are_no_space(tmp_path):
    with pytest.raises(UserError, match="name one of open_world, small_world"):
        load_space("smal_world")
    for content, sentence in (("a: [", "not valid YAML"), ("- a", "a mapping was expected"), ("{}", "Field required")):
        path = tmp_path / "broken.yaml"
        path.write_text(content)
        with pytest.raises(UserError, match=sentence):
            load_space(path)
    assert load_space(SPACES / "small_world.yaml") == load_space("small_world")


def test_the_documented_space_works(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "prompts.md").read_text()
    (tmp_path / "documented.yaml").write_text(page.split("```yaml\n")[2].split("```")[0])
    texts = {row.text for row in sample_prompts(load_space(tmp_path / "documented.yaml"), 1000, 0)}
    assert "an orca spinning, as a cartoon" in texts and "an orca spinning" not in texts
    assert "a dog resting next to a bicycle" in texts and "an orca resting next to a bicycle" not in texts


def test_pool_lines_are_the_rows_byte_for_byte(tmp_path):
    odd = {"thing": {"values": ['é"quoted"', "50% off\\", "tab\there"]}}
    odd_space = space_of(tmp_path, factors=odd, templates=[{"text": 'x {thing} 100% "y"'}])
    for space, count in ((odd_space, 12), (load_space("small_world"), 500), (load_space("open_world"), 500)):
        write_pool(space, count, 3, tmp_path / "pool.jsonl", prefix="r%1")
        write_rows(tmp_path / "rows.jsonl", sample_prompts(space, count, 3, prefix="r%1"))
        assert (tmp_path / "pool.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()


def test_a_pool_streams(tmp_path):
    space, path = load_space("open_world"), tmp_path / "pool.jsonl"
    assert write_pool(space, 50_000, 0, path) == 50_000
    texts, found = set(), Counter()
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            texts.add(row["text"])
            found.update(row["categories"].items())
    assert len(texts) == 50_000
    for category, shares in space.categories.items():
        assert {value: found[category, value] for value in shares} == {v: s * 50_000 for v, s in shares.items()}
    draw = draw_prompts(space, 50_000, 0)
    tracemalloc.start()
    written = sum(len(block) for block in draw.lines())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written == path.stat().st_size and peak < written


def test_audit_counts_what_is_there_and_not_what_was_meant():
    rows = [
        Prompt(id="1", text="x", categories={"scene": "dark"}, attributes={"shape": "circle"}),
        Prompt(id="2", text="y", categories={"scene": "dark"}, attributes={"shape": "pillar"}),
        Prompt(id="3", text="y", categories={"scene": "fog"}, attributes={"shape": "pillar"}),
        Prompt(id="4", text="z", categories={"scene": "mid"}),
    ]
    found = audit_prompts(rows, {"scene": {"dark": 0.25, "mid": 0.5, "bright": 0.25}}, {"r": 2})
    assert found["count"] == 4 and found["repeated"] == 1 and found["dropped"] == {"r": 2}
    assert found["categories"]["scene"] == {
        "dark": {"share": 0.5, "target": 0.25},
        "mid": {"share": 0.25, "target": 0.5},
        "bright": {"share": 0.0, "target": 0.25},
        "fog": {"share": 0.25, "target": 0.0},
    }
    assert found["max_error"] == 0.25 and found["factors"] == {"shape": {"circle": 1, "pillar": 2}}


def test_schedule_replaces_the_difficulty_of_its_round_only():
    section = Prompts(
        target={"scene": {"dark": 1.0}, "difficulty": {"medium": 1.0}},
        schedule={"1": {"simple": 0.8, "medium": 0.2}, "3": {"simple": 0.2, "medium": 0.4, "difficult": 0.4}},
    )
    assert round_target(section, "1")[1]["difficulty"] == {"simple": 0.8, "medium": 0.2, "difficult": 0.0}
    assert round_target(section, "2")[1]["difficulty"] == {"simple": 0.0, "medium": 1.0, "difficult": 0.0}
    assert round_target(section, "3")[1]["difficulty"]["difficult"] == 0.4
    assert round_target(section, "1")[1]["scene"]["dark"] == 1.0
    assert round_target(Prompts(), "1")[1] == load_space("small_world").target({})


def test_schedule_errors(tmp_path):
    with pytest.raises(UserError, match=r"prompts.schedule.2: difficulty has no value 'hard'"):
        round_target(Prompts(schedule={"2": {"hard": 1.0}}), "1")
    space_of(tmp_path, categories={"kind": {"plain": 1.0}}, factors={"thing": {"values": ["apple"]}},
             templates=[{"text": "{thing}"}])  # fmt: skip
    with pytest.raises(UserError, match="no category 'difficulty'"):
        round_target(Prompts(space=str(tmp_path / "space.yaml"), schedule={"1": {"simple": 1.0}}), "1")


@pytest.fixture
def held_out(tmp_path):
    """A human test set and a benchmark that hold 60 of the 144 single still prompts."""
    corner = {"subjects": {"single": 1.0}, "difficulty": {"simple": 1.0}}
    texts = [row.text for row in sample_prompts(load_space("small_world"), 144, 0, corner)]
    common = {"annotator": "x", "reason": "because"}
    ratings = [HumanRating(clip="a", prompt=t, dimension="motion", verdict="good", **common) for t in texts[:20]]
    choices = [HumanChoice(clip_a="a", clip_b="b", prompt=t, verdict="tie", **common) for t in texts[20:40]]
    write_rows(tmp_path / "test" / "ratings.jsonl", ratings)
    write_rows(tmp_path / "test" / "choices.jsonl", choices)
    write_rows(tmp_path / "benchmark.jsonl", [Prompt(id=str(i), text=t) for i, t in enumerate(texts[40:60])])
    return {"test_labels": tmp_path / "test", "benchmark": tmp_path / "benchmark.jsonl"}, set(texts[:60])


def run_step(config, held_out, tmp_path, round_name="1", seed=5):
    out = {"prompts": tmp_path / "runs" / "prompts.jsonl", "audit": tmp_path / "runs" / "prompts_audit.json"}
    summary = prompts_step(config, Job(round_name, seed, tmp_path / "work"), **held_out[0], **out)
    return read_rows(out["prompts"], Prompt), read_json(out["audit"]), summary, out


def test_the_step(held_out, tmp_path):
    schedule = {"1": {"simple": 1.0}, "2": {"simple": 0.5, "difficult": 0.5}}
    config = Config(prompts=Prompts(count=80, target={"subjects": {"single": 1.0}}, schedule=schedule))
    rows, audit, summary, out = run_step(config, held_out, tmp_path)
    assert not {row.text for row in rows} & held_out[1]
    assert [row.id for row in rows[:2]] == ["r1-0001", "r1-0002"] and len({row.text for row in rows}) == 80
    assert counts(rows, "difficulty") == {"simple": 80}
    assert audit["categories"]["difficulty"]["simple"] == {"share": 1.0, "target": 1.0}
    assert audit["count"] == summary.metrics["prompts"] == 80 and audit["dropped"]["held_out"] > 0
    assert audit["max_error"] == summary.metrics["max_share_error"] < 1 / 80
    first = out["prompts"].read_bytes(), out["audit"].read_bytes()
    run_step(config, held_out, tmp_path)
    assert (out["prompts"].read_bytes(), out["audit"].read_bytes()) == first
    rows, _, _, _ = run_step(config, held_out, tmp_path, "2")
    assert counts(rows, "difficulty") == {"simple": 40, "difficult": 40} and rows[0].id == "r2-0001"


def test_the_step_refuses_bad_input(held_out, tmp_path):
    with pytest.raises(UserError, match=r"prompts.schedule: '9' is no round"):
        run_step(Config(prompts=Prompts(schedule={"9": {"simple": 1.0}})), held_out, tmp_path)
    held_out[0]["benchmark"].write_text("")
    with pytest.raises(UserError, match="the table is empty"):
        run_step(Config(), held_out, tmp_path)
    held_out[0]["benchmark"].unlink()
    with pytest.raises(UserError, match="no such file"):
        run_step(Config(), held_out, tmp_path)
    assert not (tmp_path / "runs").exists()
