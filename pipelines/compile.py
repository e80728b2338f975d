"""Compiles the pipeline into a file that a KFP server takes, or runs it on this machine."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualipo.errors import UserError
from dualipo.pipeline.index import Entry, bring, read_index
from dualipo.tracking import tracking_uri
from pipelines.build import Build

LOCAL = ".dualipo/pipeline"
MAX_BYTES = 1_500_000
"""The server makes one Kubernetes object of a run, and etcd takes no larger ones (1.5 MiB, some of it KFP's own)."""
MAX_PARAMETER_BYTES = 10_000
"""Of all of a run's parameters: the default of MAX_PARAMETER_BYTES of KFP's API server."""


def compile_pipeline(build: Build, file: Path) -> Path:
    """Raises UserError where the file's name does not end in .yaml, or a server would find the pipeline too large."""
    from kfp.compiler import Compiler

    from pipelines.loop import make_loop

    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file}: a compiled pipeline is YAML; name a file that ends in .yaml")
    pipeline = make_loop(build)
    file.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(pipeline, str(file))
    size = file.stat().st_size
    parameters = sum(len(str(given.default)) for given in pipeline.component_spec.inputs.values())
    if size > MAX_BYTES or parameters > MAX_PARAMETER_BYTES:
        raise UserError(
            f"{file}: {size} bytes with {parameters} bytes of parameters, where a server takes {MAX_BYTES} and "
            f"{MAX_PARAMETER_BYTES}; use fewer rounds or shards, and go on from the last round with a second run"
        )
    return file


def run_local(build: Build, folder: Path) -> list[str]:
    """Runs the whole pipeline on this machine (`run_tasks`) and brings its artifacts into the experiment's folder;
    returns their paths."""
    fetched = bring(folder, run_tasks(build, folder))
    shutil.rmtree(folder / LOCAL)
    return fetched


def run_tasks(build: Build, folder: Path) -> dict[str, Entry]:
    """Runs the pipeline's tasks in subprocesses, with artifacts under `folder`/.dualipo/pipeline; returns their index.

    Images, resources, secrets and caching mean nothing here; retries do. Records go to the folder's own MLflow, or to
    MLFLOW_TRACKING_URI. Raises UserError where a task fails for good.
    """
    from kfp import local

    from pipelines.loop import make_loop

    pipeline, root = make_loop(build), (folder / LOCAL).absolute()
    kept = {"DUALIPO_SCRATCH": str(root / "scratch"), "MLFLOW_TRACKING_URI": tracking_uri(folder), **build.told()}
    with _environment(kept), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that are for clusters
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root / "artifacts"))
        try:
            made = pipeline()
        except RuntimeError as error:
            raise UserError(f"{error} The failed task's own message is above; nothing was brought home.") from error
    page = Entry.of(made.outputs["page"])
    return read_index(Path(made.outputs["runs"].path)) | {page.path: page}


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before: dict[str, Any] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
