"""What a pipeline is compiled for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from dualipo import __version__
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.runtime import git_commit
from dualipo.steps import Step

SCRATCH, MODELS = "/scratch", "/models"
"""Where pods have the volumes that `resources` names."""


@dataclass(frozen=True)
class Build:
    config: Config
    data: str
    """URI of the data folder (dualipo/pipeline/data.py)."""
    data_md5: str = ""
    commit: str | None = None
    """Of the library."""

    @property
    def image(self) -> str:
        return self.config.resources.image

    @property
    def library(self) -> str:
        """A parameter of every task, so that another library is another task to KFP's cache, which knows an image by
        its name alone: nothing where that holds the digest."""
        pinned = re.search(r"@sha256:[0-9a-f]{64}$", self.image)
        return "" if pinned else f"{__version__}+{self.commit or 'unknown'}"

    def shards(self, step: Step) -> int:
        return self.config.resources.of(step.name).shards or 1

    def parameter(self, section: str) -> str:
        """A section as one JSON string: protobuf would make 8.0 of 8, and cannot do null."""
        return json.dumps(self.config.model_dump(mode="json")[section], separators=(",", ":"))

    def whole(self) -> str:
        return self.config.model_dump_json(exclude={"resources"})

    def told(self) -> dict[str, str]:
        """Environment variables of every task that must not make it another task to KFP's cache."""
        return {"DUALIPO_CONFIG": self.whole()} | ({"DUALIPO_COMMIT": self.commit} if self.commit else {})


def make_build(config: Config, folder: Path, data: str | None, data_folder: Path) -> Build:
    """`data` is a URI; without one the data are what the folder's data.dvc points at, else `data_folder`."""
    from dualipo.pipeline.data import default_uri

    uri, md5 = (data, "") if data else default_uri(folder, data_folder)
    return Build(config, uri, md5, git_commit(Path(__file__).parent))


def must_reach(uri: str, config: Config) -> None:
    """Raises UserError where a pod could not read `uri`."""
    place = uri.removeprefix("dvc+")
    if config.resources.default.model_cache and place.startswith(f"file://{MODELS}/"):
        return
    if "://" not in place or place.startswith("file://"):
        raise UserError(
            f"{uri}: a folder of this machine, which pods cannot read; push the data to a remote in a bucket "
            "(`dvc remote add --default mine s3://bucket/path`, `dvc push`), or name its URI with --data-uri"
        )
