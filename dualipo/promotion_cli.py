"""`dualipo promote`, `rollback`, `history`, `diff` and `replay`: commands around the registry. docs/promotion.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dualipo.cli import cli, folder_option, load_parameters, parameter_options
from dualipo.errors import UserError

if TYPE_CHECKING:
    from dualipo.cli import Decorated
    from dualipo.tracking import Tracker
    from dualipo.tracking.history import Move
    from dualipo.tracking.promotion import Intent

_MODEL = click.Choice(["critic", "generator", "reward"])


def _who(command: Decorated) -> Decorated:
    for decorate in (
        click.option("--dry-run", is_flag=True, help="Checks everything and changes nothing."),
        click.option("--reason", default="", metavar="WHY", help="Kept in the history, and on the version."),
        click.option("--by", metavar="WHO", help="Who moves it.  [default: the user's name here]"),
    ):
        command = decorate(command)
    return command


@cli.command()
@click.argument("reference", metavar="REF")
@click.option("--approve", is_flag=True, help="A person's word, where promotion.require_approval asks for it.")
@click.option("--override", is_flag=True, help="Promotes what was rejected or rolled back. Needs --by and --reason.")
@_who
@parameter_options
@folder_option
def promote(
    reference: str,
    approve: bool,
    override: bool,
    by: str | None,
    reason: str,
    dry_run: bool,
    params: tuple[Path, ...],
    overrides: tuple[str, ...],
    folder: Path,
) -> None:
    """Makes a version the champion of its model, which bears evidence and whose bytes are what they were.

    REF is NAME/VERSION or NAME@ALIAS; `critic` and `generator` stand for this experiment's own.
    """
    if (approve or override) and not by:
        raise UserError("promote: say who decides: --by WHO")
    from dualipo.tracking import promotion

    tracker = _tracker(folder, params, overrides)
    _tell(promotion.promote(tracker, reference, by or _user(), reason, approve, override, dry_run), dry_run)


@cli.command()
@click.argument("model", type=_MODEL)
@_who
@parameter_options
@folder_option
def rollback(
    model: str,
    by: str | None,
    reason: str,
    dry_run: bool,
    params: tuple[Path, ...],
    overrides: tuple[str, ...],
    folder: Path,
) -> None:
    """Makes the champion before the present one champion again. Repeated, it walks further back."""
    from dualipo.tracking import promotion

    tracker = _tracker(folder, params, overrides)
    _tell(promotion.rollback(tracker, model, by or _user(), reason, dry_run), dry_run)


@cli.command()
@click.argument("model", type=_MODEL, required=False)
@parameter_options
@folder_option
def history(model: str | None, params: tuple[Path, ...], overrides: tuple[str, ...], folder: Path) -> None:
    """Prints every change of champion: when, which, why, by whom, with what evidence."""
    config = load_parameters(folder, params, overrides)
    from dualipo.tracking import Tracker
    from dualipo.tracking.promotion import history
    from dualipo.tracking.spool import waiting

    for line in history(Tracker(folder, config), model):
        click.echo(line)
    if left := len(waiting(folder)):
        click.echo(f"{left} records wait in {folder / '.dualipo/spool'}; `dualipo replay` sends them to MLflow")


@cli.command()
@click.argument("one", metavar="V1")
@click.argument("two", metavar="V2")
@parameter_options
@folder_option
def diff(one: str, two: str, params: tuple[Path, ...], overrides: tuple[str, ...], folder: Path) -> None:
    """Prints what differs between two versions: parameters, code, data, judge, scores, evidence.

    V1 and V2 are NAME/VERSION or NAME@ALIAS; differences of scores are V2 less V1.
    """
    config = load_parameters(folder, params, overrides)
    from dualipo.comparison import compare
    from dualipo.tracking import Tracker

    for line in compare(Tracker(folder, config), one, two, folder):
        click.echo(line)


@cli.command()
@folder_option
def replay(folder: Path) -> None:
    """Sends the records that wait in .dualipo/spool to MLflow, where MLFLOW_TRACKING_URI says now."""
    from dualipo.tracking.spool import replay

    click.echo(f"{replay(folder)} records sent")


def _tracker(folder: Path, params: tuple[Path, ...], overrides: tuple[str, ...]) -> Tracker:
    """What waits goes first: a step's promotion from before must not come after a person's."""
    config = load_parameters(folder, params, overrides)
    from dualipo.tracking import Tracker
    from dualipo.tracking.spool import replay

    replay(folder)
    return Tracker(folder, config)


def _user() -> str:
    import getpass

    return getpass.getuser()


def _tell(done: Intent | Move, dry_run: bool) -> None:
    click.echo(f"would be {done}; nothing was changed" if dry_run else str(done))
