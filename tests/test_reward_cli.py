"""`dualipo reward`: from labelled clips to a VideoReward, its agreement, and the adapter's beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bright import write_labels, write_scores
from click.testing import CliRunner

from dualipo.cli import cli
from dualipo.config import load_config
from dualipo.critic.videoreward.model import load_videoreward
from dualipo.errors import UserError


def invoke(*arguments) -> str:
    result = CliRunner().invoke(cli, ["reward", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("labels")
    seed = write_labels(root / "seed", ["a pillar", "a blue bar", "a red circle", "a large cross"])
    return seed, write_labels(root / "test", ["a small square", "a white cross"])


def test_train_then_measure(critic_folder, labels, tmp_path):
    seed, test = labels
    (tmp_path / "settings.yaml").write_text("train_reward: {steps: 25, learning_rate: 1.0e-3, batch_size: 8}\n")
    out = tmp_path / "models" / "reward"
    train = ["train", "--backbone", critic_folder, "--labels", seed, "--out", out]
    said = invoke(*train, "--params", tmp_path / "settings.yaml", "-S", "train_reward.batch_size=12")
    assert str(out) in said and "loss" in said
    assert [path.name for path in out.parent.iterdir()] == ["reward"], "no scratch is left"
    assert len((out / "curves.csv").read_text().splitlines()) == 26
    assert load_videoreward(out).settings.calibration is not None
    found = json.loads(invoke("agreement", out, "--test", test))
    assert found["pairs"] == 6 and found["ties_excluded"]["mean"] == 1.0
    again = tmp_path / "again"
    invoke(*train[:-1], again, "--params", tmp_path / "settings.yaml", "-S", "train_reward.batch_size=12")
    for name in ("head.safetensors", "config.json", "curves.csv", "backbone/model.safetensors"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_the_adapter_is_measured_like_a_critic(labels, tmp_path):
    for folder, name in zip(labels, ("seed.csv", "test.csv"), strict=True):
        write_scores(tmp_path / name, folder)
    seed, test = labels
    common = ["adapter", "--labels", seed, "--test", test, "--scores", tmp_path / "seed.csv"]
    for method in ("logistic", "linear"):
        found = json.loads(invoke(*common, "--test-scores", tmp_path / "test.csv", "--method", method))
        assert found["agreement"]["mean"] == 1.0 and set(found["rating_agreement"].values()) == {1.0}
    (tmp_path / "other.csv").write_text((tmp_path / "test.csv").read_text().replace("light", "shine"))
    with pytest.raises(UserError, match=r"holds shine, length where .*seed.csv holds light, length"):
        invoke(*common, "--test-scores", tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train_reward.steps=0", "train_reward.steps: Input should be greater than or equal to 1"),
        ("train_reward.loss=dpo", "train_reward.loss: "),
        ("train_reward.colour=red", "unknown key 'train_reward.colour'"),
        ("train_reward.tie_tendency=1", "train_reward.tie_tendency: "),
    ],
)
def test_a_bad_setting_is_named(critic_folder, labels, tmp_path, setting, sentence):
    with pytest.raises(UserError, match=sentence):
        invoke("train", "--backbone", critic_folder, "--labels", labels[0], "--out", tmp_path / "out", "-S", setting)
    assert not (tmp_path / "out").exists()


def test_the_shipped_preset_is_the_papers(repository):
    found = load_config(repository / "params.yaml", repository / "params/videoreward.yaml")
    section = found.train_reward
    assert (section.tie_tendency, section.lora_rank, section.lora_alpha) == (5, 64, 128)
    assert (section.learning_rate, section.batch_size) == (2e-6, 32)
    assert section.steps * section.batch_size == 2 * 182_000
    assert section.enabled and found.prefer.scorer == "videoreward"
