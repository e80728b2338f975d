"""`dualipo cluster`: looks at a cluster, and at the manifests for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dualipo.errors import UserError

_experiment = click.option(
    "--experiment",
    metavar="NAME",
    help="An experiment whose runs must be able to move its champions.  [default: that of params.yaml here]",
)
_overlay = click.argument("overlay", type=click.Path(path_type=Path), metavar="FOLDER")


@click.group("cluster")
def cluster() -> None:
    """Look at a cluster, and at the manifests for one."""


@cluster.command()
@click.option(
    "--as",
    "role",
    type=click.Choice(["submitter", "runner", "promoter"]),
    default="submitter",
    show_default=True,
    help="Whose rights you should have.",
)
@click.option("--gpus", type=click.IntRange(min=0), default=0, show_default=True, help="GPUs that you need.")
@click.option("--mlflow", metavar="URL", help="MLflow's address.  [default: MLFLOW_TRACKING_URI]")
@click.option("--kfp", metavar="URL", help="The address of KFP's API.  [default: the one inside the cluster]")
@click.option("--context", help="Context of the kubeconfig.  [default: the current one]")
@_experiment
def doctor(context: str | None, experiment: str | None, **where: Any) -> None:
    """Says what the cluster has, what it lacks and what to do about it. Exits with 1 where something is missing.

    Changes nothing, and sees what your own account may see.
    """
    from dualipo.cluster.connection import connect
    from dualipo.cluster.doctor import Where, examine
    from dualipo.doctor import format_findings

    findings = examine(connect(context), Where(experiment=_name(experiment), **where))
    click.echo(format_findings(findings))
    if any(finding.state == "missing" for finding in findings):
        raise click.exceptions.Exit(1)


@cluster.command()
@_overlay
@click.option("--digests", is_flag=True, help="Every image must bear a digest too.")
@_experiment
def check(overlay: Path, digests: bool, experiment: str | None) -> None:
    """Holds rendered manifests against the policies of this project. Exits with 1 where one is broken.

    FOLDER is an overlay, e.g. k8s/overlays/local or one of your own.
    """
    from dualipo.cluster.policy import RULES, by_digest, experiment_granted, violations
    from dualipo.cluster.render import render

    objects = render(overlay)
    faults = [*violations(objects), *experiment_granted(objects, _name(experiment))]
    faults += by_digest(objects) if digests else []
    for fault in faults:
        click.echo(fault)
    click.echo(f"{overlay}: {len(objects)} objects, {len(RULES) + 1 + digests} rules, {len(faults)} faults")
    if faults:
        raise click.exceptions.Exit(1)


def _name(experiment: str | None) -> str:
    """The experiment's: as given, else as this folder's params.yaml has it, else the default one."""
    from dualipo.config import Config, load_config

    own = Path("params.yaml")
    return experiment or (load_config(own) if own.is_file() else Config()).experiment.name


@cluster.command()
@_overlay
def costs(overlay: Path) -> None:
    """Prints what manifests ask of a cluster: CPU, memory and storage, as a table.

    FOLDER is an overlay, e.g. k8s/overlays/local.
    """
    from dualipo.cluster.costs import format_costs
    from dualipo.cluster.render import render

    click.echo(format_costs(render(overlay)))


@cluster.command()
@click.argument("folder", type=click.Path(path_type=Path), default="k8s")
@click.option("--registry", metavar="NAME", help="Where your own images lie, e.g. ghcr.io/someone.")
def pin(folder: Path, registry: str | None) -> None:
    """Asks the registries for every image's digest and writes it beside the tag. Needs `crane`.

    FOLDER holds pins/ and images/, by default k8s.
    """
    from dualipo.cluster.pins import pin as write

    if registry and "/" not in registry:
        raise UserError(f"--registry {registry}: name the registry and the path in it, e.g. ghcr.io/someone")
    for line in write(folder, registry):
        click.echo(line)
