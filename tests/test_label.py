"""Pseudo-labels, preferences and agreement under a scripted critic, whose every outcome is known beforehand."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models import flat_clip, write_clips

from dualipo.artifacts import read_json
from dualipo.config import CheckCritic, Config, Label, LatentReward, Prefer
from dualipo.critic.questions import Question
from dualipo.critic.videoreward.settings import write_none
from dualipo.errors import UserError
from dualipo.evaluation import agreement as agreement_module
from dualipo.evaluation.agreement import measure_agreement
from dualipo.evaluation.bootstrap import interval, paired_difference
from dualipo.media.video import encode_clip
from dualipo.records import (
    DIMENSIONS,
    ClipScores,
    Desirability,
    HumanChoice,
    HumanRating,
    Preference,
    PseudoChoice,
    PseudoRating,
    read_rows,
    write_rows,
)
from dualipo.steps import Job
from dualipo.steps.label import label
from dualipo.steps.prefer import prefer

torch.set_num_threads(1)
PROMPTS = {"p0": "a red circle", "p1": "a pillar"}
K = 4
Verdicts = list[str]


class Scripted:
    """Answers each question with the verdicts that `script` gives it, one a path; paths tell which path they are."""

    def __init__(self, script: Callable[[Question], Verdicts], logprob: Callable[[Question, str], float] | None = None):
        self.script, self.logprob, self.count = script, logprob, K
        self.asked: list[Question] = []
        self.seen: list[str] = []

    def see(self, clips, batch_size=64):
        assert all(clip.dtype == np.uint8 and clip.ndim == 4 for clip in clips.values())
        self.seen += clips
        return {name: name for name in clips}

    def paths(self, questions, features, count, temperature, max_new_tokens, seed):
        assert (count, temperature, max_new_tokens) == (self.count, 0.8, 9)
        assert all(features[clip] == clip for question in questions for clip in question.clips)
        self.asked += questions
        return [
            [f"path {i} . Verdict: {word}" for i, word in enumerate(self.script(question), start=1)]
            for question in questions
        ]

    def logprobs(self, questions, features, answers):
        assert self.logprob is not None
        return torch.tensor([self.logprob(q, text) for q, text in zip(questions, answers, strict=True)])


def config(**label_changes) -> Config:
    section = Label(paths=K, temperature=0.8, max_new_tokens=9, batch_size=5, pairs_per_prompt=6, certainty_beta=0.7)
    return Config(label=section.model_copy(update=label_changes), check_critic=CheckCritic(paths=K, batch_size=5))


@pytest.fixture(scope="module")
def candidates(tmp_path_factory) -> Path:
    """Two prompts of four clips, p0-0 to p1-3."""
    folder = tmp_path_factory.mktemp("clips") / "candidates"
    write_clips(folder, PROMPTS, each=4)
    return folder


@pytest.fixture
def run_label(candidates, tmp_path, monkeypatch):
    """Runs the step with the scripted critic and its reference; gives (ratings, choices, summary)."""

    def run(judge: Scripted, reference: Scripted | None = None, where: str = "once", **changes):
        reference = reference or Scripted(judge.script, lambda question, text: 0.0)
        critics = {tmp_path / "judge": judge, tmp_path / "reference": reference}
        monkeypatch.setattr("dualipo.critic.base.load_critic", critics.__getitem__)
        labels = tmp_path / where / "labels"
        ports = {"critic": tmp_path / "judge", "critic_reference": tmp_path / "reference"}
        label(config(**changes), Job("1", 11, tmp_path / where / "work"), candidates=candidates, labels=labels, **ports)
        return (
            read_rows(labels / "ratings.jsonl", PseudoRating, allow_empty=True),
            read_rows(labels / "choices.jsonl", PseudoChoice, allow_empty=True),
            read_json(labels / "summary.json"),
        )

    return run


def number(clip: str) -> int:
    return int(clip.split("-")[1])


def higher_is_better(question: Question) -> Verdicts:
    """Clips of a higher number are better, whichever is shown first; ratings are unanimous."""
    if question.kind == "rating":
        return [("bad", "normal", "good", "good")[number(question.clips[0])]] * K
    first, second = map(number, question.clips)
    return ["a" if first > second else "b"] * K


def zero(question: Question, text: str) -> float:
    return 0.0


# Voting


def test_ratings_are_the_vote_of_the_paths(run_label):
    votes = {
        "p0-0": ["bad", "good", "good", "nonsense"],
        "p0-1": ["good", "good", "good", "good"],
        "p0-2": ["good", "bad", "good", "bad"],
        "p0-3": ["good", "bad", "normal", "nonsense"],
        "p1-0": ["nonsense"] * 4,
        "p1-1": ["nonsense", "a", "bad", "nonsense"],
        "p1-2": ["normal", "normal", "bad", "bad"],
        "p1-3": ["normal", "bad", "bad", "normal"],
    }

    def script(question: Question) -> Verdicts:
        return votes[question.clips[0]] if question.kind == "rating" else ["tie"] * K

    ratings, _, summary = run_label(Scripted(script, zero))
    found = {
        row.clip: (row.verdict, row.chosen[:6], row.rejected and row.rejected[:6], row.votes)
        for row in ratings
        if row.dimension == "motion"
    }

    def tally(good: int, normal: int, bad: int, invalid: int) -> dict[str, int]:
        return {"good": good, "normal": normal, "bad": bad, "invalid": invalid}

    assert found == {
        "p0-0": ("good", "path 2", "path 1", tally(2, 0, 1, 1)),
        "p0-1": ("good", "path 1", None, tally(4, 0, 0, 0)),
        # p0-2: a tied vote is Normal, which no path says: nothing to learn from. p1-0: unreadable.
        "p0-3": ("normal", "path 3", "path 1", tally(1, 1, 1, 1)),
        "p1-1": ("bad", "path 3", None, tally(0, 0, 1, 3)),
        "p1-2": ("normal", "path 1", "path 3", tally(0, 2, 2, 0)),
        "p1-3": ("normal", "path 1", "path 2", tally(0, 2, 2, 0)),
    }
    assert len(ratings) == 6 * len(DIMENSIONS) and {row.prompt_id for row in ratings} == {"p0", "p1"}
    assert all(row.prompt == PROMPTS[row.prompt_id] for row in ratings)
    assert summary["without_majority_path"] == 2 * len(DIMENSIONS)
    assert summary["ratings"] == 18 and summary["choices"] == 12
    assert summary["unanimous_share"] == pytest.approx((2 * 3 + 12) / 30)
    assert summary["verdicts"]["motion"] == {"bad": 1 / 6, "good": 2 / 6, "normal": 3 / 6}


def test_every_clip_and_every_pair_is_asked_once_in_each_order(run_label):
    judge = Scripted(higher_is_better, zero)
    run_label(judge)
    ratings = [q for q in judge.asked if q.kind == "rating"]
    assert len(ratings) == len({(q.dimension, q.clips) for q in ratings}) == 8 * 3
    pairs = [q.clips for q in judge.asked if q.kind == "choice"]
    every = {pair for p in PROMPTS for pair in itertools.permutations([f"{p}-{k}" for k in range(4)], 2)}
    assert len(pairs) == 24 and set(pairs) == every
    assert sorted(judge.seen) == sorted({clip for pair in every for clip in pair}), "each clip is seen once"
    assert all(q.prompt == PROMPTS[q.clips[0][:2]] for q in judge.asked)
    assert {q.dimension for q in judge.asked if q.kind == "choice"} == {"overall"}


def test_a_pair_count_picks_distinct_pairs_in_random_order(run_label):
    _, choices, _ = run_label(Scripted(higher_is_better, zero), pairs_per_prompt=4)
    pairs = [(row.clip_a, row.clip_b) for row in choices]
    assert len(pairs) == 8 and len({frozenset(pair) for pair in pairs}) == 8
    upwards = sum(number(a) < number(b) for a, b in pairs)
    assert 0 < upwards < 8, "the first shown is not always the first made"
    _, again, _ = run_label(Scripted(higher_is_better, zero), where="again", pairs_per_prompt=4)
    assert again == choices


# Both orders


def test_only_verdicts_that_survive_the_swap_are_kept(run_label):
    def script(question: Question) -> Verdicts:
        if question.kind == "rating":
            return ["good"] * K
        pair = {number(clip) for clip in question.clips}
        if pair == {0, 1}:
            return ["a", "a", "a", "b"]  # whatever is shown first
        if pair == {0, 2}:
            return ["tie", "tie", "a", "nonsense"]
        if pair == {0, 3}:
            return ["nonsense"] * K if question.clips[0].endswith("0") else ["a"] * K
        if pair == {1, 2}:
            return ["a", "b", "a", "b"]  # a tied vote, a tie that nobody said
        return higher_is_better(question)

    _, choices, summary = run_label(Scripted(script, zero), filter_by_certainty=False)
    found = {(row.prompt_id, frozenset({number(row.clip_a), number(row.clip_b)})): row for row in choices}
    for prompt in PROMPTS:
        biased = found[prompt, frozenset({0, 1})]
        assert (biased.forward, biased.backward, biased.consistent, biased.kept) == ("a", "b", False, False)
        assert biased.verdict == "a" and biased.votes == {"a": 4, "b": 4, "tie": 0, "invalid": 0}
        tied = found[prompt, frozenset({0, 2})]
        assert (tied.verdict, tied.forward, tied.backward, tied.kept) == ("tie", "tie", "tie", True)
        assert tied.votes == {"a": 1, "b": 1, "tie": 4, "invalid": 2} and tied.chosen.startswith("path 1")
        assert tied.rejected == "path 3 . Verdict: a"
        assert (prompt, frozenset({1, 2})) not in found
        for pair in ({1, 3}, {2, 3}):
            row = found[prompt, frozenset(pair)]
            better = "a" if number(row.clip_a) > number(row.clip_b) else "b"
            assert row.verdict == row.forward == row.backward == better and row.consistent and row.kept
            assert row.votes[better] == 2 * K and row.chosen == f"path 1 . Verdict: {better}" and row.rejected is None
        # Readable in one order only: a row where that order came first, none else.
        half = found.get((prompt, frozenset({0, 3})))
        assert half is None or (number(half.clip_a) == 3 and half.backward is None and not half.kept)
    kept = [row for row in choices if row.kept]
    assert len(kept) == summary["kept_choices"] == 2 * 3
    assert summary["order_consistency"] == pytest.approx(6 / len(choices))
    assert summary["without_majority_path"] == 12 - len(choices)


# Certainty


def rewarding(question: Question, text: str) -> float:
    """Some reward per topic, verdict and clip; ratings of motion stand 50 nats above the others, bad ones 20 below."""
    base = {"semantic": -3.0, "motion": 50.0, "faithfulness": 0.0, "overall": 5.0}[question.dimension]
    base -= 20.0 * text.endswith("bad")
    return base + [-1.0, 0.25, 0.5, 4.0][number(question.clips[0])] + (0.125 if question.clips[0][1] == "1" else 0)


def test_kept_are_exactly_the_rewards_above_the_mean_of_their_topic_and_verdict(run_label):
    judge = Scripted(higher_is_better, lambda q, text: rewarding(q, text) - 7.0)
    reference = Scripted(higher_is_better, lambda q, text: -7.0)
    ratings, choices, summary = run_label(judge, reference)
    rows = [*ratings, *choices]
    found: dict[tuple[str, str], list] = {}
    for row in rows:
        found.setdefault((row.dimension, row.verdict), []).append(row)
    assert len(found) > 6
    for (dimension, verdict), group in found.items():
        clips = [row.clip if isinstance(row, PseudoRating) else row.clip_a for row in group]
        rewards = [rewarding(Question(dimension, "", (clip,)), f"Verdict: {verdict}") for clip in clips]
        mean = sum(rewards) / len(rewards)
        assert [row.kept for row in group] == [reward > mean for reward in rewards]
        expected = [1 / (1 + math.exp(-0.7 * (reward - mean))) for reward in rewards]
        assert [row.certainty for row in group] == pytest.approx(expected, rel=1e-5)
    assert {row.verdict for row in ratings if row.kept} == {"good", "normal", "bad"}, "no verdict is filtered away"
    assert summary["kept_share"] == pytest.approx((summary["kept_ratings"] + summary["kept_choices"]) / 36)


def test_equal_rewards_are_not_above_their_mean(run_label):
    ratings, choices, _ = run_label(Scripted(higher_is_better, lambda q, text: -2.0))
    assert {row.certainty for row in (*ratings, *choices)} == {0.5}
    assert not any(row.kept for row in (*ratings, *choices))


def test_the_threshold_moves_what_is_kept(run_label):
    judge = Scripted(higher_is_better, rewarding)
    ratings, _, _ = run_label(judge, certainty_threshold=0.7)
    assert {row.kept for row in ratings} == {True, False}
    assert all(row.kept == (row.certainty > 0.7) for row in ratings)


def test_without_the_filter_every_vote_is_kept(run_label):
    ratings, choices, summary = run_label(Scripted(higher_is_better, rewarding), filter_by_certainty=False)
    assert all(row.kept for row in (*ratings, *choices)) and summary["kept_share"] == 1
    assert len({row.certainty for row in ratings}) > 4, "certainty is written down all the same"


def test_certainty_stays_inside_its_bounds_however_large_the_reward(run_label):
    judge = Scripted(higher_is_better, lambda q, text: 1e6 * number(q.clips[0]))
    ratings, _, _ = run_label(judge)
    assert all(0 < row.certainty < 1 for row in ratings)


def test_certainty_is_that_of_the_chosen_path(run_label):
    def script(question: Question) -> Verdicts:
        return ["good", "bad", "good", "good"] if number(question.clips[0]) % 2 else ["good", "bad", "bad", "good"]

    scored: list[tuple[str, str]] = []

    def logprob(question: Question, text: str) -> float:
        scored.append((question.clips[0], text))
        return 0.0

    def only_ratings(question: Question) -> Verdicts:
        return script(question) if question.kind == "rating" else ["nonsense"] * K

    ratings, choices, _ = run_label(Scripted(only_ratings, logprob))
    assert choices == []
    chosen = {(row.clip, row.chosen) for row in ratings}
    assert set(scored) == chosen and chosen == {(f"p{i}-{k}", "path 1 . Verdict: good") for i in (0, 1) for k in (1, 3)}


def test_an_interrupted_labelling_equals_an_unbroken_one(run_label, monkeypatch):
    monkeypatch.setattr("dualipo.steps.label.PROMPTS_A_CHUNK", 1)
    whole = run_label(Scripted(higher_is_better, rewarding), where="whole")
    judge = Scripted(higher_is_better, rewarding)

    def killed(question: Question, text: str) -> float:
        if question.clips[0].startswith("p1"):
            raise KeyboardInterrupt
        return rewarding(question, text)

    with pytest.raises(KeyboardInterrupt):
        run_label(Scripted(higher_is_better, killed), where="broken")
    assert run_label(judge, where="broken") == whole
    assert {clip[:2] for question in judge.asked for clip in question.clips} == {"p1"}


# Preferences


@pytest.fixture
def run_prefer(candidates, tmp_path, monkeypatch):
    """Runs the step with the scripted critic; gives (pairs, scored clips, summary, passed)."""

    def run(judge: Scripted, reward: bool = False, **changes):
        monkeypatch.setattr("dualipo.critic.base.load_critic", lambda folder: judge)
        write_none(tmp_path / "none")
        out = tmp_path / "preferences"
        sections = {"prefer": Prefer(**{"min_pairs": 2, **changes}), "latent_reward": LatentReward(train=reward)}
        settings = config().model_copy(update=sections)
        summary = prefer(
            settings,
            Job("1", 11, tmp_path / "work"),
            candidates=candidates,
            critic=tmp_path / "judge",
            reward=tmp_path / "none",
            preferences=out,
            gate=tmp_path / "gate",
        )
        return (
            read_rows(out / "pairs.jsonl", Preference, allow_empty=True),
            {row.clip: row for row in read_rows(out / "desirability.jsonl", Desirability, allow_empty=True)},
            read_json(out / "summary.json"),
            summary,
        )

    return run


SCORES = {
    # Votes on semantic, motion and faithfulness.
    "p0-0": (["good"] * 4, ["normal"] * 4, ["good", "good", "normal", "bad"]),  # 1, 1/2, 5/8
    "p0-1": (["good"] * 4, ["good"] * 4, ["good", "good", "good", "normal"]),  # 1, 1, 7/8: the best
    "p0-2": (["good"] * 4, ["good"] * 4, ["bad"] * 4),  # 1, 1, 0
    "p0-3": (["bad"] * 4, ["normal"] * 4, ["bad", "bad", "good", "nonsense"]),  # 0, 1/2, 1/3: the worst
    "p1-0": (["good"] * 4, ["good"] * 4, ["nonsense"] * 4),  # not readable on one dimension
    "p1-1": (["normal"] * 4, ["good", "bad", "good", "bad"], ["normal"] * 4),  # 1/2, 1/2, 1/2
    "p1-2": (["bad"] * 4, ["bad"] * 4, ["good"] * 4),  # 0, 0, 1
    "p1-3": (["normal"] * 4, ["normal"] * 4, ["normal"] * 4),  # equal to p1-1, which comes first
}
EXPECTED = {
    "p0-0": (1 + 1 / 2 + 5 / 8) / 3,
    "p0-1": (1 + 1 + 7 / 8) / 3,
    "p0-2": 2 / 3,
    "p0-3": (1 / 2 + 1 / 3) / 3,
    "p1-1": 1 / 2,
    "p1-2": 1 / 3,
    "p1-3": 1 / 2,
}


def scored(question: Question, contrary: str = "") -> Verdicts:
    if question.kind == "rating":
        return SCORES[question.clips[0]][DIMENSIONS.index(question.dimension)]
    first, second = (EXPECTED[clip] for clip in question.clips)
    agree, differ = ("a", "b") if first > second else ("b", "a")
    return [differ if contrary and question.clips[0].startswith(contrary) else agree] * K


def test_top_and_bottom_make_the_pair_and_the_middle_is_dropped(run_prefer):
    judge = Scripted(scored)
    pairs, clips, numbers, summary = run_prefer(judge)
    assert [(p.prompt_id, p.prompt, p.winner, p.loser) for p in pairs] == [
        ("p0", "a red circle", "p0-1", "p0-3"),
        ("p1", "a pillar", "p1-1", "p1-2"),
    ]
    for pair in pairs:
        assert pair.winner_score == pytest.approx(EXPECTED[pair.winner])
        assert pair.loser_score == pytest.approx(EXPECTED[pair.loser])
    assert {name: row.score for name, row in clips.items()} == pytest.approx(EXPECTED)
    assert numbers["pairs"] == 2 and numbers["prompts"] == 2 and numbers["clips"] == 7
    assert numbers["critic_reward"] == pytest.approx(sum(EXPECTED.values()) / 7)
    assert numbers["mean_margin"] == pytest.approx(
        (EXPECTED["p0-1"] - EXPECTED["p0-3"] + EXPECTED["p1-1"] - EXPECTED["p1-2"]) / 2
    )
    assert summary.metrics["passed"] == 1 and summary.pictures["pairs"].read_bytes()[:4] == b"\x89PNG"
    asked = [q.clips for q in judge.asked if q.kind == "choice"]
    assert sorted(asked) == [("p0-1", "p0-3"), ("p0-3", "p0-1"), ("p1-1", "p1-2"), ("p1-2", "p1-1")]


def test_each_dimensions_scores_are_written_where_a_reward_learns_from_them(run_prefer, tmp_path):
    run_prefer(Scripted(scored))
    table = tmp_path / "preferences/dimensions.jsonl"
    assert not table.exists()
    shutil.rmtree(tmp_path / "preferences")
    run_prefer(Scripted(scored), reward=True)
    found = {row.clip: row.values for row in read_rows(table, ClipScores)}
    assert found.keys() == EXPECTED.keys() and found["p0-0"] == pytest.approx((1, 1 / 2, 5 / 8))
    for clip, values in found.items():
        assert sum(values) / 3 == pytest.approx(EXPECTED[clip])


def test_scores_weigh_the_dimensions_as_asked(run_prefer):
    pairs, clips, *_ = run_prefer(Scripted(scored), weights={"semantic": 8, "motion": 1, "faithfulness": 0})
    assert clips["p0-0"].score == pytest.approx((8 * 1 + 1 / 2) / 9)
    assert clips["p0-3"].score == pytest.approx((1 / 2) / 9) and clips["p0-2"].score == 1
    # Without faithfulness the last two of p0-1 and p0-2 are equal: the first one wins.
    assert [(p.winner, p.loser) for p in pairs] == [("p0-1", "p0-3"), ("p1-1", "p1-2")]
    assert not clips["p0-2"].desirable, "bad on a dimension that does not count is bad all the same"


def test_more_paths_may_judge_preferences_than_labels(run_prefer):
    judge = Scripted(lambda q: [word for word in scored(q) for _ in range(2)])
    judge.count = 2 * K
    _, clips, *_ = run_prefer(judge, paths=2 * K)
    assert {name: row.score for name, row in clips.items()} == pytest.approx(EXPECTED)


def test_clips_are_undesirable_where_any_dimension_is_bad(run_prefer):
    _, clips, numbers, _ = run_prefer(Scripted(scored))
    assert {name: row.desirable for name, row in clips.items()} == {
        "p0-0": True, "p0-1": True, "p0-2": False, "p0-3": False, "p1-1": True, "p1-2": False, "p1-3": True,
    }  # fmt: skip
    assert numbers["desirable_share"] == pytest.approx(4 / 7)


def test_pairs_that_the_comparison_contradicts_are_dropped(run_prefer):
    pairs, clips, *_ = run_prefer(Scripted(lambda q: scored(q, contrary="p0")))
    assert [pair.prompt_id for pair in pairs] == ["p1"] and len(clips) == 7


@pytest.mark.parametrize(
    ("shown_first", "shown_second", "kept"),
    [
        (["a"] * 4, ["b"] * 4, True),  # the winner, both times
        (["b"] * 4, ["a"] * 4, False),  # the loser, both times
        (["a"] * 4, ["a"] * 4, True),  # whatever is first: no contradiction
        (["tie"] * 4, ["tie"] * 4, True),
        (["nonsense"] * 4, ["nonsense"] * 4, True),
        (["a", "a", "b", "tie"], ["a", "a", "a", "b"], False),  # winner 2 + 1, loser 1 + 3
        (["a", "a", "b", "tie"], ["a", "tie", "b", "tie"], True),  # winner 2 + 1, loser 1 + 1
    ],
)
def test_a_pair_stands_unless_both_orders_together_prefer_the_loser(run_prefer, shown_first, shown_second, kept):
    def script(question: Question) -> Verdicts:
        if question.kind == "rating":
            return scored(question)
        return shown_first if question.clips[0] in ("p0-1", "p1-1") else shown_second

    pairs, *_ = run_prefer(Scripted(script))
    assert len(pairs) == (2 if kept else 0)


def test_without_confirmation_nobody_is_asked_to_compare(run_prefer):
    judge = Scripted(lambda q: scored(q, contrary="p"))
    pairs, *_ = run_prefer(judge, confirm=False)
    assert len(pairs) == 2 and {q.kind for q in judge.asked} == {"rating"}


@pytest.mark.parametrize(("margin", "prompts"), [(0.0, ["p0", "p1"]), (0.16, ["p0", "p1"]), (0.17, ["p0"]), (0.9, [])])
def test_pairs_need_their_margin(run_prefer, margin, prompts):
    # p1's scores lie 1/6 apart, p0's 0.68.
    pairs, _, _, summary = run_prefer(Scripted(scored), min_margin=margin)
    assert [pair.prompt_id for pair in pairs] == prompts
    assert summary.metrics["passed"] == (len(prompts) == 2), "too few pairs are a failed gate, no error"


def test_a_clip_never_stands_against_itself(run_prefer):
    pairs, clips, numbers, _ = run_prefer(
        Scripted(lambda q: ["good"] * K if q.kind == "rating" else ["tie"] * K), min_margin=0.0
    )
    assert pairs == [] and len(clips) == 8 and numbers["mean_margin"] == 0


# Agreement with people


def test_agreement_counts_by_hand(tmp_path, monkeypatch):
    folder = tmp_path / "test"
    (folder / "clips").mkdir(parents=True)
    for k in range(6):
        (folder / "clips" / f"{k}.mp4").write_bytes(encode_clip(flat_clip(k)))
    pairs = {(0, 1): "a", (2, 3): "b", (4, 5): "tie", (1, 2): "a", (3, 4): "b", (0, 5): "a"}

    def human(kind, annotator, verdict, prompt, **clips):
        return kind(annotator=str(annotator), verdict=verdict, prompt=prompt, reason="so it is", **clips)

    choices = [
        human(HumanChoice, n, verdict, f"a {i % 3}", clip_a=f"clips/{a}.mp4", clip_b=f"clips/{b}.mp4")
        for i, ((a, b), verdict) in enumerate(pairs.items())
        for n in range(3)
    ]
    ratings = [
        human(HumanRating, n, verdict, "a 0", clip=f"clips/{k}.mp4", dimension=dimension)
        for k, dimension, verdict in ((0, "motion", "good"), (1, "motion", "bad"), (2, "semantic", "normal"))
        for n in range(3)
    ]
    write_rows(folder / "choices.jsonl", choices)
    write_rows(folder / "ratings.jsonl", ratings)
    # What the critic says with the first clip of the pair shown first, and with the second shown first.
    said = {
        (0, 1): (["a"] * 4, ["b"] * 4),  # agrees
        (2, 3): (["a"] * 4, ["a"] * 4),  # 4 to 4: a tie, half a hit
        (4, 5): (["tie"] * 4, ["tie", "tie", "tie", "a"]),  # agrees
        (1, 2): (["b"] * 4, ["tie", "a", "tie", "a"]),  # 6 against: wrong; the second vote is tied: not consistent
        (3, 4): (["nonsense"] * 4, ["nonsense"] * 4),  # unreadable, half a hit as no clip leads
        (0, 5): (["tie", "a", "tie", "tie"], ["tie", "b", "tie", "tie"]),  # a tie, but a leads 2 to 0
    }
    rated = {(0, "motion"): ["good"] * 4, (1, "motion"): ["good"] * 4, (2, "semantic"): ["good", "bad", "good", "bad"]}

    def script(question: Question) -> Verdicts:
        shown = tuple(int(clip[6]) for clip in question.clips)
        if question.kind == "rating":
            return rated[shown[0], question.dimension]
        return said[shown][0] if shown in said else said[shown[::-1]][1]

    judge = Scripted(script)
    monkeypatch.setattr(agreement_module, "load_critic", lambda path: judge)
    found = measure_agreement(config(), tmp_path / "judge", folder)
    assert found["agreement"]["mean"] == pytest.approx(2 / 6)
    assert found["agreement"]["low"] <= 2 / 6 <= found["agreement"]["high"]
    assert found["ties_excluded"]["mean"] == pytest.approx((1 + 0.5 + 0 + 0.5 + 1) / 5)
    assert (found["pairs"], found["ties"]) == (6, pytest.approx(1 / 6))
    # Consistent: (0, 1), (4, 5) and (0, 5), whose votes are ties in both orders.
    assert found["order_consistency"] == pytest.approx(3 / 6)
    assert found["rating_agreement"] == {"motion": 0.5, "semantic": 1.0, "faithfulness": None}
    assert found["confusion"] == {"a": {"a": 1, "b": 1, "tie": 1}, "b": {"tie": 1, "invalid": 1}, "tie": {"tie": 1}}
    json.dumps(found, allow_nan=False)
    assert len([q for q in judge.asked if q.kind == "choice"]) == 12
    assert measure_agreement(config(), tmp_path / "judge", folder) == found


def test_a_test_set_without_pairs_is_refused(tmp_path, monkeypatch):
    (tmp_path / "0.mp4").write_bytes(encode_clip(flat_clip(0)))
    row = HumanRating(clip="0.mp4", prompt="a pillar", annotator="1", dimension="motion", verdict="good", reason="so")
    write_rows(tmp_path / "ratings.jsonl", [row])
    split = [
        HumanChoice(clip_a="0.mp4", clip_b="0.mp4", prompt="a pillar", annotator=v, verdict=v, reason="so")
        for v in "ab"
    ]
    write_rows(tmp_path / "choices.jsonl", split)
    monkeypatch.setattr(agreement_module, "load_critic", lambda path: Scripted(lambda q: ["good"] * K))
    with pytest.raises(UserError, match=r"has no pairs; the critic's gate needs some"):
        measure_agreement(config(), tmp_path / "judge", tmp_path)


# Intervals


def test_interval_equals_scipys_percentile_bootstrap():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).exponential(10, 40)
    expected = bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    found = interval(values, [str(i) for i in range(40)], seed=2, resamples=20_000)
    assert found["mean"] == pytest.approx(values.mean())
    width = expected.high - expected.low
    assert found["low"] == pytest.approx(expected.low, abs=0.03 * width)
    assert found["high"] == pytest.approx(expected.high, abs=0.03 * width)


def test_interval_draws_whole_groups():
    """All 3,125 ways to draw five groups of unequal size, against the sampled interval."""
    groups = {"a": [1.0, 2.0, 3.0], "b": [10.0], "c": [4.0, 4.5], "d": [7.0, 0.5, 6.0, 2.5], "e": [5.0]}
    values = [value for own in groups.values() for value in own]
    names = [name for name, own in groups.items() for _ in own]
    means = [
        np.mean([value for name in drawn for value in groups[name]]) for drawn in itertools.product(groups, repeat=5)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    found = interval(values, names, seed=0, resamples=40_000)
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["low"] == pytest.approx(low, abs=0.08) and found["high"] == pytest.approx(high, abs=0.08)
    order = np.random.default_rng(3).permutation(len(values))
    shuffled = interval([values[i] for i in order], [names[i] for i in order], seed=0, resamples=40_000)
    assert shuffled == pytest.approx(found)
    alone = interval(values, [str(i) for i in range(len(values))], seed=0, resamples=40_000)
    assert abs(alone["low"] - found["low"]) > 0.1, "groups matter here"


def test_interval_is_a_point_without_spread_and_the_same_for_one_seed():
    assert interval([2.0] * 6, list("aabbcc"), seed=1) == {"mean": 2.0, "low": 2.0, "high": 2.0}
    values, names = np.random.default_rng(4).normal(size=30), [str(i) for i in range(30)]
    assert interval(values, names, 1) == interval(values, names, 1) != interval(values, names, 2)


def test_paired_difference_compares_the_prompts_that_both_have():
    before = {"p": 10.0, "q": 50.0, "r": 90.0, "old": 0.0}
    after = {"r": 95.0, "q": 55.0, "p": 15.0, "new": 100.0}
    assert paired_difference(before, after, seed=0) == {"mean": 5.0, "low": 5.0, "high": 5.0}
    mixed = paired_difference({"p": 0.0, "q": 0.0}, {"p": 4.0, "q": -2.0}, seed=0)
    assert mixed == {"mean": 1.0, "low": -2.0, "high": 4.0}
