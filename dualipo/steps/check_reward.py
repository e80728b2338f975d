"""Holds trivial critics, the VideoReward and external models' scores against people: what stands beside the critic."""

from __future__ import annotations

from pathlib import Path

from dualipo.artifacts import write_json
from dualipo.config import Config
from dualipo.steps import Job, Summary


def check_reward(
    config: Config, job: Job, *, reward: Path, seed_labels: Path, test_labels: Path, baselines: Path
) -> Summary:
    """Writes the agreements of what there is (dualipo/evaluation/baselines.py); trivial critics there always are."""
    from dualipo.evaluation.baselines import measure_baselines
    from dualipo.steps.check_critic import agreement_metrics

    measured = measure_baselines(config, reward, seed_labels, test_labels)
    write_json(baselines, measured)
    own = measured.get("videoreward")
    trivial = {f"trivial/{name}": found["agreement"]["mean"] for name, found in measured["trivial"].items()}
    return Summary(metrics=trivial | (agreement_metrics(own) if own else {}))
