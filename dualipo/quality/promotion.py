"""Handing on a candidate or the incumbent, and saying why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dualipo.artifacts import atomic, copy_folder, read_json, write_json
from dualipo.errors import UserError
from dualipo.quality.evidence import Decision, Verdict
from dualipo.steps import Summary


def gate_faults(gates: Mapping[str, Verdict]) -> list[str]:
    """A sentence for each failed expectation of the named gates; empty if every gate passed."""
    return [f"{name}: {reason}" for name, verdict in gates.items() for reason in verdict.reasons]


def spoken(number: float | None) -> str:
    return "undefined" if number is None else f"{number:.4g}"


def degraded(new: float | None, old: float | None, max_drop: float) -> bool:
    """Whether a candidate's total lies below the incumbent's by more than may be lost; not where one is undefined."""
    return new is not None and old is not None and new < old - max_drop


def gate_evidence(gates: Mapping[str, Verdict]) -> dict[str, bool]:
    return {name: verdict.passed for name, verdict in gates.items()}


def hand_on(
    outcome: Decision, *, candidate: tuple[Path, Path], incumbent: tuple[Path, Path], out: tuple[Path, Path], file: Path
) -> Summary:
    """Copies the (model folder, numbers file) of the candidate if promoted, else of the incumbent, to `out`.

    Writes the decision to `file` last. Raises UserError where a model folder is missing.
    """
    for model, _ in (candidate, incumbent):
        if not Path(model).is_dir():
            raise UserError(f"{model}: no such model folder; run the step that makes it first")
    model, numbers = candidate if outcome.promoted else incumbent
    with atomic(out[0]) as temporary:
        copy_folder(model, temporary)
    write_json(out[1], read_json(numbers))
    write_json(file, outcome.model_dump())
    tags = {"decision": "promoted" if outcome.promoted else "rejected", "reason": " ".join(outcome.reasons)}
    return Summary(metrics={"promoted": float(outcome.promoted)}, tags=tags)
