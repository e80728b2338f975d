"""What a VideoReward checkpoint says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dualipo.artifacts import atomic, read_json, write_json
from dualipo.config import RewardLoss
from dualipo.errors import UserError
from dualipo.evaluation.calibration import Calibration
from dualipo.records import DIMENSIONS

MODEL_TYPE: Literal["videoreward"] = "videoreward"
"""`model_type` in config.json: by it the loop tells a VideoReward from a generative critic."""


class Settings(BaseModel):
    """config.json of a VideoReward folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model_type: Literal["videoreward"] = MODEL_TYPE
    dimensions: tuple[str, ...] = DIMENSIONS
    """One query token and one score each, in this order."""
    before_prompt: tuple[str, ...] = ("motion", "faithfulness")
    """Dimensions whose token stands before the prompt and so sees the clip alone (VideoAlign 3.2)."""
    loss: RewardLoss = "btt"
    tie_tendency: float = Field(5.0, gt=1)
    mean: tuple[float, ...] | None = None
    """Mean of each dimension's raw scores on the held-out seed clips; null before calibration."""
    deviation: tuple[float, ...] | None = None
    calibration: Calibration | None = None
    """Thresholds on normalised scores, from the held-out seed labels."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Settings:
        if not self.dimensions or len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError("dimensions must be named, each once")
        if unknown := set(self.before_prompt) - set(self.dimensions):
            raise ValueError(f"before_prompt: {', '.join(sorted(unknown))} is no dimension")
        if any(v is not None and len(v) != len(self.dimensions) for v in (self.mean, self.deviation)):
            raise ValueError("mean and deviation need one number a dimension")
        if self.deviation and min(self.deviation) <= 0:
            raise ValueError("deviation: a score that never varies cannot be normalised")
        return self


def write_none(folder: Path) -> None:
    """A folder in a VideoReward's place where none was trained: not empty, since object stores keep no empty folder."""
    with atomic(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", {"model_type": "none"})


def is_videoreward(folder: str | Path) -> bool:
    """Whether the folder's config.json names a VideoReward."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return False
    try:
        content = read_json(path)
    except UserError:
        return False
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def read_settings(folder: str | Path) -> Settings:
    """Raises UserError where config.json is missing or not a VideoReward's."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no VideoReward here (config.json is missing); train one with `dualipo reward train`"
        )
    try:
        return Settings.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "top level"
        raise UserError(f"{path}: {field}: {first['msg']}; put a VideoReward's own config.json there") from None
