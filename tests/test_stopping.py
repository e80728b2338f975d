"""The stopping rule on recorded curves and on noise, what keeps the rounds going, and reward hacking named."""

import sys
from pathlib import Path

import numpy as np
import pytest

from dualipo.config import Settle, Study
from dualipo.errors import UserError
from dualipo.quality.evidence import Interval, Standing
from dualipo.quality.stopping import gain, judge, preference, risen
from dualipo.quality.watch import hacked, shifted

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from stopping import PLATEAU, WAN, bare, holds_zero, measured, ours, simulate, standing

from dualipo.evaluation.paired import total_draws


def around(mean: float, half: float = 0.0) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half)


def rounds(totals, error=0.05, promoted=None, seed=0):
    """A history with these true totals, its draws, and its measured totals."""
    rng = np.random.default_rng(seed)
    history, draws, scores = [], {}, None
    for number, total in enumerate(totals):
        new = promoted is None or number == 0 or promoted[number - 1]
        if new:
            scores = measured(total, error, rng)
        champion = f"{number}" if new else history[-1].champion
        if new:
            draws[champion] = total_draws(scores, 0, 400).tolist()
        history.append(standing(number, champion, scores, new and number > 0))
    return history, draws


def changed(history, place, **fields) -> list[Standing]:
    history = list(history)
    history[place] = history[place].model_copy(update=fields)
    return history


# ---- the paper's curve


@pytest.mark.parametrize("seed", range(5))
def test_on_the_papers_curve_it_stops_after_the_sixth_round_and_names_reward_hacking(seed):
    history, draws = rounds(WAN, seed=seed)
    said = [judge(history[: n + 1], draws, Settle()) for n in range(1, len(WAN))]
    assert [verdict.called_for for verdict in said] == [False] * 5 + [True]
    assert all(verdict.watch == [] for verdict in said[:-1])
    [reason], [sign] = said[-1].reasons, said[-1].watch
    assert reason.startswith("stop: over the last round the benchmark moved by") and "0.5 a round" in reason
    assert sign.startswith("reward hacking: over the last round the reward of clips rose by 0.03")
    assert said[-1].evidence["benchmark"]["high"] < 0.5 and said[-1].evidence["rounds"] == 1
    still = [s.model_copy(update={"reward": around(0.5, 0.01)}) for s in history]
    assert judge(still, draws, Settle()).called_for and judge(still, draws, Settle()).watch == []


def test_noise_does_not_stop_it_early():
    """At noise of 0.2 points, a third of what a round gains; benchmarks/stopping.py has the whole table."""
    found = [simulate(ours, Settle(), 0.2, seed) for seed in range(60)]
    assert sum(reached < PLATEAU for _, reached in found) <= 2
    assert np.quantile([n for n, reached in found if reached >= PLATEAU], 0.9) <= 8
    for rule in (bare, holds_zero):
        assert sum(simulate(rule, Settle(), 0.2, seed)[1] < PLATEAU for seed in range(60)) >= 10, rule.__name__


def test_a_noisier_benchmark_takes_more_rounds_but_not_all():
    """Of a generator that stands still while every candidate is promoted."""

    def median(error: float) -> float:
        found = []
        for seed in range(15):
            history, draws = rounds((80.0,) * 13, error, seed=seed)
            said = [judge(history[: n + 1], draws, Settle()).called_for for n in range(1, 13)]
            assert any(said)
            found.append(said.index(True) + 1)
        return float(np.median(found))

    assert median(0.05) == 1 < median(0.5) < median(1.5)


def test_patience_is_the_shortest_look_back():
    history, draws = rounds((80.0, 82.0, 82.0, 82.0))
    assert [judge(history[: n + 1], draws, Settle(patience=2)).called_for for n in (1, 2, 3)] == [False, False, True]
    said = judge(history[:2], draws, Settle(patience=2)).reasons
    assert said == ["goes on: the stopping rule looks at 2 rounds at least."]


# ---- what keeps it going


def test_people_and_agreement_keep_it_going_by_more_than_their_noise():
    history, draws = rounds((80.0, 82.0, 82.0))
    liked, unsure = Study(wins=60, ties=20, losses=20), Study(wins=22, ties=58, losses=20)
    assert not judge(history, draws, Settle(studies={"2": liked})).called_for
    assert "people preferred the generator of round 2" in judge(history, draws, Settle(studies={"2": liked})).reasons[0]
    assert judge(history, draws, Settle(studies={"2": unsure})).called_for
    assert judge(history, draws, Settle(studies={"1": liked})).called_for, "a study of a round before the last ones"
    better = changed(history, -1, agreement=around(0.9, 0.03))
    assert "agreement with people rose by 0.100" in judge(better, draws, Settle()).reasons[0]
    assert judge(changed(history, -1, agreement=around(0.9, 0.1)), draws, Settle()).called_for
    assert judge(changed(history, -1, agreement=Interval(mean=0.9)), draws, Settle()).called_for


