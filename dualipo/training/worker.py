"""One process of a step on several: python -m dualipo.training.worker, started by torchrun or `accelerate launch`.

Every process runs the step; the first one writes its outputs. Exit status: 2 for bad input, 143 after SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from dualipo.artifacts import read_json, write_json
from dualipo.config import Config, Training, parse_config
from dualipo.errors import Terminated, UserError
from dualipo.steps import GRAPH, Job, Summary

STEPS = [step.name for step in GRAPH.values() if step.trains]
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--step", type=click.Choice(STEPS), required=True)
@click.option("--config", "config_file", type=_FILE, required=True, help="All parameters, as JSON.")
@click.option("--bindings", type=_FILE, required=True, help="JSON: the path of every input and output of the step.")
@click.option("--job", "job_file", type=_FILE, required=True, help="JSON: round, seed, work (a folder all share).")
@click.option("--summary", type=_FILE, help="Where to write what the step says of itself, as JSON.")
@click.option("--error", type=_FILE, help="Where to write what stopped it, as JSON.")
def main(
    step: str, config_file: Path, bindings: Path, job_file: Path, summary: Path | None, error: Path | None
) -> None:
    """Runs STEP in this process, one of those that torchrun's environment names."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        config = parse_config(read_json(config_file), str(config_file))
        paths = {name: Path(path) for name, path in read_json(bindings).items()}
        if missing := GRAPH[step].takes ^ set(paths):
            raise UserError(f"{bindings}: {min(missing)} is missing or no port of {step}; name every port and no other")
        job = read_json(job_file)
        found = run(step, config, Job(str(job["round"]), int(job["seed"]), Path(job["work"])), paths)
        if summary is not None and found is not None:
            write_json(summary, found.packed())
    except (UserError, Terminated) as stopped:
        terminated = isinstance(stopped, Terminated)
        message = str(stopped) or "SIGTERM"
        if error is not None and _rank() == 0:
            write_json(error, {"kind": "terminated" if terminated else "user", "message": message})
        click.echo(message if terminated else f"error: {message}", err=True)
        # at once: a process group whose other members have failed would never be left in an orderly way.
        sys.stderr.flush()
        os._exit(128 + signal.SIGTERM if terminated else 2)


def run(step: str, config: Config, job: Job, paths: dict[str, Path]) -> Summary | None:
    """The step in this process; its summary in the first one, None in the others."""
    from dualipo.runtime import prepare_torch, seed_everything
    from dualipo.training.ranks import barrier, world

    settings: Training = getattr(config, step).training
    prepare_torch()
    _join(settings.zero > 0)
    seed_everything(job.seed, torch_too=True)
    job.work.mkdir(parents=True, exist_ok=True)
    summary = GRAPH[step].function(config, job, **paths)
    barrier()
    main_process = world().main
    import torch

    torch.distributed.destroy_process_group()
    return summary if main_process else None


def _join(zero: bool) -> None:
    """Joins the processes of torchrun's environment, by accelerate; on one GPU each, or on the CPU."""
    if "RANK" not in os.environ:
        raise UserError("no RANK in the environment; start this module by torchrun or accelerate launch")
    import torch

    if zero:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    from accelerate import PartialState

    cuda = torch.cuda.is_available()
    PartialState(cpu=not cuda and not zero, backend="nccl" if cuda else "gloo")


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _on_terminate(number: int, frame: Any) -> None:
    raise Terminated("SIGTERM before or after training; what is finished is kept")


if __name__ == "__main__":
    main()
