"""Refines the critic on human seed labels and kept pseudo-labels (SRPO)."""

from __future__ import annotations

from pathlib import Path

from dualipo.artifacts import atomic, copy_folder
from dualipo.config import Config
from dualipo.records import PseudoChoice, PseudoRating, read_rows
from dualipo.steps import Job, Summary
from dualipo.training.launch import launch, needs_launch


def train_critic(
    config: Config,
    job: Job,
    *,
    candidates: Path,
    labels: Path,
    seed_labels: Path,
    critic: Path,
    candidate: Path,
    curves: Path,
) -> Summary:
    """Writes the critic candidate and its curves. `train_critic.algorithm: none` hands on the incumbent's weights."""
    section = config.train_critic
    if section.algorithm != "none" and needs_launch(section.training):
        paths = {
            "candidates": candidates, "labels": labels, "seed_labels": seed_labels, "critic": critic,
            "candidate": candidate, "curves": curves,
        }  # fmt: skip
        return launch("train_critic", config, job, paths, section.training.processes)

    from dualipo.critic.base import load_critic
    from dualipo.critic.data import human_set, pseudo_set
    from dualipo.critic.srpo import train_srpo
    from dualipo.curves import write_curves
    from dualipo.training.ranks import world

    if section.algorithm == "none":
        copy_folder(critic, candidate)
        write_curves(curves, {"loss": []})
        return Summary(metrics={"pairs": 0.0, "examples": 0.0})
    model = load_critic(critic)
    human = human_set(model, seed_labels)
    ratings = read_rows(labels / "ratings.jsonl", PseudoRating)
    choices = read_rows(labels / "choices.jsonl", PseudoChoice)
    pseudo = pseudo_set(model, candidates, [row for row in [*ratings, *choices] if row.kept])
    result = train_srpo(model, human, pseudo, section, job.work, job.seed)
    if not world().main:
        return Summary()
    with atomic(candidate) as temporary:
        model.save(temporary)
    write_curves(curves, result.series)
    metrics = {"pairs": float(len(pseudo.pairs)), "examples": float(len(human.examples) + len(pseudo.examples))}
    return Summary(metrics={**metrics, **result.metrics}, curves=result.series, tags=result.tags)
