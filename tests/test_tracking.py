"""Tracking and lineage on a real MLflow store: SQLite in a folder, and a server on localhost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from pathlib import Path

import pytest
import yaml

from dualipo.artifacts import digest
from dualipo.config import parse_config
from dualipo.errors import UserError
from dualipo.lineage import broken, format_checks, format_lineage, lineage, nodes, verify
from dualipo.steps import BASE, GRAPH, Summary
from dualipo.tracking import Artifact, Tracker

GENERATOR, CRITIC = "tiny-generator", "tiny-critic"
BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def _own_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


class Experiment:
    """Writes what the steps would, through the graph's own paths, and records it."""

    def __init__(self, root: Path, **sections):
        self.root = root
        self.config = parse_config({"experiment": {"name": "tiny"}, **sections})
        self.tracker = Tracker(root, self.config)
        for name in ("generator", "critic", "critic_reference"):
            self.write(f"data/{name}/model.safetensors", f"base {name}")
        for name in ("seed", "test"):
            self.write(f"data/{name}/ratings.csv", f"clip,verdict\n{name},good\n")
        self.write("data/real/captions.csv", "clip,prompt\n")
        self.write("data/benchmark.jsonl", "{}\n")

    def write(self, path: str, content) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content if isinstance(content, str) else json.dumps(content))

    def copy(self, source: str, target: str) -> None:
        shutil.rmtree(self.root / target, ignore_errors=True)
        shutil.copytree(self.root / source, self.root / target)

    def record(self, name: str, round_name: str, prev: str, summary: Summary | None = None, location=None) -> str:
        step = GRAPH[name]

        def bind(ports):
            paths = {port: entry.bind("data", round_name, prev) for port, entry in ports.items()}
            return {
                port: Artifact(path, self.root / path, digest(self.root / path), ports[port].kind)
                for port, path in paths.items()
            }

        inputs, outputs = bind(step.inputs), bind(step.outputs)
        for port, path in (location or {}).items():
            outputs[port] = Artifact(outputs[port].path, path, outputs[port].digest, outputs[port].kind)
        return self.tracker.record(step, round_name, prev, inputs, outputs, summary or Summary(), 1.5, "c0ffee" * 6)

    def start(self) -> str:
        self.copy("data/generator", "runs/base/generator")
        self.copy("data/critic", "runs/base/critic")
        self.write("runs/base/agreement.json", {"agreement": {"mean": 0.8, "low": 0.7, "high": 0.9}, "pairs": 40})
        self.write("runs/base/scores.json", {"suite": "small_world", "total": {"mean": 50.0, "low": 48, "high": 52}})
        self.write("runs/base/benchmark_clips/manifest.jsonl", "{}\n")
        for name in ("held_out.json", "label_profile.json"):
            self.write(f"runs/base/{name}", {"of": "base"})
        self.settled("runs/base")
        run_id = self.record("start", BASE, "")
        self.reward({"config.json": {"model_type": "none"}}, {})
        return run_id

    def settled(self, run: str, rolled_back: bool = False) -> None:
        settlement = {"critic_rolled_back": rolled_back, "stop": False, "reasons": ["critic: as it is."], "watch": []}
        self.write(f"{run}/settlement.json", settlement | {"evidence": {}, "history": [], "draws": {}})
        self.write(f"{run}/course.json", {"stop": False})

    def reward(self, files: dict[str, object], baselines: dict) -> None:
        """The base steps behind start: a VideoReward's folder of these files, and what was measured of it."""
        for name, content in files.items():
            self.write(f"runs/base/reward/{name}", content)
        self.write("runs/base/baselines.json", baselines)
        for step in ("train_reward", "check_reward"):
            self.record(step, BASE, "")

    def round(
        self, name: str, prev: str, total: float = 60.0, promoted: bool = True, only: tuple = (), back: bool = False
    ) -> None:
        """One round, or some of its steps; `promoted` is the generator's verdict, the critic is always accepted, and
        `back` rolls it back in the end."""
        run = f"runs/{name}"
        self.write(f"{run}/prompts.jsonl", f"prompts {name}")
        self.write(f"{run}/prompts_audit.json", {"count": 1})
        self.write(f"{run}/candidates/manifest.jsonl", f"clips {name}")
        self.write(f"{run}/labels/ratings.jsonl", f"labels {name}")
        self.write(f"{run}/label_profile.json", {"of": name})
        for gate in ("label_gate", "critic_gate", "preference_gate"):
            self.write(f"{run}/{gate}/verdict.json", {"passed": True, "reasons": [], "suites": {}})
            self.write(f"{run}/{gate}/data_docs/index.html", "<html>")
        self.write(f"{run}/critic_candidate/model.safetensors", f"critic {name}")
        self.write(f"{run}/critic_curves.csv", "step,loss\n1,0.5\n")
        agreement = {"agreement": {"mean": 0.82, "low": 0.75, "high": 0.9}}
        self.write(f"{run}/critic_candidate_agreement.json", agreement)
        self.copy(f"{run}/critic_candidate", f"{run}/accepted_critic")
        self.write(f"{run}/accepted_agreement.json", agreement)
        self.copy(f"runs/{prev}/critic" if back else f"{run}/critic_candidate", f"{run}/critic")
        former = json.loads((self.root / f"runs/{prev}/agreement.json").read_text())
        self.write(f"{run}/agreement.json", former if back else agreement)
        self.settled(run, back)
        self.write(f"{run}/critic_decision.json", {"promoted": True, "reasons": [], "evidence": {}})
        self.write(f"{run}/preferences/pairs.jsonl", f"pairs {name}")
        self.write(f"{run}/generator_candidate/nested/model.safetensors", f"generator {name}")
        self.write(f"{run}/align_curves.csv", "step,loss\n1,0.5\n")
        scores = {"suite": "small_world", "total": {"mean": total, "low": 1, "high": 99}, "dimensions": {}}
        self.write(f"{run}/generator_candidate_scores.json", scores)
        self.write(f"{run}/benchmark_clips/manifest.jsonl", f"{name}")
        self.copy(f"{run}/generator_candidate" if promoted else f"runs/{prev}/generator", f"{run}/generator")
        self.write(f"{run}/scores.json", scores)
        reasons = [] if promoted else ["total fell from 50 to 40 points", "dimension motion fell"]
        self.write(f"{run}/generator_decision.json", {"promoted": promoted, "reasons": reasons, "evidence": {}})
        for step in GRAPH.values():
            if step.scope == "round" and (not only or step.name in only):
                self.record(step.name, name, prev)


