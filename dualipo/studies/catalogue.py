"""What is studied: variants of the experiment, and claims that compare the generators they lead to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dualipo.config import Config, parse_config
from dualipo.errors import UserError
from dualipo.steps import BASE

CATALOGUE = Path(__file__).with_name("catalogue.yaml")


@dataclass(frozen=True)
class Reference:
    """A generator of a study."""

    variant: str | None
    """None is the base, which all variants share."""
    round: int | None
    """Rounds behind it; None is the variant's last."""
    candidate: bool = False
    """The round's candidate, promoted or not, in the place of the generator in use after the round."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises ValueError where `text` is no reference."""
        if text == BASE:
            return cls(None, None)
        match = re.fullmatch(r"(candidate of )?(\w+)(?:@(\d+))?", text)
        if not match:
            raise ValueError(f"{text!r} is no generator; write VARIANT@ROUND, candidate of VARIANT@ROUND, or base")
        return cls(match[2], int(match[3]) if match[3] else None, bool(match[1]))


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Claim(_Entry):
    """That one generator's benchmark total is above another's."""

    says: str
    better: str
    worse: str
    paper: str | None = None
    """The paper's two figures, in words."""

    @field_validator("better", "worse")
    @classmethod
    def _is_a_reference(cls, value: str) -> str:
        Reference.parse(value)
        return value

    @property
    def sides(self) -> tuple[Reference, Reference]:
        return Reference.parse(self.better), Reference.parse(self.worse)


class Variant(_Entry):
    """The experiment with some parameters changed."""

    about: str
    rounds: int = Field(ge=1)
    changes: dict[str, Any] = Field({}, alias="set")
    """Dotted parameters and their values."""
    times: dict[str, int] = {}
    """Dotted parameters that are multiplied."""
    generator: Literal["any", "flow"] = "any"
    """Whether it needs a rectified-flow generator, such as Wan."""

    def config(self, base: Config, seed: int) -> Config:
        """The experiment's parameters, changed."""
        content = base.model_dump(mode="json")
        for dotted, factor in self.times.items():
            _set(content, dotted, _get(content, dotted) * factor)
        for dotted, value in self.changes.items():
            _set(content, dotted, value)
        content["experiment"]["seed"] = seed
        names = [str(number) for number in range(1, self.rounds + 1)]
        content["rounds"] = {name: {"prev": prev} for name, prev in zip(names, [BASE, *names], strict=False)}
        return parse_config(content, "the variant's parameters")


class Study(_Entry):
    about: str
    variants: tuple[str, ...]
    paper: str
    """What the paper found."""
    claims: tuple[Claim, ...] = Field(min_length=1)


class Catalogue(_Entry):
    variants: dict[str, Variant]
    studies: dict[str, Study]

    @model_validator(mode="after")
    def _names_are_known(self) -> Catalogue:
        for name, study in self.studies.items():
            for variant in study.variants:
                if variant not in self.variants:
                    raise ValueError(f"study {name}: unknown variant {variant!r}")
            for side in (side for claim in study.claims for side in claim.sides):
                if side.variant is not None and side.variant not in study.variants:
                    raise ValueError(f"study {name}: a claim speaks of {side.variant!r}, which it does not run")
                if side.variant and side.round and side.round > self.variants[side.variant].rounds:
                    raise ValueError(f"study {name}: {side.variant} has no round {side.round}")
        return self

    def rounds(self, study: Study, variant: str) -> int:
        """Rounds of a variant that a study looks at."""
        sides = [side for claim in study.claims for side in claim.sides if side.variant == variant]
        everything = self.variants[variant].rounds
        return max((side.round or everything for side in sides), default=everything)


@cache
def load_catalogue(path: Path = CATALOGUE) -> Catalogue:
    """Raises UserError where the file is missing or malformed."""
    try:
        return Catalogue.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such catalogue of studies") from None
    except (yaml.YAMLError, ValidationError) as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else " ".join(str(error).split())
        raise UserError(f"{path}: no catalogue of studies: {told}") from None


def find_study(catalogue: Catalogue, name: str) -> Study:
    if name not in catalogue.studies:
        raise UserError(f"study {name!r}: unknown; there are {', '.join(catalogue.studies)}")
    return catalogue.studies[name]


def _get(content: dict[str, Any], dotted: str) -> Any:
    for key in dotted.split("."):
        content = content[key]
    return content


def _set(content: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for key in parents:
        content = content[key]
    content[leaf] = value
