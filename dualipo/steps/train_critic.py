"""Refines the critic on human seed labels and kept pseudo-labels (SRPO)."""

from __future__ import annotations

from pathlib import Path

from dualipo.artifacts import atomic, copy_folder
from dualipo.config import Config
from dualipo.heldout import read_held_out, require_apart
from dualipo.quality.evidence import Course, load
from dualipo.records import PseudoChoice, PseudoRating, joined, read_labels, read_rows
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
    held_out: Path,
    course: Path,
    candidate: Path,
    curves: Path,
) -> Summary:
    """Writes the critic candidate and its curves: the incumbent's weights as they are where there is nothing to train,
    by `train_critic.algorithm: none`, or by `update: after_degradation` where the round before saw no reason to.

    Raises UserError where a label's prompt is one of the human test set, or a pseudo-label's one of the benchmark.
    """
    section, resting = config.train_critic, idle(config, load(Course, course))
    if not resting and needs_launch(section.training):
        paths = {
            "candidates": candidates, "labels": labels, "seed_labels": seed_labels, "critic": critic,
            "held_out": held_out, "course": course, "candidate": candidate, "curves": curves,
        }  # fmt: skip
        return launch("train_critic", config, job, paths, section.training.processes)

    from dualipo.critic.base import load_critic
    from dualipo.critic.data import human_set, pseudo_set
    from dualipo.critic.srpo import train_srpo
    from dualipo.curves import write_curves
    from dualipo.training.ranks import world

    if resting:
        copy_folder(critic, candidate)
        write_curves(curves, {"loss": []})
        return Summary(metrics={"pairs": 0.0, "examples": 0.0})
    ratings = read_rows(labels / "ratings.jsonl", PseudoRating)
    choices = read_rows(labels / "choices.jsonl", PseudoChoice)
    held = read_held_out(held_out)
    require_apart(held, {str(labels): (row.prompt for row in joined(ratings, choices))})
    rated, chosen = read_labels(seed_labels)
    require_apart(held, {str(seed_labels): (row.prompt for row in joined(rated, chosen))}, ["test"])
    model = load_critic(critic)
    human = human_set(model, seed_labels)
    pseudo = pseudo_set(model, candidates, [row for row in joined(ratings, choices) if row.kept])
    result = train_srpo(model, human, pseudo, section, job.work, job.seed)
    if not world().main:
        return Summary()
    with atomic(candidate) as temporary:
        model.save(temporary)
    write_curves(curves, result.series)
    metrics = {"pairs": float(len(pseudo.pairs)), "examples": float(len(human.examples) + len(pseudo.examples))}
    return Summary(metrics={**metrics, **result.metrics}, curves=result.series, tags=result.tags)


def idle(config: Config, course: Course | None) -> bool:
    """Whether the critic is handed on as it is; None stands for a course that calls for nothing."""
    section = config.train_critic
    called = section.update == "every_round" or bool(course and course.refine_critic)
    return section.algorithm == "none" or not called
