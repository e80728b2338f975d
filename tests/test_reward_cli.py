"""`dualipo reward`: from labelled clips to a VideoReward, its agreement, and the adapter's beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dualipo.cli import cli
from dualipo.critic.videoreward.model import load_videoreward
from dualipo.critic.videoreward.settings import TrainReward
from dualipo.errors import UserError
from dualipo.media.video import encode_clip
from dualipo.records import HumanChoice, HumanRating, write_rows

LEVELS = {"dark": 20, "grey": 110, "white": 220}


def invoke(*arguments) -> str:
    result = CliRunner().invoke(cli, ["reward", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def write_labels(folder: Path, prompts: list[str]) -> Path:
    """One person who likes bright clips."""
    folder.mkdir()
    ratings, choices = [], []
    for index, prompt in enumerate(prompts):
        for name, level in LEVELS.items():
            clip = np.full((3, 32, 32, 3), level + index, np.uint8)
            (folder / f"{index}-{name}.mp4").write_bytes(encode_clip(clip))
            said = {"prompt": prompt, "annotator": "1", "reason": "light"}
            word = {"dark": "bad", "grey": "normal", "white": "good"}[name]
            ratings += [
                HumanRating(clip=f"{index}-{name}.mp4", dimension=d, verdict=word, **said)
                for d in ("semantic", "motion", "faithfulness")
            ]
        for a, b, verdict in (("dark", "grey", "b"), ("white", "dark", "a"), ("grey", "grey", "tie")):
            pair = {"clip_a": f"{index}-{a}.mp4", "clip_b": f"{index}-{b}.mp4", "verdict": verdict}
            choices.append(HumanChoice(**pair, **said))
    write_rows(folder / "ratings.jsonl", ratings)
    write_rows(folder / "choices.jsonl", choices)
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("labels")
    seed = write_labels(root / "seed", ["a pillar", "a blue bar", "a red circle", "a large cross"])
    return seed, write_labels(root / "test", ["a small square", "a white cross"])


def test_train_then_measure(critic_folder, labels, tmp_path):
    seed, test = labels
    (tmp_path / "settings.yaml").write_text("steps: 25\nlearning_rate: 1e-3\nbatch_size: 8\n")
    out = tmp_path / "models" / "reward"
    train = ["train", "--backbone", critic_folder, "--labels", seed, "--out", out]
    said = invoke(*train, "--params", tmp_path / "settings.yaml", "-S", "batch_size=12")
    assert str(out) in said and "loss" in said
    assert [path.name for path in out.parent.iterdir()] == ["reward"], "no scratch is left"
    assert len((out / "curves.csv").read_text().splitlines()) == 26
    assert load_videoreward(out).settings.calibration is not None
    found = json.loads(invoke("agreement", out, "--test", test))
    assert found["pairs"] == 6 and found["ties_excluded"]["mean"] == 1.0
    again = tmp_path / "again"
    invoke(*train[:-1], again, "--params", tmp_path / "settings.yaml", "-S", "batch_size=12")
    for name in ("head.safetensors", "config.json", "curves.csv", "backbone/model.safetensors"):
        assert (again / name).read_bytes() == (out / name).read_bytes(), name


def test_the_adapter_is_measured_like_a_critic(labels, tmp_path):
    for folder, name in zip(labels, ("seed.csv", "test.csv"), strict=True):
        rows = [f"{p.name},{LEVELS[p.stem.partition('-')[2]]},{len(p.stem)}" for p in sorted(folder.glob("*.mp4"))]
        (tmp_path / name).write_text("\n".join(["clip,light,length", *rows]))
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
        ("steps=0", "^steps: Input should be greater than or equal to 1"),
        ("loss=dpo", "^loss: "),
        ("colour=red", "^colour: Extra inputs"),
        ("steps", "write KEY=VALUE"),
        ("steps=[", "not valid YAML"),
        ("tie_tendency=1", "^tie_tendency: "),
    ],
)
def test_a_bad_setting_is_named(critic_folder, labels, tmp_path, setting, sentence):
    with pytest.raises(UserError, match=sentence):
        invoke("train", "--backbone", critic_folder, "--labels", labels[0], "--out", tmp_path / "out", "-S", setting)
    assert not (tmp_path / "out").exists()


def test_a_settings_file_that_is_no_mapping_is_named(critic_folder, labels, tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    common = ["train", "--backbone", critic_folder, "--labels", labels[0], "--out", tmp_path / "out"]
    for more in ([], ["-S", "steps=1"]):
        with pytest.raises(UserError, match=r"list.yaml"):
            invoke(*common, "--params", tmp_path / "list.yaml", *more)


def test_the_shipped_preset_is_valid(repository):
    import yaml

    section = TrainReward.model_validate(yaml.safe_load((repository / "params/reward/videoreward.yaml").read_text()))
    assert (section.tie_tendency, section.lora_rank, section.lora_alpha) == (5, 64, 128)
    assert (section.learning_rate, section.batch_size) == (2e-6, 32)
