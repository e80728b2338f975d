"""Verdicts as words, against enumerations of every small case."""

from __future__ import annotations

import itertools
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualipo.critic.voting import expected_rating, majority, parse_verdict, reconcile, swap_choice, tally
from dualipo.records import CHOICES, RATINGS

MIDDLE = {"rating": "normal", "choice": "tie"}
ALLOWED = {"rating": RATINGS, "choice": CHOICES}
kinds = pytest.mark.parametrize("kind", ALLOWED)


@kinds
@pytest.mark.parametrize("size", range(6))
def test_majority_equals_the_mode_of_every_small_vote(kind, size):
    for votes in itertools.product((*ALLOWED[kind], None), repeat=size):
        modes = statistics.multimode(vote for vote in votes if vote is not None)
        expected = None if not modes else modes[0] if len(modes) == 1 else MIDDLE[kind]
        assert majority(votes, kind) == expected, votes
        assert majority(votes) == expected, votes


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        (["good", "good", "bad"], "good"),
        (["good", "bad"], "normal"),
        (["good", "normal"], "normal"),
        (["good", "good", "bad", "bad", "normal"], "normal"),
        (["good", "normal", "bad"], "normal"),
        (["a", "a", "b", "tie"], "a"),
        (["a", "b"], "tie"),
        (["a", "tie"], "tie"),
        (["invalid", None, "b"], "b"),
        (["invalid", None], None),
        ([], None),
    ],
)
def test_majority_by_hand(votes, verdict):
    assert majority(votes) == verdict


def test_majority_takes_any_iterable_and_ignores_words_of_the_other_kind():
    assert majority(iter(["a", "a", "b"])) == "a"
    assert majority(["good", "good", "a"], "choice") == "a"


def test_majority_refuses_mixed_and_unknown_kinds():
    with pytest.raises(ValueError, match="mixed"):
        majority(["good", "a"])
    with pytest.raises(ValueError, match="no kind of verdict"):
        majority(["good"], "stars")


@given(st.lists(st.sampled_from((*CHOICES, None))), st.randoms())
def test_a_vote_does_not_depend_on_order_and_turns_with_the_clips(votes, random):
    shuffled = list(votes)
    random.shuffle(shuffled)
    assert majority(shuffled, "choice") == majority(votes, "choice")
    turned = majority([vote and swap_choice(vote) for vote in votes], "choice")
    assert turned == (None if (verdict := majority(votes, "choice")) is None else swap_choice(verdict))


@kinds
@given(data=st.data())
def test_one_more_vote_for_the_winner_never_unseats_it(kind, data):
    votes = data.draw(st.lists(st.sampled_from(ALLOWED[kind]), min_size=1))
    counts = sorted((votes.count(word) for word in ALLOWED[kind]), reverse=True)
    verdict = majority(votes, kind)
    if counts[0] > counts[1]:
        assert majority([*votes, verdict], kind) == verdict


@given(st.lists(st.sampled_from((*RATINGS, "invalid", "a", "", None))))
def test_tally_loses_no_vote(votes):
    counts = tally(votes, RATINGS)
    assert list(counts) == [*RATINGS, "invalid"]
    assert {word: counts[word] for word in RATINGS} == {word: votes.count(word) for word in RATINGS}
    assert sum(counts.values()) == len(votes)


def test_swap_choice():
    assert [swap_choice(choice) for choice in CHOICES] == ["b", "a", "tie"]
    with pytest.raises(ValueError, match="no choice"):
        swap_choice("good")


@pytest.mark.parametrize("forward", CHOICES)
@pytest.mark.parametrize("backward", CHOICES)
def test_reconcile_keeps_what_both_showings_say_of_the_same_clip(forward, backward):
    # Independently: name the clip that each showing prefers, then compare names.
    first = dict(zip(CHOICES, ("left clip", "right clip", "neither"), strict=True))[forward]
    second = dict(zip(CHOICES, ("right clip", "left clip", "neither"), strict=True))[backward]
    named = {"left clip": "a", "right clip": "b", "neither": "tie"}
    expected = (named[first], True) if first == second else (None, False)
    assert reconcile(forward, backward) == expected
    # Calling the right clip clip_a exchanges the two showings and turns the verdict, no more.
    verdict, consistent = reconcile(backward, forward)
    assert (verdict and swap_choice(verdict), consistent) == expected


def test_a_critic_that_always_names_one_position_is_never_kept():
    assert reconcile("a", "a") == reconcile("b", "b") == (None, False)