def experiment_in(root: Path, database: Path) -> Experiment:
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(database, root / "mlflow.db")
    return Experiment(root)


@pytest.fixture
def own(tmp_path, database):
    """An experiment of the test's own, with nothing recorded."""
    return experiment_in(tmp_path, database)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, database):
    """Start and two rounds, the second one's generator rejected; shared, so leave it as it was."""
    experiment = experiment_in(tmp_path_factory.mktemp("spaced né") / "root", database)
    experiment.start()
    experiment.round("1", BASE)
    experiment.round("2", "1", total=40.0, promoted=False)
    return experiment


def aliases(tracker: Tracker, model: str) -> dict[str, int]:
    return {alias: version.number for version in tracker.versions(model) for alias in version.aliases}


def runs_of(tracker: Tracker) -> dict[str, object]:
    return {run.info.run_name: run for run in tracker.store.client.search_runs([tracker.store.experiment_id])}


def test_digests_are_those_dvc_writes(tmp_path):
    (tmp_path / "folder/a/b").mkdir(parents=True)
    (tmp_path / "folder/empty").mkdir()
    names = ["a/b/x.txt", "a-b.txt", "a.txt", "a/z.bin", "Ünïcode 字 'quote\".txt", ".hidden", "a/b/empty"]
    for number, name in enumerate(names[:-1]):
        (tmp_path / "folder" / name).write_bytes(f"line\r\n{number}\0".encode() * 3000)
    (tmp_path / "folder" / names[-1]).touch()
    (tmp_path / "folder/tool.sh").write_text("#!/bin/sh\n")
    (tmp_path / "folder/tool.sh").chmod(0o755)
    (tmp_path / "folder/linked").symlink_to("a.txt")
    (tmp_path / "ein Stück.csv").write_bytes(b"x,y\r\n1,2\r\n")
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "env": environment}
    subprocess.run([BIN / "dvc", "init", "--no-scm"], **run)
    subprocess.run([BIN / "dvc", "add", "--no-commit", "folder", "ein Stück.csv"], **run)
    for name in ("folder", "ein Stück.csv"):
        entry = yaml.safe_load((tmp_path / f"{name}.dvc").read_text())["outs"][0]
        mine = digest(tmp_path / name)
        assert (mine.md5, mine.size, mine.files) == (entry["md5"], entry["size"], entry.get("nfiles", 1))
    assert digest(tmp_path / "folder").md5.endswith(".dir")


