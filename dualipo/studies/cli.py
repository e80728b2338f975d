"""`dualipo study`: one of the papers' tables at the size at hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from dualipo.cli import data_option, data_path, folder_option, load_parameters, parameter_options
from dualipo.errors import UserError
from dualipo.studies.catalogue import find_study, load_catalogue


class _Studies(click.Group):
    """A command for each study of the catalogue, and what their pipelines call."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*load_catalogue().studies, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.commands.get(cmd_name) or self._study(cmd_name)

    def _study(self, name: str) -> click.Command | None:
        found = load_catalogue().studies.get(name)
        if found is None:
            return None
        about = f"{found.about}.\n\nVariants: {', '.join(found.variants)}. The paper: {found.paper}."
        command = click.Command(name, help=about, short_help=f"{found.about}.", callback=partial(_run, name))
        for decorate in (folder_option, parameter_options, data_option, _dvc_option, _seeds_option):
            decorate(command)
        return command


_seeds_option = click.option(
    "--seed",
    "seeds",
    type=click.IntRange(min=0),
    multiple=True,
    default=(0, 1, 2),
    show_default=True,
    help="Repeatable.",
)
_dvc_option = click.option(
    "--dvc/--no-dvc", default=True, show_default=True, help="As stages of a DVC pipeline, or run directly."
)


@click.group(cls=_Studies)
def study() -> None:
    """Repeats one of the papers' comparisons, over several seeds, and says whether its claims hold here.

    A study's pipeline and results lie in studies/NAME; stopped and started again it goes on where it was.
    """


def _run(
    name: str,
    seeds: tuple[int, ...],
    dvc: bool,
    data: Path | None,
    params: tuple[Path, ...],
    overrides: tuple[str, ...],
    folder: Path,
) -> None:
    from dualipo.studies.pipeline import measure_run, reproduce, run_name, write_pipeline

    catalogue = load_catalogue()
    config = load_parameters(folder, params, overrides)
    place, found = folder / "studies" / name, folder / data_path(data)
    if not found.is_dir():
        raise UserError(f"{found}: no data folder; fetch it with `dvc pull data.dvc`, or name one with --data")
    wanted = sorted(set(seeds))
    write_pipeline(name, find_study(catalogue, name), catalogue, config, wanted, found, place)
    if dvc:
        reproduce(place)
    else:
        for run in (run_name(variant, seed) for variant in find_study(catalogue, name).variants for seed in wanted):
            click.echo(run, err=True)
            measure_run(place, run, found)
        _judge(place, name)
    click.echo((place / "table.md").read_text(encoding="utf-8"))


@study.command()
@click.argument("run")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
def measure(run: str, data: Path) -> None:
    """One variant with one seed, in a study's folder: a stage of its pipeline."""
    from dualipo.studies.pipeline import measure_run

    measure_run(Path(), run, data)


@study.command()
@click.argument("name")
def judge(name: str) -> None:
    """Judges a study's claims, in its folder: the last stage of its pipeline."""
    _judge(Path(), name)


def _judge(folder: Path, name: str) -> None:
    from dualipo.studies.pipeline import read_measured
    from dualipo.studies.writing import write_results

    catalogue = load_catalogue()
    write_results(name, find_study(catalogue, name), catalogue, read_measured(folder, name), folder)
