"""Hand on the critic candidate if every gate holds, else the incumbent (METHOD 1, step 6)."""

from __future__ import annotations

from pathlib import Path

from dualipo.config import Config
from dualipo.quality.evidence import Agreement, Decision, load, read_verdict
from dualipo.quality.promotion import gate_evidence, gate_faults, hand_on, spoken
from dualipo.steps import Job, Summary


def promote_critic(
    config: Config,
    job: Job,
    *,
    candidate: Path,
    candidate_agreement: Path,
    incumbent: Path,
    incumbent_agreement: Path,
    label_gate: Path,
    critic_gate: Path,
    critic: Path,
    agreement: Path,
    decision: Path,
) -> Summary:
    """Writes the critic of this round, its agreement with the human test set, and the decision.

    The candidate is promoted only if the label gate and the critic gate passed: bad pseudo-labels block the critic that
    learned from them. Raises UserError where a gate, an agreement or a model folder is missing or malformed.
    """
    gates = {"label gate": read_verdict(label_gate), "critic gate": read_verdict(critic_gate)}
    new = load(Agreement, candidate_agreement).agreement.mean
    old = load(Agreement, incumbent_agreement).agreement.mean
    faults = gate_faults(gates)
    passed = f"both gates passed; agreement with people is {spoken(new)}, the incumbent's {spoken(old)}."
    outcome = Decision(
        promoted=not faults,
        reasons=faults or [passed],
        evidence={"agreement": {"candidate": new, "incumbent": old}, "gates_passed": gate_evidence(gates)},
    )
    return hand_on(
        outcome,
        candidate=(candidate, candidate_agreement),
        incumbent=(incumbent, incumbent_agreement),
        out=(critic, agreement),
        file=decision,
    )
