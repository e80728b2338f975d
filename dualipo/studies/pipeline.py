"""A study as a DVC pipeline: a stage for each variant and seed, and one that judges the claims.

`studies/<name>/` holds study.yaml (the parameters of every run, resolved), dvc.yaml, and the results; runs lie in
`studies/runs/seed-<n>/<variant>/`, where all studies find them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dualipo.artifacts import atomic, read_json, write_json
from dualipo.config import Config, parse_config
from dualipo.errors import UserError
from dualipo.studies.catalogue import Catalogue, Study
from dualipo.studies.measuring import Measured, measure

DEFINITION, PIPELINE, MEASURED = "study.yaml", "dvc.yaml", "measured"


def write_pipeline(
    name: str, study: Study, catalogue: Catalogue, base: Config, seeds: Sequence[int], data: Path, folder: Path
) -> None:
    """Writes `folder`/study.yaml and dvc.yaml, each only where it changed.

    Raises UserError where a variant's parameters don't fit the experiment.
    """
    runs: dict[str, Any] = {}
    for variant in study.variants:
        chosen = catalogue.variants[variant].model_copy(update={"rounds": catalogue.rounds(study, variant)})
        for seed in seeds:
            config = chosen.config(base, seed).model_dump(mode="json")
            # where it runs changes nothing of what it makes.
            runs[run_name(variant, seed)] = {
                key: config[key] for key in config if key not in ("resources", "train_job")
            }
    where = Path(os.path.relpath(data.absolute(), folder.absolute())).as_posix()
    stages: dict[str, Any] = {
        f"run-{run}": {
            "cmd": f"dualipo study measure {run} --data {where}",
            "deps": [where],
            "params": [{DEFINITION: [f"runs.{run}"]}],
            "outs": [f"{MEASURED}/{run}.json"],
        }
        for run in runs
    }
    stages["table"] = {
        "cmd": f"dualipo study judge {name}",
        "deps": [f"{MEASURED}/{run}.json" for run in runs],
        "outs": [{"table.md": {"cache": False}}],
        "metrics": [{"results.json": {"cache": False}}],
    }
    _write_yaml(folder / DEFINITION, {"study": name, "runs": runs})
    _write_yaml(folder / PIPELINE, {"stages": stages})


def run_name(variant: str, seed: int) -> str:
    return f"{variant}-{seed}"


def read_runs(folder: Path) -> dict[str, Config]:
    """The parameters of every run of a study. Raises UserError where the folder has no study.yaml."""
    path = folder / DEFINITION
    if not path.is_file():
        raise UserError(f"{path}: missing; `dualipo study NAME` writes it")
    runs = yaml.safe_load(path.read_text(encoding="utf-8"))["runs"]
    return {run: parse_config(content, f"{path}, {run}") for run, content in runs.items()}


def measure_run(folder: Path, run: str, data: Path) -> Measured:
    """Runs one variant with one seed, and writes its results beside the study's."""
    runs = read_runs(folder)
    if run not in runs:
        raise UserError(f"{folder / DEFINITION}: no run {run!r}; there are {', '.join(runs)}")
    config, variant = runs[run], run.rpartition("-")[0]
    shared = folder.absolute().parent / "runs" / f"seed-{config.experiment.seed}"
    lenders = sorted(path for path in shared.glob("*") if path.name != variant) if shared.is_dir() else []
    found = measure(variant, config, shared / variant, data, lenders)
    write_json(folder / MEASURED / f"{run}.json", found.model_dump(mode="json"))
    return found


def read_measured(folder: Path, name: str) -> dict[str, dict[int, Measured]]:
    """Results of the study's runs, by variant and seed. Raises UserError where one is missing."""
    found: dict[str, dict[int, Measured]] = {}
    for run in read_runs(folder):
        path = folder / MEASURED / f"{run}.json"
        if not path.is_file():
            raise UserError(f"{path}: not measured yet; run `dualipo study {name}`")
        one = Measured.model_validate(read_json(path))
        found.setdefault(one.variant, {})[one.seed] = one
    return found


def reproduce(folder: Path) -> None:
    """`dvc repro` of the study. Raises UserError where there is no DVC repository, or a stage failed."""
    top = next((p for p in [folder.absolute(), *folder.absolute().parents] if (p / ".dvc").is_dir()), None)
    if top is None:
        raise UserError(f"{folder}: not inside a DVC repository; run `git init` and `dvc init`, or add --no-dvc")
    # the stages' own `dualipo` is this one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", PIPELINE], cwd=folder, env={**os.environ, "PATH": path}, check=False
    )
    if done.returncode:
        raise UserError(f"{folder}: `dvc repro` failed as printed above; run the study again, it goes on where it was")


def _write_yaml(path: Path, content: Any) -> None:
    text = yaml.safe_dump(content, sort_keys=False, width=120)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
