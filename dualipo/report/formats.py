"""The JSON files of a run as the report reads them; keys that it has no use for are left alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from dualipo import curves
from dualipo.quality.evidence import load


class Format(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Interval(Format):
    """A mean and its 95 percent interval."""

    mean: float
    low: float
    high: float


def _measured(value: Any) -> Any:
    """None for an interval whose mean or ends are null: nothing was measured."""
    missing = isinstance(value, dict) and any(value.get(key, 0) is None for key in ("mean", "low", "high"))
    return None if missing else value


Measured = Annotated[Interval | None, BeforeValidator(_measured)]


class Scores(Format):
    """scores.json; points of 100."""

    suite: str
    total: Measured
    dimensions: dict[str, Measured]
    prompts: int
    clips: int
    guided: dict[str, Any] | None = None
    """Scale and weights of the reward guidance that the clips were sampled with."""


class Part(Interval):
    """Agreement on one question, or on the pairs of one value of a prompt category."""

    question: str | None = None
    category: str | None = None
    value: str | None = None
    items: int


class People(Interval):
    """How far annotators agree with each other: one against the majority of the others, and Krippendorff's alpha."""

    question: str
    alpha: float | None
    level: str
    items: int
    annotators: int


class Agreement(Format):
    """agreement.json; fractions of 1."""

    agreement: Measured
    ties_excluded: Measured = None
    pairs: int
    ties: float | None = None
    order_consistency: float | None = None
    rating_agreement: dict[str, float | None] = {}
    confusion: dict[str, dict[str, int]] = {}
    by_question: list[Part] = []
    by_category: list[Part] = []
    people: list[People] = []


class Trivial(Format):
    """Agreements of critics that look at nothing."""

    most_frequent: Agreement
    coin: Agreement


class Baselines(Format):
    """baselines.json: what stands beside the critic's agreement."""

    trivial: Trivial | None = None
    videoreward: Agreement | None = None
    external: dict[str, Agreement] = {}


class Observation(Format):
    """What a VideoReward that does not score makes of the preferences."""

    score: Measured
    margin: Measured = None
    agrees: Measured = None


class PreferenceSummary(Format):
    """summary.json of preferences."""

    scored: Measured = Field(None, validation_alias="reward")
    """The scorer's mean score of the round's clips."""
    videoreward: Observation | None = None


class ClipScores(BaseModel):
    """A row of benchmark_clips/scores.jsonl; every field beside these four is a dimension's score, points of 100."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, float | None]

    clip: str
    prompt_id: str
    prompt: str
    total: float | None


Kind = TypeVar("Kind", bound=BaseModel)


def read_as(path: Path, kind: type[Kind]) -> dict[str, Any] | None:
    """The file's content, or None where there is no such file yet; raises UserError where it has another shape."""
    return load(kind, path).model_dump() if path.is_file() else None


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]] | None:
    """Series of (step, value) by name, without values that are not finite; None where there is no such file yet."""
    if not path.is_file():
        return None
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in curves.read_curves(path).items()}
    return {name: points for name, points in finite.items() if points}
