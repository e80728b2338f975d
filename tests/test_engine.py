import ast
import contextlib
import errno
import inspect
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_steps import LONG, FakeStep

from dualipo import engine, runtime
from dualipo.artifacts import digest
from dualipo.config import Config, load_config
from dualipo.engine import execute, plan, run
from dualipo.errors import UserError
from dualipo.runtime import cores, disk_full, threads
from dualipo.steps import GRAPH, Port, Step, Summary

PROGRAM = Path(__file__).with_name("fake_steps.py")


@pytest.fixture
def folder(tmp_path):
    return experiment(tmp_path / "experiment")


def experiment(path: Path, source: str = "7") -> Path:
    (path / "data").mkdir(parents=True)
    (path / "data/source.txt").write_text(source)
    return path


def do(folder, step=LONG, config=None, **options):
    return execute(step, config or Config(), folder, "1", track=False, **options)


def results(folder) -> dict[str, str]:
    return {name: digest(folder / "runs/1" / name).md5 for name in ("model", "curves.csv")}


def leftovers(folder) -> list[str]:
    state = folder / ".dualipo"
    return [p.name for kind in ("staging", "work") for p in (state / kind).glob("*")] + [
        str(p) for p in folder.rglob("*") if p.name.endswith((".partial", ".old"))
    ]


def step_with(body, **fields) -> Step:
    return replace(LONG, body=body, **fields)


def in_another_process(folder, call=0, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROGRAM), str(folder), str(call)]

    def as_from_a_terminal() -> None:
        # A shell's background jobs ignore Ctrl-C, and what they start inherits that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=as_from_a_terminal,
    )


# ---- skipping


def test_what_is_up_to_date_is_skipped_with_the_same_outcome(folder):
    first, second = do(folder), do(folder)
    assert (first.skipped, second.skipped) == (False, True)
    assert (first.fingerprint, first.digests, first.summary.metrics) == (
        second.fingerprint,
        second.digests,
        second.summary.metrics,
    )
    assert second.summary.curves["loss"][0][0] == 0 and np.isnan(second.summary.curves["loss"][0][1])
    assert str(second) == "round 1, long: up to date"


@pytest.mark.parametrize(
    ("key", "value", "again"),
    [("align.beta", 500, True), ("experiment.seed", 1, True), ("label.paths", 2, False), ("align.beta", 1000, False)],
)
def test_a_changed_parameter_of_its_sections_and_no_other_runs_it_again(folder, key, value, again):
    do(folder)
    assert do(folder, config=load_config(overrides={key: value})).skipped is not again


def test_a_step_without_the_experiment_section_does_not_depend_on_the_seed(folder):
    step = replace(LONG, sections=("align",))
    do(folder, step)
    assert do(folder, step, load_config(overrides={"experiment.seed": 1})).skipped


def test_changed_inputs_and_damaged_outputs_run_it_again(folder):
    whole = do(folder).digests
    (folder / "runs/1/model/weights").write_text("tampered")
    assert not do(folder).skipped and results(folder)["model"] == whole["model"].md5
    shutil.rmtree(folder / "runs/1/model")
    assert not do(folder).skipped
    (folder / "data/source.txt").write_text("8")
    assert not do(folder).skipped
    assert results(folder)["model"] != whole["model"].md5
    assert not do(folder, force=True).skipped


def test_a_moved_experiment_is_still_up_to_date(folder, tmp_path, monkeypatch):
    do(folder)
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    assert do(Path(".")).skipped


# ---- binding


def test_bindings_and_the_data_folder_replace_paths(folder, tmp_path):
    elsewhere = experiment(tmp_path / "elsewhere", "9")
    made = do(folder, bindings={"model": tmp_path / "my/model"}, data=elsewhere / "data")
    assert made.outputs["model"] == tmp_path / "my/model"
    assert (tmp_path / "my/model/weights").exists() and not (folder / "runs/1/model").exists()
    assert do(folder, bindings={"source": elsewhere / "data/source.txt"}).digests == made.digests
    with pytest.raises(UserError, match="no port 'modle'; known: source, model, curves"):
        do(folder, bindings={"modle": tmp_path})


