"""Thresholds from seed labels, agreement of scores, and the adapter over an external model's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from dualipo.critic.adapter import adapter_agreement, fit_adapter, read_external
from dualipo.critic.questions import Answered, Question
from dualipo.errors import UserError
from dualipo.evaluation.calibration import Calibration, agreement_of_scores, calibrate


def pair(prompt: str, a: str, b: str, verdict: str, dimension: str = "overall") -> Answered:
    return Answered(Question(dimension, prompt, (a, b)), verdict, "because")


def rated(prompt: str, clip: str, verdict: str, dimension: str = "motion") -> Answered:
    return Answered(Question(dimension, prompt, (clip,)), verdict, "because")


SCORES = {
    ("p", "1"): {"overall": 2.0, "motion": -1.0},
    ("p", "2"): {"overall": 0.5, "motion": 0.0},
    ("p", "3"): {"overall": 0.4, "motion": 3.0},
    ("q", "1"): {"overall": -1.0, "motion": 0.4},
}
"""Clip 1 is scored anew for each prompt."""


def test_thresholds_by_hand():
    labels = [
        pair("p", "1", "2", "a"),  # 1.5 apart
        pair("p", "3", "2", "tie"),  # 0.1
        pair("p", "1", "3", "a"),  # 1.6
        pair("p", "1", "3", "b", "motion"),
        rated("p", "1", "bad"),
        rated("p", "2", "normal"),
        rated("p", "3", "good"),
    ]
    found = calibrate(labels, SCORES)
    assert found.ties == {"overall": pytest.approx(0.1), "motion": 0.0}
    assert found.ratings == {"motion": (-0.5, 1.5)}


def test_agreement_of_scores_by_hand():
    thresholds = Calibration(ties={"overall": 0.2}, ratings={"motion": (0.0, 1.0)})
    labels = [
        pair("p", "1", "2", "a"),  # a: right
        pair("p", "2", "3", "a"),  # tie: wrong, though the order is right
        pair("p", "3", "2", "tie"),  # tie: right
        pair("p", "3", "1", "a"),  # b: wrong
        rated("p", "1", "bad"),  # right
        rated("p", "2", "normal"),  # at the cut, so bad: wrong
        rated("q", "1", "normal"),  # right
    ]
    found = agreement_of_scores(labels, SCORES, thresholds, seed=0)
    assert found["agreement"]["mean"] == 0.5
    assert found["ties_excluded"]["mean"] == pytest.approx(2 / 3)
    assert (found["pairs"], found["ties"], found["order_consistency"]) == (4, 0.25, 1.0)
    assert found["rating_agreement"] == {"semantic": None, "motion": pytest.approx(2 / 3), "faithfulness": None}
    assert found["confusion"] == {"a": {"a": 1, "tie": 1, "b": 1}, "b": {}, "tie": {"tie": 1}}
    assert found["tie_threshold"] == {"overall": 0.2}


def test_what_no_seed_label_calibrated_is_named():
    thresholds = Calibration(ties={"motion": 0.2}, ratings={})
    with pytest.raises(UserError, match="no tie threshold for pairs on 'overall'"):
        agreement_of_scores([pair("p", "1", "2", "a")], SCORES, thresholds, seed=0)
    labels = [pair("p", "1", "2", "a", "motion"), rated("p", "1", "bad")]
    with pytest.raises(UserError, match="no thresholds for ratings of 'motion'"):
        agreement_of_scores(labels, SCORES, thresholds, seed=0)
    with pytest.raises(UserError, match="no pairs"):
        agreement_of_scores([rated("p", "1", "bad")], SCORES, thresholds, seed=0)


# The adapter


def world(seed: int, prompts: int, noise: float = 0.0) -> tuple[list[Answered], dict[tuple[str, str], np.ndarray]]:
    """People who want the first external score high and the second low, and do not care about the third."""
    rng = np.random.default_rng(seed)
    labels, external = [], {}
    for index in range(prompts):
        prompt = f"prompt {index}"
        names = [f"{index}-{k}" for k in range(3)]
        for name in names:
            external[prompt, name] = rng.normal(size=3) * [1, 10, 5] + [0, 100, -3]
        worth = {n: external[prompt, n][0] - (external[prompt, n][1] - 100) / 10 + noise * rng.normal() for n in names}
        for a, b in ((0, 1), (1, 2), (2, 0)):
            gap = worth[names[a]] - worth[names[b]]
            verdict = "tie" if abs(gap) < 0.3 else "a" if gap > 0 else "b"
            labels.append(pair(prompt, names[a], names[b], verdict))
        for dimension in ("semantic", "motion", "faithfulness"):
            for name in names:
                word = "bad" if worth[name] < -0.7 else "normal" if worth[name] < 0.7 else "good"
                labels.append(rated(prompt, name, word, dimension))
    return labels, external


@pytest.mark.parametrize("method", ["logistic", "linear"])
def test_the_adapter_finds_what_people_want_and_holds_on_other_prompts(method):
    labels, external = world(0, 40)
    weights = fit_adapter(labels, external, method).weights
    for name in ("semantic", "motion", "faithfulness", "overall"):
        first, second, third = weights[name]
        assert first > 4 * abs(third) and -second > 4 * abs(third)
    found = adapter_agreement(labels, external, *world(1, 40), method, seed=0)
    assert found["ties_excluded"]["mean"] > 0.95
    assert found["agreement"]["mean"] > 0.8
    assert min(found["rating_agreement"].values()) > 0.8
    mute = {key: value[2:] for key, value in external.items()}
    other = {key: value[2:] for key, value in world(1, 40)[1].items()}
    useless = adapter_agreement(labels, mute, world(1, 40)[0], other, method, seed=0)
    assert useless["ties_excluded"]["mean"] < 0.7


def test_logistic_weights_are_the_optimum_of_the_penalised_likelihood():
    labels, external = world(2, 15, noise=1.0)
    adapter = fit_adapter(labels, external)
    table = np.stack(list(external.values()))
    scaled = {key: (value - table.mean(0)) / table.std(0) for key, value in external.items()}
    gaps = []
    for item in labels:
        if item.question.dimension == "overall" and item.verdict != "tie":
            a, b = (scaled[item.question.prompt, clip] for clip in item.question.clips)
            gaps.append(a - b if item.verdict == "a" else b - a)
    # Both orders of each pair count; scikit-learn's penalty is |w|^2 / 2 beside the sum of losses.
    best = minimize(lambda w: 2 * np.logaddexp(0, -np.array(gaps) @ w).sum() + w @ w / 2, np.zeros(3), tol=1e-10)
    np.testing.assert_allclose(adapter.weights["overall"], best.x, atol=1e-3)
    key = ("prompt 0", "0-1")
    assert adapter.scores({key: external[key]})[key]["overall"] == pytest.approx(best.x @ scaled[key], abs=1e-2)


def test_a_constant_score_and_missing_labels_are_named():
    labels, external = world(3, 5)
    constant = {key: np.array([1.0, value[0]]) for key, value in external.items()}
    with pytest.raises(UserError, match="the same for every clip"):
        fit_adapter(labels, constant)
    only = [item for item in labels if item.question.dimension != "motion"]
    for method, kind in (("logistic", "preferences"), ("linear", "ratings")):
        with pytest.raises(UserError, match=f"no {kind} on 'motion'"):
            fit_adapter(only, external, method)


LABELS = [pair("p", "x.mp4", "y.mp4", "a"), rated("q", "x.mp4", "bad")]


def read(tmp_path: Path, text: str):
    (tmp_path / "scores.csv").write_text(text)
    return read_external(tmp_path / "scores.csv", LABELS)


def test_scores_are_read_by_clip_or_by_prompt_and_clip(tmp_path):
    names, found = read(tmp_path, "VQ,clip,TA\n1,x.mp4,2\n3,y.mp4,-4.5\n5,unused.mp4,6\n")
    assert names == ["VQ", "TA"]
    assert {key: value.tolist() for key, value in found.items()} == {
        ("p", "x.mp4"): [1, 2],
        ("p", "y.mp4"): [3, -4.5],
        ("q", "x.mp4"): [1, 2],
    }
    _, found = read(tmp_path, "clip,prompt,TA\nx.mp4,p,1\nx.mp4,q,2\ny.mp4,p,3\n")
    assert {key: value.tolist() for key, value in found.items()} == {
        ("p", "x.mp4"): [1],
        ("p", "y.mp4"): [3],
        ("q", "x.mp4"): [2],
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,VQ\nx.mp4,1\n", "the header needs clip"),
        ("clip\nx.mp4\n", "at least one score"),
        ("", "the header needs clip"),
        ("clip,VQ\nx.mp4,good\n", r"line 2: VQ: a finite number is needed \(found 'good'\)"),
        ("clip,VQ\nx.mp4,nan\n", "line 2: VQ: a finite number"),
        ("clip,VQ\nx.mp4\n", "line 2: VQ: a finite number"),
        ("clip,VQ\nx.mp4,1\nx.mp4,2\n", "line 3: clip 'x.mp4' is scored twice"),
        ("clip,VQ\nx.mp4,1\n", "no scores of clip 'y.mp4' for prompt 'p'"),
        ("clip,prompt,VQ\nx.mp4,p,1\ny.mp4,p,1\n", "no scores of clip 'x.mp4' for prompt 'q'"),
    ],
)
def test_bad_score_tables_are_named(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read(tmp_path, text)


def test_a_missing_score_table_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_external(tmp_path / "none.csv", LABELS)
