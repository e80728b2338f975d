"""The command line: one command for each step of the graph, `run`, and what helps a person around them.

Nothing heavy is imported before a command needs it, so that help comes at once.
"""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from dualipo import __version__
from dualipo.errors import Terminated, UserError
from dualipo.steps import GRAPH, Port, Step

if TYPE_CHECKING:
    from dualipo.config import Config
    from dualipo.engine import Outcome


Decorated = TypeVar("Decorated", bound=Callable[..., Any] | click.Command)
"""A command, or the function that becomes one."""


class _Overview(click.Group):
    """Lists the commands in the order in which they were added: that of the experiment."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class _Lazy(click.Group):
    """A group that is imported when one of its commands is asked for. `target` is `module:attribute`."""

    def __init__(self, name: str, target: str, help: str):
        super().__init__(name, help=help)
        self.target = target

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        # the group itself, with options of its own where it has some.
        return self._group().make_context(*arguments, **more)

    def _group(self) -> click.Group:
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self._group().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self._group().get_command(ctx, cmd_name)


@click.group(cls=_Overview, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dualipo")
def cli() -> None:
    """Improves a text-to-video generator and its critic in turn (Dual-IPO), as a tracked, gated experiment.

    `dualipo run` does everything; each step is a command of its own too.
    """


# ---- options that several commands share


def folder_option(command: Decorated) -> Decorated:
    return click.option(
        "--folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=".",
        show_default=True,
        help="The experiment's folder: params.yaml, runs/, mlflow.db.",
    )(command)


def data_option(command: Decorated) -> Decorated:
    return click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of base models, human labels and real clips.  [default: data in the experiment's folder]",
    )(command)


def parameter_options(command: Decorated) -> Decorated:
    command = click.option(
        "-S",
        "--set-param",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Sets one parameter, e.g. -S align.beta=500. Repeatable.",
    )(command)
    return click.option(
        "--params",
        type=click.Path(path_type=Path),
        multiple=True,
        help="A preset laid over the experiment's params.yaml, e.g. params/smoke.yaml. Repeatable.",
    )(command)


def _force(command: Decorated) -> Decorated:
    return click.option("--force", is_flag=True, help="Does it anew, changed or not.")(command)


def load_parameters(folder: Path, params: tuple[Path, ...], overrides: tuple[str, ...]) -> Config:
    import yaml

    from dualipo.config import load_config

    values: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise UserError(f"-S {text}: write KEY=VALUE, e.g. -S align.beta=500")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"-S {text}: the value is not valid YAML; quote it, e.g. -S 'prompts.count=12'") from None
    own = folder / "params.yaml"
    files = [own, *params] if own.is_file() or not params else [*params]
    return load_config(*files, overrides=values)


def data_path(data: Path | None) -> Path:
    """A folder named on the command line is relative to where the person is."""
    return Path("data") if data is None else data.absolute()


# ---- steps


class _StepCommand(click.Command):
    """A step; its help ends with the parameters that change what it makes."""

    def __init__(self, step: Step):
        self.step = step
        option = click.Option(["--round", "round_name"], required=True, metavar="NAME", help="Round, e.g. 1.")
        ports = [_port_option(n, p, "Input") for n, p in step.inputs.items()]
        ports += [_port_option(n, p, "Output") for n, p in step.outputs.items()]
        super().__init__(
            step.name,
            help=step.about,
            callback=self._run,
            params=[*([option] if step.scope == "round" else []), *ports],
        )
        for decorate in (_force, folder_option, parameter_options, data_option):
            decorate(self)

    def _run(
        self,
        data: Path | None,
        params: tuple[Path, ...],
        overrides: tuple[str, ...],
        folder: Path,
        force: bool,
        round_name: str | None = None,
        **ports: Path | None,
    ) -> None:
        self._execute(load_parameters(folder, params, overrides), data, folder, force, round_name, ports)

    def _execute(
        self,
        config: Config,
        data: Path | None,
        folder: Path,
        force: bool,
        round_name: str | None,
        ports: Mapping[str, Path | None],
        **more: Any,
    ) -> Outcome:
        from dualipo.engine import execute

        bindings = {name: path for name, path in ports.items() if path is not None}
        outcome = execute(self.step, config, folder, round_name, bindings, force=force, data=data_path(data), **more)
        click.echo(outcome)
        return outcome

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.step.sections:
            return
        from dualipo.config import Config

        sections = Config().model_dump(mode="json", include=set(self.step.sections))
        rows = []
        for name in self.step.sections:
            values = dict(sections[name])
            nested = values.pop("training", {})
            rows += [(f"{name}.{key}", f"[default: {value}]") for key, value in values.items()]
            rows += [(f"{name}.training.{key}", f"[default: {value}]") for key, value in nested.items()]
        with formatter.section("Parameters it reads (params.yaml, or -S)"):
            formatter.write_dl(rows)


class _BenchmarkCommand(_StepCommand):
    """A step that runs the benchmark: shorthands of one suite, and what goes in and out of it besides."""

    def __init__(self, step: Step):
        super().__init__(step)
        self.callback = self._run_benchmark
        archive = click.Path(dir_okay=False, path_type=Path)
        self.params += [
            click.Option(["--suite"], metavar="NAME", help="Short for -S evaluate.suite=NAME."),
            click.Option(
                ["--import", "given"],
                type=click.Path(exists=True, path_type=Path),
                help="VBench's results of these clips, computed elsewhere: a JSON file, a folder or a zip of them.",
            ),
            click.Option(["--archive"], type=archive, help="Also writes a zip for VBench's leaderboard."),
        ]

    def _run_benchmark(
        self,
        data: Path | None,
        params: tuple[Path, ...],
        overrides: tuple[str, ...],
        folder: Path,
        force: bool,
        round_name: str | None = None,
        suite: str | None = None,
        given: Path | None = None,
        archive: Path | None = None,
        **ports: Path | None,
    ) -> None:
        config = load_parameters(folder, params, (*overrides, *([f"evaluate.suite={suite}"] if suite else [])))
        if (given or archive) and config.evaluate.suite != "vbench":
            raise UserError("--import and --archive are of VBench's results; add --suite vbench")
        outcome = self._execute(config, data, folder, force, round_name, ports, given=given)
        if given and outcome.skipped:
            raise UserError("--import: the step is done already, nothing was imported; add --force to do it anew")
        if archive:
            from dualipo.artifacts import read_json
            from dualipo.evaluation.vbench.suite import write_archive

            write_archive(outcome.outputs["benchmark_clips"], read_json(outcome.outputs["scores"]), archive)
            click.echo(f"archive: {archive}")


def _port_option(name: str, port: Port, direction: str) -> click.Option:
    where = port.bind("DATA", "ROUND", "PREV")
    path = click.Path(path_type=Path)
    return click.Option([f"--{name.replace('_', '-')}", name], type=path, help=f"{direction}.  [default: {where}]")


# ---- the whole experiment


@cli.command("run")
@data_option
@parameter_options
@folder_option
@_force
@click.option("--until", metavar="ROUND[/STEP]", help="Stops after that round, or that step of it.")
def run_command(
    data: Path | None,
    params: tuple[Path, ...],
    overrides: tuple[str, ...],
    folder: Path,
    force: bool,
    until: str | None,
) -> None:
    """Runs the whole experiment, all rounds and the report.

    What is up to date is skipped; a run that was stopped goes on where it was.
    """
    config = load_parameters(folder, params, overrides)
    from dualipo.engine import run

    outcomes = run(config, folder, until, data_path(data), force)
    for name, path in outcomes[-1].outputs.items():
        click.echo(f"{name}: {path.absolute()}")


for _step in GRAPH.values():
    cli.add_command((_BenchmarkCommand if "benchmark_clips" in _step.outputs else _StepCommand)(_step))


# ---- around it


@cli.command()
@parameter_options
@folder_option
def fetch(params: tuple[Path, ...], overrides: tuple[str, ...], folder: Path) -> None:
    """Fetches the hub's models that the parameters name, into hub/ of the experiment's folder.

    `dualipo run` does so by itself; `dvc repro` wants them there.
    """
    config = load_parameters(folder, params, overrides)
    from dualipo.hub import fetch_models

    for path in fetch_models(config.models, folder):
        click.echo(path)


@cli.command()
@data_option
@parameter_options
@folder_option
def doctor(data: Path | None, params: tuple[Path, ...], overrides: tuple[str, ...], folder: Path) -> None:
    """Says what is installed, what is missing and what to do about it. Exits with 1 where something is missing."""
    from dualipo.doctor import examine, format_findings

    findings = examine(folder, data_path(data), lambda: load_parameters(folder, params, overrides))
    click.echo(format_findings(findings))
    if any(finding.state == "missing" for finding in findings):
        raise click.exceptions.Exit(1)


@cli.command()
@click.argument("reference")
@parameter_options
@folder_option
def lineage(reference: str, params: tuple[Path, ...], overrides: tuple[str, ...], folder: Path) -> None:
    """Prints everything that went into a registered model, back to the human labels.

    REFERENCE is NAME@ALIAS, NAME/VERSION, or `critic` or `generator` for this experiment's champion.
    """
    config = load_parameters(folder, params, overrides)
    from dualipo.lineage import format_lineage, lineage

    click.echo(format_lineage(lineage(folder, config, reference)))


@cli.command()
@click.argument("reference")
@parameter_options
@folder_option
def verify(reference: str, params: tuple[Path, ...], overrides: tuple[str, ...], folder: Path) -> None:
    """Recomputes every hash in a registered model's lineage. Exits with 1 where a link is broken.

    REFERENCE is NAME@ALIAS, NAME/VERSION, or `critic` or `generator` for this experiment's champion.
    """
    config = load_parameters(folder, params, overrides)
    from dualipo.lineage import broken, format_checks, verify

    checks = verify(folder, config, reference)
    click.echo(format_checks(checks))
    if broken(checks):
        raise click.exceptions.Exit(1)


@cli.command("power")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--difference",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Points that shall be seen.",
)
@click.option(
    "--power",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.8,
    show_default=True,
    help="Share of cases in which such a difference shall be told from 0.",
)
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def power_command(before: Path, after: Path, difference: float, power: float, as_json: bool) -> None:
    """Compares two versions prompt by prompt, and says how many prompts it takes to see a difference.

    BEFORE and AFTER are scores.json of one benchmark, e.g. runs/base/scores.json and runs/1/scores.json.
    """
    from dualipo.evaluation.power import as_rows, compare, format_comparison, read_scores

    first, second = read_scores(before), read_scores(after)
    rows = compare(first, second, difference, power)
    if as_json:
        import json

        click.echo(json.dumps(as_rows(rows), indent=2))
    else:
        click.echo(format_comparison(rows, first["suite"], difference, power))


@cli.command("benchmark-critic")
@click.argument("critic", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--set",
    "sets",
    multiple=True,
    required=True,
    metavar="KIND=PATH",
    help="own=data/test, videogen_rewardbench=TABLE or genai_bench=TABLE. Repeatable.",
)
@click.option(
    "--clips",
    multiple=True,
    metavar="KIND=FOLDER",
    help="Folder that a table's clips are relative to.  [default: the table's own, or videos/ in it]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--paths", default="1,3,5", show_default=True, metavar="K,...", help="Numbers of reasoning paths that vote, rising."
)
@click.option("--prompts", type=click.IntRange(min=2), help="Takes that many prompts of each set, evenly spread.")
@click.option("--max-broken", default="0", show_default=True, metavar="N|SHARE", help="Broken items to leave out.")
@click.option("--log", is_flag=True, help="Logs the record to MLflow, bound to the critic's version there.")
@parameter_options
@folder_option
def benchmark_critic_command(
    critic: Path,
    sets: tuple[str, ...],
    clips: tuple[str, ...],
    out: Path,
    paths: str,
    prompts: int | None,
    max_broken: str,
    log: bool,
    params: tuple[Path, ...],
    overrides: tuple[str, ...],
    folder: Path,
) -> None:
    """Puts a critic on the record: accuracy with and without ties, order, self-consistency, calibration.

    CRITIC is the folder of a generative critic or a VideoReward, or a CSV of scores made elsewhere.
    """
    config = load_parameters(folder, params, overrides)
    from dualipo.evaluation.critics.record import benchmark_critic

    benchmark_critic(config, critic, sets, clips, out, paths, prompts, max_broken, folder if log else None)
    click.echo((out / "record.md").read_text(encoding="utf-8"), nl=False)
    click.echo(f"written: {out}")


@cli.command("compare")
@click.argument("references", nargs=-1, required=True, metavar="REF REF [REF ...]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="compare.html",
    show_default=True,
    help="The page to write.",
)
@click.option("--open", "show", is_flag=True, help="Shows it in the browser.")
@click.option(
    "--prompts",
    type=click.IntRange(min=1),
    help="Samples clips of so many held-out prompts anew, from each version's checkpoint.",
)
@click.option(
    "--max-clips",
    type=click.IntRange(min=1),
    help="Clips of each version on the page.  [default: 180, or 60 of clips of 128 pixels and more]",
)
@data_option
@parameter_options
@folder_option
def compare_command(
    references: tuple[str, ...],
    out: Path,
    show: bool,
    prompts: int | None,
    max_clips: int | None,
    data: Path | None,
    params: tuple[Path, ...],
    overrides: tuple[str, ...],
    folder: Path,
) -> None:
    """Writes a page of two or more generators side by side: the same prompts and seeds, in step, scores, provenance.

    REF is `base`, a round's name for its candidate, `generator` for the champion, NAME@ALIAS or NAME/VERSION.
    Differences are to the first.
    """
    config = load_parameters(folder, params, overrides)
    from dualipo.compare.command import compare

    benchmark = folder / data_path(data) / "benchmark.jsonl"
    for line in compare(folder, config, references, benchmark, out, prompts, max_clips):
        click.echo(line)
    if show:
        import webbrowser

        webbrowser.open(out.absolute().as_uri())


@cli.command()
@click.option("--count", type=click.IntRange(min=1), required=True, help="Prompts to draw.")
@click.option(
    "--space", default="small_world", show_default=True, help="A shipped prompt space, or a YAML file of one."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON lines file to write.")
def prompt_pool(count: int, space: str, seed: int, out: Path) -> None:
    """Writes a pool of prompts drawn from a structured space."""
    from dualipo.prompts import load_space, write_pool

    written = write_pool(load_space(space), count, seed, out)
    click.echo(f"{written} prompts: {out}")


@cli.command("plan")
@click.argument("preset", type=click.Path(path_type=Path))
@click.option("--gpu", type=click.Choice(["h100", "h200", "a100", "l40s"]), default="h100", show_default=True)
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--generator", help="A known one or a diffusers folder.  [default: the preset's experiment.name]")
@click.option("--size", metavar="FxHxW", help="Frames, height and width of a clip.  [default: the generator's own]")
@click.option(
    "--critic", default="qwen2-vl-7b", show_default=True, help="qwen2-vl-2b, qwen2-vl-7b, vila-13b, vila-40b."
)
@click.option(
    "--lora",
    type=click.IntRange(min=1),
    help="Rank of the generator's adapter.  [default: the preset's align.lora]",
)
@click.option(
    "--zero", type=click.Choice(["0", "2", "3"]), help="DeepSpeed's stage.  [default: the preset's align.training.zero]"
)
@click.option(
    "--checkpointing/--no-checkpointing",
    default=None,
    help="Gradient checkpointing.  [default: the preset's align.training.gradient_checkpointing]",
)
@click.option(
    "--utilisation",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Share of the GPU's peak rate that is reached.",
)
@click.option("-S", "--set-param", "overrides", multiple=True, metavar="KEY=VALUE", help="Sets one parameter.")
@folder_option
def plan_command(preset: Path, folder: Path, overrides: tuple[str, ...], gpu: str, **options: Any) -> None:
    """Prints what a round would cost: GPU-hours, memory and storage, and every assumption behind them.

    PRESET is a parameter file, or the name of one in params/. Exits with 1 where a step does not fit into a GPU.
    """
    named = folder / "params" / f"{preset}.yaml"
    config = load_parameters(folder, (named if named.is_file() and not preset.is_file() else preset,), overrides)
    from dualipo.plan import GPUS, Setup, format_plan, plan
    from dualipo.sizes import CRITICS, open_backbone, resized

    if options["critic"] not in CRITICS:
        raise UserError(f"--critic {options['critic']}: no known critic; use {', '.join(CRITICS)}")
    backbone = resized(open_backbone(options["generator"] or config.experiment.name), options["size"])
    training, asked = config.align.training, options["checkpointing"]
    setup = Setup(
        gpus=options["gpus"],
        utilisation=options["utilisation"],
        zero=training.zero if options["zero"] is None else int(options["zero"]),
        lora=options["lora"] or config.align.lora,
        checkpointing=training.gradient_checkpointing if asked is None else asked,
    )
    critic = CRITICS[options["critic"]]
    found = plan(
        config, backbone, critic, GPUS[gpu], setup, f"a round of {preset}, {backbone.name} with {critic.name},"
    )
    click.echo(format_plan(found))
    if found.too_big:
        raise click.exceptions.Exit(1)


cli.add_command(
    _Lazy("world", "dualipo.world.cli:world", "The small world: makes its data and trains its base models again.")
)
cli.add_command(
    _Lazy("reward", "dualipo.critic.videoreward.cli:reward", "VideoReward: trains one and measures reward models.")
)

cli.add_command(
    _Lazy("study", "dualipo.studies.cli:study", "Repeats the papers' comparisons over several seeds, and judges them.")
)

cli.add_command(
    _Lazy(
        "import",
        "dualipo.formats.cli:imports",
        "Brings labels and clips of other formats into a data folder: VideoAlign, VideoGen-RewardBench, GenAI-Bench.",
    )
)

cli.add_command(
    _Lazy("annotate", "dualipo.annotation.cli:annotate", "Opens a page on which people rate and compare clips.")
)

cli.add_command(
    _Lazy(
        "pipeline",
        "dualipo.pipeline.cli:pipeline",
        "The experiment as a Kubeflow pipeline: compile, run here, submit, follow.",
    )
)


@cli.command("pull")
@click.argument("run_id")
@parameter_options
@folder_option
@click.option("--take-params", is_flag=True, help="Writes the run's parameters to params.yaml first.")
def pull_command(
    run_id: str, params: tuple[Path, ...], overrides: tuple[str, ...], folder: Path, take_params: bool
) -> None:
    """Brings a pipeline run's artifacts to where `dualipo run` puts them, and tells DVC that they are done.

    RUN_ID is what `dualipo pipeline submit` printed. MLflow is asked where each artifact lies.
    """
    config = load_parameters(folder, params, overrides)
    from dualipo.pipeline.pull import pull

    fetched, known = pull(folder, config, run_id, take_params)
    click.echo(f"{fetched} of {known} artifacts fetched, the others were here")


cli.add_command(_Lazy("cluster", "dualipo.cluster.cli:cluster", "Looks at a cluster, and at the manifests for one."))

importlib.import_module("dualipo.promotion_cli")  # adds its commands, for which it needs this module

for _command in cli.commands.values():
    # click cuts a long help short in the overview, in the middle of a sentence.
    _command.short_help = (_command.help or "").partition(".")[0].replace("\n", " ") + "."


# ---- the door


def _on_terminate(number: int, frame: Any) -> NoReturn:
    raise Terminated


def main() -> None:
    """Entry point. Exit status: 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        result = cli.main(prog_name="dualipo", standalone_mode=False)
        status = result if isinstance(result, int) else 0
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        status = 2
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        command = shlex.join(["dualipo", *sys.argv[1:]])
        terminated = next((e for e in (error, error.__cause__) if isinstance(e, Terminated)), None)
        if terminated is not None and str(terminated):
            click.echo(str(terminated), err=True)
        click.echo(f"stopped; what is finished is kept. To go on where it was: {command}", err=True)
        status = 128 + (signal.SIGINT if terminated is None else signal.SIGTERM)
    sys.exit(status)
