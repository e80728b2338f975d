"""What promotion reads and writes: verdicts, agreements, benchmark scores and decisions, all frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dualipo.artifacts import read_json
from dualipo.errors import UserError

VERDICT = "verdict.json"


class Strict(BaseModel):
    """A file written here: every key is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Lenient(BaseModel):
    """A file of which only some keys are needed here."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ExpectationVerdict(Strict):
    name: str
    """Great Expectations' name of the expectation, e.g. `expect_column_max_to_be_between`."""
    column: str | None
    """Column or columns looked at; null for an expectation on the whole table."""
    passed: bool
    observed: float | int | str | None
    """The observed aggregate, or how many rows break the expectation; null where it is undefined."""
    required: str
    why: str


class SuiteVerdict(Strict):
    passed: bool
    expectations: list[ExpectationVerdict]


class Verdict(Strict):
    """A gate's outcome. It passes if every expectation of every suite does."""

    passed: bool
    reasons: list[str]
    """One sentence for each failed expectation."""
    suites: dict[str, SuiteVerdict]

    def numbers(self, suite: str) -> dict[str, float]:
        """Observed aggregates of one suite, by column."""
        found = ((e.column, e.observed) for e in self.suites[suite].expectations)
        return {column: float(value) for column, value in found if column and isinstance(value, int | float)}


class Decision(Strict):
    promoted: bool
    reasons: list[str] = Field(min_length=1)
    evidence: dict[str, Any]


class Interval(Lenient):
    """A 95 percent interval around a mean; null where there was nothing to measure."""

    mean: float | None
    low: float | None = None
    high: float | None = None


class Agreement(Lenient):
    """agreement.json: agreement with the human test set, as a fraction of 1."""

    agreement: Interval
    pairs: int = Field(ge=0)
    rating_agreement: dict[str, float | None] = {}
    """By dimension; null where people rated nothing."""


class Scores(Lenient):
    """scores.json: a benchmark's scores, in points of 100."""

    suite: str
    total: Interval | None
    """Null, or of null mean, where a dimension is missing."""
    dimensions: dict[str, dict[str, Any] | None] = {}
    """Null where nothing was measured."""
    prompts: int | None = None

    @property
    def mean(self) -> float | None:
        return self.total.mean if self.total else None

    @property
    def measured(self) -> set[str]:
        """Names of the dimensions that have a mean."""
        return {name for name, found in self.dimensions.items() if found and found.get("mean") is not None}


class Course(Strict):
    """course.json: what a round says of the next one. It holds nothing else, so that what does not change it, such as
    another bound of the stopping rule, makes no step of the next round again."""

    stop: bool
    """The next round does not happen, nor does any after it."""
    round: str = ""
    """The round that says so; empty where it goes on."""
    refine_critic: bool = False
    """The benchmark fell or a training's curves were pathological, which `train_critic.update: after_degradation` waits
    for. Always false where the critic is updated in every round."""
    reasons: list[str] = []
    """Why it stops."""


class Standing(Strict):
    """What stood after one round."""

    round: str
    champion: str
    """The round whose candidate the generator is."""
    total: float | None
    """Of the benchmark, points."""
    promoted: bool
    """The round gave a new generator."""
    degraded: bool
    """Its candidate's benchmark fell by more than may be lost."""
    critic_updated: bool
    critic_rolled_back: bool
    agreement: Interval
    """Of the critic with people, of 1."""
    reward: Interval | None
    """The critic's mean score of this round's clips, which the champion before made."""


class Settlement(Strict):
    """settlement.json: how a round ended."""

    critic_rolled_back: bool
    stop: bool
    reasons: list[str] = Field(min_length=1)
    watch: list[str]
    """Signs of reward hacking, a sentence each."""
    evidence: dict[str, Any]
    history: list[Standing]
    """The base first, this round last."""
    draws: dict[str, list[float]]
    """By the round that made a champion: its total on resamples of the benchmark's prompts (evaluation/paired.py)."""


Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], content: object, where: str | Path) -> Model:
    """Raises UserError that names the first missing or unusable field."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "top level"
        raise UserError(f"{where}: {field}: {first['msg']}; run the step that makes it again") from None


def load(kind: type[Model], path: str | Path) -> Model:
    """Raises UserError where the file is missing, no JSON, or not of `kind`."""
    return parse(kind, read_json(path), path)


def read_verdict(gate_folder: str | Path) -> Verdict:
    """The verdict of a gate folder.

    Raises UserError where it is missing, malformed, or contradicts itself (passed with a failed or missing suite).
    """
    path = Path(gate_folder) / VERDICT
    verdict = load(Verdict, path)
    suites = verdict.suites.values()
    sound = all(suite.passed == all(e.passed for e in suite.expectations) and suite.expectations for suite in suites)
    if not (suites and sound and verdict.passed == all(suite.passed for suite in suites)):
        raise UserError(f"{path}: `passed` contradicts the expectations listed; run the gate's step again")
    return verdict