def test_runs_form_a_tree_that_holds_parameters_metrics_curves_and_artifacts(own, tmp_path):
    experiment = own
    experiment.start()
    experiment.write("sheet", "picture")
    experiment.write("runs/1/prompts.jsonl", "prompts")
    experiment.write("runs/1/prompts_audit.json", {"count": 1})
    experiment.copy("data/real", "runs/1/candidates")
    experiment.write("runs/1/labels/ratings.jsonl", "labels")
    experiment.write("runs/1/label_profile.json", {"of": "1"})
    experiment.write("runs/1/label_gate/verdict.json", {"passed": True})
    experiment.write("runs/1/label_gate/data_docs/index.html", "<html>")
    experiment.record("check_labels", "1", BASE)
    experiment.write("runs/1/preferences/pairs.jsonl", "pairs")
    experiment.write("runs/1/generator_candidate/model.safetensors", "generator")
    experiment.write("runs/1/align_curves.csv", "step,loss\n")
    summary = Summary(
        metrics={"margin": 0.25},
        curves={"loss": [(step, 1 / step) for step in range(1, 1501)]},
        pictures={"sheet": tmp_path / "sheet"},
        tags={"flag": "none"},
    )
    run_id = experiment.record("align", "1", BASE, summary)
    experiment.write("report/index.html", "<html>whole run")
    (tmp_path / "report/.index.html.partial").write_text("<html>whole run")
    report = experiment.record("report", BASE, "", location={"page": tmp_path / "report/.index.html.partial"})

    client = experiment.tracker.store.client
    runs = runs_of(experiment.tracker)
    of_base = {f"{step} base" for step in ("start", "train_reward", "check_reward")}
    assert set(runs) == {"tiny", "base", "round 1", "check_labels 1", "align 1", "report base", *of_base}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    top = runs["tiny"].info.run_id
    assert (parents["tiny"], parents["round 1"], parents["base"], parents["report base"]) == (None, top, top, top)
    assert parents["align 1"] == runs["round 1"].info.run_id
    assert runs["round 1"].info.status == "RUNNING"  # its last step is not recorded yet
    assert {runs[name].info.status for name in ("tiny", "base", "align 1")} == {"FINISHED"}

    run = runs["align 1"]
    assert run.data.params["align.beta"] == "1000.0"
    assert run.data.params["experiment.name"] == "tiny"
    assert not any(key.startswith("label.") for key in run.data.params)
    assert run.data.metrics["margin"] == 0.25
    assert run.data.metrics["seconds"] == 1.5
    assert run.data.tags["flag"] == "none"
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee" * 6
    tag = json.loads(run.data.tags["dualipo.input.preferences"])
    assert (tag["path"], tag["kind"]) == ("runs/1/preferences", "dataset")
    assert tag["md5"] == digest(tmp_path / "runs/1/preferences").md5
    history = client.get_metric_history(run_id, "curves/loss")
    assert [(m.step, m.value) for m in history][-1] == (1500, 1 / 1500)
    assert len(history) == 1500
    sets = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    held = ("runs/1/preferences", "runs/1/candidates", "data/real", "runs/base/held_out.json")
    assert sets == {path: digest(tmp_path / path).md5 for path in held}

    def kept(run_id: str, path: str) -> str:
        return Path(client.download_artifacts(run_id, path)).read_text()

    assert json.loads(kept(run_id, "config.json"))["align"]["beta"] == 1000
    assert kept(run_id, "pictures/sheet") == "picture"
    assert kept(report, "outputs/index.html") == "<html>whole run"
    gate = runs["check_labels 1"].info.run_id
    assert json.loads(kept(gate, "outputs/gate/verdict.json")) == {"passed": True}
    assert kept(gate, "outputs/gate/data_docs/index.html") == "<html>"
    assert json.loads(kept(runs["start base"].info.run_id, "outputs/scores.json"))["total"]["mean"] == 50


