"""`dualipo annotate`: label clips, export the labels, compare two generators."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from dualipo.cli import folder_option, load_parameters, parameter_options
from dualipo.errors import UserError

_session_argument = click.argument("session", type=click.Path(exists=True, file_okay=False, path_type=Path))
_without = click.option(
    "--without", multiple=True, metavar="NAME", help="An annotator whose answers do not count. Repeatable."
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--clips", type=click.Path(path_type=Path), help="A folder of clips, in any format of `dualipo import`.")
@click.option("--round", "round_name", metavar="NAME", help="That round's candidates, the least certain first.")
@click.option("--study", nargs=2, metavar="NEW OLD", help="Two generators, blind: versions, or folders of their clips.")
@click.option(
    "--session",
    type=click.Path(file_okay=False, path_type=Path),
    help="The session's folder.  [default: in annotation/]",
)
@click.option(
    "--mode",
    type=click.Choice(["rate", "pair", "both"]),
    help="Rate clips, compare pairs, or both.  [default: both; pair in a study]",
)
@click.option(
    "--dimension",
    "dimensions",
    multiple=True,
    type=click.Choice(["semantic", "motion", "faithfulness", "overall"]),
    help="Ask this of pairs. Repeatable.  [default: all four]",
)
@click.option(
    "--select",
    type=click.Choice(["uncertain", "random"]),
    default="uncertain",
    show_default=True,
    help="Of a round: what the critic is least certain of, or anything.",
)
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Clips and pairs, at most.")
@click.option("--annotators", type=click.IntRange(min=1), default=3, show_default=True, help="People an item needs.")
@click.option("--golden", type=click.Path(path_type=Path), help="Labels to take items with a known answer from.")
@click.option(
    "--golden-share",
    type=click.FloatRange(0, 0.5),
    default=0.1,
    show_default=True,
    help="Share of these among the items.",
)
@click.option("--no-reasons", is_flag=True, help="Verdicts without reasons will do; so in a study.")
@click.option("--guideline", type=click.Path(path_type=Path), help="A guideline of one's own (docs/annotate.md).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="[default: any that is free]")
@click.option("--no-browser", is_flag=True, help="Prints the address only.")
@parameter_options
@folder_option
@click.pass_context
def annotate(
    ctx: click.Context,
    /,
    folder: Path,
    session: Path | None,
    host: str,
    port: int,
    no_browser: bool,
    **options: Any,
) -> None:
    """Opens a page on which people rate and compare clips, or goes on with a session.

    Say what to look at with --clips, --round or --study the first time; the same command, or --session, goes on.
    """
    if ctx.invoked_subcommand is not None:
        return
    chosen = [name for name in ("clips", "round_name", "study") if options[name]]
    if len(chosen) > 1 or not (chosen or session):
        raise UserError(
            "say what to look at: one of --clips FOLDER, --round NAME, --study NEW OLD, or a --session to go on"
        )
    place = session or folder / "annotation" / _session_name(options)
    if chosen:
        _make(place, folder, options)
    _serve(place, host, port, no_browser)


@annotate.command()
@_session_argument
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--partial", is_flag=True, help="Also items with fewer annotators than they need.")
@click.option("--majority", is_flag=True, help="One row a question, the majority's, instead of one an annotator.")
@click.option("--with-golden", is_flag=True, help="Also golden items.")
@_without
@click.option("--add", is_flag=True, help="Keep what DEST holds and add to it.")
@click.option("--link", is_flag=True, help="Hard-link clips where the file system can, instead of copying.")
def export(
    session: Path,
    dest: Path,
    partial: bool,
    majority: bool,
    with_golden: bool,
    without: tuple[str, ...],
    add: bool,
    link: bool,
) -> None:
    """Writes the session's labels as a folder that `dualipo run --data` reads as seed/ or test/."""
    from dualipo.annotation.export import Wanted, export_labels
    from dualipo.annotation.session import read_session
    from dualipo.runtime import disk_trouble

    recorded = read_session(session)
    wanted = Wanted(partial, with_golden, majority, tuple(name.casefold() for name in without))
    with disk_trouble("export", dest.parent):
        done = export_labels(recorded, dest, wanted, add, link)
    _tell(recorded, wanted.without)
    rows = ", ".join(f"{count} {stem}" for stem, count in done.rows.items())
    click.echo(f"{dest}: {rows}, {done.clips} clips")


