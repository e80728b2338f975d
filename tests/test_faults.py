"""The laboratory of benchmarks/faults.py, on an experiment made by hand: faults are caught, or said not to be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_quality import SPACE, make_choices, make_humans, make_pairs, make_prompts, make_ratings

from dualipo.artifacts import write_json
from dualipo.config import CheckLabels, Config, Prompts, parse_config
from dualipo.media.store import ClipStore
from dualipo.quality.gate import critic_gate, preference_gate
from dualipo.quality.profile import ProfileFile, profile_labels, write_profile
from dualipo.quality.settlement import begin
from dualipo.records import Clip, write_rows
from dualipo.steps import GRAPH

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from ablation import GATES_OFF
from fault_list import FAULTS, LABELS
from faults import KINDS, page
from injecting import Ended, Lab, Outcome, in_process
from poisoning import Row, change_labels, says, turn_all


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    """A round whose gates passed and whose candidates were promoted, models being files of one word."""
    out = tmp_path_factory.mktemp("lab")
    (out / "space.yaml").write_text(SPACE)
    target = {"difficulty": {"simple": 0.75, "hard": 0.25}}
    prompts = Prompts(space=str(out / "space.yaml"), count=40, target=target)
    config = Config(prompts=prompts, check_labels=CheckLabels(max_kept_share=0.99))
    lab = Lab(out, config)
    base, first = lab.whole / "runs/base", lab.whole / "runs/1"
    ratings, choices = make_humans()
    for name in ("seed", "test", "real", "generator", "critic", "critic_reference"):
        (out / "data" / name).mkdir(parents=True)
    write_rows(out / "data/seed/ratings.jsonl", ratings)
    write_rows(out / "data/seed/choices.jsonl", choices)
    lab.whole.mkdir()
    (lab.whole / "data").symlink_to(out / "data")
    for path in (base / "critic", base / "generator", first / "critic_candidate", first / "generator_candidate"):
        path.mkdir(parents=True)
        (path / "weights").write_text(f"{path.parent.name} {path.name}")
    agreement = {"agreement": {"mean": 0.8}, "pairs": 100}
    dimensions = {name: {"mean": 50.0} for name in ("motion_smoothness", "scene")}
    scores = {"suite": "small_world", "total": {"mean": 50.0}, "dimensions": dimensions, "prompts": 8, "clips": 16}
    for path in (base / "agreement.json", first / "critic_candidate_agreement.json"):
        write_json(path, agreement)
    for path in (base / "scores.json", first / "generator_candidate_scores.json"):
        write_json(path, scores)
    write_json(base / "baselines.json", {})
    begin(scores, agreement, base / "settlement.json", base / "course.json")
    profile = profile_labels("round 0", make_ratings(), make_choices())
    write_profile(base / "label_profile.json", ProfileFile(own=profile, accepted=profile))
    write_rows(first / "prompts.jsonl", make_prompts())
    write_rows(first / "labels/ratings.jsonl", make_ratings())
    write_rows(first / "labels/choices.jsonl", make_choices())
    clips = [
        Clip(id=f"{side}{i}", prompt_id=f"p{i}", prompt="x", file=f"{side}{i}") for side in "cd" for i in range(40)
    ]
    ClipStore.write_manifest(first / "candidates", clips)
    for clip in clips:
        (first / "candidates" / clip.file).write_text(clip.id)
    critic_gate(first / "critic_gate", agreement, agreement, config.check_critic)
    write_rows(first / "preferences/pairs.jsonl", make_pairs(20))
    write_json(first / "preferences/summary.json", {"reward": {"mean": 0.5, "low": 0.45, "high": 0.55}})
    preference_gate(first / "preference_gate", make_pairs(20), config.prefer)
    for name in ("check_labels", "promote_critic", "promote_generator"):
        lab.count(GRAPH[name], "1")
    assert all(lab.decided(lab.whole, kind).promoted for kind in ("critic", "generator"))
    return lab


CAUGHT = (
    "all_a",
    "all_good",
    "copied_clips",
    "drifted",
    "nan_label",
    "verdict_edited",
    "losers_win",
    "prompts_missing",
    "dimension_missing",
    "kill_promote_critic",
)


@pytest.mark.parametrize("name", CAUGHT)
def test_a_fault_is_caught(lab, name):
    found = FAULTS[name].inject(lab)
    assert found.caught, found
    assert found.by and found.told and found.kept


def test_what_nobody_sees_is_told(lab, monkeypatch):
    """A label gate without bounds lets every verdict be a: the laboratory must not call that caught."""
    bounds = {"max_verdict_kl": 100.0, "max_drift": 1.0, "min_vote_entropy": 0.0}
    open_gate = lab.config.check_labels.model_copy(update=bounds)
    monkeypatch.setattr(lab, "config", lab.config.model_copy(update={"check_labels": open_gate}))
    found = FAULTS["all_a"].inject(lab)
    assert not found.caught and found.told == "every expectation holds" and "promoted" in found.kept


@pytest.mark.parametrize(("gates", "promoted"), [({}, False), (GATES_OFF, True)])
def test_gates_that_are_switched_off_let_a_poisoned_round_through(lab, gates, promoted):
    """Else the ablation would compare a gate with itself: labels, critic, pairs and benchmark are all bad here."""

    def poison(ratings: list[Row], choices: list[Row]) -> None:
        turn_all(ratings, choices)
        for row in ratings:
            says(row, "good")

    content = lab.config.model_dump(mode="json")
    for dotted, value in gates.items():
        section, key = dotted.split(".")
        content[section][key] = value
    config, folder = parse_config(content), lab.copy(f"ablation_{promoted}")
    first = folder / "runs/1"
    change_labels(folder / LABELS, poison)
    before = {"agreement": {"mean": 0.8}, "pairs": 100, "rating_agreement": {"motion": 0.8}}
    wrong = {"agreement": {"mean": 0.3}, "pairs": 100, "rating_agreement": {"motion": 0.2}}
    write_json(first / "critic_candidate_agreement.json", wrong)
    critic_gate(first / "critic_gate", wrong, before, config.check_critic)
    preference_gate(first / "preference_gate", make_pairs(3), config.prefer)
    scores = json.loads((first / "generator_candidate_scores.json").read_text()) | {"total": {"mean": 20.0}}
    write_json(first / "generator_candidate_scores.json", scores)
    ended = lab.call(folder, "check_labels", "promote_critic", "promote_generator", config=config)
    assert ended.how == "done", ended
    for kind in ("critic", "generator"):
        assert lab.decided(folder, kind).promoted is promoted, lab.decided(folder, kind).reasons
        assert lab.incumbent_stays(folder, kind) is not promoted


def test_every_kind_of_fault_stands_on_the_page():
    assert len(FAULTS) >= 25 and {fault.kind for fault in FAULTS.values()} == set(KINDS)
    assert {f"kill_{name}" for name in GRAPH} <= FAULTS.keys()
    outcomes = {name: Outcome(name != "all_a", "a gate", "said | so", "all") for name in FAULTS}
    undamaged = {
        "seeds": {"count": 20, "stopped": 1, "reasons": ["seed 3: closed"]},
        "resampled": {"count": 0, "sources": 0, "stopped": 0, "reasons": []},
    }
    text = page(outcomes, undamaged)
    assert f"**{len(FAULTS) - 1} of {len(FAULTS)} faults are caught**" in text and text.count("**nobody**") == 1
    assert all(fault.what in text for fault in FAULTS.values()) and r"said \| so" in text
    assert "1 of 20 undamaged rounds" in text and "- seed 3: closed" in text


def test_processes_tell_how_they_ended():
    import os
    import signal

    from dualipo.errors import UserError

    def refuse() -> None:
        raise UserError("no")

    assert in_process(lambda: 3) == Ended("done", "3") and in_process(refuse) == Ended("refused", "no")
    assert in_process(lambda: os.kill(os.getpid(), signal.SIGKILL)) == Ended("killed", "SIGKILL")
    assert in_process(lambda: 1 / 0).how == "crashed"