@pytest.mark.parametrize(
    ("step", "round_name", "there", "sentence"),
    [
        (
            "label",
            "1",
            [],
            r"runs/1/candidates: missing, round 1, label needs it; run `dualipo generate --round 1` first",
        ),
        ("generate", "1", ["runs/1/prompts.jsonl"], r"runs/base/generator: missing.*run `dualipo start` first"),
        ("generate", "2", ["runs/2/prompts.jsonl"], r"runs/1/generator: .*`dualipo promote_generator --round 1` first"),
        (
            "check_critic",
            "2",
            ["runs/2/critic_candidate"],
            r"runs/1/agreement.json: .*`dualipo settle --round 1`",
        ),
        (
            "prefer",
            "2",
            ["runs/2/candidates", "runs/2/accepted_critic"],
            r"runs/base/reward: missing, round 2, prefer needs it; run `dualipo train_reward` first",
        ),
        ("start", None, [], r"data/generator: missing, start needs it; fetch the data with `dvc pull data.dvc`"),
        ("report", None, [], r"runs: missing, report needs it; run `dualipo run` first"),
        ("align", None, [], r"align belongs to a round; name it with --round, known: 1, 2, 3"),
        ("align", "4", [], r"round '4' is not among the parameters' rounds; known: 1, 2, 3"),
    ],
)
def test_what_is_missing_is_said_with_its_remedy(tmp_path, step, round_name, there, sentence):
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=sentence):
        execute(GRAPH[step], Config(), tmp_path, round_name, track=False)


# ---- interruptions


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, str]:
    folder = experiment(tmp_path_factory.mktemp("unbroken") / "experiment")
    do(folder)
    return results(folder)


@pytest.mark.parametrize("place", ["part 0", "part 2", "first output", "all outputs"])
def test_a_killed_step_resumes_and_ends_as_an_unbroken_one(folder, unbroken, place):
    assert in_another_process(folder, STOP_AT=place).returncode == -signal.SIGKILL
    assert not (folder / "runs").exists()
    do(folder)
    assert results(folder) == unbroken
    assert leftovers(folder) == []
    # no part was done twice: the scratch folder was found again.
    assert (folder / ".dualipo/parts.log").read_text().split() == ["0", "1", "2", "3"]


def test_killed_at_any_renaming_or_removal_outputs_are_whole_and_the_next_call_completes(folder, unbroken):
    (folder / "data/source.txt").write_text("5")
    do(folder)
    before = results(folder)
    pristine = folder.with_name("pristine")
    folder.rename(pristine)
    (pristine / "data/source.txt").write_text("7")
    for number in range(1, 100):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(pristine, folder)
        ended = in_another_process(folder, number).returncode
        for name in ("model", "curves.csv"):
            path = folder / "runs/1" / name
            assert not path.exists() or digest(path).md5 in (before[name], unbroken[name])
        do(folder)
        assert results(folder) == unbroken
        assert leftovers(folder) == []
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert 10 < number < 99