def test_versions_bear_where_they_come_from_and_their_scores(recorded):
    tracker, root = recorded.tracker, recorded.root
    base, first, second = tracker.versions(GENERATOR)
    assert [base.number, first.number, second.number] == [1, 2, 3]
    assert [v.tags["status"] for v in (base, first, second)] == ["base", "promoted", "rejected"]
    assert second.tags["reason"] == "total fell from 50 to 40 points; dimension motion fell"
    assert first.md5 == digest(root / "runs/1/generator_candidate").md5
    assert (first.round, first.config_digest, first.tags["git_commit"]) == (
        "1",
        recorded.config.digest(),
        "c0ffee" * 6,
    )
    for port, entry in GRAPH["align"].inputs.items():
        assert first.tags[f"input.{port}"] == digest(root / entry.bind("data", "1", BASE)).md5
    assert [v.tags["total.mean"] for v in (base, first, second)] == ["50", "60", "40"]
    assert json.loads(first.tags["scores"])["total"] == {"mean": 60.0, "low": 1, "high": 99}
    assert tracker.versions(CRITIC)[1].tags["agreement.mean"] == "0.82"
    metrics = tracker.store.client.get_logged_model(first.model_id).metrics
    total = next(metric for metric in metrics if metric.key == "total.mean")
    assert total.value == 60.0
    assert (total.dataset_name, total.dataset_digest) == (
        "data/benchmark.jsonl",
        digest(root / "data/benchmark.jsonl").md5,
    )
    assert total.run_id == runs_of(tracker)["evaluate 1"].info.run_id
    history = tracker.store.client.get_metric_history(runs_of(tracker)["tiny"].info.run_id, "scores.total.mean")
    assert sorted((m.step, m.value) for m in history) == [(0, 50.0), (1, 60.0), (2, 40.0)]


def test_aliases_follow_decisions(recorded):
    tracker = recorded.tracker
    assert aliases(tracker, GENERATOR) == {"champion": 2, "previous": 1}  # the second round's was rejected
    assert aliases(tracker, CRITIC) == {"champion": 3, "previous": 2}


def test_a_critic_that_is_rolled_back_gives_its_place_back(own):
    own.start()
    own.round("1", BASE)
    own.round("2", "1", total=40.0, promoted=False, back=True)
    base, first, second = own.tracker.versions(CRITIC)
    assert aliases(own.tracker, CRITIC) == {"champion": 2, "previous": 1}
    assert [v.tags["status"] for v in (base, first, second)] == ["base", "promoted", "rolled back"]
    assert second.tags["reason"] == "critic: as it is."
    top = runs_of(own.tracker)["tiny"].info.run_id
    history = own.tracker.store.client.get_metric_history(top, "agreement.agreement.mean")
    assert sorted((m.step, m.value) for m in history) == [(0, 0.8), (1, 0.82), (2, 0.82)]
    # what is promoted next is measured against the former one, and takes its place.
    own.round("3", "2")
    assert aliases(own.tracker, CRITIC) == {"champion": 4, "previous": 2}
    assert "(rolled back)" in format_lineage(lineage(own.root, own.tracker, "critic@champion"))