@annotate.command()
@_session_argument
@_without
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file.  [default: report.json in SESSION]"
)
def report(session: Path, without: tuple[str, ...], out: Path | None) -> None:
    """Says how far the session is, how people agree, how they judge golden items, and what a study found."""
    from dualipo.annotation.session import read_session

    _tell(read_session(session), tuple(name.casefold() for name in without), out)


def _tell(recorded: Any, without: tuple[str, ...], out: Path | None = None) -> None:
    from dualipo.annotation.report import format_report, session_report
    from dualipo.artifacts import write_json

    found = session_report(recorded, without)
    write_json(out or recorded.folder / "report.json", found)
    click.echo(format_report(found))


def _session_name(options: dict[str, Any]) -> str:
    """A name of the folder that equal requests share."""
    if options["clips"]:
        name = f"clips-{options['clips'].absolute().name}"
    elif options["round_name"]:
        name = f"round-{options['round_name']}"
    else:
        name = "study-{}-{}".format(*options["study"] or ("", ""))
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")


def _make(place: Path, folder: Path, options: dict[str, Any]) -> None:
    from dualipo.annotation.session import Mode, make_session, requested, settings_of
    from dualipo.annotation.sources import Pool, candidate_pool, clip_pool, golden_pool
    from dualipo.annotation.study import find_side, study_pool

    clips, round_name, study, golden = (options[name] for name in ("clips", "round_name", "study", "golden"))
    mode: Mode = options["mode"] or ("pair" if study else "both")
    if study and mode != "pair":
        raise UserError(f"--mode {mode}: a study compares pairs")
    dimensions = options["dimensions"] or ("semantic", "motion", "faithfulness", "overall")
    request = {
        "source": str(clips or round_name or " ".join(study)),
        "kind": "clips" if clips else "round" if round_name else "study",
        "mode": mode,
        "dimensions": sorted({*dimensions, *(["overall"] if study else [])}),
        "golden": str(golden) if golden else None,
        "reasons": not (options["no_reasons"] or study),
        "guideline": str(options["guideline"]) if options["guideline"] else None,
        **{name: options[name] for name in ("count", "annotators", "golden_share", "seed")},
        **({"select": options["select"]} if round_name else {}),
    }
    if requested(place, request):
        return
    seed, sides = options["seed"], None
    if clips:
        pool, title = clip_pool(clips, seed), f"Clips of {clips.absolute().name}"
    elif round_name:
        runs = folder / "runs" / round_name
        pool = candidate_pool(runs / "candidates", runs / "labels", seed, options["select"] == "uncertain")
        title = f"Candidates of round {round_name}"
    else:
        found = [
            find_side(folder, lambda: load_parameters(folder, options["params"], options["overrides"]), reference)
            for reference in study
        ]
        if found[0][0].md5 == found[1][0].md5:
            raise UserError(f"--study {' '.join(study)}: both are the same; name two generators")
        # the page must not tell which two.
        sides, pool, title = (found[0][0], found[1][0]), study_pool(found[0][1], found[1][1], seed), "Which is better?"
    settings = settings_of(request, title, request["dimensions"], options["guideline"], sides)
    known = golden_pool(golden, seed) if golden else Pool([], [])
    make_session(place, settings, pool, known, mode, options["count"])
    if pool.left_out:
        click.echo(f"left out {pool.left_out} broken items, first {pool.first}", err=True)


def _serve(place: Path, host: str, port: int, no_browser: bool) -> None:
    from dualipo.annotation.server import address, bind, is_local, make_server, new_token
    from dualipo.annotation.session import open_session

    with open_session(place) as session, bind(host, port) as listening:
        token = new_token()
        url = address(listening, host, token)
        golden = sum(item.golden for item in session.items.values())
        click.echo(f"{place}: {len(session.items) - golden} items, {golden} golden ones among them, "
                   f"{session.settings.annotators} people each")  # fmt: skip
        if not is_local(host):
            click.echo(
                "note: others reach this too, unencrypted, at this machine's address in place of the one below; "
                "whoever has the token can answer",
                err=True,
            )
        click.echo(f"open {url}\nCtrl-C ends it; every answer is kept as it is given")
        sys.stdout.flush()
        if not no_browser and (
            sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
        ):
            import webbrowser

            webbrowser.open(url)
        make_server(session, listening, host, token).run(sockets=[listening])
