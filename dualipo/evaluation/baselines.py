"""What stands beside the critic's agreement with people: a VideoReward, and external reward models' scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualipo.config import Config
from dualipo.critic.adapter import external_agreement
from dualipo.critic.videoreward.settings import is_videoreward
from dualipo.errors import UserError
from dualipo.evaluation.agreement import measure_agreement
from dualipo.steps import derive_seed

SCORES = "scores"
"""Folder beside the human labels: a CSV of its clips' scores for each external model, `scores/<model>.csv`."""


def measure_baselines(config: Config, reward: Path, seed_labels: Path, test_labels: Path) -> dict[str, Any]:
    """`videoreward`, an agreement as `measure_agreement` gives it, where the folder `reward` holds one; `external`, one
    by model, where the labels' folders hold scores. Nothing where there is neither.

    Raises UserError where a model's scores lie beside one of the two sets alone, or are malformed.
    """
    found: dict[str, Any] = {}
    if is_videoreward(reward):
        found["videoreward"] = measure_agreement(config, reward, test_labels)
    seed = derive_seed(config.experiment.seed, "agreement")
    external = {}
    for name in sorted(
        {path.name for folder in (seed_labels, test_labels) for path in (folder / SCORES).glob("*.csv")}
    ):
        files = [folder / SCORES / name for folder in (seed_labels, test_labels)]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise UserError(
                f"{missing[0]}: missing; score the seed clips and the test clips alike, or remove the other"
            )
        external[Path(name).stem] = external_agreement(seed_labels, files[0], test_labels, files[1], "logistic", seed)
    return {**found, "external": external} if external else found
