"""What annotators are told, and what each question means."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dualipo.errors import UserError

SHIPPED = Path(__file__).with_name("guideline.yaml")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Topic(_Part):
    """One dimension."""

    title: str
    hint: str
    """One line, shown beside the buttons."""
    good: str = ""
    normal: str = ""
    bad: str = ""
    compare: str = ""
    """What makes one clip better than another."""


class Guideline(_Part):
    intro: list[str]
    reasons: list[str]
    """How to write reasons."""
    topics: dict[Literal["semantic", "motion", "faithfulness", "overall"], Topic]


def read_guideline(path: Path = SHIPPED) -> Guideline:
    """Raises UserError where the file is missing, no YAML, or lacks a part."""
    try:
        guideline = Guideline.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: the guideline cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: the guideline is not valid YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc'])) or 'guideline'}: {first['msg']}") from None
    if missing := {"semantic", "motion", "faithfulness", "overall"} - guideline.topics.keys():
        raise UserError(f"{path}: topics lacks {', '.join(sorted(missing))}; see {SHIPPED}")
    return guideline
