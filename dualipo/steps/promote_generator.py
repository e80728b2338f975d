"""Hand on the generator candidate if its gates hold and its benchmark does not degrade (METHOD 1, step 10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from dualipo.artifacts import read_json
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.quality.evidence import Agreement, Decision, Scores, Settlement, load, parse, read_verdict
from dualipo.quality.promotion import degraded, gate_evidence, gate_faults, hand_on, spoken
from dualipo.steps import Job, Summary


def promote_generator(
    config: Config,
    job: Job,
    *,
    candidate: Path,
    candidate_scores: Path,
    incumbent: Path,
    incumbent_scores: Path,
    label_gate: Path,
    preferences: Path,
    preference_gate: Path,
    baselines: Path,
    former_settlement: Path,
    generator: Path,
    scores: Path,
    decision: Path,
) -> Summary:
    """Writes the generator of this round, its benchmark scores, and the decision.

    The candidate is promoted only if the label gate and the preference gate passed and its total score is at least the
    incumbent's less `promote_generator.max_drop` points. A candidate without a total is never promoted, nor one that
    was measured in fewer dimensions, or on another number of prompts, than the incumbent. Where a VideoReward scored
    the preferences, it has to agree with people as an accepted critic does (`check_critic.min_agreement` and `bound`).
    Where both scores hold every prompt's, the decision tells the difference of the totals, paired by prompt, with its
    interval. Signs of reward hacking stand in the evidence as `watch`, with the effects behind them;
    `promote_generator.hold_on_watch` lets them hold the candidate's promotion.

    Raises UserError where a gate, scores or a model folder is missing or malformed, the two scores are of different
    suites, or the VideoReward that scored was not measured.
    """
    gates = {"label gate": read_verdict(label_gate), "preference gate": read_verdict(preference_gate)}
    new, old = load(Scores, candidate_scores), load(Scores, incumbent_scores)
    if new.suite != old.suite:
        raise UserError(
            f"{candidate_scores}: scored by {new.suite!r}, but {incumbent_scores} by {old.suite!r}; "
            "score both with the same suite"
        )
    drop = config.promote_generator.max_drop
    faults = gate_faults(gates) + _benchmark_faults(new.mean, old.mean, drop) + _omissions(new, old)
    evidence = {}
    if config.prefer.scorer == "videoreward":
        required = config.check_critic.min_agreement
        scorer = _scorer_agreement(baselines, config.check_critic.bound)
        evidence = {"scorer_agreement": scorer, "min_agreement": required}
        if scorer is None or scorer < required:
            faults.append(
                f"scorer: VideoReward agrees with people on {spoken(scorer)} of the test pairs, required is at least "
                f"{required:g}: preferences of a scorer that people disagree with mislead the generator."
            )
    watched = _watch(config, candidate_scores, incumbent_scores, preferences, former_settlement)
    if config.promote_generator.hold_on_watch:
        faults += [f"watch: {sign}" for sign in watched["watch"]]
    passed = (
        f"both gates passed; the benchmark's total is {spoken(new.mean)} points, "
        f"the incumbent's {spoken(old.mean)}, and {drop:g} may be lost."
    )
    paired = _paired(candidate_scores, incumbent_scores)
    if paired:
        interval = f"{paired['mean']:+.2f} points [{paired['low']:+.2f}, {paired['high']:+.2f}]"
        passed += f" Paired by prompt the difference is {interval}."
    outcome = Decision(
        promoted=not faults,
        reasons=faults or [passed],
        evidence={
            "total": {
                name: found.total.model_dump() if found.total else None
                for name, found in (("candidate", new), ("incumbent", old))
            },
            "max_drop": drop,
            "gates_passed": gate_evidence(gates),
            **evidence,
            **watched,
            **({"paired_difference": paired} if paired else {}),
        },
    )
    return hand_on(
        outcome,
        candidate=(candidate, candidate_scores),
        incumbent=(incumbent, incumbent_scores),
        out=(generator, scores),
        file=decision,
    )


def _scorer_agreement(baselines: Path, bound: Literal["mean", "low"]) -> float | None:
    measured = read_json(baselines).get("videoreward")
    if measured is None:
        raise UserError(
            f"{baselines}: holds no agreement of the VideoReward that prefer.scorer names; run `dualipo train_reward` "
            "and `dualipo check_reward` with these parameters"
        )
    return getattr(parse(Agreement, measured, baselines).agreement, bound)


def _paired(candidate_scores: Path, incumbent_scores: Path) -> dict[str, float] | None:
    from dualipo.evaluation.paired import paired_total

    return paired_total(read_json(incumbent_scores), read_json(candidate_scores), seed=0)


def _watch(config: Config, new: Path, old: Path, preferences: Path, former_settlement: Path) -> dict[str, Any]:
    """Signs of reward hacking, a sentence each, and the effects that were looked at."""
    from dualipo.evaluation.appearance import shifts
    from dualipo.quality.watch import hacked, reward_of, shifted

    summary, settled = read_json(preferences / "summary.json"), load(Settlement, former_settlement)
    winners = summary.get("appearance") or {}
    generators = shifts(*(read_json(scores).get("appearance") or [] for scores in (old, new)))
    bound = config.promote_generator.max_shift
    return {
        "watch": [
            *shifted(winners, bound, "winners", "losers"),
            *shifted(generators, bound, "the candidate's clips", "the incumbent's"),
            *hacked(settled.history, settled.draws, reward_of(summary)),
        ],
        "appearance": {"winners": winners, "candidate": generators, "max_shift": bound},
    }


def _benchmark_faults(new: float | None, old: float | None, drop: float) -> list[str]:
    if new is None:
        return ["benchmark: the candidate has no total score, since a dimension is missing."]
    if old is None:
        return ["benchmark: the incumbent has no total score, so nothing shows that the candidate does not degrade."]
    if degraded(new, old, drop):
        lost = f"{spoken(old - new)} points below the incumbent's {spoken(old)}, and {drop:g} may be lost"
        return [f"benchmark: the candidate's total is {spoken(new)}, {lost}."]
    return []


def _omissions(new: Scores, old: Scores) -> list[str]:
    """A total says nothing beside another one that was made of more."""
    faults = []
    if missing := sorted(old.measured - new.measured):
        faults.append(
            f"benchmark: the candidate was not measured in {', '.join(missing)}, the incumbent was, so their totals "
            "are not of the same things."
        )
    if None not in (new.prompts, old.prompts) and new.prompts != old.prompts:
        faults.append(
            f"benchmark: the candidate was measured on {new.prompts} prompts, the incumbent on {old.prompts}, so their "
            "totals are not of the same prompts."
        )
    return faults
