"""What a VideoReward checkpoint says of itself, and how one is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dualipo.artifacts import read_json
from dualipo.config import NonNegative, Positive, PositiveInt, Section, Training
from dualipo.errors import UserError
from dualipo.evaluation.calibration import Calibration
from dualipo.records import DIMENSIONS

MODEL_TYPE = "videoreward"
"""`model_type` in config.json: by it the loop tells a VideoReward from a generative critic."""

Loss = Literal["btt", "bt", "regression"]


class Settings(BaseModel):
    """config.json of a VideoReward folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model_type: Literal["videoreward"] = MODEL_TYPE
    dimensions: tuple[str, ...] = DIMENSIONS
    """One query token and one score each, in this order."""
    before_prompt: tuple[str, ...] = ("motion", "faithfulness")
    """Dimensions whose token stands before the prompt and so sees the clip alone (VideoAlign 3.2)."""
    loss: Loss = "btt"
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


class TrainReward(Section):
    """How a VideoReward is trained. VideoAlign: k 5, rank 64, alpha 128, learning rate 2e-6, batch 32, two epochs."""

    loss: Loss = "btt"
    """`btt` Bradley-Terry with ties, `bt` without (ties dropped), `regression` on ratings alone."""
    tie_tendency: float = Field(5.0, gt=1)
    """k of Bradley-Terry with ties."""
    implied_pairs: bool = True
    """Two clips of one prompt with different ratings on a dimension are a pair of that dimension as well."""
    steps: PositiveInt = 200
    batch_size: PositiveInt = 32
    """Pairs a step, or rated clips with `regression`."""
    learning_rate: Positive = 1e-4
    warmup_steps: int = Field(10, ge=0)
    train_vision: bool = True
    """Off: the vision tower is frozen and every clip seen once."""
    lora_rank: int = Field(0, ge=0)
    """Rank of LoRA on the language model's linear layers; 0 trains all of it."""
    lora_alpha: Positive = 128.0
    max_grad_norm: NonNegative = 1.0
    validation_share: float = Field(0.2, gt=0, lt=1)
    """Share of the seed prompts held out of training, for normalisation and thresholds."""
    checkpoint_every: PositiveInt = 40
    training: Training = Training()

    @model_validator(mode="after")
    def _one_process(self) -> TrainReward:
        if self.training.processes > 1 or self.training.zero:
            raise ValueError("training: a VideoReward is trained in one process; leave processes at 1 and zero at 0")
        return self


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