def test_a_step_that_did_not_run_is_recorded_as_such_and_registers_nothing(own):
    own.start()
    own.round("1", BASE, only=("align", "evaluate", "promote_generator"))
    versions = {model: own.tracker.versions(model) for model in (GENERATOR, CRITIC)}
    skipped = Summary(tags={"skipped": "stopped after round 1: stop: enough."})
    for step in (step for step in GRAPH.values() if step.scope == "round"):
        for port in step.outputs.values():
            path = port.bind("data", "2", "1")
            if port.stays and port.kind in ("generator", "critic"):
                own.copy(f"runs/1/{port.kind}", path)
            else:
                own.write(path if Path(path).suffix else f"{path}/not_run.json", {"happened": False})
        own.record(step.name, "2", "1", skipped)
    assert {model: own.tracker.versions(model) for model in (GENERATOR, CRITIC)} == versions
    runs = runs_of(own.tracker)
    for name in ("generate 2", "promote_generator 2", "settle 2"):
        assert runs[name].data.tags["skipped"] == "stopped after round 1: stop: enough."
        assert runs[name].info.status == "FINISHED"
    assert runs["round 2"].info.status == "FINISHED"
    history = own.tracker.store.client.get_metric_history(runs["tiny"].info.run_id, "scores.total.mean")
    assert sorted(m.step for m in history) == [0, 1]


def test_references(recorded):
    tracker = recorded.tracker
    for reference in (
        f"{GENERATOR}@champion",
        f"{GENERATOR}/2",
        f"{GENERATOR}:2",
        GENERATOR,
        "generator",
        "generator/2",
    ):
        assert tracker.resolve(reference).label == f"{GENERATOR}/2"
    with pytest.raises(UserError, match=r"there are 1@previous, 2@champion, 3"):
        tracker.resolve(f"{GENERATOR}@winner")
    with pytest.raises(UserError, match="no such model"):
        tracker.resolve("nobody@champion")
    with pytest.raises(UserError, match="name@champion or name/3"):
        tracker.resolve("generator@")


def test_recording_again_changes_nothing(recorded):
    tracker = recorded.tracker

    def state() -> object:
        runs = {run.info.run_id: run.to_dictionary() for run in runs_of(tracker).values()}
        models = [(v.label, v.aliases, v.tags) for model in (GENERATOR, CRITIC) for v in tracker.versions(model)]
        return runs, models, len(tracker.store.client.search_logged_models([tracker.store.experiment_id]))

    before = state()
    assert len(before[0]) == 1 + 3 + 3 + 2 * 12
    recorded.tracker = Tracker(recorded.root, recorded.config)  # as another process would
    for step in GRAPH.values():
        if step.scope == "round":
            recorded.record(step.name, "1", BASE, Summary(metrics={"other": 1.0}))
    recorded.record("start", BASE, "")
    assert state() == before


def test_a_recording_that_was_cut_off_is_completed_without_doubles(recorded, own, monkeypatch):
    """Cut off after each write to MLflow in turn and recorded again: the outcome is that of an unbroken recording."""
    from mlflow import MlflowClient

    writes = ["create_experiment", "create_run", "log_batch", "log_inputs", "log_outputs", "log_text", "log_artifact"]
    writes += ["create_logged_model", "log_model_artifacts", "finalize_logged_model", "create_registered_model"]
    writes += ["create_model_version", "set_logged_model_tags", "set_model_version_tag", "set_registered_model_alias"]
    writes += ["set_terminated"]
    seen: set[object] = set()

    def interrupted(name):
        original = getattr(MlflowClient, name)

        def call(*args, **kwargs):
            result = original(*args, **kwargs)
            lines = [frame.lineno for frame in traceback.extract_stack() if "dualipo" in frame.filename]
            site = (name, *lines, *(part for part in map(str, args) if part.startswith("tiny-")))
            if site not in seen:
                seen.add(site)
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(MlflowClient, name, call)

    for name in writes:
        interrupted(name)
    while True:
        try:
            run_id = own.start()
            break
        except KeyboardInterrupt:
            own.tracker = Tracker(own.root, own.config)
    assert {site[0] for site in seen} == set(writes)
    tracker = own.tracker
    assert set(runs_of(tracker)) == {"tiny", "base", "start base", "train_reward base", "check_reward base"}
    assert [len(tracker.versions(model)) for model in (GENERATOR, CRITIC)] == [1, 1]
    assert len(tracker.store.client.search_logged_models([tracker.store.experiment_id])) == 2
    assert aliases(tracker, GENERATOR) == {"champion": 1}
    mine, whole = tracker.store.client.get_run(run_id), runs_of(recorded.tracker)["start base"]
    assert mine.data.metrics == whole.data.metrics
    assert len(tracker.store.client.get_metric_history(run_id, "total.mean")) == 1
    assert mine.data.params == whole.data.params
    assert mine.data.tags.keys() == whole.data.tags.keys()
    assert len(mine.inputs.dataset_inputs) == len(whole.inputs.dataset_inputs)
    model = tracker.versions(GENERATOR)[0].model_id
    assert sum(metric.key == "total.mean" for metric in tracker.store.client.get_logged_model(model).metrics) == 1