def test_without_scores_by_prompt_nothing_can_be_told():
    history, draws = rounds((80.0, 80.0))
    for one, other in (
        (history, {}),
        (history, {"0": [1.0], "1": [1.0, 2.0]}),
        (changed(history, 0, total=None), draws),
    ):
        verdict = judge(one, other, Settle())
        assert (
            not verdict.called_for
            and "unknown, since a total or its scores by prompt are missing" in verdict.reasons[0]
        )


def test_rounds_without_a_new_champion_are_retried_so_often():
    history, draws = rounds((80.0, 82.0, 82.0, 82.0, 84.0), promoted=[True, False, False, True])
    told = [judge(history[: n + 1], draws, Settle()) for n in range(1, 5)]
    assert [verdict.called_for for verdict in told] == [False, False, True, False]
    assert "the next one is retry 1 of 1" in told[1].reasons[0]
    assert (
        told[2]
        .reasons[0]
        .startswith("stop: 2 rounds in a row gave no new champion, the benchmark having fallen in 2 of 2")
    )
    assert not judge(history[:4], draws, Settle(max_retries=2)).called_for
    assert judge(history[:3], draws, Settle(max_retries=0)).reasons[0].endswith("and no retries are allowed.")
    gated = changed(history[:4], 2, degraded=False)
    assert "fallen in 1 of 2" in judge(gated, draws, Settle()).reasons[0]


# ---- parts


def test_the_gain_is_paired_by_prompt():
    history, draws = rounds((80.0, 81.0), error=0.3)
    found = gain(history[0], history[1], draws)
    assert 0.4 < (found["high"] - found["low"]) / (2 * 1.96) / 0.3 < 1.6
    hard = np.random.default_rng(0).normal(0, 30, 100)  # how hard prompts are, for both generators alike

    def scores(raised):
        rows = [["total", f"p{n:03d}", 50 + hard[n] + raised, 1] for n in range(100)]
        return {"total": {"mean": 50 + hard.mean() + raised}, "by_prompt": rows}

    paired = {name: total_draws(scores(raised), 0, 400).tolist() for name, raised in (("0", 0.0), ("1", 1.0))}
    ends = gain(changed(history, 0, total=50.0)[0], changed(history, 1, total=51.0)[1], paired)
    assert ends == pytest.approx({"mean": 1, "low": 1, "high": 1}) and np.std(paired["0"]) > 2
    assert gain(history[1], history[1], {}) == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_differences_of_measurements_and_studies():
    found = risen(around(0.8, 0.03), around(0.9, 0.04))
    assert found == pytest.approx({"mean": 0.1, "low": 0.05, "high": 0.15})
    assert risen(None, around(1)) is None and risen(Interval(mean=None), around(1)) is None
    found = preference(Study(wins=30, ties=40, losses=30))
    assert found["mean"] == 0 and found["low"] < -0.1 and found["high"] > 0.1
    with pytest.raises(ValueError, match="says nothing"):
        Study()


def test_a_study_of_no_round_is_refused():
    from dualipo.config import parse_config

    with pytest.raises(UserError, match=r"settle.studies: '9' is no round; known: 1, 2, 3"):
        parse_config({"settle": {"studies": {"9": {"wins": 1}}}})


# ---- reward hacking between rounds


def test_a_reward_that_rises_while_the_benchmark_does_not_is_named():
    history, draws = rounds((80.0, 82.0, 82.0))
    [sign] = hacked(history, draws, around(0.7, 0.01))
    assert sign.startswith(
        "reward hacking: clips of round 2's generator are scored higher than those of the one before"
    )
    assert "(0.56 to 0.7)" in sign
    assert hacked(history, draws, around(0.57, 0.03)) == [], "within its noise"
    assert hacked(history[:2], draws, around(0.9, 0.01)) == [], "the benchmark rose as well"
    assert hacked(history[:1], draws, around(0.9, 0.01)) == [] and hacked(history, draws, None) == []
    stayed, own = rounds((80.0, 82.0, 82.0), promoted=[True, False])
    assert hacked(stayed, own, around(0.9, 0.01)) == [], "the same generator's clips"


def test_only_an_interval_wholly_beyond_the_bound_is_named():
    def effects(low, high):
        return {"motion": {"mean": (low + high) / 2, "low": low, "high": high}, "diversity": None}

    assert [bool(shifted(effects(*ends), 0.5, "a", "b")) for ends in
            ((0.4, 0.9), (0.51, 0.9), (-0.9, -0.4), (-0.9, -0.51), (-0.6, 0.6))] == [
        False, True, False, True, False
    ]  # fmt: skip
