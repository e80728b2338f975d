"""The experiment's own VideoReward: off, beside the critic, and in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bright import write_labels, write_scores
from models import write_clips

from dualipo.artifacts import digest, read_json
from dualipo.config import Config, Prefer, TrainReward, load_config
from dualipo.critic.scoring import Rated, Scorer
from dualipo.critic.videoreward.model import load_videoreward
from dualipo.critic.videoreward.settings import is_videoreward
from dualipo.errors import UserError
from dualipo.evaluation.agreement import measure_agreement
from dualipo.heldout import hold_out, write_held_out
from dualipo.records import Preference, read_rows
from dualipo.steps import Job, Summary
from dualipo.steps.check_reward import check_reward
from dualipo.steps.prefer import prefer
from dualipo.steps.train_reward import train_reward

torch.set_num_threads(1)
ON = TrainReward(enabled=True, steps=3, batch_size=8, learning_rate=1e-3)


def run_train(section: TrainReward, labels: Path, critic: Path, folder: Path) -> tuple[Path, Summary]:
    config, job = Config(train_reward=section), Job("base", 7, folder / "work")
    reward = folder / "reward"
    held_out = folder / "held_out.json"
    if section.enabled:
        write_held_out(held_out, hold_out(["a small square", "a white cross"], []))
    ports = {"seed_labels": labels, "critic_reference": critic, "held_out": held_out, "reward": reward}
    return reward, train_reward(config, job, **ports)


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("labels")
    seed = write_labels(root / "seed", ["a pillar", "a blue bar", "a red circle", "a large cross"])
    return seed, write_labels(root / "test", ["a small square", "a white cross"])


@pytest.fixture(scope="module")
def reward(critic_folder, labels, tmp_path_factory) -> Path:
    folder, summary = run_train(ON, labels[0], critic_folder, tmp_path_factory.mktemp("reward"))
    assert len(summary.curves["loss"]) == 3 and len((folder / "curves.csv").read_text().splitlines()) == 4
    return folder


@pytest.fixture(scope="module")
def none(tmp_path_factory) -> Path:
    # Off, it opens neither labels nor a model.
    folder, summary = run_train(TrainReward(), Path("no labels"), Path("no critic"), tmp_path_factory.mktemp("none"))
    assert not summary.metrics and not summary.curves
    return folder


def test_off_it_is_a_folder_that_says_so(none, reward):
    assert not is_videoreward(none) and is_videoreward(reward)
    assert digest(none).files == 1, "object stores keep no empty folder"


def measure(folder: Path, labels: tuple[Path, Path], out: Path) -> dict:
    ports = {"reward": folder, "seed_labels": labels[0], "test_labels": labels[1], "baselines": out}
    check_reward(Config(), Job("base", 0, out.parent), **ports)
    return read_json(out)


def test_it_and_external_models_are_measured_beside_the_critic(reward, none, labels, tmp_path):
    found = measure(reward, labels, tmp_path / "baselines.json")
    assert found.keys() == {"trivial", "videoreward"}
    assert found["videoreward"] == measure_agreement(Config(), reward, labels[1]) and found["videoreward"]["pairs"] == 6
    assert measure(none, labels, tmp_path / "baselines.json") == {"trivial": found["trivial"]}
    own = write_labels(tmp_path / "seed", ["a pillar", "a blue bar"]), write_labels(tmp_path / "test", ["a square"])
    for folder in own:
        write_scores(folder / "scores/brightness.csv", folder)
    found = measure(none, own, tmp_path / "baselines.json")
    assert found.keys() == {"trivial", "external"} and found["external"]["brightness"]["agreement"]["mean"] == 1.0
    (own[1] / "scores/brightness.csv").unlink()
    with pytest.raises(
        UserError, match=r"test/scores/brightness.csv: missing; score the seed clips and the test clips"
    ):
        measure(none, own, tmp_path / "baselines.json")


class Contrary(Scorer):
    """A critic that likes the clips of high numbers; what it is shown it does not look at."""

    def see(self, clips):
        return dict.fromkeys(clips)

    def rate(self, clips, seen, seed):
        return {clip.id: Rated(int(clip.id[-1]) / 4, True, {}) for clip in clips}

    def contradicts(self, pairs, seen, seed):
        return [False] * len(pairs)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "candidates"
    return write_clips(folder, {"p0": "a red circle", "p1": "a pillar"}, each=4)


def run_prefer(store, folder: Path, reward: Path, **section) -> tuple[list[Preference], dict, str]:
    config = Config(prefer=Prefer(min_pairs=1, **section), train_reward=ON)
    out = {"preferences": folder / "preferences", "gate": folder / "gate"}
    inputs = {"candidates": store.folder, "critic": folder / "critic", "reward": reward}
    prefer(config, Job("1", 3, folder / "work"), **inputs, **out)
    read = read_rows(out["preferences"] / "pairs.jsonl", Preference)
    return read, read_json(out["preferences"] / "summary.json"), digest(out["preferences"]).md5


@pytest.fixture
def contrary(monkeypatch):
    from dualipo.critic import scoring

    load = scoring.load_scorer
    told = lambda folder, *asked: Contrary() if Path(folder).name == "critic" else load(folder, *asked)  # noqa: E731
    monkeypatch.setattr(scoring, "load_scorer", told)


def test_beside_the_critic_it_looks_on_and_changes_no_pair(contrary, store, reward, none, tmp_path):
    without, summary, _ = run_prefer(store, tmp_path / "none", none)
    assert [pair.winner for pair in without] == ["p0-3", "p1-3"] and "videoreward" not in summary
    pairs, summary, _ = run_prefer(store, tmp_path / "beside", reward)
    assert pairs == without
    model = load_videoreward(reward)
    seen = model.see({clip.id: store[clip.id] for clip in store.clips})
    score = {c.id: model.scores([(c.prompt, c.id)], seen)[c.prompt, c.id]["overall"] for c in store.clips}
    found = summary["videoreward"]
    assert found["score"]["mean"] == pytest.approx(np.mean(list(score.values())), abs=1e-3)
    gaps = [score[pair.winner] - score[pair.loser] for pair in pairs]
    assert found["margin"]["mean"] == pytest.approx(np.mean(gaps), abs=1e-3)
    assert found["agrees"]["mean"] == np.mean([gap > 0 for gap in gaps])


def test_in_its_place_the_critic_is_not_even_opened(store, reward, none, tmp_path):
    pairs, summary, _ = run_prefer(store, tmp_path / "place", reward, scorer="videoreward", min_margin=0.0)
    model = load_videoreward(reward)
    seen = model.see({clip.id: store[clip.id] for clip in store.clips})
    for pair in pairs:
        own = [c.id for c in store.clips if c.prompt_id == pair.prompt_id]
        score = {name: model.scores([(pair.prompt, name)], seen)[pair.prompt, name]["overall"] for name in own}
        assert (pair.winner, pair.loser) == (max(score, key=score.get), min(score, key=score.get))
    assert len(pairs) == 2 and "videoreward" not in summary
    with pytest.raises(UserError, match="no VideoReward here to score with; run `dualipo train_reward`"):
        run_prefer(store, tmp_path / "absent", none, scorer="videoreward")


def test_a_scorer_that_is_not_trained_is_refused(repository):
    with pytest.raises(UserError, match=r"params.yaml: prefer.scorer: videoreward needs train_reward.enabled: true$"):
        load_config(repository / "params.yaml", overrides={"prefer.scorer": "videoreward"})
