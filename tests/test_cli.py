import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dualipo import __version__, doctor
from dualipo.cli import cli
from dualipo.config import Config
from dualipo.engine import Outcome
from dualipo.errors import UserError
from dualipo.steps import GRAPH, Summary

HEAVY = ["torch", "mlflow", "transformers", "diffusers", "great_expectations", "pandas", "numpy", "dvc"]


def invoke(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=True)
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def shell(*arguments, cwd):
    command = [sys.executable, "-c", "from dualipo.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", [["--help"], ["align", "--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys, dualipo.cli\n"
        f"try: dualipo.cli.cli.main({arguments!r}, 'dualipo')\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout and ended.stderr.strip() == "[]"


def test_the_overview_lists_every_command_in_full():
    text = invoke("--help").output
    for name in [*GRAPH, "run", "doctor", "lineage", "verify", "prompt-pool", "world", "reward"]:
        assert f"\n  {name} " in text
    assert "..." not in text.partition("Commands:")[2]
    assert invoke("--version").output == f"dualipo, version {__version__}\n"


@pytest.mark.parametrize("step", GRAPH.values(), ids=GRAPH)
def test_a_steps_help_names_its_ports_and_parameters(step):
    text = invoke(step.name, "--help").output
    for port in [*step.inputs, *step.outputs]:
        assert f"--{port.replace('_', '-')} PATH" in text
    assert ("--round NAME" in text) is (step.scope == "round")
    sections = Config().model_dump(include=set(step.sections))
    for section, values in sections.items():
        keys = [key for key in values if key != "training"]
        keys += [f"training.{key}" for key in values.get("training", {})]
        assert all(f"\n  {section}.{key} " in text or f"\n  {section}.{key}\n" in text for key in keys)


@pytest.fixture
def calls(monkeypatch):
    """What the command line asks of the engine."""
    asked = []

    def execute(step, config, root, round_name, bindings, force, data):
        asked.append((step.name, config, root, round_name, bindings, force, data))
        return Outcome(step.name, round_name or "base", "f", False, {}, {}, Summary(metrics={"loss": 0.25}), 1.5)

    def run(config, root, until, data, force):
        asked.append((config, root, until, data, force))
        return [Outcome("report", "run", "f", False, {"page": Path("report/index.html")}, {}, Summary(), 1.5)]

    monkeypatch.setattr("dualipo.engine.execute", execute)
    monkeypatch.setattr("dualipo.engine.run", run)
    return asked


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("align: {beta: 700}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_step_command_hands_everything_to_the_engine(folder, calls):
    (folder / "preset.yaml").write_text("align: {steps: 7}\nprompts: {count: 5}\n")
    result = invoke("align", "--round", 2, "--params", "preset.yaml", "-S", "prompts.count=6", "--preferences", "mine")
    assert result.output == "round 2, align: 1.5 s (loss 0.25)\n"
    [(name, config, root, round_name, bindings, force, data)] = calls
    assert (name, str(root), round_name, force, data) == ("align", ".", "2", False, Path("data"))
    assert bindings == {"preferences": Path("mine")}
    assert (config.align.beta, config.align.steps, config.prompts.count) == (700, 7, 6)


def test_run_takes_a_data_folder_from_where_the_person_is(folder, calls):
    (folder / "experiment").mkdir()
    (folder / "experiment/params.yaml").write_text("{}")
    result = invoke("run", "--folder", "experiment", "--data", "mine", "--until", "2", "--force")
    assert result.output == f"page: {folder / 'report/index.html'}\n"
    [(config, root, until, data, force)] = calls
    assert (config, root, until, data, force) == (Config(), Path("experiment"), "2", folder / "mine", True)


def test_a_preset_alone_is_enough_where_there_are_no_parameters(tmp_path, calls, repository, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"params\.yaml: no such parameter file"):
        invoke("run")
    invoke("run", "--params", repository / "params/smoke.yaml")
    assert list(calls[0][0].rounds) == ["1", "2"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("align.beta", "write KEY=VALUE"),
        ("align.beta=[1", "not valid YAML"),
        ("align.betta=1", "unknown key 'align.betta'; known here: loss, beta"),
        ("align.beta=.nan", "align.beta: "),
        ("align.beta=-1", "align.beta: "),
        ("align.beta.x=1", "'beta' holds a value, not a section"),
    ],
)
def test_unusable_overrides_are_refused(folder, calls, override, sentence):
    with pytest.raises(UserError, match=sentence):
        invoke("run", "-S", override)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["align", "--round", "1"], "error: runs/1/preferences: missing, round 1, align needs it; run `dualipo prefer"),
        (["start"], "error: data/generator: missing, start needs it; fetch the data with `dvc pull data.dvc`"),
        (["start", "-S", "align.x=1"], "error: params.yaml: unknown key 'align.x'"),
        (["prompt-pool", "--count", "1", "--space", "nowhere", "--out", "x"], "error: nowhere"),
        (["lineage", "critic@champion"], "error: small-world-critic: no such model"),
    ],
)
def test_bad_input_is_one_line_and_status_2(folder, arguments, sentence):
    ended = shell(*arguments, cwd=folder)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith(sentence) and ended.stderr.count("\n") == 1