@pytest.mark.parametrize(("by", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(folder, unbroken, by, status):
    ended = in_another_process(folder, STOP_AT="part 2", STOP_BY=str(int(by)))
    assert ended.returncode == status
    assert ended.stderr.strip() == "stopped; what is finished is kept. To go on where it was: dualipo long"
    assert not any((folder / ".dualipo/staging").iterdir()) and len(list((folder / ".dualipo/work").iterdir())) == 1
    assert not do(folder).skipped
    assert results(folder) == unbroken and leftovers(folder) == []
    assert (folder / ".dualipo/parts.log").read_text().split() == ["0", "1", "2", "3"]


def test_work_on_other_inputs_is_cleared_in_the_end(folder):
    in_another_process(folder, STOP_AT="part 2")
    (folder / "data/source.txt").write_text("8")
    do(folder)
    assert leftovers(folder) == []


def test_a_failing_step_leaves_neither_staging_nor_outputs(folder):
    def fails(config, job, *, source, model, curves):
        model.mkdir()
        raise ZeroDivisionError

    def forgets(config, job, *, source, model, curves):
        model.mkdir()
        return Summary()

    with pytest.raises(ZeroDivisionError):
        do(folder, step_with(fails))
    with pytest.raises(RuntimeError, match="without writing its output 'curves'"):
        do(folder, step_with(forgets))
    assert not (folder / "runs").exists() and not any((folder / ".dualipo/staging").iterdir())


# ---- full disks


def writes_much(config, job, *, source, model, curves):
    (job.work / "checkpoint").write_text("kept")
    model.mkdir()
    curves.write_text("step,loss\n")
    with open(model / "weights", "wb") as file:
        for _ in range(64):
            file.write(bytes(2**16))
            file.flush()
    return Summary()


@pytest.fixture(params=["tmpfs", "limit"])
def full_disk(request, tmp_path):
    """An experiment's folder in which 4 MiB have no room, and what the message must say."""
    path = tmp_path / "small"
    path.mkdir()
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a file system can't be mounted here")
        yield (
            experiment(path / "experiment"),
            r"the disk is full while writing under .*experiment; .* \d\.\d of 1 MiB are free",
        )
        subprocess.run(["umount", str(path)], check=True)
    else:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
        yield experiment(path / "experiment"), "a file grew over the allowed size while writing under"
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_full_disk_is_one_sentence_and_leaves_the_outputs_of_before(full_disk):
    folder, sentence = full_disk
    do(folder)
    before = results(folder)
    with pytest.raises(UserError, match=f"round 1, long: {sentence}.*make room and run the same command again"):
        do(folder, step_with(writes_much), load_config(overrides={"align.beta": 1}))
    assert results(folder) == before
    assert not any((folder / ".dualipo/staging").iterdir())
    assert len(list((folder / ".dualipo/work").glob("*/checkpoint"))) == 1
    assert not [path for path in folder.rglob("*.partial")]


def test_full_disks_are_recognised_behind_library_errors():
    cause = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("unexpected pos 64 vs 0")
    wrapped.__cause__ = cause
    assert (
        disk_full(cause)
        == disk_full(wrapped)
        == disk_full(ValueError("I/O error: No space left on device (os error 28)"))
    )
    assert disk_full(RuntimeError("shape mismatch")) is None


def test_other_system_errors_are_one_sentence_too(folder):
    (folder / "runs").write_text("a file where a folder must be")
    with pytest.raises(UserError, match=r"round 1, long: .*runs.*; check that path and its permissions"):
        do(folder)


# ---- locks


@contextlib.contextmanager
def held(start):
    """Runs `start(body)` in a thread until its body is reached; lets it end when left."""
    reached, go_on = threading.Event(), threading.Event()

    def body(config, job, *, source, model, curves):
        reached.set()
        assert go_on.wait(20)
        model.mkdir()
        curves.touch()
        return Summary()

    thread = threading.Thread(target=start, args=(body,))
    thread.start()
    try:
        assert reached.wait(20)
        yield
    finally:
        go_on.set()
        thread.join()


def test_one_step_runs_once_at_a_time(folder):
    with (
        held(lambda body: do(folder, step_with(body))),
        pytest.raises(UserError, match="round 1, long is already going on"),
    ):
        do(folder)
    assert do(folder).skipped


def test_one_run_at_a_time(folder, monkeypatch, capsys):
    def start(body):
        monkeypatch.setattr(engine, "GRAPH", {"long": step_with(body)})
        run(Config(), folder, until="1", track=False)

    with held(start), pytest.raises(UserError, match=r"a run is already going on in this folder .*wait until it ends"):
        run(Config(), folder, track=False)


# ---- seeds


def test_random_streams_are_the_same_whatever_ran_before(folder):
    def draws(config, job, *, source, model, curves):
        model.mkdir()
        curves.write_text(f"{job.seed} {random.random()} {np.random.rand()} {_torch_draw()}")
        return Summary()

    def _torch_draw():
        import torch

        return torch.rand(()).item()

    step = step_with(draws, gpu=True)
    first = do(folder, step).digests["curves"]
    assert do(folder, step, force=True).digests["curves"] == first
    assert do(folder, step, load_config(overrides={"experiment.seed": 1})).digests["curves"] != first
    other = execute(step, Config(), folder, "2", track=False)
    assert other.digests["curves"] != first
    import torch

    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == threads() == 1


def test_threads_are_checked(monkeypatch):
    monkeypatch.setenv("DUALIPO_THREADS", "many")
    with pytest.raises(UserError, match="DUALIPO_THREADS='many'"):
        threads()
    monkeypatch.delenv("DUALIPO_THREADS")
    assert threads() == cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_containers_quota_counts(quota, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    monkeypatch.setattr(runtime, "CPU_QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert cores() == expected


# ---- the whole run


def small_graph(calls: list[str]) -> dict[str, Step]:
    def body(config, job, **paths):
        calls.append(job.round)
        for name, path in paths.items():
            if not path.exists():
                path.write_text(f"{name} {job.round}")
        return Summary(metrics={"loss": 0.5})

    def step(name, scope, inputs, output):
        ports = {p: Port(path, "data") for p, path in inputs.items()}
        return FakeStep(name, name, (), ports, {"out": Port(output, "scores")}, scope, body=body)

    return {
        "start": step("start", "base", {"source": "{data}/source.txt"}, "runs/{round}/model"),
        "train": step("train", "round", {"model": "runs/{prev}/model"}, "runs/{round}/trained"),
        "promote": step("promote", "round", {"trained": "runs/{round}/trained"}, "runs/{round}/model"),
        "report": step("report", "run", {"runs": "runs"}, "report/index.html"),
    }


def test_a_run_does_every_round_once_with_one_bar(folder, monkeypatch, capsys):
    calls: list[str] = []
    monkeypatch.setattr(engine, "GRAPH", small_graph(calls))
    assert [o.round for o in run(Config(), folder, until="1/train", track=False)] == ["base", "1"]
    assert len(run(Config(), folder, until="2", track=False)) == 5
    outcomes = run(Config(), folder, track=False)
    assert calls == ["base", "1", "1", "2", "2", "3", "3", "run"]
    assert [o.skipped for o in outcomes] == [True] * 5 + [False] * 3
    told = capsys.readouterr()
    assert told.out == "" and "left" in told.err
    assert "round 3, promote: 0.0 s (loss 0.5)" in told.err and "round 2, train: up to date" in told.err
    assert all(o.skipped for o in run(Config(), folder, track=False))
    with pytest.raises(UserError, match="until '5'"):
        run(Config(), folder, until="5")


def test_the_plan_is_the_graph_in_order():
    names = [(step.name, name) for step, name in plan(Config())]
    per_round = [step.name for step in GRAPH.values() if step.scope == "round"]
    assert names[:3] == [(name, "base") for name in ("start", "train_reward", "check_reward")]
    assert names[-1] == ("report", "run")
    assert names[3:-1] == [(name, r) for r in "123" for name in per_round]


# ---- tracking


class Recorder:
    recorded: list = []  # noqa: RUF012
    error: Exception | None = None

    def __init__(self, root, config, known=False):
        pass

    def record(self, step, round_name, prev, inputs, outputs, summary, seconds, git_commit):
        if self.error:
            raise self.error
        assert all(digest(artifact.location) == artifact.digest for artifact in (inputs | outputs).values())
        self.recorded.append((step.name, round_name, prev, inputs, outputs, summary, git_commit))


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr("dualipo.tracking.spool.Tracker", Recorder)
    monkeypatch.setattr(Recorder, "recorded", [])
    return Recorder


def test_a_step_is_recorded_once_before_it_is_published(folder, recorder):
    assert not execute(LONG, Config(), folder, "1").skipped
    assert execute(LONG, Config(), folder, "1").skipped
    [(name, round_name, prev, inputs, outputs, summary, commit)] = recorder.recorded
    assert (name, round_name, prev, commit) == ("long", "1", "base", None)
    assert (inputs["source"].path, inputs["source"].location) == ("data/source.txt", folder / "data/source.txt")
    assert outputs["model"].path == "runs/1/model" and ".dualipo/staging" in str(outputs["model"].location)
    assert outputs["model"].kind == "generator" and summary.metrics["total"] > 0


def test_what_was_made_untracked_is_recorded_later_without_doing_it_again(folder, recorder):
    do(folder)
    assert execute(LONG, Config(), folder, "1").skipped
    assert execute(LONG, Config(), folder, "1").skipped
    assert len(recorder.recorded) == 1


def test_a_step_that_could_not_be_recorded_is_not_done_again(folder, recorder, monkeypatch):
    monkeypatch.setattr(Recorder, "error", UserError("MLflow at http://localhost:1: no answer"))
    with pytest.raises(
        UserError, match=r"done but not recorded: MLflow at http://localhost:1: no answer; run it again"
    ):
        execute(LONG, Config(), folder, "1")
    assert not (folder / "runs").exists()
    monkeypatch.setattr(Recorder, "error", None)
    execute(LONG, Config(), folder, "1")
    assert (folder / ".dualipo/parts.log").read_text().split() == ["0", "1", "2", "3"]
    assert len(recorder.recorded) == 1 and leftovers(folder) == []


def test_a_disk_that_fills_while_recording_is_told_as_such(folder, recorder, monkeypatch):
    monkeypatch.setattr(Recorder, "error", UserError("MLflow: (sqlite3.OperationalError) database or disk is full"))
    with pytest.raises(UserError, match="round 1, long: the disk is full while writing under"):
        execute(LONG, Config(), folder, "1")
    assert not (folder / "runs").exists() and not any((folder / ".dualipo/staging").iterdir())


def test_the_git_commit_is_recorded_with_a_mark_where_files_differ(folder):
    from dualipo.runtime import git_commit

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init")
    assert git_commit(folder) is None
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert git_commit(folder) == commit
    (folder / "data/source.txt").write_text("other")
    assert git_commit(folder) == f"{commit}-dirty"


# ---- the contract that real steps keep


@pytest.mark.parametrize("step", GRAPH.values(), ids=GRAPH)
def test_a_step_takes_its_ports_and_nothing_else(step):
    parameters = inspect.signature(step.function).parameters
    assert list(parameters)[:2] == ["config", "job"]
    named = {name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert named == step.takes


@pytest.mark.parametrize("step", GRAPH.values(), ids=GRAPH)
def test_a_step_reads_only_the_sections_it_declares(step, repository):
    """What a step reads beyond them would change its outputs without anybody running it again."""
    tree = ast.parse((repository / f"dualipo/steps/{step.name}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
    }
    # the names of the rounds may be looked up; where a round starts from is in the paths it is given.
    assert read & set(Config.model_fields) - {"rounds"} <= set(step.sections)


def test_the_report_speaks_of_the_whole_configuration():
    # where a step runs changes nothing that it makes.
    assert set(GRAPH["report"].sections) == set(Config.model_fields) - {
        "promotion",
        "tracking",
        "resources",
        "train_job",
    }
