"""One variant of a study with one seed: runs it, or what is left of it, and reads what came out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dualipo.artifacts import read_json
from dualipo.config import Config
from dualipo.engine import run
from dualipo.errors import UserError
from dualipo.quality.evidence import Decision, load
from dualipo.steps import BASE
from dualipo.studies.catalogue import Reference


class Round(BaseModel):
    """What a round led to. Totals are of each benchmark prompt, in points of 100, the mean of its clips."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    candidate: dict[str, float]
    """The round's candidate; of `base` the base generator."""
    in_use: dict[str, float]
    """The generator handed on to the next round."""
    promoted: bool
    reasons: tuple[str, ...]
    agreement: float | None
    """Of the critic handed on with the human test pairs, of 1."""
    dimensions: dict[str, float]
    """Means of the candidate."""


class Measured(BaseModel):
    """A variant's run with one seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str
    seed: int
    suite: str
    rounds: tuple[Round, ...]
    """`base` first."""
    seconds: dict[str, float]
    """By `<round>/<step>`; of steps that another variant shares, what they took there."""

    def totals(self, reference: Reference) -> dict[str, float]:
        """Totals by prompt of one of its generators."""
        if reference.variant is None:
            return self.rounds[0].in_use
        found = self.rounds[-1 if reference.round is None else reference.round]
        return found.candidate if reference.candidate else found.in_use


def measure(
    variant: str, config: Config, folder: Path, data: Path, lenders: Sequence[Path] = (), track: bool = False
) -> Measured:
    """Runs the experiment's rounds in `folder`, or what is left of them, and reads their results.

    `lenders` are folders of other runs: a step that one of them did with the same inputs, parameters and seed is taken
    from there. Raises UserError as `engine.run`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = list(config.rounds)[-1]
    outcomes = run(config, folder, last, data.absolute(), track=track, lenders=lenders)
    seconds = {f"{outcome.round}/{outcome.step}": outcome.seconds for outcome in outcomes}
    return Measured(
        variant=variant,
        seed=config.experiment.seed,
        suite=config.evaluate.suite,
        rounds=read_rounds(config, folder / "runs"),
        seconds=seconds,
    )


def read_rounds(config: Config, runs: Path) -> tuple[Round, ...]:
    """Every round of a finished run. Raises UserError where one is missing something."""
    totals = prompt_totals(runs / BASE)
    found = [Round(name=BASE, candidate=totals, in_use=totals, promoted=True, reasons=(), **_shared(runs / BASE))]
    by_name = {BASE: found[0]}
    for name, entry in config.rounds.items():
        decision = load(Decision, runs / name / "generator_decision.json")
        candidate = prompt_totals(runs / name)
        in_use = candidate if decision.promoted else by_name[entry.prev].in_use
        reasons = tuple(decision.reasons)
        one = Round(
            name=name,
            candidate=candidate,
            in_use=in_use,
            promoted=decision.promoted,
            reasons=reasons,
            **_shared(runs / name),
        )
        found.append(one)
        by_name[name] = one
    return tuple(found)


def prompt_totals(folder: Path) -> dict[str, float]:
    """Mean total of each prompt's benchmark clips, by prompt id, of a round's candidate."""
    path = folder / "benchmark_clips/scores.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: missing; run the study again, it goes on where it was")
    clips: dict[str, list[float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["total"] is None:
            raise UserError(f"{path}: clip {row['clip']} has no total; a study needs a suite that scores every clip")
        clips.setdefault(row["prompt_id"], []).append(row["total"])
    return {prompt: statistics.fmean(totals) for prompt, totals in clips.items()}


def _shared(folder: Path) -> dict[str, Any]:
    scores = "scores.json" if folder.name == BASE else "generator_candidate_scores.json"
    dimensions = read_json(folder / scores)["dimensions"]
    return {
        "agreement": read_json(folder / "agreement.json")["agreement"]["mean"],
        "dimensions": {name: value["mean"] for name, value in dimensions.items() if value},
    }
