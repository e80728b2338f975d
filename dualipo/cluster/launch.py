"""Runs a step's training as a TrainJob: what it reads goes to the scratch claim, what it made comes back from there.

A training's folder on the claim, trainjobs/<name of the job>, holds
  inputs/ outputs/      the step's ports; inputs that the nodes see where they are stay there
  work/                 checkpoints, from which the next attempt goes on
  config.json bindings.json job.json          what dualipo.training.worker is told
  summary.json error.json                     what it says
and is removed once the outputs are back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dualipo.artifacts import copy, read_json, remove
from dualipo.cluster.manifest import MODELS, SCRATCH, Training
from dualipo.cluster.trainjob import train
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.steps import Job, Summary
from dualipo.training.launch import ERROR, SUMMARY, WORKER, tell_worker


def launch(
    step: str,
    config: Config,
    job: Job,
    fingerprint: str,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
) -> Summary:
    """Trains on the nodes that `config.train_job` asks for, writes the outputs, and returns the step's summary.

    The same call goes on where an earlier one was cut: the copies, the job and its checkpoints are found again. Raises
    UserError where the claim is not mounted, the job fails, or a node found something wrong.
    """
    scratch = Path(SCRATCH)
    if not scratch.is_dir():
        raise UserError(
            f"{scratch}: no such folder; mount the claim {config.train_job.scratch_claim} there: with "
            "train_job.launcher kubeflow, files are shared with the nodes through it"
        )
    name = Training(config.experiment.name, job.round, step, fingerprint, ()).name
    folder = scratch / "trainjobs" / name
    summary, error = folder / SUMMARY, folder / ERROR
    made = {port: folder / "outputs" / port / path.name for port, path in outputs.items()}
    if not (summary.is_file() and all(path.exists() for path in made.values())):
        remove(error)
        there = Job(job.round, job.seed, folder / "work")
        for path in (there.work, *(path.parent for path in made.values())):
            path.mkdir(parents=True, exist_ok=True)
        options = tell_worker(folder, config, there, {**_share(folder, inputs, scratch), **made})
        command = ("python", "-m", WORKER, "--step", step, *options)
        try:
            train(Training(config.experiment.name, job.round, step, fingerprint, command), config.train_job)
        except UserError as failure:
            if error.is_file() and (said := read_json(error)).get("kind") == "user":
                raise UserError(said["message"]) from failure
            raise
    for port, path in made.items():
        if not path.exists():
            raise UserError(f"{path}: the job ended well without it; check that its image is of this version")
        copy(path, outputs[port])
    found = Summary.unpacked(read_json(summary))
    remove(folder)
    return found


def _share(folder: Path, inputs: Mapping[str, Path], scratch: Path) -> dict[str, Path]:
    """Where the nodes find the inputs: copies, but for those that they see where they are."""
    shared = {}
    for port, path in inputs.items():
        path = path.absolute()
        if path.is_relative_to(scratch.absolute()) or path.is_relative_to(MODELS):
            shared[port] = path
            continue
        shared[port] = folder / "inputs" / port / path.name
        # the folder's name holds the fingerprint: a copy that is there is a copy of these bytes.
        if not shared[port].exists():
            copy(path, shared[port])
    return shared