def test_another_configuration_makes_its_own_runs_and_starts_from_its_own_base(own):
    own.start()
    own.round("1", BASE, only=("align", "evaluate", "promote_generator"))
    other = Experiment(own.root, align={"beta": 500})
    other.start()
    assert aliases(own.tracker, GENERATOR) == {"champion": 3, "previous": 2}
    assert {v.md5 for v in own.tracker.versions(GENERATOR) if v.number in (1, 3)} == {
        digest(own.root / "data/generator").md5
    }
    tops = [run for run in own.tracker.store.find_runs(level="experiment")]
    assert len(tops) == 2
    # As `dvc repro` does: only the steps that changed run again, on versions that the first configuration registered.
    third = Experiment(own.root, promote_generator={"max_drop": 1.0})
    third.record("promote_generator", "1", BASE)
    assert aliases(own.tracker, GENERATOR) == {"champion": 2, "previous": 3}
    assert len(own.tracker.versions(GENERATOR)) == 3


def test_a_rejected_candidate_equal_to_its_incumbent_does_not_take_its_place(own):
    own.start()
    own.copy("runs/base/generator", "runs/1/generator_candidate")
    own.write("runs/1/generator_candidate_scores.json", {"total": {"mean": 50.0}})
    own.write("runs/1/benchmark_clips/manifest.jsonl", "clips")
    own.write("runs/1/preferences/pairs.jsonl", "pairs")
    own.write("runs/1/candidates/manifest.jsonl", "clips")
    own.write("runs/1/align_curves.csv", "step,loss\n")
    for gate in ("label_gate", "preference_gate"):
        own.write(f"runs/1/{gate}/verdict.json", {"passed": False, "reasons": ["few pairs"], "suites": {}})
    own.record("align", "1", BASE)
    own.record("evaluate", "1", BASE)
    own.copy("runs/base/generator", "runs/1/generator")
    own.write("runs/1/scores.json", {"total": {"mean": 50.0}})
    own.write("runs/1/generator_decision.json", {"promoted": False, "reasons": ["few pairs"], "evidence": {}})
    own.record("promote_generator", "1", BASE)
    base, candidate = own.tracker.versions(GENERATOR)
    assert base.md5 == candidate.md5
    assert (base.tags["status"], candidate.tags["status"]) == ("base", "rejected")
    assert aliases(own.tracker, GENERATOR) == {"champion": 1}
    own.write("runs/1/critic_candidate/model.safetensors", "new")
    own.copy("data/critic", "runs/1/accepted_critic")
    for name in ("critic_candidate_agreement.json", "accepted_agreement.json"):
        own.write(f"runs/1/{name}", {"agreement": {"mean": 0.1}})
    own.write("runs/1/critic_gate/verdict.json", {})
    own.write("runs/1/critic_decision.json", {"promoted": True, "reasons": [], "evidence": {}})
    with pytest.raises(UserError, match="says promoted, yet runs/1/accepted_critic is not runs/1/critic_candidate"):
        own.record("promote_critic", "1", BASE)


