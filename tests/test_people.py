"""Agreement of people with each other, in parts, and of critics that look at nothing."""

from __future__ import annotations

import krippendorff
import pytest

from dualipo.critic.questions import Answered, Question
from dualipo.errors import UserError
from dualipo.evaluation.baselines import beside, trivial_agreements
from dualipo.evaluation.people import agreement_of_people, by_category, by_question, most_frequent, read_categories
from dualipo.records import HumanChoice, HumanRating, Prompt, write_rows


def choose(pair, *verdicts, prompt="p"):
    clips = {"clip_a": f"{pair}a", "clip_b": f"{pair}b"}
    return [
        HumanChoice(**clips, prompt=f"{prompt}{pair}", annotator=str(n), verdict=verdict, reason="r")
        for n, verdict in enumerate(verdicts)
    ]


def rate(clip, *verdicts):
    return [
        HumanRating(clip=str(clip), prompt=f"p{clip}", annotator=str(n), dimension="motion", verdict=v, reason="r")
        for n, v in enumerate(verdicts)
    ]


def test_people_by_hand():
    rows = [*choose(0, "a", "a", "b"), *choose(1, "tie", "tie", "tie"), *choose(2, "a", "b"), *choose(3, "a")]
    rows += [*rate(0, "good", "bad"), *rate(1, "good", "normal"), *rate(2, "bad", "bad")]
    choices, ratings = agreement_of_people(rows, seed=0)
    assert (choices["question"], choices["items"], choices["annotators"]) == ("choice/overall", 3, 3)
    # Of the first pair each a has one a and one b beside it, a tie; b has two a. Then three alike; then two apart.
    assert choices["mean"] == pytest.approx(3 / 8)
    assert choices["low"] <= choices["mean"] <= choices["high"]
    # Nominal alpha by hand: 1 - (n - 1) * sum of off-diagonal coincidences / sum of products of different totals.
    # Coincidences of different words: a and b, 2 * (2 * 1) / 2 = 2 in the first, 2 * 1 / 1 = 2 in the third pair.
    totals = {"a": 3, "b": 2, "tie": 3}
    different = 2 * (3 * 2 + 3 * 3 + 2 * 3)
    assert sum(totals.values()) == 8
    assert choices["alpha"] == pytest.approx(1 - 7 * 4 / different)
    assert ratings["level"] == "ordinal" and ratings["items"] == 3
    matrix = [[2, 2, 0], [0, 1, 0]]  # bad 0, normal 1, good 2; one row an annotator
    assert ratings["alpha"] == pytest.approx(krippendorff.alpha(matrix, level_of_measurement="ordinal"))


def test_without_disagreement_alpha_is_undefined_and_single_annotators_say_nothing():
    [found] = agreement_of_people(choose(0, "a", "a"), seed=0)
    assert found["alpha"] is None and found["mean"] == 1
    assert agreement_of_people([*choose(0, "a"), *rate(0, "good")], seed=0) == []


def item(verdict, prompt, dimension=None):
    clips, topic = (("a", "b"), "overall") if dimension is None else (("a",), dimension)
    return Answered(Question(topic, prompt, clips), verdict, "r")


def test_parts_by_hand(tmp_path):
    items = [item("a", "one"), item("b", "two"), item("tie", "three"), item("good", "one", "motion")]
    parts = by_question(items, [1, 0, 1, 1], seed=0)
    assert [(p["question"], p["items"], p["mean"]) for p in parts] == [
        ("choice/overall", 3, pytest.approx(2 / 3)),
        ("rating/motion", 1, 1),
    ]
    rows = [
        Prompt(id=text, text=text.upper() + ".", categories={"scene": scene})
        for text, scene in (("one", "dark"), ("two", "dark"), ("four", "bright"))
    ]
    assert read_categories(tmp_path) == {}
    write_rows(tmp_path / "prompts.jsonl", rows)
    found = by_category(items[:3], [1, 0, 1], read_categories(tmp_path), seed=0)
    assert [(p["category"], p["value"], p["items"], p["mean"]) for p in found] == [("scene", "dark", 2, 0.5)]


def test_critics_that_look_at_nothing_by_hand():
    seed = [item("b", "s"), item("b", "s"), item("a", "s"), item("bad", "s", "motion"), item("good", "s", "motion")]
    assert most_frequent(seed) == {"choice/overall": "b", "rating/motion": "good"}
    test = [item("b", "1"), item("a", "2"), item("tie", "3"), item("tie", "4"), item("bad", "1", "motion")]
    found = trivial_agreements(seed, test, seed=0)
    always, coin = found["most_frequent"], found["coin"]
    assert always["agreement"]["mean"] == 0.25 and always["ties_excluded"]["mean"] == 0.5
    assert coin["agreement"]["mean"] == 0.25 and coin["ties_excluded"]["mean"] == 0.5
    assert always["rating_agreement"] == {"semantic": None, "motion": 0.0, "faithfulness": None}
    assert coin["rating_agreement"]["motion"] == pytest.approx(1 / 3)
    assert (always["pairs"], always["ties"], always["says"]["choice/overall"]) == (4, 0.5, "b")
    tied = trivial_agreements([item("tie", "s")], test, seed=0)["most_frequent"]
    assert tied["agreement"]["mean"] == 0.5 and tied["ties_excluded"]["mean"] == 0.5
    with pytest.raises(UserError, match="has no pairs"):
        trivial_agreements(seed, test[-1:], seed=0)


def test_what_stands_beside_a_candidate():
    def measured(mean):
        return {"agreement": {"mean": mean, "low": mean, "high": mean}, "pairs": 3}

    baselines = {"trivial": {"most_frequent": measured(0.4)}, "videoreward": measured(0.7)}
    found = beside(baselines | {"external": {"brightness": measured(0.5)}}, measured(0.8))
    assert [(row["name"], row["mean"]) for row in found] == [
        ("previous critic", 0.8),
        ("most frequent", 0.4),
        ("VideoReward", 0.7),
        ("brightness", 0.5),
    ]
