"""What measures stays apart from what is learnt from, by the hash of the normalised prompt, in each step that loads."""

from __future__ import annotations

import hashlib

import pytest

from dualipo.artifacts import read_json
from dualipo.errors import UserError
from dualipo.heldout import (
    hold_out,
    prompt_hash,
    read_held_out,
    require_apart,
    require_known_test,
    write_held_out,
)
from dualipo.records import Desirability, HumanChoice, Preference, RealClip, write_rows
from dualipo.steps import GRAPH
from dualipo.steps.align import _texts


@pytest.fixture
def held_out():
    return hold_out(["A red  circle.", "a blue bar"], ["a green pillar"])


def test_a_hash_is_of_the_normalised_text_and_hides_it(held_out, tmp_path):
    assert prompt_hash(" A red\tCIRCLE . ") == prompt_hash("a red circle")
    assert prompt_hash("a red circle") == hashlib.sha256(b"a red circle").hexdigest() != prompt_hash("a red circles")
    write_held_out(tmp_path / "held_out.json", held_out)
    assert read_held_out(tmp_path / "held_out.json") == held_out
    assert "circle" not in (tmp_path / "held_out.json").read_text()
    assert read_json(tmp_path / "held_out.json")["benchmark"] == [prompt_hash("a green pillar")]


def test_the_first_offenders_are_named(held_out):
    fine = {"seed": ["a red square"], "real": iter(["a pillar"])}
    require_apart(held_out, fine)
    with pytest.raises(UserError) as found:
        require_apart(held_out, {"seed": ["a pillar"], "real": ["A RED circle", "a  blue bar", "A RED circle"]})
    told = "real: prompts 'A RED circle', 'a  blue bar' also stand in the human test set, which must be apart from "
    assert str(found.value).startswith(told)
    many = hold_out(["1", "2", "3", "4", "5"], [])
    with pytest.raises(UserError, match=r"seed: prompts '2', '3', '4' and 1 more also stand in the human test set"):
        require_apart(many, {"seed": ["2", "3", "4", "5"]})


def test_the_benchmark_is_held_out_where_it_is_asked_for(held_out):
    seed = {"seed": ["A green pillar"]}
    require_apart(held_out, seed, ["test"])
    with pytest.raises(UserError, match="seed: prompt 'A green pillar' also stands in the benchmark"):
        require_apart(held_out, seed)


def test_a_test_set_must_be_the_one_that_was_held_out(held_out):
    require_known_test(held_out, "test", ["a blue bar."])
    with pytest.raises(
        UserError, match="test: prompt 'a pillar' of this human test set was not held out from training"
    ):
        require_known_test(held_out, "test", ["a blue bar", "a pillar"])


def test_all_that_a_generator_learns_from_is_looked_at(tmp_path):
    common = {"prompt_id": "p", "winner": "a", "loser": "b", "winner_score": 1, "loser_score": 0}
    write_rows(tmp_path / "preferences/pairs.jsonl", [Preference(prompt="one", **common)])
    scored = Desirability(clip="a", prompt_id="p", prompt="two", desirable=True, score=1)
    write_rows(tmp_path / "preferences/desirability.jsonl", [scored])
    write_rows(tmp_path / "real/captions.jsonl", [RealClip(clip="c", prompt="three")])
    found = _texts(tmp_path / "preferences", tmp_path / "real")
    assert {text for texts in found.values() for text in texts} == {"one", "two", "three"}


def test_every_step_that_trains_is_told_the_hashes():
    trains = {name for name, step in GRAPH.items() if step.trains} | {"train_reward"}
    assert trains == {"train_reward", "train_critic", "align"}
    told = {name for name, step in GRAPH.items() for port in step.inputs.values() if "held_out" in port.path}
    assert told == trains | {"check_critic"}


def test_the_critic_refuses_labels_of_held_out_prompts(tmp_path):
    from dualipo.config import Config
    from dualipo.records import PseudoChoice, PseudoRating
    from dualipo.steps import Job
    from dualipo.steps.train_critic import train_critic

    write_held_out(tmp_path / "held_out.json", hold_out(["a red circle"], ["a pillar"]))
    common = {"prompt_id": "p0", "votes": {}, "certainty": 0.6, "kept": True, "rejected": None}
    rating = {"clip": "0", "dimension": "motion", "verdict": "good", "chosen": "Verdict: good"}
    turned = {"forward": "a", "backward": "a", "consistent": True, "dimension": "overall", "chosen": "Verdict: a"}
    pair = {"clip_a": "0", "clip_b": "1", "verdict": "a", **turned}
    human = {"clip_a": "0", "clip_b": "1", "annotator": "x", "verdict": "a", "reason": "r"}

    def refused(pseudo: str, seed: str) -> str:
        write_rows(tmp_path / "labels/ratings.jsonl", [PseudoRating(prompt="fine", **rating, **common)])
        write_rows(tmp_path / "labels/choices.jsonl", [PseudoChoice(prompt=pseudo, **pair, **common)])
        write_rows(tmp_path / "seed/choices.jsonl", [HumanChoice(prompt=seed, **human)])
        (tmp_path / "course").write_text('{"stop": false}')
        ports = ("candidates", "labels", "critic", "course", "candidate", "curves")
        paths = {name: tmp_path / name for name in ports} | {"seed_labels": tmp_path / "seed"}
        with pytest.raises(UserError) as found:
            train_critic(Config(), Job("1", 0, tmp_path), held_out=tmp_path / "held_out.json", **paths)
        return str(found.value)

    assert "labels: prompt 'A pillar' also stands in the benchmark" in refused("A pillar", "fine")
    assert "labels: prompt 'a red circle' also stands in the human test set" in refused("a red circle", "fine")
    assert "seed: prompt 'A red circle.' also stands in the human test set" in refused("fine", "A red circle.")