def test_lineage_reaches_the_human_labels(recorded):
    root = recorded.root
    tree = lineage(root, recorded.config, f"{GENERATOR}@champion")
    assert (tree.run.step, tree.run.round, tree.version.label) == ("align", "1", f"{GENERATOR}/2")
    found = list(nodes(tree))
    for node in found:
        assert node.link.md5 == digest(root / node.link.path).md5
        assert node.recorded
        for child in node.inputs:
            assert node.run.inputs[child.port] == child.link
            if child.run:
                assert child.link in child.run.outputs.values()
    origins = {node.origin: node.link.path for node in found if node.origin}
    assert origins["human seed labels"] == "data/seed"
    assert origins["human test labels"] == "data/test"
    assert origins["real clips"] == "data/real"
    later = {"evaluate", "promote_generator", "settle", "report"}
    assert {node.run.step for node in found if node.run} == GRAPH.keys() - later
    text = format_lineage(tree)
    assert text.splitlines()[0] == (
        f"generator  runs/1/generator_candidate  {tree.link.md5[:8]}  align, round 1  commit c0ffeec0  "
        f"= {GENERATOR}/2 @champion"
    )
    line = next(line for line in text.splitlines() if "human seed labels" in line)
    assert line.lstrip("│ ├└─").split("  ") == [
        "data",
        "data/seed",
        digest(root / "data/seed").md5[:8],
        "human seed labels",
    ]
    text = format_lineage(lineage(root, recorded.tracker, "critic@champion"))
    assert "train_critic, round 2" in text and "train_critic, round 1" in text
    assert len(text.splitlines()) < 90


@pytest.fixture
def spoilt(recorded):
    """The recorded experiment, whose files a test may change: put back afterwards."""
    keep = recorded.root.with_name("keep")
    shutil.copytree(recorded.root, keep)
    yield recorded
    shutil.rmtree(recorded.root)
    keep.rename(recorded.root)


def verdicts(
    experiment: Experiment, reference: str = "generator"
) -> tuple[bool, dict[tuple[str, str], tuple[str, str, bool]]]:
    checks = verify(experiment.root, experiment.config, reference)
    return broken(checks), {(c.place, c.name): (c.state, c.note, c.broken) for c in checks}


def test_verify_finds_every_link_whole(recorded):
    bad, found = verdicts(recorded)
    assert not bad
    assert {state for state, _, _ in found.values()} == {"holds"}
    assert ("registry", f"{GENERATOR}/2") in found and ("disk", "data/seed") in found
    checks = verify(recorded.root, recorded.config, "generator")
    assert format_checks(checks).splitlines()[-1] == f"{len(checks)} of {len(checks)} links hold, 0 broken"


def test_verify_tells_one_changed_byte(spoilt):
    labels = spoilt.root / "data/seed/ratings.csv"
    labels.write_bytes(labels.read_bytes()[:-1] + b"!")
    bad, found = verdicts(spoilt)
    assert bad
    assert found["disk", "data/seed"] == ("changed", f"now {digest(spoilt.root / 'data/seed').md5[:8]}", True)
    assert [name for (_, name), (state, _, _) in found.items() if state != "holds"] == ["data/seed"]


def test_verify_tells_what_is_missing_and_what_the_registry_still_holds(spoilt):
    shutil.rmtree(spoilt.root / "runs/1/generator_candidate")
    bad, found = verdicts(spoilt)
    assert not bad
    name = "runs/1/generator_candidate"
    assert found["disk", name] == ("missing", "not on disk, but the registered version holds", False)
    (spoilt.root / "runs/1/prompts.jsonl").unlink()
    bad, found = verdicts(spoilt)
    assert bad
    assert found["disk", "runs/1/prompts.jsonl"] == ("missing", "not on disk", True)


def test_verify_tells_a_registered_artifact_that_changed_or_is_gone(spoilt):
    model = spoilt.tracker.resolve("generator")
    location = spoilt.tracker.store.client.get_logged_model(model.model_id).artifact_location
    [stored] = (spoilt.root / "mlartifacts").rglob(f"{model.model_id}/**/*.safetensors")
    assert location.endswith(stored.parent.parent.name)
    stored.write_bytes(b"?" + stored.read_bytes()[1:])
    bad, found = verdicts(spoilt)
    assert bad and found["registry", model.label][0] == "changed"
    assert found["disk", "runs/1/generator_candidate"][0] == "holds"
    shutil.rmtree(spoilt.root / "runs/1/generator_candidate")
    shutil.rmtree(stored.parent.parent)
    bad, found = verdicts(spoilt)
    assert bad and found["registry", model.label][0] == "missing"
    assert found["disk", "runs/1/generator_candidate"] == ("missing", "not on disk", True)


