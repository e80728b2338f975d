"""Every expectation passes on healthy data and fails on data poisoned for it; gates are whole and deterministic."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import pandas as pd
import pytest

from dualipo.artifacts import digest, write_json
from dualipo.config import CheckCritic, CheckLabels, Config, Prefer, Prompts
from dualipo.errors import UserError
from dualipo.quality import frames, suites
from dualipo.quality.evidence import Agreement
from dualipo.quality.gate import critic_gate, preference_gate, read_verdict, run_gate
from dualipo.records import HumanChoice, HumanRating, Preference, Prompt, PseudoChoice, PseudoRating, write_rows
from dualipo.steps import Job
from dualipo.steps.check_labels import check_labels

TARGETS = {"difficulty": {"simple": 0.75, "hard": 0.25}, "scene": {"dark": 0.5, "bright": 0.5}}
LABELS = CheckLabels(min_kept=20)
PREFER = Prefer(min_pairs=10, min_margin=0.05)
CRITIC = CheckCritic(min_agreement=0.75, max_drop=0.05)


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


def make_ratings(verdicts=("good", "normal", "bad", "good"), count=40):
    return [
        PseudoRating(
            clip=f"c{i}",
            prompt_id=f"p{i}",
            prompt=f"prompt {i}",
            dimension=dimension,
            verdict=verdicts[i % len(verdicts)],
            votes={verdicts[i % len(verdicts)]: 4},
            certainty=0.6,
            kept=True,
            chosen="text",
            rejected=None,
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
        "votes": {forward: 4},
        "certainty": 0.6,
        "kept": consistent,
        "chosen": "text",
        "rejected": None,
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


def make_pairs(count=12, margin=0.3):
    return [
        Preference(
            prompt_id=f"p{i}", prompt="x", winner=f"w{i}", loser=f"l{i}", winner_score=0.5 + margin, loser_score=0.5
        )
        for i in range(count)
    ]


def make_agreement(mean=0.8, pairs=100):
    return Agreement.model_validate({"agreement": {"mean": mean}, "pairs": pairs})


def prompts_check(frame=None):
    frame = frames.prompts_frame(make_prompts(), TARGETS) if frame is None else frame
    return frame, suites.prompts_suite(40, TARGETS, LABELS)


def ratings_check(frame=None):
    return frames.ratings_frame(make_ratings()) if frame is None else frame, suites.ratings_suite()


def choices_check(frame=None):
    return frames.choices_frame(make_choices()) if frame is None else frame, suites.choices_suite()


def balance(ratings=None, choices=None, humans=None, section=LABELS):
    frame = frames.balance_frame(ratings or make_ratings(), choices or make_choices(), *(humans or make_humans()))
    return frame, suites.balance_suite(list(frame), section)


def balance_check(frame=None):
    healthy, suite = balance()
    return healthy if frame is None else frame, suite


def preferences_check(frame=None):
    return frames.preferences_frame(make_pairs()) if frame is None else frame, suites.preferences_suite(PREFER)


def agreement_check(frame=None, new=None, old=None):
    healthy = frames.agreement_frame(new or make_agreement(), old or make_agreement(0.79))
    return healthy if frame is None else frame, suites.agreement_suite(list(healthy), CRITIC)


CHECKS = {
    "prompts": prompts_check,
    "ratings": ratings_check,
    "choices": choices_check,
    "balance": balance_check,
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
}
NOT_NULL, ROWS = "expect_column_values_to_not_be_null", "expect_table_row_count_to_be_between"
ONE_ROW, IN_SET = "expect_table_row_count_to_equal", "expect_column_values_to_be_in_set"
MEAN, MAX, MIN = (f"expect_column_{name}_to_be_between" for name in ("mean", "max", "min"))
UNIQUE, APART = "expect_column_values_to_be_unique", "expect_select_column_values_to_be_unique_within_record"
COMPOUND, EQUAL = "expect_compound_columns_to_be_unique", "expect_multicolumn_values_to_be_equal"
BETWEEN = "expect_column_values_to_be_between"
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
        {(IN_SET, "verdict"), (IN_SET, "dimension")},
    ),
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
        {(IN_SET, "verdict"), (IN_SET, "dimension"), (IN_SET, "forward"), (IN_SET, "backward")},
    ),
    "choices_certainty_zero": ("choices", partial(changed, choices_check, 1, certainty=0.0), {(BETWEEN, "certainty")}),
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
    "agreement_no_pairs": (
        "agreement",
        lambda: agreement_check(new=make_agreement(None, 0)),
        {(MIN, "pairs"), (NOT_NULL, "agreement"), (MIN, "agreement"), (NOT_NULL, "drop"), (MAX, "drop")},
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
        run_gate(tmp_path / "gate", {"ratings": (pd.DataFrame({"clip": ["c"]}), suites.ratings_suite())})
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

    def run(round_name="2"):
        ports = {"prompts": "prompts.jsonl", "labels": "labels", "seed_labels": "seed", "gate": "gate"}
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
    assert set(read_verdict(experiment.folder / "gate").suites) == {"prompts", "ratings", "choices", "balance"}
    # Round 1 has no entry in the schedule: the same prompts then miss the space's own target.
    assert experiment("1").metrics["passed"] == 0
    reasons = read_verdict(experiment.folder / "gate").reasons
    assert len(reasons) == 2 and all("difficulty" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("seed/ratings.jsonl", None, "exactly one of ratings.csv and ratings.jsonl is needed"),
        ("seed/choices.jsonl", "", "the table is empty"),
        ("labels/ratings.jsonl", "", "the table is empty"),
        ("labels/choices.jsonl", make_choices()[0].model_dump_json().replace("0.6", "NaN"), "line 1: certainty"),
        ("labels/choices.jsonl", make_choice(0, "a", "a", prompt_id="q").model_dump_json(), "prompt 'q' is not in"),
        ("labels/choices.jsonl", make_choice(0, "a", "a", dimension="motion").model_dump_json(), "no human choice on"),
        ("prompts.jsonl", "{", "not a readable jsonl table"),
    ],
)
def test_broken_data_raise_and_leave_no_gate(experiment, file, content, message):
    path = experiment.folder / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        experiment()
    assert not (experiment.folder / "gate").exists()
