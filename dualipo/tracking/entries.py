"""What is read from and written to the tracking store, free of MLflow's own types."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from dualipo.artifacts import Digest
from dualipo.steps import Kind

MODELS: tuple[Kind, ...] = ("critic", "generator", "reward")
"""Kinds of artifacts that are registered as model versions."""
KEPT = ("gate", "scores", "page")
"""Kinds of artifacts that are kept with the run."""


@dataclass(frozen=True)
class Link:
    """One end of a lineage link: a file or folder as a step run named it."""

    path: str
    """As bound by the step's port: relative to the experiment's folder, or absolute."""
    md5: str
    """DVC's md5, ending in `.dir` for folders."""
    kind: Kind


@dataclass(frozen=True)
class Artifact:
    """An input or output of a step that is being recorded."""

    path: str
    """As bound and shown; equal across machines."""
    location: Path
    """Where the bytes are right now: an output may still lie at a temporary place."""
    digest: Digest
    kind: Kind

    @property
    def is_version(self) -> bool:
        """Whether it becomes a version of a registered model; a VideoReward's folder without weights does not."""
        return self.kind in MODELS and (self.kind != "reward" or any(self.location.rglob("*.safetensors")))

    @property
    def dataset(self) -> str:
        """Name as an MLflow dataset: the path, of which MLflow keeps 500 characters."""
        return self.path[-500:]

    def as_tag(self) -> str:
        content = {"path": self.path, "md5": self.digest.md5, "kind": self.kind}
        return json.dumps(content | {"size": self.digest.size, "files": self.digest.files}, ensure_ascii=False)


@dataclass(frozen=True)
class StepRun:
    """A recorded step."""

    run_id: str
    step: str
    round: str
    config_digest: str
    git_commit: str | None
    started: int
    """Milliseconds since the epoch."""
    inputs: dict[str, Link]
    outputs: dict[str, Link]


@dataclass(frozen=True)
class Version:
    """A registered model version. Tags hold what `Registry.register` wrote, without the prefix `dualipo.`."""

    name: str
    number: int
    model_id: str
    aliases: tuple[str, ...]
    tags: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def label(self) -> str:
        return f"{self.name}/{self.number}"

    @property
    def md5(self) -> str:
        return self.tags.get("md5", "")

    @property
    def round(self) -> str:
        return self.tags.get("round", "")

    @property
    def config_digest(self) -> str:
        return self.tags.get("config_digest", "")

    @property
    def run_id(self) -> str:
        return self.tags.get("run_id", "")