@pytest.mark.parametrize("verdict", [*CHOICES, None])
def test_reconcile_needs_both_orders(verdict):
    assert reconcile(verdict, None) == reconcile(None, verdict) == (None, False)


def test_reconcile_refuses_what_is_no_choice():
    for pair in (("good", "a"), ("a", "good"), ("good", None), (None, "invalid")):
        with pytest.raises(ValueError, match="no choice"):
            reconcile(*pair)


@pytest.mark.parametrize(
    ("text", "kind", "verdict"),
    [
        ("The circle is red. Verdict: Good", "rating", "good"),
        ("verdict : a", "choice", "a"),
        ("VERDICT  :  TIE.", "choice", "tie"),
        ("Verdict:\n\n Normal\nThanks for asking", "rating", "normal"),
        ("**Verdict:** **B**", "choice", "b"),
        ("**Verdict**: (A)", "choice", "a"),
        ("verdict: good, as all attributes hold", "rating", "good"),
        ("verdict : bad </s>", "rating", "bad"),
        ("Verdict: bad. On second thought, verdict: normal", "rating", "normal"),
        ("Verdict: a. Wait. Verdict:", "choice", None),
        ("Verdict: good. No: verdict: splendid", "rating", None),
        ("Verdict: a red circle moves left", "choice", None),
        ("Verdict: a-b", "choice", None),
        ("Verdict: goods", "rating", None),
        ("Verdict: good", "choice", None),
        ("Verdict: tie", "rating", None),
        ("Verdict good", "rating", None),
        ("The overdict: good", "rating", None),
        ("good", "rating", None),
        ("", "choice", None),
    ],
)
def test_parse_verdict(text, kind, verdict):
    assert parse_verdict(text, kind) == verdict


@kinds
@given(data=st.data())
def test_a_written_verdict_is_read_back_whatever_stands_before_it(kind, data):
    verdict = data.draw(st.sampled_from(ALLOWED[kind]))
    case = data.draw(st.sampled_from([str.lower, str.upper, str.title]))
    before, after = (data.draw(st.text(alphabet=" \t", max_size=3)) for _ in range(2))
    end = data.draw(st.sampled_from(["", ".", " \n", "!", "\n\nBecause", " <eos>"]))
    text = f"{data.draw(st.text())} {case('verdict')}{before}:{after}{case(verdict)}{end}"
    assert parse_verdict(text, kind) == verdict


@kinds
@given(text=st.text(alphabet=st.sampled_from("verdictVERDICTabgoodn: \n.*"), max_size=60))
def test_no_text_gives_a_word_that_is_not_allowed(kind, text):
    assert parse_verdict(text, kind) in (*ALLOWED[kind], None)
    assert ":" in text or parse_verdict(text, kind) is None


def test_parse_verdict_refuses_unknown_kinds():
    with pytest.raises(ValueError, match="no kind of verdict"):
        parse_verdict("Verdict: good", "stars")


def test_a_vote_over_texts_end_to_end():
    texts = ["it is sharp . verdict : good", "it blurs . verdict : bad", "sharp . verdict : good", "it is , it is"]
    verdicts = [parse_verdict(text, "rating") for text in texts]
    assert tally(verdicts, RATINGS) == {"good": 2, "normal": 0, "bad": 1, "invalid": 1}
    assert majority(verdicts) == "good"
    assert expected_rating(tally(verdicts, RATINGS)) == pytest.approx(2 / 3)


@given(st.lists(st.sampled_from(RATINGS), min_size=1), st.integers(0, 5))
def test_expected_rating_is_the_mean_of_the_readable_votes(votes, invalid):
    value = {"good": Fraction(1), "normal": Fraction(1, 2), "bad": Fraction(0)}
    mean = sum(map(value.get, votes)) / len(votes)
    rating = expected_rating(tally([*votes, *[None] * invalid], RATINGS))
    assert rating == pytest.approx(float(mean), abs=1e-15)
    assert 0 <= rating <= 1
    mirrored = [{"good": "bad", "bad": "good"}.get(vote, vote) for vote in votes]
    assert expected_rating(tally(mirrored, RATINGS)) == pytest.approx(1 - rating, abs=1e-15)


@pytest.mark.parametrize("votes", [{}, {"invalid": 4}, {"good": 0, "bad": 0}, {"a": 3}, {"good": 2, "bad": -1}])
def test_expected_rating_refuses_a_tally_without_ratings(votes):
    with pytest.raises(ValueError, match="no readable rating"):
        expected_rating(votes)
