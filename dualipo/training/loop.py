"""The loop: steps, schedules, averages, checkpoints, and when to stop."""

from __future__ import annotations

import math
from pathlib import Path

from tqdm import tqdm

from dualipo.curves import Series
from dualipo.errors import Terminated, UserError
from dualipo.training.average import Average
from dualipo.training.backend import Backend, Plain
from dualipo.training.divergence import diverging
from dualipo.training.ranks import any_rank, world
from dualipo.training.schedule import Schedule
from dualipo.training.stopping import sigterm_noted
from dualipo.training.task import Recipe, Task, Trained


def train(task: Task, recipe: Recipe, work: Path) -> Trained:
    """Trains the task's model in place and returns its curves; goes on from a checkpoint in `work`.

    A resumed training gives the floats of an unbroken one. SIGTERM ends it after the step under way, with a checkpoint
    (raises Terminated). A loss or gradient that is not finite is never stepped on: with `stop_on_divergence` the
    training ends with the weights before it, without it a UserError is raised. Errors of winners and losers that both
    rise (`diverging`) are noted in what is returned, and with `stop_on_divergence` end the training there.
    """
    settings = recipe.training
    backend = _backend(task, recipe)
    average = Average(backend.weights, settings.ema_decay) if settings.ema_decay is not None else None
    averaged = average.state if average else {}
    schedule = Schedule(recipe.learning_rate, recipe.warmup_steps, settings.raised_learning_rate, settings.raise_after)
    begin, extra = backend.load(work, averaged) or (0, {"series": {}})
    series: Series = {name: [(int(s), v) for s, v in points] for name, points in extra["series"].items()}
    result = Trained(series, diverged_at=extra.get("diverged_at"))
    raised_at: int | None = extra.get("raised_at")
    task.restore(extra)

    def save(done: int) -> None:
        held = {"series": series, "raised_at": raised_at, "diverged_at": result.diverged_at}
        backend.save(work, done, {**held, **task.extra}, averaged)

    steps = tqdm(
        range(begin, recipe.steps), desc=task.title, initial=begin, total=recipe.steps, leave=False,
        disable=not world().main,
    )  # fmt: skip
    with sigterm_noted() as notice:
        for step in steps:
            done = step + 1
            rate = schedule.at(step, raised_at)
            logged = _step(task, backend, step, rate)
            failed = [name for name in ("loss", "grad_norm") if not math.isfinite(logged.get(name, 0.0))]
            if failed:
                reason = f"{failed[0]} is {logged[failed[0]]} at step {done}"
                if not settings.stop_on_divergence:
                    raise UserError(
                        f"{task.title}: {reason} of {recipe.steps}; lower learning_rate, or set "
                        "training.stop_on_divergence to end there with the weights before that step"
                    )
                result.stopped_at, result.reason = step, reason
                break
            if average:
                average.update(done)
            for name, value in logged.items():
                series.setdefault(name, []).append((done, value))
            steps.set_postfix({name: f"{logged[key]:.3f}" for name, key in task.shown.items() if key in logged})
            if raised_at is None:
                raised_at = schedule.raise_at(done, series)
            if result.diverged_at is None and diverging(series, settings.divergence_window, settings.divergence_bound):
                result.diverged_at = done
                if settings.stop_on_divergence:
                    result.stopped_at, result.reason = done, "winner and loser errors both rising"
                    break
            stopping = any_rank(notice.given, backend.device)
            if stopping or (done < recipe.steps and done % recipe.checkpoint_every == 0):
                save(done)
            if stopping:
                raise Terminated(f"{task.title}: SIGTERM, stopped after step {done} of {recipe.steps}; checkpoint kept")
        if average:
            average.apply()
        backend.close()
        if notice.given:
            raise Terminated(f"{task.title}: SIGTERM, stopped after the last step; no result written")
    return result


def _backend(task: Task, recipe: Recipe) -> Backend:
    if recipe.training.zero:
        from dualipo.training.zero import Zero

        return Zero(task, recipe)
    return Plain(task, recipe)


def _step(task: Task, backend: Backend, step: int, rate: float) -> dict[str, float]:
    """One step of the optimizer, and what it logs; without it where the loss is not finite."""
    parts = backend.without_gradient(lambda: task.begin(step))
    for index, part in enumerate(parts):
        backend.backward(part, last=index + 1 == len(parts))
    logged = task.finish()
    if math.isfinite(logged["loss"]):
        logged["grad_norm"] = backend.step(rate)
        logged["learning_rate"] = rate
    return logged