def test_verify_tells_a_step_that_was_never_recorded(own):
    own.start()
    own.write("runs/1/preferences/pairs.jsonl", "from nowhere")
    own.write("runs/1/candidates/manifest.jsonl", "from nowhere")
    own.write("runs/1/generator_candidate/model.safetensors", "new")
    own.write("runs/1/align_curves.csv", "step,loss\n")
    own.record("align", "1", BASE)
    bad, found = verdicts(own, f"{GENERATOR}/2")
    assert bad
    assert found["record", "runs/1/preferences"] == ("missing", "made by no recorded step", True)
    assert "made by no recorded step" in format_lineage(lineage(own.root, own.config, f"{GENERATOR}/2"))


def test_nothing_recorded_and_no_server_are_told_in_a_sentence(tmp_path, monkeypatch):
    config = parse_config({"experiment": {"name": "tiny"}})
    with pytest.raises(UserError, match="tiny-generator: no such model in MLflow at sqlite"):
        lineage(tmp_path, config, "generator@champion")
    assert not list(tmp_path.iterdir())  # reading makes no database
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match="the MLflow server does not answer"):
            lineage(tmp_path, config, "generator@champion")


def test_a_server_and_a_plain_client(tmp_path, database, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    store = tmp_path / "server"
    store.mkdir()
    shutil.copy(database, store / "mlflow.db")
    command = [BIN / "mlflow", "server", "--backend-store-uri", f"sqlite:///{store}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", store / "artifacts", "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path / "log", "w") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        experiment = Experiment(tmp_path / "root")
        experiment.start()
        for _ in range(2):
            experiment.round("1", BASE, only=("align", "evaluate", "promote_generator"))
        assert aliases(experiment.tracker, GENERATOR) == {"champion": 2, "previous": 1}
        assert experiment.tracker.versions(GENERATOR)[1].tags["total.mean"] == "60"
        assert not (tmp_path / "root/mlflow.db").exists() and not (tmp_path / "root/mlartifacts").exists()
        bad, found = verdicts(experiment, f"{GENERATOR}/1")
        assert not bad and found["registry", f"{GENERATOR}/1"][0] == "holds"
        code = (
            f"import mlflow; print(mlflow.artifacts.download_artifacts('models:/{GENERATOR}@champion', dst_path='got'))"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
        assert digest(tmp_path / "got") == digest(tmp_path / "root/runs/1/generator")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def test_a_plain_client_downloads_the_champion_from_sqlite(recorded, tmp_path):
    code = f"import mlflow; print(mlflow.artifacts.download_artifacts('models:/{GENERATOR}@champion', dst_path='got'))"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": recorded.tracker.uri}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, env=environment)
    assert digest(tmp_path / "got") == digest(recorded.root / "runs/1/generator")


def test_mlflow_is_not_imported_before_it_is_needed():
    code = "import sys, dualipo.tracking, dualipo.lineage; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- a VideoReward


def test_a_videoreward_is_a_version_with_its_agreement_and_stands_in_the_lineage(own):
    own.start()
    model = own.tracker.model_name("reward")
    assert own.tracker.versions(model) == [], "a folder that says that there is none is no version"
    agreement = {"agreement": {"mean": 0.775, "low": 0.7, "high": 0.84}, "pairs": 40}
    own.reward({"config.json": {"model_type": "videoreward"}, "head.safetensors": "h"}, {"videoreward": agreement})
    [version] = own.tracker.versions(model)
    assert version.tags["status"] == "base" and version.aliases == ("champion",)
    assert version.tags["agreement.mean"] == "0.775" and json.loads(version.tags["scores"]) == agreement
    assert own.tracker.resolve("reward@champion") == version
    own.round("1", BASE, only=("prefer", "align"))
    text = format_lineage(lineage(own.root, own.tracker, "generator/2"))
    [line] = [line for line in text.splitlines() if "runs/base/reward" in line]
    assert line.endswith(f"train_reward, round base  = {model}/1 @champion")
