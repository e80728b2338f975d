"""Ends a round: which critic goes on, what looks like reward hacking, and whether another round is worth its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualipo.artifacts import copy, read_json
from dualipo.config import Config
from dualipo.quality.evidence import Agreement, Course, Decision, Scores, Settlement, Standing, load
from dualipo.steps import Job, Summary
from dualipo.steps.train_critic import idle


def settle(
    config: Config,
    job: Job,
    *,
    critic_decision: Path,
    generator_decision: Path,
    accepted_critic: Path,
    accepted_agreement: Path,
    former_critic: Path,
    former_agreement: Path,
    scores: Path,
    preferences: Path,
    critic_curves: Path,
    align_curves: Path,
    former_settlement: Path,
    course: Path,
    critic: Path,
    agreement: Path,
    settlement: Path,
    next_course: Path,
) -> Summary:
    """Writes the critic that goes on with its agreement, settlement.json, and course.json for the next round's steps.

    Where the benchmark of the round's generator fell (by the evidence of `generator_decision`) after the critic's
    update, the former critic comes back, if `settle.roll_back_critic` says so (Dual-IPO, appendix C). **Our reading**
    of the retry: the next round starts from the former critic, and may update it anew on labels of its own.

    Whether rounds end is dualipo/quality/stopping.py's to say, and done with `settle.stop`. Raises UserError where an
    input is missing or malformed.
    """
    from dualipo.quality.settlement import kept_draws, write
    from dualipo.quality.stopping import judge
    from dualipo.quality.watch import reward_of

    former, steered = load(Settlement, former_settlement), load(Course, course)
    critic_outcome, outcome = load(Decision, critic_decision), load(Decision, generator_decision)
    fell, benchmark = _benchmark(outcome)
    updated = critic_outcome.promoted and not idle(config, steered)
    back = fell and updated and config.settle.roll_back_critic
    curves = _pathologies(config, critic_curves, align_curves)
    standing = Standing(
        round=job.round,
        champion=job.round if outcome.promoted else former.history[-1].champion,
        total=load(Scores, scores).mean,
        promoted=outcome.promoted,
        degraded=fell,
        critic_updated=updated,
        critic_rolled_back=back,
        agreement=load(Agreement, former_agreement if back else accepted_agreement).agreement,
        reward=reward_of(read_json(preferences / "summary.json")),
    )
    history = [*former.history, standing]
    draws = former.draws | ({job.round: kept_draws(read_json(scores))} if outcome.promoted else {})
    verdict = judge(history, draws, config.settle)
    stop = verdict.called_for and config.settle.stop
    reasons = [_of_critic(config, fell, updated), *verdict.reasons]
    if verdict.called_for and not stop:
        reasons.append("goes on all the same: settle.stop is off.")
    watch = [*outcome.evidence.get("watch", []), *verdict.watch, *curves]
    found = Settlement(
        critic_rolled_back=back,
        stop=stop,
        reasons=reasons,
        watch=watch,
        evidence={
            "benchmark": benchmark,
            "critic_updated": updated,
            "curves": curves,
            "stopping": {"called_for": verdict.called_for, **verdict.evidence},
        },
        history=history,
        draws=draws,
    )
    waits = config.train_critic.update == "after_degradation"
    told = Course(
        stop=stop,
        round=job.round if stop else "",
        refine_critic=waits and (fell or bool(curves)),
        reasons=verdict.reasons + verdict.watch if stop else [],
    )
    copy(former_critic if back else accepted_critic, critic)
    copy(former_agreement if back else accepted_agreement, agreement)
    write(found, told, settlement, next_course)
    metrics = {"stop": stop, "stop_called_for": verdict.called_for, "critic_rolled_back": back, "watch": len(watch)}
    tags = {"settlement": " ".join(reasons), **({"watch": " ".join(watch)} if watch else {})}
    return Summary(metrics={name: float(value) for name, value in metrics.items()}, tags=tags)


def _benchmark(outcome: Decision) -> tuple[bool, dict[str, Any]]:
    """Whether the candidate's benchmark fell, and the numbers: those that decided on its promotion."""
    from dualipo.quality.promotion import degraded

    total, bound = outcome.evidence.get("total", {}), outcome.evidence.get("max_drop", 0.0)
    new, old = ((total.get(who) or {}).get("mean") for who in ("candidate", "incumbent"))
    fell = degraded(new, old, bound)
    numbers = {"candidate": new, "incumbent": old, "max_drop": bound, "degraded": fell}
    return fell, numbers | {"paired_difference": outcome.evidence.get("paired_difference")}


def _pathologies(config: Config, critic_curves: Path, align_curves: Path) -> list[str]:
    from dualipo.curves import read_curves
    from dualipo.quality.settlement import pathologies

    trainings = (
        ("aligning the generator", align_curves, config.align.training),
        ("updating the critic", critic_curves, config.train_critic.training),
    )
    return [f"curves: {what}: {fault}." for what, path, t in trainings for fault in pathologies(read_curves(path), t)]


def _of_critic(config: Config, fell: bool, updated: bool) -> str:
    if not fell:
        return "critic: kept, the benchmark did not fall."
    if not updated:
        return "critic: kept, the benchmark fell but the critic had not been updated."
    if not config.settle.roll_back_critic:
        return "critic: kept, though the benchmark fell after its update: settle.roll_back_critic is off."
    return "critic: rolled back, the benchmark fell after its update; the next round starts from the former critic."
