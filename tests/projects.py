"""Experiments' folders: what a run left there, and folders that are git and DVC repositories."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dualipo.artifacts import digest
from dualipo.config import Config
from dualipo.tracking import Tracker

HELD = ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
"""What a repository needs of this one, besides params.yaml and data."""


@dataclass
class Run:
    """A folder in which an experiment was run."""

    folder: Path
    config: Config

    def md5s(self) -> dict[str, str]:
        """Of every output, by its path in the folder: as recorded, and found again on disk."""
        records = [json.loads(path.read_text()) for path in sorted((self.folder / ".dualipo/done").iterdir())]
        made = {entry["path"]: entry["md5"] for record in records for entry in record["outputs"].values()}
        assert made == {path: digest(self.folder / path).md5 for path in made}
        return made

    def versions(self) -> dict[str, list[tuple[str, str]]]:
        tracker = Tracker(self.folder, self.config)
        models = [tracker.model_name(kind) for kind in ("critic", "generator")]
        return {m: [(v.md5, v.tags["status"]) for v in tracker.versions(m)] for m in models}


@dataclass
class Project:
    """A folder that is a git and DVC repository."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    """Over this process's own."""

    def do(self, *command: str) -> str:
        identity = {f"GIT_{who}_{what}": "a@b.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        options = {"cwd": self.folder, "capture_output": True, "text": True, "timeout": 900}
        ended = subprocess.run(command, env=os.environ | identity | self.environment, **options)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def dvc(self, *arguments: str) -> str:
        return self.do(sys.executable, "-m", "dvc", *arguments)

    def commit(self, message: str) -> None:
        self.do("git", "add", ".")
        self.do("git", "commit", "--quiet", "--message", message)


def begin(project: Project, repository: Path) -> Project:
    """Makes the repository of a folder that holds data and params.yaml, with this project's stages."""
    folder = project.folder
    for held in HELD:
        (folder / held).parent.mkdir(exist_ok=True)
        shutil.copy(repository / held, folder / held)
    shutil.copytree(repository / "dualipo/steps", folder / "dualipo/steps")
    project.do("git", "init", "--quiet")
    project.dvc("add", "data", "--quiet")
    project.commit("data")
    return project
