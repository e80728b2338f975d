"""`dualipo pipeline`: the experiment on a Kubeflow Pipelines server, or in KFP's local runner."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dualipo.cli import data_option, data_path, folder_option, load_parameters, parameter_options
from dualipo.errors import UserError

if TYPE_CHECKING:
    from dualipo.cli import Decorated
    from dualipo.pipeline.client import Run
    from pipelines.build import Build


@click.group()
def pipeline() -> None:
    """The experiment as a Kubeflow pipeline: compile, run here, submit, follow."""


def _build_options(command: Decorated) -> Decorated:
    command = click.option("--image", help="Container image, by digest.  [default: resources.image]")(command)
    command = click.option(
        "--data-uri",
        metavar="URI",
        help="Where tasks get the data folder: s3://bucket/folder, dvc+s3://bucket/remote, a path.  "
        "[default: the DVC remote and data.dvc, else --data; of a run here, --data]",
    )(command)
    return data_option(parameter_options(folder_option(command)))


def _server_options(command: Decorated) -> Decorated:
    command = click.option("--namespace", help="Of a multi-user installation.")(command)
    return click.option("--host", required=True, envvar="KF_PIPELINES_ENDPOINT", help="The server's URL.")(command)


def _build(
    folder: Path,
    data: Path | None,
    params: tuple[Path, ...],
    overrides: tuple[str, ...],
    image: str | None,
    data_uri: str | None,
) -> Build:
    chosen = (f"resources.image={image}",) if image else ()
    config = load_parameters(folder, params, (*overrides, *chosen))
    try:
        from pipelines.build import make_build
    except ModuleNotFoundError as error:
        raise UserError(f"{error}; install the extra: pip install 'dualipo[pipelines]'") from error
    return make_build(config, folder, data_uri, data_path(data))


@pipeline.command("compile")
@_build_options
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="build/pipeline.yaml")
def compile_command(output: Path, **options: Any) -> None:
    """Writes the pipeline as a file that a server takes."""
    build = _build(**options)
    from pipelines.compile import compile_pipeline

    click.echo(f"{compile_pipeline(build, output)}: {output.stat().st_size} bytes")
    if build.library:
        click.echo(f"image {build.image} is not named by digest: another library is told from this by its commit alone")


@pipeline.command()
@_build_options
@click.option("--local", "here", is_flag=True, required=True, help="On this machine, in subprocesses.")
def run(here: bool, **options: Any) -> None:
    """Runs the pipeline on this machine, without a server; the artifacts end where `dualipo run` puts them."""
    folder = options["folder"]
    options["data_uri"] = options["data_uri"] or str((folder / data_path(options["data"])).absolute())
    build = _build(**options)
    from pipelines.compile import run_local

    click.echo(f"{len(run_local(build, folder))} artifacts: {(folder / 'runs').absolute()}")


@pipeline.command()
@_build_options
@_server_options
@click.option("--name", help="Of the run.  [default: experiment.name and the seed]")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Kept in the run's description. Repeatable.")
@click.option(
    "--service-account", metavar="NAME", help="Of the run's pods, e.g. dualipo-runner.  [default: the server's]"
)
@click.option("--pipeline-root", metavar="URI", help="Where artifacts go.  [default: the server's]")
@click.option("--wait", is_flag=True, help="Waits until the run ends; exit status 1 where it fails.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait.  [default: as long as it takes]")
def submit(
    host: str,
    namespace: str | None,
    name: str | None,
    tags: tuple[str, ...],
    service_account: str | None,
    pipeline_root: str | None,
    wait: bool,
    timeout: float | None,
    **options: Any,
) -> None:
    """Compiles the pipeline and starts a run of it; prints the run's id."""
    build = _build(**options)
    experiment = build.config.experiment
    from dualipo.pipeline.client import Server
    from pipelines.build import must_reach
    from pipelines.compile import compile_pipeline

    must_reach(build.data, build.config)
    if "MLFLOW_TRACKING_URI" not in (build.config.resources.default.env or {}):
        raise UserError(
            "resources.default.env: MLFLOW_TRACKING_URI is missing, and a pod's own database ends with it; "
            "name a server, e.g. -S resources.default.env.MLFLOW_TRACKING_URI=http://mlflow:5000"
        )
    given = dict(_pair(tag) for tag in tags) | {"commit": build.commit or "unknown", "seed": str(experiment.seed)}
    with tempfile.TemporaryDirectory() as staging:
        file = compile_pipeline(build, Path(staging) / "pipeline.yaml")
        server = Server(host, namespace)
        run_id = server.submit(
            file,
            experiment.name,
            name or f"{experiment.name} {experiment.seed}",
            given,
            pipeline_root,
            service_account,
        )
    click.echo(run_id)
    if wait:
        _end(server.wait(run_id, timeout))


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"--tag {text}: write KEY=VALUE")
    return key, value


def _end(run: Run) -> None:
    click.echo(str(run))
    if not run.succeeded:
        raise click.exceptions.Exit(1)


@pipeline.command()
@click.argument("run_id")
@_server_options
@click.option("--wait", is_flag=True, help="Waits until the run ends.")
def status(run_id: str, host: str, namespace: str | None, wait: bool) -> None:
    """Prints a run's state and its tasks'. Exits with 1 where it has ended without success."""
    from dualipo.pipeline.client import Server

    server = Server(host, namespace)
    run = server.wait(run_id) if wait else server.run(run_id)
    if run.ended:
        _end(run)
    else:
        click.echo(str(run))


@pipeline.command()
@click.argument("run_id")
@_server_options
@click.option("--task", help="Name of a task.  [default: every failed one]")
def logs(run_id: str, host: str, namespace: str | None, task: str | None) -> None:
    """Prints the logs of a run's pods, by the kubeconfig's cluster."""
    from dualipo.pipeline.client import Server

    for name, pod, text in Server(host, namespace).logs(run_id, task, namespace or "kubeflow"):
        click.echo(f"==> {name} ({pod})\n{text}")
