"""`dualipo reward`: trains a VideoReward, and measures reward models against people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dualipo.errors import UserError

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def reward() -> None:
    """Train a VideoReward, and measure reward models against people.

    `dualipo prefer --critic FOLDER` then scores candidates with it.
    """


@reward.command()
@click.option(
    "--backbone", type=_FOLDER, required=True, help="A critic's folder to start from, e.g. data/critic_reference."
)
@click.option("--labels", type=_FOLDER, required=True, help="Human seed labels, e.g. data/seed.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--params", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="YAML with settings.")
@click.option("-S", "--set-param", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting. Repeatable.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def train(backbone: Path, labels: Path, out: Path, params: Path | None, overrides: tuple[str, ...], seed: int) -> None:
    """Train a VideoReward on human labels; normalisation and thresholds come from labels held out.

    A run that was stopped goes on where it was. Settings and their defaults: dualipo/critic/videoreward/settings.py.
    """
    from dualipo.artifacts import atomic, digest, remove
    from dualipo.critic.base import load_critic
    from dualipo.critic.data import read_human
    from dualipo.critic.videoreward.data import ClipFiles
    from dualipo.critic.videoreward.model import VideoReward
    from dualipo.critic.videoreward.settings import Settings
    from dualipo.critic.videoreward.training import train_reward
    from dualipo.curves import write_curves
    from dualipo.runtime import prepare_torch, seed_everything
    from dualipo.steps import derive_seed

    section = _section(params, overrides)
    prepare_torch()
    seed_everything(seed, torch_too=True)
    answered = read_human(labels)
    model = VideoReward(load_critic(backbone), Settings(), seed)
    files = ClipFiles(labels, [clip for item in answered for clip in item.question.clips])
    # A state is gone on from only with the same model, labels and settings.
    key = derive_seed(seed, section.model_dump_json(), digest(backbone).md5, digest(labels).md5)
    work = out.with_name(f".{out.name}.{key:016x}.work")
    series = train_reward(model, answered, files, section, work, seed).series
    with atomic(out) as temporary:
        model.save(temporary)
        write_curves(temporary / "curves.csv", series)
    remove(work)
    click.echo(f"{out}: loss {series['loss'][0][1]:.4f} -> {series['loss'][-1][1]:.4f}")


@reward.command()
@click.argument("folder", type=_FOLDER)
@click.option("--test", "test_labels", type=_FOLDER, required=True, help="The human test set, e.g. data/test.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the intervals.")
def agreement(folder: Path, test_labels: Path, seed: int) -> None:
    """Print the agreement of the critic in FOLDER, of either kind, with a human test set, as JSON."""
    from dualipo.config import load_config
    from dualipo.evaluation.agreement import measure_agreement
    from dualipo.runtime import prepare_torch

    prepare_torch()
    config = load_config(overrides={"experiment.seed": seed})
    _print(measure_agreement(config, folder, test_labels))


@reward.command()
@click.option("--labels", type=_FOLDER, required=True, help="Human seed labels that the adapter learns from.")
@click.option("--scores", type=click.Path(path_type=Path), required=True, help="CSV of scores of the seed clips.")
@click.option("--test", "test_labels", type=_FOLDER, required=True, help="The human test set.")
@click.option("--test-scores", type=click.Path(path_type=Path), required=True, help="CSV of scores of the test clips.")
@click.option("--method", type=click.Choice(["logistic", "linear"]), default="logistic", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the intervals.")
def adapter(labels: Path, scores: Path, test_labels: Path, test_scores: Path, method: Any, seed: int) -> None:
    """Print the agreement of an adapter over an external reward model's scores, as JSON: the baseline row.

    A CSV holds clip, optionally prompt, and one column for each score.
    """
    from dualipo.critic.adapter import adapter_agreement, read_external
    from dualipo.critic.data import read_human

    learnt, tested = read_human(labels), read_human(test_labels)
    names, own = read_external(scores, learnt)
    test_names, held = read_external(test_scores, tested)
    if names != test_names:
        raise UserError(f"{test_scores}: holds {', '.join(test_names)} where {scores} holds {', '.join(names)}")
    _print(adapter_agreement(learnt, own, tested, held, method, seed))


def _print(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content, indent=2, sort_keys=True))


def _section(params: Path | None, overrides: tuple[str, ...]) -> Any:
    import yaml
    from pydantic import ValidationError

    from dualipo.critic.videoreward.settings import TrainReward

    try:
        values = yaml.safe_load(params.read_text(encoding="utf-8")) if params else None
        for text in overrides:
            key, separator, value = text.partition("=")
            if not separator or not key:
                raise UserError(f"-S {text}: write KEY=VALUE, e.g. -S steps=500")
            values = {**(values or {}), key: yaml.safe_load(value)}
        return TrainReward.model_validate(values or {})
    except yaml.YAMLError as error:
        raise UserError(f"{params or 'a setting'}: not valid YAML ({' '.join(str(error).split())[:120]})") from None
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"]) or f"{params}"
        raise UserError(f"{where}: {first['msg']}; dualipo/critic/videoreward/settings.py lists the settings") from None
