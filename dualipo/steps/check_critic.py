"""Holds the critic candidate against people."""

from __future__ import annotations

from pathlib import Path

from dualipo.artifacts import read_json, write_json
from dualipo.config import Config
from dualipo.steps import Job, Summary


def check_critic(
    config: Config,
    job: Job,
    *,
    candidate: Path,
    incumbent_agreement: Path,
    test_labels: Path,
    agreement: Path,
    gate: Path,
) -> Summary:
    """Writes the candidate's agreement with the human test set, and its gate's verdict."""
    from dualipo.evaluation.agreement import measure_agreement
    from dualipo.quality.gate import critic_gate

    measured = measure_agreement(config, candidate, test_labels)
    write_json(agreement, measured)
    verdict = critic_gate(gate, measured, read_json(incumbent_agreement), config.check_critic)
    return Summary(metrics={**agreement_metrics(measured), "passed": float(verdict.passed)})


def agreement_metrics(measured: dict) -> dict[str, float]:
    """The numbers of an agreement that are worth a curve."""
    found = {"agreement": measured["agreement"]["mean"], "order_consistency": measured["order_consistency"]}
    if measured["ties_excluded"]:
        found["agreement_ties_excluded"] = measured["ties_excluded"]["mean"]
    ratings = {f"rating_agreement_{d}": v for d, v in measured["rating_agreement"].items() if v is not None}
    return {**found, **ratings}
