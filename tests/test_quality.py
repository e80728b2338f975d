"""Every expectation passes on healthy data and fails on data poisoned for it; gates are whole and deterministic."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import pandas as pd
import pytest

from dualipo.artifacts import digest, write_json
from dualipo.config import CheckCritic, CheckLabels, Config, Label, Prefer, Prompts
from dualipo.errors import UserError
from dualipo.media.store import ClipStore
from dualipo.quality import frames, suites
from dualipo.quality.evidence import Agreement
from dualipo.quality.gate import critic_gate, preference_gate, read_verdict, run_gate
from dualipo.quality.profile import (
    ProfileFile,
    drift,
    profile_humans,
    profile_labels,
    read_profile,
    vote_entropy,
    write_profile,
)
from dualipo.records import Clip, HumanChoice, HumanRating, Preference, Prompt, PseudoChoice, PseudoRating, write_rows
from dualipo.steps import Job
from dualipo.steps.check_labels import check_labels

TARGETS = {"difficulty": {"simple": 0.75, "hard": 0.25}, "scene": {"dark": 0.5, "bright": 0.5}}
LABELS = CheckLabels(min_kept=20)
PREFER = Prefer(min_pairs=10, min_margin=0.05)
CRITIC = CheckCritic(min_agreement=0.75, max_drop=0.05)
LOW = {"bound": "low"}


def make_prompts(count=40):
    """30 simple, 10 hard; 20 dark, 20 bright."""
    return [
        Prompt(
            id=f"p{i}",
            text=f"prompt {i}",
            categories={
                "difficulty": "hard" if i % 4 == 3 else "simple",
                "scene": "dark" if i < count / 2 else "bright",
            },
        )
        for i in range(count)
    ]


def paths(verdict, other, split):
    """Votes and reasoning paths of a question: three to one where `split`, else unanimous."""
    said = {"chosen": f"so. Verdict: {verdict}", "rejected": f"so. Verdict: {other}" if split else None}
    return {"votes": {verdict: 3, other: 1} if split else {verdict: 4}, **said}


def make_ratings(verdicts=("good", "normal", "bad", "good"), count=40):
    """Every second vote is split; every eighth certainty is too low."""
    return [
        PseudoRating(
            clip=f"c{i}",
            prompt_id=f"p{i}",
            prompt=f"prompt {i}",
            dimension=dimension,
            verdict=(verdict := verdicts[i % len(verdicts)]),
            certainty=0.4 if i % 8 == 7 else 0.6,
            kept=i % 8 != 7,
            **paths(verdict, "bad" if verdict == "normal" else "normal", i % 2),
        )
        for dimension in ("semantic", "motion")
        for i in range(count)
    ]


def make_choice(i, forward, backward, **changes):
    consistent = forward == backward
    row = {
        "clip_a": f"c{i}",
        "clip_b": f"d{i}",
        "prompt_id": f"p{i}",
        "prompt": f"prompt {i}",
        "dimension": "overall",
        "verdict": forward,
        "forward": forward,
        "backward": backward,
        "consistent": consistent,
        "certainty": 0.6 + 0.01 * (i % 10),
        "kept": consistent,
        **paths(forward, "a" if forward == "tie" else "tie", i % 2),
    }
    return PseudoChoice(**row | changes)


def make_choices(verdicts=("a", "b", "tie", "a", "b"), count=40):
    """Of 40: the first 35 consistent, the last five with both orders apart, in both directions."""
    rows = [make_choice(i, verdicts[i % len(verdicts)], verdicts[i % len(verdicts)]) for i in range(count - 5)]
    return rows + [make_choice(count - 5 + i, *("ab" if i % 2 else "ba")) for i in range(5)]


def make_humans(verdicts=("good", "normal", "bad", "good"), choices=("a", "b", "tie", "a", "b")):
    """Three annotators an item, of whom one disagrees."""

    def rate(i, annotator, dimension, verdict):
        return HumanRating(
            clip=f"s{i}", prompt="p", annotator=f"n{annotator}", dimension=dimension, verdict=verdict, reason="r"
        )

    def choose(i, annotator, verdict):
        return HumanChoice(
            clip_a=f"s{i}", clip_b=f"t{i}", prompt="p", annotator=f"n{annotator}", verdict=verdict, reason="r"
        )

    ratings = [
        rate(i, n, dimension, verdicts[i % len(verdicts)] if n else "bad")
        for i in range(40)
        for n in range(3)
        for dimension in ("semantic", "motion")
    ]
    picks = [choose(i, n, choices[i % len(choices)] if n else "a") for i in range(40) for n in range(3)]
    return ratings, picks


def health(ratings=None, choices=None, accepted=None, copies=0.0, section=LABELS, label=None):
    ratings, choices = ratings or make_ratings(), choices or make_choices()
    reference = accepted or profile_labels("round 1", make_ratings(), make_choices())
    drifts = drift(profile_labels("round 2", ratings, choices), reference)
    frame = frames.health_frame(ratings, choices, drifts, copies)
    return frame, suites.health_suite(list(frame), section, label or Label())


def altered(labels, **changes):
    """The labels with other fields; a function is called with the label."""

    def alter(label):
        update = {name: value(label) if callable(value) else value for name, value in changes.items()}
        return label.model_copy(update=update)

    return [alter(label) for label in labels]


def both_altered(**changes):
    """Ratings and choices."""
    return altered(make_ratings(), **changes), altered(make_choices(), **changes)


def coverage(kept=lambda label: label.kept):
    ratings, choices = both_altered(kept=kept)
    frame = frames.coverage_frame(make_prompts(), ratings, choices, TARGETS | {"style": {"odd": 0.0}})
    return frame, suites.coverage_suite(list(frame), LABELS)


def make_pairs(count=12, margin=0.3):
    return [
        Preference(
            prompt_id=f"p{i}", prompt="x", winner=f"w{i}", loser=f"l{i}", winner_score=0.5 + margin, loser_score=0.5
        )
        for i in range(count)
    ]


def make_agreement(mean=0.8, pairs=100, low=None, **rated):
    """`rated`: agreement on ratings, by dimension."""
    rated = {"motion": 0.6, "semantic": None} | rated
    return Agreement.model_validate(
        {"agreement": {"mean": mean, "low": low}, "pairs": pairs, "rating_agreement": rated}
    )


def prompts_check(frame=None):
    frame = frames.prompts_frame(make_prompts(), TARGETS) if frame is None else frame
    return frame, suites.prompts_suite(40, TARGETS, LABELS)


def ratings_check(frame=None):
    return frames.ratings_frame(make_ratings()) if frame is None else frame, suites.ratings_suite(Label())


def choices_check(frame=None):
    return frames.choices_frame(make_choices()) if frame is None else frame, suites.choices_suite(Label())


def balance(ratings=None, choices=None, humans=None, section=LABELS):
    frame = frames.balance_frame(ratings or make_ratings(), choices or make_choices(), *(humans or make_humans()))
    return frame, suites.balance_suite(list(frame), section)


def balance_check(frame=None):
    healthy, suite = balance()
    return healthy if frame is None else frame, suite


def health_check(frame=None):
    healthy, suite = health()
    return healthy if frame is None else frame, suite


def coverage_check(frame=None):
    healthy, suite = coverage()
    return healthy if frame is None else frame, suite


def preferences_check(frame=None):
    return frames.preferences_frame(make_pairs()) if frame is None else frame, suites.preferences_suite(PREFER)


def agreement_check(frame=None, new=None, old=None, section=CRITIC):
    healthy = frames.agreement_frame(new or make_agreement(), old or make_agreement(0.79))
    frame = healthy if frame is None else frame
    return frame, suites.agreement_suite(list(frame), section)


CHECKS = {
    "prompts": prompts_check,
    "ratings": ratings_check,
    "choices": choices_check,
    "balance": balance_check,
    "health": health_check,
    "coverage": coverage_check,
    "preferences": preferences_check,
    "agreement": agreement_check,
}


def nulled(check):
    """The healthy table with every value of its first row gone."""
    frame = check()[0].astype(object)
    frame.iloc[0] = None
    return check(frame)


def changed(check, row, **values):
    frame = check()[0].copy()
    for column, value in values.items():
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
    return check(frame)


def repeated(check, *rows):
    """The healthy table with these rows repeated."""
    frame = check()[0]
    return check(pd.concat([frame, frame.iloc[list(rows)]], ignore_index=True))


def small_pool(hard):
    """Four prompts, `hard` of them hard, against shares of 0.3 and 0.7."""
    targets = {"difficulty": {"simple": 0.7, "hard": 0.3}}
    rows = [
        Prompt(id=f"p{i}", text=f"{i}", categories={"difficulty": "hard" if i < hard else "simple"}) for i in range(4)
    ]
    return frames.prompts_frame(rows, targets), suites.prompts_suite(4, targets, LABELS)


def swapped_pair():
    pairs = make_pairs()
    back = Preference(**pairs[0].model_dump() | {"winner": pairs[0].loser, "loser": pairs[0].winner})
    return preferences_check(frames.preferences_frame([*pairs, back]))


HEALTHY = {"healthy_" + name: check for name, check in CHECKS.items()} | {
    # A user's own table may list the preferred clip first throughout: that must not read as drift.
    "healthy_winner_first": lambda: balance(humans=make_humans(choices=("a", "a", "tie", "a", "a"))),
    # A margin exactly at its bound, and a drop within it.
    "healthy_margin": lambda: preferences_check(frames.preferences_frame(make_pairs(margin=0.0625))),
    # Four prompts can't meet 0.3 and 0.7 more closely.
    "healthy_small_pool": lambda: small_pool(1),
    "healthy_drop": lambda: agreement_check(old=make_agreement(0.85)),
    # One path a question: nothing voted, and nothing is asked of votes.
    "healthy_single_path": lambda: health(*both_altered(votes=lambda label: {label.verdict: 1}, rejected=None)),
    # Without the certainty filter all may be kept, whatever the certainty.
    "healthy_unfiltered": lambda: health(make_ratings(), make_choices()[:35], label=Label(filter_by_certainty=False)),
    "healthy_unfiltered_ratings": lambda: (
        frames.ratings_frame(altered(make_ratings(), kept=True)),
        suites.ratings_suite(Label(filter_by_certainty=False)),
    ),
    # Which clip is listed first means nothing: a set that names the other one throughout has not drifted.
    "healthy_turned": lambda: health(
        accepted=profile_labels("round 1", make_ratings(), make_choices(("b", "a", "tie", "b", "b")))
    ),
    "healthy_low": lambda: agreement_check(
        frames.agreement_frame(make_agreement(low=0.76), None, "low"), section=CRITIC.model_copy(update=LOW)
    ),
}
NOT_NULL, ROWS = "expect_column_values_to_not_be_null", "expect_table_row_count_to_be_between"
ONE_ROW, IN_SET = "expect_table_row_count_to_equal", "expect_column_values_to_be_in_set"
MEAN, MAX, MIN = (f"expect_column_{name}_to_be_between" for name in ("mean", "max", "min"))
UNIQUE, APART = "expect_column_values_to_be_unique", "expect_select_column_values_to_be_unique_within_record"
COMPOUND, EQUAL = "expect_compound_columns_to_be_unique", "expect_multicolumn_values_to_be_equal"
BETWEEN = "expect_column_values_to_be_between"
SAYS = (EQUAL, "verdict, chosen_says")
TURNED = {"a": "b", "b": "a", "tie": "tie"}
QUESTIONS = ("rating_semantic", "rating_motion", "choice_overall")
ALWAYS = {"semantic": "normal", "motion": "bad", "overall": "tie"}
KL_RATINGS = {(MAX, "kl_rating_semantic"), (MAX, "kl_rating_motion")}

# What is wrong -> (the suite's kind, the check, the expectations that fail).
POISONED = {
    # The whole table is gone: only row counts see it, and aggregates that are then undefined.
    **{f"empty_{name}": (name, lambda c=check: c(c()[0].iloc[:0]), set()) for name, check in CHECKS.items()},
    **{f"nulls_{name}": (name, partial(nulled, check), set()) for name, check in CHECKS.items()},
    "prompts_few": (
        "prompts",
        lambda: prompts_check(prompts_check()[0].iloc[[*range(8), *range(20, 28)]]),
        {(ONE_ROW, None)},
    ),
    "prompts_doubled_id": ("prompts", partial(changed, prompts_check, 1, id="p0"), {(UNIQUE, "id")}),
    "prompts_doubled_text": ("prompts", partial(changed, prompts_check, 1, text="prompt 0"), {(UNIQUE, "text")}),
    "prompts_unknown_values": (
        "prompts",
        partial(changed, prompts_check, 1, difficulty="odd", scene="odd"),
        {(IN_SET, "difficulty"), (IN_SET, "scene")},
    ),
    "prompts_inverted_shares": (
        "prompts",
        lambda: prompts_check(
            frames.prompts_frame(
                [
                    Prompt(
                        id=f"p{i}", text=f"{i}", categories={"difficulty": "simple" if i % 4 else "hard", "scene": s}
                    )
                    for i, s in enumerate(["dark"] * 10 + ["bright"] * 30)
                ],
                TARGETS | {"difficulty": {"simple": 0.25, "hard": 0.75}},
            )
        ),
        {(MEAN, "scene = dark"), (MEAN, "scene = bright")},
    ),
    "prompts_all_simple": (
        "prompts",
        lambda: prompts_check(
            frames.prompts_frame(
                [p.model_copy(update={"categories": {**p.categories, "difficulty": "simple"}}) for p in make_prompts()],
                TARGETS,
            )
        ),
        {(MEAN, "difficulty = simple"), (MEAN, "difficulty = hard")},
    ),
    "prompts_small_pool_off": (
        "prompts",
        lambda: small_pool(3),
        {(MEAN, "difficulty = simple"), (MEAN, "difficulty = hard")},
    ),
    "ratings_unknown_words": (
        "ratings",
        partial(changed, ratings_check, 1, verdict="great", dimension="taste"),
        {(IN_SET, "verdict"), (IN_SET, "dimension"), (EQUAL, "verdict, voted"), SAYS},
    ),
    # Verdicts turned round in the table alone: the paths that the critic learns still say the opposite.
    "ratings_turned": (
        "ratings",
        lambda: ratings_check(
            frames.ratings_frame(
                altered(make_ratings(), verdict=lambda row: "bad" if row.verdict == "good" else "good")
            )
        ),
        {(EQUAL, "verdict, voted"), SAYS},
    ),
    "ratings_two_paths_alike": (
        "ratings",
        lambda: ratings_check(frames.ratings_frame(altered(make_ratings(), rejected=lambda row: row.chosen))),
        {(APART, "chosen_says, rejected_says")},
    ),
    "ratings_kept_unsure": ("ratings", partial(changed, ratings_check, 7, kept=True), {(MIN, "certainty")}),
    "ratings_nan_certainty": (
        "ratings",
        partial(changed, ratings_check, 1, certainty=math.nan),
        {(NOT_NULL, "certainty")},
    ),
    "ratings_certainty_one": ("ratings", partial(changed, ratings_check, 1, certainty=1.0), {(BETWEEN, "certainty")}),
    "ratings_doubled": ("ratings", partial(repeated, ratings_check, 0), {(COMPOUND, "clip, dimension")}),
    "choices_unknown_words": (
        "choices",
        partial(changed, choices_check, 1, verdict="c", dimension="taste", forward="c", backward="c"),
        {(IN_SET, "verdict"), (IN_SET, "dimension"), (IN_SET, "forward"), (IN_SET, "backward"), SAYS},
    ),
    "choices_turned": (
        "choices",
        lambda: choices_check(
            frames.choices_frame(altered(make_choices(), chosen=lambda row: f"so. Verdict: {TURNED[row.verdict]}"))
        ),
        {SAYS},
    ),
    "choices_two_paths_alike": (
        "choices",
        lambda: choices_check(frames.choices_frame(altered(make_choices(), rejected=lambda row: row.chosen))),
        {(APART, "chosen_says, rejected_says")},
    ),
    "choices_certainty_zero": (
        "choices",
        partial(changed, choices_check, 1, certainty=0.0),
        {(BETWEEN, "certainty"), (MIN, "certainty")},
    ),
    "choices_infinite_certainty": (
        "choices",
        partial(changed, choices_check, 1, certainty=math.inf),
        {(BETWEEN, "certainty")},
    ),
    "choices_kept_inconsistent": (
        "choices",
        partial(changed, choices_check, 36, kept=True),
        {(IN_SET, "consistent"), (EQUAL, "verdict, forward, backward")},
    ),
    "choices_kept_unreadable": (
        "choices",
        partial(changed, choices_check, 0, backward=None),
        {(EQUAL, "verdict, forward, backward")},
    ),
    "choices_same_clip": ("choices", partial(changed, choices_check, 1, clip_b="c1"), {(APART, "clip_a, clip_b")}),
    "choices_doubled": (
        "choices",
        lambda: choices_check(
            frames.choices_frame([*make_choices(), make_choice(0, "b", "b", clip_a="d0", clip_b="c0")])
        ),
        {(UNIQUE, "pair")},
    ),
    # A critic that always names the clip shown first: no verdict survives the swap.
    "balance_first_shown": (
        "balance",
        lambda: balance(choices=[make_choice(i, "a", "b") for i in range(40)]),
        {
            (MAX, "position_bias"),
            (MIN, "choices_kept"),
            (NOT_NULL, "tie_share"),
            (MAX, "tie_share"),
            (NOT_NULL, "kl_choice_overall"),
            (MAX, "kl_choice_overall"),
        },
    ),
    # Labels that name clip_a in both orders.
    "balance_all_a": ("balance", lambda: balance(choices=make_choices(("a",))), {(MAX, "kl_choice_overall")}),
    "balance_all_ties": (
        "balance",
        lambda: balance(choices=make_choices(("tie",))),
        {(MAX, "tie_share"), (MAX, "kl_choice_overall")},
    ),
    "balance_collapsed": ("balance", lambda: balance(ratings=make_ratings(("good",))), KL_RATINGS),
    "balance_inverted": (
        "balance",
        lambda: balance(make_ratings(("bad",) * 9 + ("good",)), humans=make_humans(("good",) * 9 + ("bad",))),
        KL_RATINGS,
    ),
    "balance_few": (
        "balance",
        lambda: balance(make_ratings(count=8), make_choices(count=20)),
        {(MIN, "ratings_kept"), (MIN, "choices_kept")},
    ),
    "health_guessing": (
        "health",
        lambda: health(*both_altered(votes=lambda row: dict.fromkeys((row.verdict, "x", "tie", "normal", "a"), 1))),
        {(MAX, "vote_entropy_ratings"), (MAX, "vote_entropy_choices")},
    ),
    "health_unanimous": (
        "health",
        lambda: health(*both_altered(votes=lambda row: {row.verdict: 4})),
        {(MIN, "vote_entropy_ratings"), (MIN, "vote_entropy_choices")},
    ),
    "health_constant_certainty": (
        "health",
        lambda: health(*both_altered(certainty=0.7)),
        {(MIN, "certainty_spread_ratings"), (MIN, "certainty_spread_choices")},
    ),
    "health_all_kept": (
        "health",
        lambda: health(*both_altered(kept=True)),
        {(MAX, "kept_share_ratings"), (MAX, "kept_share_choices")},
    ),
    "health_none_kept": (
        "health",
        lambda: health(*both_altered(kept=False)),
        {(MIN, "kept_share_ratings"), (MIN, "kept_share_choices")}
        | {(kind, f"drift_{name}") for kind in (NOT_NULL, MAX) for name in QUESTIONS},
    ),
    "health_drift": (
        "health",
        lambda: health(accepted=profile_labels("round 1", *both_altered(verdict=lambda row: ALWAYS[row.dimension]))),
        {(MAX, f"drift_{name}") for name in QUESTIONS},
    ),
    "health_turned": (
        "health",
        lambda: health(
            choices=[make_choice(i, "a", "a", clip_a=f"c{4 * i + 2}", clip_b=f"c{4 * i}") for i in range(9)]
        ),
        {(MIN, "choices_follow_ratings"), (MAX, "kept_share_choices")},
    ),
    "health_copies": ("health", lambda: health(copies=0.05), {(MAX, "duplicate_clips")}),
    # Hard prompts, and dark scenes, are where nothing was kept.
    "coverage_easy": (
        "coverage",
        lambda: coverage(lambda row: int(row.prompt_id[1:]) % 4 != 3 and int(row.prompt_id[1:]) >= 20),
        {(MIN, "difficulty = hard"), (MIN, "scene = dark")},
    ),
    "coverage_hard": (
        "coverage",
        lambda: coverage(lambda row: int(row.prompt_id[1:]) % 4 == 3 and int(row.prompt_id[1:]) < 20),
        {(MIN, "difficulty = simple"), (MIN, "scene = bright")},
    ),
    "balance_two_rows": ("balance", partial(repeated, balance_check, 0), {(ONE_ROW, None)}),
    "preferences_few": (
        "preferences",
        lambda: preferences_check(frames.preferences_frame(make_pairs(9))),
        {(ROWS, None)},
    ),
    "preferences_none": (
        "preferences",
        lambda: preferences_check(frames.preferences_frame([])),
        {(ROWS, None), (MIN, "margin")},
    ),
    "preferences_itself": (
        "preferences",
        partial(changed, preferences_check, 1, loser="w1"),
        {(APART, "winner, loser")},
    ),
    "preferences_small_margin": (
        "preferences",
        lambda: preferences_check(frames.preferences_frame([*make_pairs(11), *make_pairs(12, 0.04)[-1:]])),
        {(MIN, "margin")},
    ),
    "preferences_nan": (
        "preferences",
        partial(changed, preferences_check, 1, winner_score=math.nan, margin=math.nan),
        {(NOT_NULL, "winner_score"), (NOT_NULL, "margin")},
    ),
    "preferences_doubled": ("preferences", partial(repeated, preferences_check, 3), {(UNIQUE, "pair")}),
    "preferences_contradicting": ("preferences", swapped_pair, {(UNIQUE, "pair")}),
    "agreement_weak": ("agreement", lambda: agreement_check(new=make_agreement(0.749)), {(MIN, "agreement")}),
    "agreement_drop": ("agreement", lambda: agreement_check(old=make_agreement(0.86)), {(MAX, "drop")}),
    # The pairs hardly show it.
    "agreement_ratings_lost": (
        "agreement",
        lambda: agreement_check(new=make_agreement(0.8, motion=0.49)),
        {(MAX, "rating_drop_motion")},
    ),
    "agreement_ratings_gone": (
        "agreement",
        lambda: agreement_check(new=make_agreement(0.8, motion=None)),
        {(NOT_NULL, "rating_drop_motion"), (MAX, "rating_drop_motion")},
    ),
    "agreement_no_pairs": (
        "agreement",
        lambda: agreement_check(new=make_agreement(None, 0)),
        {(MIN, "pairs"), (NOT_NULL, "agreement"), (MIN, "agreement"), (NOT_NULL, "drop"), (MAX, "drop")},
    ),
    "agreement_weak_at_the_low_end": (
        "low",
        lambda: agreement_check(
            frames.agreement_frame(make_agreement(low=0.74), None, "low"), section=CRITIC.model_copy(update=LOW)
        ),
        {(MIN, "agreement_low")},
    ),
    "agreement_two_rows": ("agreement", partial(repeated, agreement_check, 0), {(ONE_ROW, None)}),
}
# Here all row counts, or all not-null expectations, must be among those that fail; elsewhere exactly those listed fail.
LOOSE = {name for name in POISONED if name.startswith(("empty_", "nulls_"))}


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    """One gate over all tables, healthy and poisoned."""
    checks = {name: make() for name, make in HEALTHY.items()} | {
        name: make() for name, (_, make, _) in POISONED.items()
    }
    return run_gate(tmp_path_factory.mktemp("gates") / "gate", checks)


def failed(suite):
    return {(e.name, e.column) for e in suite.expectations if not e.passed}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_data_pass(verdict, name):
    assert verdict.suites[name].passed, failed(verdict.suites[name])


@pytest.mark.parametrize("name", POISONED)
def test_poisoned_data_fail(verdict, name):
    kind, _, expected = POISONED[name]
    suite = verdict.suites[name]
    assert not suite.passed
    if name in LOOSE:
        healthy = verdict.suites[f"healthy_{kind}"].expectations
        wanted = NOT_NULL if name.startswith("nulls_") else "expect_table_row_count"
        expected = {(e.name, e.column) for e in healthy if e.name.startswith(wanted)}
        assert expected and expected <= failed(suite)
    else:
        assert failed(suite) == expected


def test_every_expectation_has_failed_once(verdict):
    for kind in CHECKS:
        every = {(e.name, e.column) for e in verdict.suites[f"healthy_{kind}"].expectations}
        seen = set().union(*(failed(verdict.suites[name]) for name, (k, _, _) in POISONED.items() if k == kind))
        assert every - seen == set(), kind


def test_reasons_say_what_was_seen_and_what_is_needed(verdict):
    assert len(verdict.reasons) == sum(len(failed(suite)) for suite in verdict.suites.values())
    text = "\n".join(verdict.reasons)
    assert "agreement_weak: agreement is 0.749, required is at least 0.75: a critic that agrees less often" in text
    assert "balance_first_shown: position_bias is 1, required is at most 0.25" in text
    assert (
        "ratings_certainty_one: certainty: 1 of 80 rows break it, such as 1.0; required is above 0 and below 1" in text
    )
    assert "prompts_few: number of rows is 16, required is exactly 40" in text
    assert all(reason.endswith(".") for reason in verdict.reasons)


def test_gate_folder_is_whole_and_deterministic(tmp_path, caplog):
    first, second = tmp_path / "first", tmp_path / "second"
    weak = {"agreement": {"mean": 0.7}, "pairs": 10}
    made = critic_gate(first, weak, None, CRITIC)
    critic_gate(second, weak, None, CRITIC)
    assert not made.passed and read_verdict(first) == made
    assert "drop" not in {e.column for e in made.suites["agreement"].expectations}
    assert digest(first) == digest(second)
    assert sorted(p.name for p in (first / "data_docs").iterdir()) == ["agreement.html", "index.html"]
    page = (first / "data_docs" / "agreement.html").read_text()
    assert "at least 0.75: a critic that agrees less often with people must not judge for them" in page
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "Data Docs rendered in part"
    assert "0.7" in page and "http" not in page, "Data Docs must open without a network"
    assert "agreement.html" in (first / "data_docs" / "index.html").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "second"]


def test_gates_of_the_other_steps(tmp_path):
    assert preference_gate(tmp_path / "a", make_pairs(), PREFER).passed
    assert not preference_gate(tmp_path / "b", [], PREFER).passed
    candidate = {"agreement": {"mean": 0.8}, "pairs": 10, "ties": 0.1}
    assert critic_gate(tmp_path / "c", candidate, candidate, CRITIC).passed
    with pytest.raises(UserError, match="critic candidate's agreement: agreement"):
        critic_gate(tmp_path / "d", {"pairs": 10}, None, CRITIC)
    with pytest.raises(UserError, match=r"incumbent critic's agreement: agreement\.mean"):
        critic_gate(tmp_path / "d", candidate, {"agreement": {"mean": math.nan}, "pairs": 1}, CRITIC)
    assert not (tmp_path / "d").exists()


def test_a_gate_that_cannot_be_computed_raises_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"ratings: expect_.* could not be computed: .*does not exist"):
        run_gate(tmp_path / "gate", {"ratings": (pd.DataFrame({"clip": ["c"]}), suites.ratings_suite(Label()))})
    with pytest.raises(ValueError, match="without expectations"):
        run_gate(tmp_path / "gate", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ({"passed": True}, "reasons: Field required"),
        ({"passed": True, "reasons": [], "suites": {}}, "contradicts"),
        ({"passed": True, "reasons": [], "suites": {"s": {"passed": True, "expectations": []}}}, "contradicts"),
    ],
)
def test_malformed_verdicts_are_refused(tmp_path, content, message):
    if content is not None:
        write_json(tmp_path / "verdict.json", content)
    with pytest.raises(UserError, match=message):
        read_verdict(tmp_path)


def test_divergence_by_hand():
    words = ("a", "b", "tie")
    # q = (2.5, 1.5, 0.5) / 4.5 after half a count each; p = (1/2, 1/2, 0).
    expected = 0.5 * math.log(0.5 / (2.5 / 4.5)) + 0.5 * math.log(0.5 / (1.5 / 4.5))
    assert frames.divergence({"a": 3, "b": 3}, {"a": 2, "b": 1}, words) == pytest.approx(expected, abs=1e-12)
    assert frames.divergence({}, {"a": 2}, words) is None
    assert frames.divergence({"tie": 9}, {}, words) == pytest.approx(math.log(3))


def test_position_bias_by_hand():
    rows = [
        make_choice(0, "a", "a"),  # clip_a both times: once first, once second
        make_choice(1, "a", "b"),  # the first shown, twice
        make_choice(2, "b", "a"),  # the second shown, twice
        make_choice(3, "a", "tie"),  # the first shown, and a tie
        make_choice(4, "a", None, consistent=False, kept=False),  # the first shown, and nothing readable
    ]
    # First: 1 + 2 + 0 + 1 + 1 = 5; second: 1 + 0 + 2 = 3; answers: 9.
    assert frames.position_bias(rows) == pytest.approx(2 / 9)
    assert frames.position_bias([]) is None


def test_vote_entropy_by_hand():
    # Two votes: expected of guessing is P(they differ) = 2/3 times ln 2.
    assert vote_entropy([{"a": 1, "b": 1}, {"tie": 2}]) == pytest.approx(math.log(2) / 2 / (2 / 3 * math.log(2)))
    assert vote_entropy([{"good": 3, "invalid": 1}]) == 0
    # Three votes: all the same 1/9, two the same 6/9, all different 2/9.
    two = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    expected = 6 / 9 * two + 2 / 9 * math.log(3)
    assert vote_entropy([{"good": 2, "bad": 1, "normal": 0}]) == pytest.approx(two / expected)
    assert vote_entropy([{"good": 1, "invalid": 3}]) is None and vote_entropy([]) is None


def test_choices_follow_ratings_by_hand():
    ratings = make_ratings()  # clip c0 good, c1 normal by 3 of 4 votes, c2 bad, c3 good by 3 of 4 votes
    rows = [
        make_choice(0, "a", "a", clip_b="c1"),  # follows
        make_choice(1, "b", "b", clip_b="c2"),  # does not
        make_choice(0, "b", "a", clip_b="c4"),  # equal ratings, whatever is kept
        make_choice(2, "tie", "tie", clip_b="c3"),  # takes no part
        make_choice(0, "a", "a"),  # d0 was not rated
    ]
    assert frames.choices_follow_ratings(ratings, rows) == pytest.approx((1 + 0 + 0.5) / 3)
    assert frames.choices_follow_ratings(ratings, rows[3:]) is None


def test_drift_by_hand():
    before = profile_labels("round 1", make_ratings(("good", "bad")), make_choices(("a", "tie")))
    after = profile_labels("round 2", make_ratings(("good", "good", "normal", "bad")), make_choices(("b",)))
    # Every eighth rating is dropped. Before: 20 of 35 good, 15 bad; after: 20 good, 10 normal, 5 bad.
    assert before.questions["rating/motion"].kept_shares == {"good": 20 / 35, "bad": 15 / 35}
    found = drift(after, before)
    assert found["rating/motion"] == pytest.approx(10 / 35)
    # 18 of 35 kept choices were decided, now all are.
    assert found["choice/overall"] == pytest.approx(17 / 35)
    assert drift(profile_labels("round 2", *both_altered(kept=False)), before)["rating/motion"] is None
    lacking = before.model_copy(update={"questions": {}})
    assert drift(after, lacking) == {}


def test_a_human_profile_counts_items_not_annotators():
    found = profile_humans(*make_humans()).questions
    assert found["rating/motion"].asked == 40 and found["rating/motion"].certainty is None
    assert found["rating/motion"].kept_shares == {"bad": 0.25, "good": 0.5, "normal": 0.25}
    assert found["choice/overall"].asked_shares == {"a": 0.4, "b": 0.4, "tie": 0.2}
    assert 0 < found["choice/overall"].vote_entropy < 1


def test_human_majorities_count_items_not_annotators():
    ratings, choices = make_humans()
    assert frames.majorities(ratings) == {
        "semantic": Counter(good=20, normal=10, bad=10),
        "motion": Counter(good=20, normal=10, bad=10),
    }
    assert frames.majorities(choices) == {"overall": Counter(a=16, b=16, tie=8)}


SPACE = """
categories: {difficulty: {simple: 0.5, hard: 0.5}, scene: {dark: 0.5, bright: 0.5}}
factors: {thing: {values: [cup, bowl]}}
templates: [{text: "{thing:a}"}]
"""


@pytest.fixture
def experiment(tmp_path):
    """A label step's output on healthy data; the schedule asks round 2 for the shares that `make_prompts` has."""
    (tmp_path / "space.yaml").write_text(SPACE)
    schedule = {"2": {"simple": 0.75, "hard": 0.25}}
    section = Prompts(space=str(tmp_path / "space.yaml"), count=40, schedule=schedule)
    ratings, choices = make_humans()
    write_rows(tmp_path / "prompts.jsonl", make_prompts())
    write_rows(tmp_path / "labels/ratings.jsonl", make_ratings())
    write_rows(tmp_path / "labels/choices.jsonl", make_choices())
    write_rows(tmp_path / "seed/ratings.jsonl", ratings)
    write_rows(tmp_path / "seed/choices.jsonl", choices)
    clips = [
        Clip(id=f"{side}{i}", prompt_id=f"p{i}", prompt=f"prompt {i}", file=f"{side}{i}.mp4")
        for side in "cd"
        for i in range(40)
    ]
    ClipStore.write_manifest(tmp_path / "candidates", clips)
    for clip in clips:
        (tmp_path / "candidates" / clip.file).write_text(clip.id)
    human = profile_humans(ratings, choices)
    write_profile(tmp_path / "before.json", ProfileFile(own=human, accepted=human))

    def run(round_name="2"):
        ports = {
            "prompts": "prompts.jsonl",
            "candidates": "candidates",
            "labels": "labels",
            "seed_labels": "seed",
            "previous_profile": "before.json",
            "gate": "gate",
            "label_profile": "profile.json",
        }
        job = Job(round_name, 0, tmp_path / "work")
        return check_labels(
            Config(prompts=section, check_labels=LABELS), job, **{port: tmp_path / at for port, at in ports.items()}
        )

    run.folder = tmp_path
    return run


