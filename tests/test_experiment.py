"""The smoke preset on the shipped models: one real run, and what must equal it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from drivers import BLIND_STEPS
from kfp import dsl, local
from projects import Project, Run, begin
from warm import KILLED, Warm

import components
from dualipo.artifacts import digest
from dualipo.cli import cli
from dualipo.config import Config, load_config, parse_config
from dualipo.engine import WHOLE, plan, run
from dualipo.errors import UserError
from dualipo.pipeline.index import Entry, gather_runs, read_index
from dualipo.records import HumanChoice, HumanRating, Prompt, find_table, read_rows
from dualipo.steps import BASE, GRAPH, HANDED_ON
from dualipo.steps.standing_in import SKIPPED
from dualipo.tracking import Tracker
from dualipo.world.shrink import shrink
from pipelines.build import Build
from pipelines.compile import run_tasks
from pipelines.resources import dress
from pipelines.round import make_round

DRIVERS = Path(__file__).with_name("drivers.py")
DUALIPO = Path(sys.executable).with_name("dualipo")
TRAINING = ("generate", "label", "train_reward", "train_critic", "prefer", "align")
"""Steps whose outputs the models learn from, or are."""


@pytest.fixture(scope="module")
def data(repository, tmp_path_factory) -> Path:
    return shrink(repository / "data", tmp_path_factory.mktemp("small") / "data")


@pytest.fixture(scope="module")
def config(repository) -> Config:
    return load_config(repository / "params.yaml", repository / "params/smoke.yaml")


@pytest.fixture(scope="module")
def new_folder(data, config, tmp_path_factory):
    """Makes an experiment's folder with the smoke preset's parameters and its own copy of the small data."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "experiment"
        shutil.copytree(data, folder / "data")
        (folder / "params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        return folder

    return make


@pytest.fixture(scope="module")
def smoke(data, config, repository, tmp_path_factory) -> Run:
    """`dualipo run` of the preset, as a person calls it. Shared: leave it as it was."""
    folder = tmp_path_factory.mktemp("smoke") / "experiment"
    shutil.copytree(data, folder / "data")
    shutil.copy(repository / "params.yaml", folder)
    command = [DUALIPO, "run", "--params", repository / "params/smoke.yaml"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == f"page: {folder / 'report/index.html'}"
    return Run(folder, config)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    with Warm(tmp_path_factory.mktemp("warm")) as server:
        yield server


def outputs(step_name: str, round_name: str, prev: str = "") -> list[str]:
    return [port.bind("data", round_name, prev) for port in GRAPH[step_name].outputs.values()]


# ---- one run


def test_a_run_makes_every_output_and_leaves_nothing_else(smoke):
    made = smoke.md5s()
    assert set(made) == {path for step, name in plan(smoke.config) for path in outputs(step.name, name)}
    assert not [path for kind in ("staging", "work") for path in (smoke.folder / ".dualipo" / kind).iterdir()]
    assert not [path for path in smoke.folder.rglob("*") if path.name.endswith((".partial", ".old"))]
    page = (smoke.folder / "report/index.html").read_text()
    assert "<video" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_the_rounds_build_on_each_other(smoke):
    made = smoke.md5s()
    for name, entry in smoke.config.rounds.items():
        for kind in ("critic", "generator"):
            decision = json.loads((smoke.folder / f"runs/{name}/{kind}_decision.json").read_text())
            source = f"{name}/{kind}_candidate" if decision["promoted"] else f"{entry.prev}/{kind}"
            assert made[f"runs/{name}/{kind}"] == made[f"runs/{source}"]  # critics are not rolled back here
            # the preset's gates are wide open: this is what they are open for.
            assert decision["promoted"], decision["reasons"]
            assert made[f"runs/{name}/{kind}_candidate"] != made[f"runs/{entry.prev}/{kind}"]
    assert len({made[f"runs/{name}/preferences"] for name in smoke.config.rounds}) == 2


# ---- the same from DVC


@pytest.fixture(scope="module")
def dvc_folder(new_folder, warm, repository):
    """Makes an experiment's folder that is a git and DVC repository, with a warm `dualipo` on the PATH."""

    def make(name: str) -> Project:
        folder = new_folder(name)
        program = folder.parent / "bin/dualipo"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {" ".join(warm.prefix)} dualipo "$@"\n')
        program.chmod(0o755)
        return begin(Project(folder, {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}), repository)

    return make


def test_dvc_repro_makes_the_same_bytes_and_then_nothing(smoke, dvc_folder):
    project = dvc_folder("dvc")
    folder, dvc = project.folder, project.dvc
    dvc("repro")

    made, expected = Run(folder, smoke.config).md5s(), smoke.md5s()
    for name in smoke.config.rounds:
        assert made[f"runs/{name}/preferences"] == expected[f"runs/{name}/preferences"]
        scores = [json.loads((where / f"runs/{name}/scores.json").read_text()) for where in (folder, smoke.folder)]
        assert scores[0] == scores[1]
    assert made == expected

    locked = (folder / "dvc.lock").read_text()
    outs = [out for stage in yaml.safe_load(locked)["stages"].values() for out in stage["outs"]]
    assert {out["path"]: out["md5"] for out in outs} == expected
    before = made | {str(path): str(path.stat().st_mtime_ns) for path in (folder / ".dualipo/done").iterdir()}
    assert "Data and pipelines are up to date." in dvc("repro")
    after = Run(folder, smoke.config).md5s()
    after |= {str(path): str(path.stat().st_mtime_ns) for path in (folder / ".dualipo/done").iterdir()}
    assert after == before and (folder / "dvc.lock").read_text() == locked


# ---- the same from a pipeline


@dataclass
class Pipeline:
    """A run in KFP's local runner, two shards where work can be shared. One task failed once."""

    run: Run
    index: dict[str, Entry]
    failed: int

    @property
    def id(self) -> str:
        """Of the pipeline's run, as MLflow knows it."""
        [found] = Tracker(self.run.folder, self.run.config).store.find_runs(level="experiment")
        [tag] = [tag for tag in found.data.tags if tag.startswith("dualipo.pipeline.")]
        return tag.removeprefix("dualipo.pipeline.")


@pytest.fixture(scope="module")
def warm_tasks(warm, tmp_path_factory) -> Path:
    """A program that is `python` to KFP's local runner."""
    program = tmp_path_factory.mktemp("tasks") / "python"
    task = Path(__file__).with_name("kfp_task.py")
    program.write_text(f'#!/bin/sh\nexec {" ".join(warm.prefix)} {task} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def pipeline(new_folder, warm_tasks, config) -> Pipeline:
    folder = new_folder("pipeline")
    able = [step.name for step in GRAPH.values() if step.shards != "no"]
    asked = {"default": {"retries": 1}, "steps": {name: {"shards": 2} for name in able}}
    content = config.model_dump(mode="json") | {"resources": asked}
    build = Build(parse_config(content), str(folder / "data"), digest(folder / "data").md5)
    count = folder.parent / "failed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm_tasks))
        patch.setattr("pipelines.resources.BACKOFF", "0s")
        patch.setenv("TASK_FAULT", f"generate_shard:begin:{count}:1")
        index = run_tasks(build, folder)
    return Pipeline(Run(folder, config), index, int(count.read_text()))


def test_a_pipeline_in_shards_makes_the_same_bytes_and_the_same_registry(smoke, pipeline):
    assert {path: entry.md5 for path, entry in pipeline.index.items()} == smoke.md5s()
    assert pipeline.run.versions() == smoke.versions()
    for kind in ("critic", "generator"):
        for alias in ("champion", "previous"):
            ours, theirs = (
                Tracker(run.folder, run.config).resolve(f"smoke-{kind}@{alias}") for run in (pipeline.run, smoke)
            )
            assert (ours.md5, ours.number, ours.tags["round"]) == (theirs.md5, theirs.number, theirs.tags["round"])


def test_a_pipeline_records_the_same_links_as_a_run(smoke, pipeline):
    links = [
        {(r.step, r.round): (r.inputs, r.outputs, r.config_digest) for r in Tracker(run.folder, run.config).step_runs()}
        for run in (pipeline.run, smoke)
    ]
    # the report reads a folder without the models, and with an index.
    for found in links:
        found["report", WHOLE][0].pop("runs")
    assert links[0] == links[1] and len(links[0]) == len(plan(smoke.config))


def test_a_task_that_fails_once_is_retried(pipeline):
    assert pipeline.failed == 1


def test_a_pulled_run_is_done_to_dvc_and_verifies(smoke, pipeline, dvc_folder, monkeypatch):
    project = dvc_folder("pull")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{pipeline.run.folder / 'mlflow.db'}")
    parameters = project.folder / "params.yaml"
    written = parameters.read_text()
    parameters.write_text(written.replace("beta: 1000.0", "beta: 999.0"))
    pull = ["pull", pipeline.id, "--folder", str(project.folder), "--params", str(parameters)]
    refused = CliRunner().invoke(cli, pull)
    assert isinstance(refused.exception, UserError) and "--take-params" in str(refused.exception)
    assert not (project.folder / "runs").exists()

    result = CliRunner().invoke(cli, [*pull, "--take-params"], catch_exceptions=False)
    assert result.output.startswith(f"{len(pipeline.index)} of {len(pipeline.index)} artifacts fetched")
    assert load_config(parameters) == smoke.config
    assert {path: digest(project.folder / path).md5 for path in smoke.md5s()} == smoke.md5s()
    assert "Data and pipelines are up to date." in project.dvc("repro")
    assert call(Run(project.folder, smoke.config), "verify", "generator")[0] == 0

    changed = project.folder / "runs/1/scores.json"
    changed.write_text("{}")
    result = CliRunner().invoke(cli, pull, catch_exceptions=False)
    assert result.output.startswith(f"1 of {len(pipeline.index)} artifacts fetched")


def test_a_task_that_fails_for_good_fails_the_pipeline_with_its_report_in_mlflow(
    smoke, config, warm_tasks, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr("pipelines.resources.BACKOFF", "0s")  # read when the pipeline is defined
    build = Build(config, str(smoke.folder / "data"))
    own = {f"{name}_params": build.parameter(name) for name in ("check_labels", "label", "prompts", "experiment")}

    @dsl.pipeline(name="gate")
    def gate():
        files = {
            "prompts": dsl.importer(str(smoke.folder / "runs/1/prompts.jsonl"), dsl.Dataset).output,
            "candidates": dsl.importer(str(smoke.folder / "runs/1/candidates"), dsl.Dataset).output,
            "labels": dsl.importer(str(smoke.folder / "runs/1/labels"), dsl.Dataset).output,
            "seed_labels": dsl.importer(str(smoke.folder / "data/seed"), dsl.Dataset).output,
            "previous_profile": dsl.importer(str(smoke.folder / "runs/base/label_profile.json"), dsl.Metrics).output,
            "course": dsl.importer(str(smoke.folder / "runs/base/course.json"), dsl.Artifact).output,
        }
        sections = {name: own[name] for name in ("check_labels_params", "label_params", "prompts_params")}
        task = components.check_labels(library="", round_name="1", **files, **sections)
        dress(task, build, GRAPH["check_labels"])

    count = tmp_path / "failed"
    monkeypatch.setattr(sys, "executable", str(warm_tasks))
    monkeypatch.setenv("TASK_FAULT", f"check_labels:deliver:{count}:99")
    for name, value in build.told().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DUALIPO_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "artifacts"))
    with pytest.raises(RuntimeError, match="check-labels"):
        gate()
    assert int(count.read_text()) == 1 + (config.resources.default.retries or 0)
    assert "fault: deliver" in capfd.readouterr().out
    tracker = Tracker(tmp_path, config)
    [recorded] = tracker.step_runs()
    assert recorded.step == "check_labels" and recorded.outputs["gate"].md5 == smoke.md5s()["runs/1/label_gate"]
    names = [item.path for item in tracker.store.client.list_artifacts(recorded.run_id, "outputs/gate")]
    assert {"outputs/gate/verdict.json", "outputs/gate/data_docs"} <= set(names)


# ---- stopped


@pytest.fixture(scope="module")
def stopping(config) -> Config:
    """The preset's parameters, but no gain is enough: the rounds end after the first."""
    return parse_config(config.model_dump(mode="json") | {"settle": {"stop": True, "min_gain": 1000.0}})


@pytest.fixture(scope="module")
def stopped(smoke, stopping, tmp_path_factory) -> Run:
    """The run of before, gone on with under those parameters; recorded elsewhere."""
    folder = tmp_path_factory.mktemp("stopped") / "experiment"
    shutil.copytree(smoke.folder, folder, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    outcomes = run(stopping, folder)
    made = {f"{outcome.round}/{outcome.step}" for outcome in outcomes if not outcome.skipped}
    rounds = {f"2/{step.name}" for step in GRAPH.values() if step.scope == "round"}
    assert made == {"1/settle", f"{WHOLE}/report"} | rounds
    assert all(SKIPPED in outcome.summary.tags for outcome in outcomes if outcome.round == "2")
    return Run(folder, stopping)


def test_rounds_after_a_stop_do_not_happen_and_are_told(smoke, stopped):
    made, before = stopped.md5s(), smoke.md5s()
    for name in HANDED_ON:
        assert made[f"runs/2/{name}"] == made[f"runs/1/{name}"]
    for name in ("generator", "critic", "scores.json", "agreement.json"):
        assert made[f"runs/1/{name}"] == before[f"runs/1/{name}"]
    page = (stopped.folder / "report/index.html").read_text()
    assert "Stopped after round 1." in page and "Round 2 did not happen." in page and "is unfinished" not in page
    tracker = Tracker(stopped.folder, stopped.config)
    [run_of_2] = tracker.store.find_runs(level="round", round="2")
    assert run_of_2.info.status == "FINISHED"
    skipped = tracker.store.find_runs(level="step", round="2")
    assert len(skipped) == 12 and all("stopped after round 1" in found.data.tags["skipped"] for found in skipped)
    assert set(tracker.versions("smoke-generator")) == set(tracker.versions("smoke-critic")) == set()


def test_a_pipelines_round_after_a_stop_makes_the_same_notes(stopped, stopping, warm_tasks, tmp_path, monkeypatch):
    able = [step.name for step in GRAPH.values() if step.shards != "no"]
    asked = {"default": {"retries": 0}, "steps": {name: {"shards": 2} for name in able}}
    build = Build(parse_config(stopping.model_dump(mode="json") | {"resources": asked}), str(stopped.folder / "data"))
    runs = stopped.folder / "runs"
    gather_runs(tmp_path / "before", None, [])
    one_round = make_round(build)

    @dsl.pipeline(name="second")
    def second() -> dsl.Dataset:
        given = {}
        for name, port in one_round.component_spec.inputs.items():
            if name.endswith("_params"):
                given[name] = build.parameter(name.removesuffix("_params"))
            elif name == "before":
                given[name] = dsl.importer(str(tmp_path / "before"), dsl.Dataset).output
            elif port.type.startswith("system."):
                where, _, what = name.partition("_")
                folder = {"data": stopped.folder / "data", "base": runs / "base", "prev": runs / "1"}[where]
                [path] = [path for path in folder.iterdir() if path.name.partition(".")[0] == what]
                kind = {"Model": dsl.Model, "Dataset": dsl.Dataset, "Metrics": dsl.Metrics, "Artifact": dsl.Artifact,
                        "ClassificationMetrics": dsl.ClassificationMetrics}  # fmt: skip
                given[name] = dsl.importer(str(path), kind[port.type.partition(".")[2].partition("@")[0]]).output
        return one_round(library="", round_name="2", **given).outputs["runs"]

    monkeypatch.setattr(sys, "executable", str(warm_tasks))
    for name, value in build.told().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DUALIPO_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "artifacts"))
    made = second()
    index = read_index(Path(made.output.path))
    expected = {path: md5 for path, md5 in stopped.md5s().items() if path.startswith("runs/2/")}
    assert {path: entry.md5 for path, entry in index.items()} == expected
    assert Tracker(tmp_path, stopping).versions("smoke-generator") == []


# ---- killed in the middle

KILLS = {
    "start": (3, "clips-00000.tar"),
    "train_reward": (2, None),
    "check_reward": (1, None),
    "prompts": (2, None),
    "generate": (3, "clips-00000.tar"),
    "label": (2, "labelling-00000.jsonl"),
    "check_labels": (2, None),
    "train_critic": (2, "training_state.safetensors"),
    "check_critic": (2, None),
    "promote_critic": (2, None),
    "prefer": (2, "preferring-00000.jsonl"),
    "align": (4, "training_state.safetensors"),
    "evaluate": (2, "clips-00000.tar"),
    "promote_generator": (2, None),
    "settle": (2, None),
    "report": (1, None),
}
"""Of each step: the file before whose renaming it is killed, counted from 1, and what its scratch folder holds then."""


def test_killed_in_every_step_a_run_ends_as_an_unbroken_one(smoke, new_folder, warm):
    """Each call completes the step that was killed, goes on to the next one, and is killed there."""
    folder = new_folder("killed")
    steps = [(step.name, name) for step, name in plan(smoke.config) if name in (BASE, "1", WHOLE)]
    assert {name for name, _ in steps} == set(GRAPH) == set(KILLS)
    for name, round_name in steps:
        write, kept = KILLS[name]
        ended = warm.run(DRIVERS, "kill", folder, name, round_name, write, cwd=folder)
        assert ended.returncode == KILLED, f"{name}: {ended.stderr}"
        assert not [path for path in outputs(name, round_name) if (folder / path).exists()], name
        [work] = (folder / ".dualipo/work").iterdir()
        assert work.name.startswith(f"{name}-{round_name}-")
        found = {path.name for path in work.rglob("*")}
        assert kept is None or any(kept in name for name in found), (name, found)
    ended = warm.run("dualipo", "run", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    resumed = Run(folder, smoke.config)
    assert resumed.md5s() == smoke.md5s()
    assert resumed.versions() == smoke.versions()
    assert not [path for kind in ("staging", "work") for path in (folder / ".dualipo" / kind).iterdir()]


# ---- the reward, and what is learnt from


@pytest.fixture(scope="module")
def blind(smoke, new_folder, warm) -> Run:
    """Round 1 from its prompts to alignment, without an oracle, a benchmark or the human test set anywhere in sight."""
    folder = new_folder("blind")
    test_labels = folder.with_name("test")
    (folder / "data/test").rename(test_labels)
    (folder / "data/benchmark.jsonl").unlink()
    given = ("generator", "critic", "reward", "agreement.json", "baselines.json", "held_out.json", "label_profile.json")
    for path in (*(f"base/{name}" for name in (*given, "course.json")), "1/prompts.jsonl"):
        (folder / "runs" / path).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (smoke.folder / "runs" / path).is_dir() else shutil.copyfile
        copy(smoke.folder / "runs" / path, folder / "runs" / path)
    ended = warm.run(DRIVERS, "blind", folder, "1", test_labels, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return Run(folder, smoke.config)


def test_neither_oracle_nor_human_test_set_is_needed_to_reward_or_to_train(smoke, blind):
    expected = smoke.md5s()
    assert blind.md5s() == {path: expected[path] for name in BLIND_STEPS for path in outputs(name, "1")}
    # train_reward precedes the rounds, and the test below says what it reads.
    assert set(TRAINING) - {"train_reward"} < set(BLIND_STEPS)


def test_no_step_that_rewards_or_trains_reads_what_is_held_out():
    held_out = {"{data}/test", "{data}/benchmark.jsonl"}
    readers = {name for name, step in GRAPH.items() if held_out & {port.path for port in step.inputs.values()}}
    # prompts reads them in order to leave them out; the others measure.
    assert readers == {"start", "check_reward", "prompts", "check_critic", "evaluate"}
    # what measures hands numbers to the gates and to the page, and to nobody else.
    measuring = ("start", "check_reward", "check_critic", "evaluate")
    measured = {port.path for name in measuring for port in GRAPH[name].outputs.values()}
    # of the held-out prompts training is told hashes, to refuse them by; of a course only whether the round happens and
    # the critic is to be refined is read.
    told = {"runs/{round}/held_out.json", "runs/{round}/course.json"}
    measured -= {"runs/{round}/generator", "runs/{round}/critic", *told}
    for name in TRAINING:
        assert not measured & {port.path.replace("{prev}", "{round}") for port in GRAPH[name].inputs.values()}


def test_nothing_that_is_learnt_from_is_in_the_human_test_set(smoke, repository):
    data = repository / "data"
    clips = {name: {digest(p).md5 for p in (data / name).rglob("*.mp4")} for name in ("seed", "test", "real")}
    assert clips["test"] and not clips["test"] & (clips["seed"] | clips["real"])
    tables = (("ratings", HumanRating), ("choices", HumanChoice))
    texts = {
        name: {row.prompt for stem, kind in tables for row in read_rows(find_table(data / name, stem), kind)}
        for name in ("seed", "test")
    }
    held_out = {row.text for row in read_rows(data / "benchmark.jsonl", Prompt)}
    assert not texts["test"] & texts["seed"] and not texts["test"] & held_out
    kept_apart = {
        row.prompt for stem, kind in tables for row in read_rows(find_table(smoke.folder / "data/test", stem), kind)
    } | {row.text for row in read_rows(smoke.folder / "data/benchmark.jsonl", Prompt)}
    for name in smoke.config.rounds:
        drawn = {row.text for row in read_rows(smoke.folder / f"runs/{name}/prompts.jsonl", Prompt)}
        assert drawn and not drawn & kept_apart


# ---- the registry


def call(run: Run, *arguments: str) -> tuple[int, str]:
    preset = Path(__file__).parents[1] / "params/smoke.yaml"
    result = CliRunner().invoke(cli, [*arguments, "--folder", str(run.folder), "--params", str(preset)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_every_model_is_a_registered_version_and_the_last_promoted_one_the_champion(smoke):
    made, tracker = smoke.md5s(), Tracker(smoke.folder, smoke.config)
    for kind in ("critic", "generator"):
        model = tracker.model_name(kind)
        assert model == f"smoke-{kind}"
        expected = [made[f"runs/{BASE}/{kind}"], *(made[f"runs/{name}/{kind}_candidate"] for name in "12")]
        assert [md5 for md5, _ in smoke.versions()[model]] == expected
        assert tracker.resolve(f"{model}@champion").md5 == made[f"runs/2/{kind}"]
        assert tracker.resolve(f"{model}@previous").md5 == made[f"runs/1/{kind}"]


@pytest.mark.parametrize("kind", ["critic", "generator"])
def test_lineage_reaches_the_human_labels(smoke, kind):
    status, text = call(smoke, "lineage", f"smoke-{kind}@champion")
    assert status == 0
    for origin in ("human seed labels", "base model", "runs/1/labels", "train_critic, round 1", "prompts, round 2"):
        assert origin in text
    assert "made by no recorded step" not in text


def test_verify_holds_and_finds_a_flipped_byte(smoke):
    assert call(smoke, "verify", "generator")[0] == call(smoke, "verify", "critic")[0] == 0
    for path in ("data/seed/choices.csv", "runs/1/preferences/pairs.jsonl", "runs/2/generator_candidate"):
        file = smoke.folder / path
        if file.is_dir():
            file = max(file.rglob("*.safetensors"), key=lambda found: found.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        # a new file beside it: models share their bytes by hard links.
        aside = file.rename(file.with_name("aside"))
        file.write_bytes(content)
        status, text = call(smoke, "verify", "smoke-generator@champion")
        file.unlink()
        aside.rename(file)
        named = "/".join(path.split("/")[:3]) if path.startswith("runs") else "data/seed"
        [line] = [line for line in text.splitlines() if line.startswith("changed")]
        assert status == 1 and f" {named} " in line and "1 broken" in text
    assert call(smoke, "verify", "generator")[0] == 0
