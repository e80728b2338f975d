"""Brings a cluster's run home, so that DVC takes it for its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from dualipo.config import Config, load_config, parse_config
from dualipo.errors import UserError
from dualipo.pipeline.index import bring, parse_index
from dualipo.tracking import Tracker


def pull(folder: Path, config: Config, run_id: str, take_params: bool) -> tuple[int, int]:
    """Fetches the artifacts of a pipeline's run into the experiment's folder, and does `dvc commit` where there is a
    dvc.yaml; returns how many were fetched, of how many. MLflow is asked where they lie.

    Raises UserError where MLflow knows no such run, an artifact cannot be read or is not what the run made, or
    params.yaml differs from what the run was made with and `take_params` does not say to write that there.
    """
    content, parameters = Tracker(folder, config).read_index(run_id)
    index, made_with = parse_index(content), parse_config(parameters, f"parameters of run {run_id}")
    own = folder / "params.yaml"
    if take_params:
        kept = load_config(own).resources if own.is_file() else made_with.resources
        whole = made_with.model_copy(update={"resources": kept}).model_dump(mode="json")
        own.write_text(yaml.safe_dump(whole, sort_keys=False))
    elif load_config(own).digest() != made_with.digest():
        raise UserError(f"{own}: not the parameters that run {run_id} was made with; --take-params writes them there")
    fetched = bring(folder, index)
    if (folder / "dvc.yaml").is_file():
        _commit(folder)
    return len(fetched), len(index)


def _commit(folder: Path) -> None:
    """Records what lies in the folder as made, so that `dvc repro` finds nothing to do."""
    command = [sys.executable, "-m", "dvc", "commit", "--force", "--quiet"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ended.returncode != 0:
        raise UserError(f"dvc commit --force failed in {folder}: {' '.join(ended.stderr.split())}")