def test_check_labels(experiment):
    summary = experiment()
    assert summary.metrics["passed"] == 1 and summary.tags == {"verdict": "passed"}
    assert summary.metrics["choices_kept"] == 35 and summary.metrics["tie_share"] == pytest.approx(0.2)
    suites_found = set(read_verdict(experiment.folder / "gate").suites)
    assert suites_found == {"prompts", "ratings", "choices", "balance", "health", "coverage"}
    found = read_profile(experiment.folder / "profile.json")
    assert found.own == found.accepted == profile_labels("round 2", make_ratings(), make_choices())
    # Round 1 has no entry in the schedule: the same prompts then miss the space's own target.
    assert experiment("1").metrics["passed"] == 0
    reasons = read_verdict(experiment.folder / "gate").reasons
    assert len(reasons) == 2 and all("difficulty" in reason for reason in reasons)
    # What the next round is held against is the last set that passed: here the human seed labels.
    found = read_profile(experiment.folder / "profile.json")
    assert found.own.source == "round 1" and found.accepted.source == "human seed labels"


def test_copies_among_the_candidates_fail_the_gate(experiment):
    for i in range(3):
        (experiment.folder / f"candidates/c{i}.mp4").write_text("the same")
    assert experiment().metrics["duplicate_clips"] == pytest.approx(3 / 80)
    [reason] = read_verdict(experiment.folder / "gate").reasons
    assert "duplicate_clips is 0.0375, required is at most 0.01" in reason


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("seed/ratings.jsonl", None, "exactly one of ratings.csv and ratings.jsonl is needed"),
        ("seed/choices.jsonl", "", "the table is empty"),
        ("labels/ratings.jsonl", "", "the table is empty"),
        ("labels/choices.jsonl", make_choices()[0].model_dump_json().replace("0.6", "NaN"), "line 1: certainty"),
        ("labels/choices.jsonl", make_choice(0, "a", "a", prompt_id="q").model_dump_json(), "prompt 'q' is not in"),
        ("labels/choices.jsonl", make_choice(0, "a", "a", dimension="motion").model_dump_json(), "no human choice on"),
        ("labels/ratings.jsonl", make_ratings()[0].model_dump_json().replace('"c0"', '"z"'), "no clip 'z'"),
        ("before.json", "{}", "before.json: own: Field required"),
        ("prompts.jsonl", "{", "not a readable jsonl table"),
    ],
)
def test_broken_data_raise_and_leave_no_gate(experiment, file, content, message):
    path = experiment.folder / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        experiment()
    assert not (experiment.folder / "gate").exists()
