"""`dualipo reward`: trains a VideoReward, and measures reward models against people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dualipo.cli import folder_option, load_parameters, parameter_options

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def reward() -> None:
    """Train a VideoReward, and measure reward models against people.

    An experiment trains one of its own by train_reward.enabled.
    """


@reward.command()
@click.option(
    "--backbone", type=_FOLDER, required=True, help="A critic's folder to start from, e.g. data/critic_reference."
)
@click.option("--labels", type=_FOLDER, required=True, help="Human seed labels, e.g. data/seed.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@parameter_options
@folder_option
def train(
    backbone: Path,
    labels: Path,
    out: Path,
    seed: int,
    params: tuple[Path, ...],
    overrides: tuple[str, ...],
    folder: Path,
) -> None:
    """Train a VideoReward on human labels; normalisation and thresholds come from labels held out.

    A run that was stopped goes on where it was. Settings are the parameters' section train_reward.
    """
    section = load_parameters(folder, params, overrides).train_reward
    from dualipo.artifacts import digest, remove
    from dualipo.critic.videoreward.training import reward_from_labels, write_reward
    from dualipo.runtime import prepare_torch, seed_everything
    from dualipo.steps import derive_seed

    prepare_torch()
    seed_everything(seed, torch_too=True)
    # A state is gone on from only with the same model, labels and settings.
    key = derive_seed(seed, section.model_dump_json(), digest(backbone).md5, digest(labels).md5)
    work = out.with_name(f".{out.name}.{key:016x}.work")
    model, result = reward_from_labels(backbone, labels, section, work, seed)
    write_reward(out, model, result)
    remove(work)
    loss = result.series["loss"]
    click.echo(f"{out}: loss {loss[0][1]:.4f} -> {loss[-1][1]:.4f}")


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
    from dualipo.critic.adapter import external_agreement

    _print(external_agreement(labels, scores, test_labels, test_scores, method, seed))


def _print(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content, indent=2, sort_keys=True))
