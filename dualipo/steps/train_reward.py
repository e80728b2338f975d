"""Trains the experiment's VideoReward on the human seed labels, where one is asked for."""

from __future__ import annotations

from pathlib import Path

from dualipo.config import Config
from dualipo.heldout import read_held_out, require_apart
from dualipo.records import joined, read_labels
from dualipo.steps import Job, Summary


def train_reward(
    config: Config, job: Job, *, seed_labels: Path, critic_reference: Path, held_out: Path, reward: Path
) -> Summary:
    """Writes the VideoReward, its curves among its files; without `train_reward.enabled` a folder that says that there
    is none.

    It starts from the critic before any human label, learns from people alone and stays as it is for all rounds, so
    that it can watch a critic that learns from its own labels. Raises UserError where a seed label's prompt is one of
    the human test set.
    """
    from dualipo.critic.videoreward.settings import write_none

    section = config.train_reward
    if not section.enabled:
        write_none(reward)
        return Summary()
    ratings, choices = read_labels(seed_labels)
    require_apart(
        read_held_out(held_out), {str(seed_labels): (row.prompt for row in joined(ratings, choices))}, ["test"]
    )
    from dualipo.critic.videoreward.training import reward_from_labels, write_reward

    model, result = reward_from_labels(critic_reference, seed_labels, section, job.work, job.seed)
    write_reward(reward, model, result)
    return Summary(metrics=result.metrics, curves=result.series, tags=result.tags)
