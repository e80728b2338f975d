"""Holds the critic candidate against people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualipo.artifacts import read_json, write_json
from dualipo.config import Config
from dualipo.heldout import read_held_out, require_known_test
from dualipo.records import joined, read_labels
from dualipo.steps import Job, Summary


def check_critic(
    config: Config,
    job: Job,
    *,
    candidate: Path,
    incumbent_agreement: Path,
    test_labels: Path,
    held_out: Path,
    baselines: Path,
    agreement: Path,
    gate: Path,
) -> Summary:
    """Writes the candidate's agreement with the human test set, with the incumbent's and the baselines' beside it, and
    its gate's verdict.

    Raises UserError where the test set is not the one that training was kept away from.
    """
    from dualipo.evaluation.agreement import measure_agreement
    from dualipo.evaluation.baselines import beside
    from dualipo.quality.gate import critic_gate

    ratings, choices = read_labels(test_labels)
    require_known_test(read_held_out(held_out), test_labels, (row.prompt for row in joined(ratings, choices)))
    measured = measure_agreement(config, candidate, test_labels)
    incumbent = read_json(incumbent_agreement)
    write_json(agreement, {**measured, "baselines": beside(read_json(baselines), incumbent)})
    verdict = critic_gate(gate, measured, incumbent, config.check_critic)
    return Summary(metrics={**agreement_metrics(measured), "passed": float(verdict.passed)})


def agreement_metrics(measured: dict[str, Any]) -> dict[str, float]:
    """The numbers of an agreement that are worth a curve."""
    found = {"agreement": measured["agreement"]["mean"], "order_consistency": measured["order_consistency"]}
    if measured["ties_excluded"]:
        found["agreement_ties_excluded"] = measured["ties_excluded"]["mean"]
    ratings = {f"rating_agreement_{d}": v for d, v in measured["rating_agreement"].items() if v is not None}
    return {**found, **ratings}