def test_unknown_options_are_status_2_too(folder):
    ended = shell("align", "--rond", "1", cwd=folder)
    assert ended.returncode == 2 and "No such option" in ended.stderr and "Traceback" not in ended.stderr


def test_a_prompt_pool_is_written(folder):
    assert invoke("prompt-pool", "--count", 20, "--out", "pool.jsonl", "--seed", 3).output == "20 prompts: pool.jsonl\n"
    rows = [json.loads(line) for line in (folder / "pool.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == 20 and all(row["text"] for row in rows)


def test_lineage_and_verify_print_and_say_by_their_status(folder, monkeypatch):
    from dualipo.lineage import Check

    checks = [Check("disk", "runs/3/critic", "abc", "changed", "now def", broken=True)]
    monkeypatch.setattr("dualipo.lineage.verify", lambda root, config, reference: checks)
    result = invoke("verify", "critic")
    assert result.exit_code == 1 and "runs/3/critic" in result.output
    checks[0] = Check("disk", "runs/3/critic", "abc", "holds")
    assert invoke("verify", "critic").exit_code == 0
    monkeypatch.setattr("dualipo.lineage.lineage", lambda root, config, reference: (config.align.beta, reference))
    monkeypatch.setattr("dualipo.lineage.format_lineage", repr)
    assert invoke("lineage", "critic/1").output == "(700.0, 'critic/1')\n"


def test_the_world_is_imported_when_asked_for(monkeypatch):
    @click.group()
    def world():
        pass

    @world.command()
    def shrink():
        """Makes it smaller."""
        click.echo("smaller")

    module = type(sys)("dualipo.world.cli")
    module.world = world
    monkeypatch.setitem(sys.modules, "dualipo.world.cli", module)
    assert "Makes it smaller." in invoke("world", "--help").output
    assert invoke("world", "shrink").output == "smaller\n"


# ---- doctor


def states(folder, data="data"):
    findings = doctor.examine(folder, Path(data), lambda: Config())
    return {finding.name: finding for finding in findings}


def test_the_doctor_says_what_is_missing_and_what_to_do(folder, monkeypatch):
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "data: without benchmark.jsonl, critic, critic_reference, generator, real, seed, test" in result.output
    assert "-> fetch it with `dvc pull data.dvc`" in result.output and "1 to mend before a run" in result.output
    for step in GRAPH.values():
        for port in step.inputs.values():
            if "{data}" in port.path:
                (folder / port.bind("data", "", "")).mkdir(parents=True, exist_ok=True)
    result = invoke("doctor")
    assert result.exit_code == 0 and "ready to run" in result.output
    (folder / "params.yaml").write_text("align: {betta: 1}")
    assert invoke("doctor").exit_code == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("DUALIPO_THREADS", "0")
    found = states(folder)
    assert found["MLflow"].state == "missing" and "127.0.0.1:9" in found["MLflow"].found
    assert found["threads"].state == "missing"


def test_the_doctor_finds_missing_and_old_packages(folder, monkeypatch):
    wanted = ["torch>=99", "no-such-thing>=1", 'absent-too; extra == "cluster"', 'never; python_version < "3"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
    found = states(folder)
    assert found["torch"].state == "missing" and "pip install 'torch>=99'" in found["torch"].advice
    assert found["no-such-thing"].found == "not installed"
    assert found["[cluster]"].state == "optional" and "absent-too" in found["[cluster]"].found
    assert "never" not in found
