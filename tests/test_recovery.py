"""MLflow, or the store behind it, away in the middle of a run: nothing is lost, nothing is doubled, and it is told."""

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers
from fake_steps import LONG
from test_champions import GENERATOR, crown, dualipo, moves, race, register
from test_tracking import Experiment, aliases, experiment_in

from dualipo.artifacts import digest
from dualipo.cluster.render import render
from dualipo.config import parse_config
from dualipo.engine import execute
from dualipo.errors import UserError
from dualipo.tracking import Tracker, Unreachable, spool
from dualipo.tracking.spool import Record, deliver, replay, waiting

STEPS = ("train_critic", "check_critic", "promote_critic", "align", "evaluate", "promote_generator")
SHORT = {"tracking": {"patience": 0.2}}


class Courier:
    """A tracker that records as the engine does: a step's own process, which may leave its record in the spool."""

    def __init__(self, own: Experiment):
        self.own, self.told = own, []

    def record(self, *what) -> None:
        own = self.own
        self.told.append(deliver(own.root, own.config, Record(*what)))

    def __getattr__(self, name):
        return getattr(Tracker(self.own.root, self.own.config), name)


def delivering(root: Path, **sections) -> Experiment:
    own = Experiment(root, **{**SHORT, **sections})
    own.tracker = Courier(own)
    return own


@pytest.fixture
def own(tmp_path, database):
    """On SQLite, with its base models recorded."""
    experiment_in(tmp_path / "own", database)
    made = delivering(tmp_path / "own")
    made.start()
    return made


def content(own: Experiment) -> dict:
    """All that MLflow holds, without ids and times."""
    tracker = Tracker(own.root, own.config)
    client = tracker.store.client
    runs = client.search_runs([tracker.store.experiment_id])
    found = {
        "runs": {},
        "moves": moves(tracker),
        "logged": len(client.search_logged_models([tracker.store.experiment_id])),
    }
    assert len({run.info.run_name for run in runs}) == len(runs)
    for run in runs:
        tags = {key: value for key, value in run.data.tags.items() if key not in ("mlflow.parentRunId", "mlflow.user")}
        kept = sorted(item.path for item in client.list_artifacts(run.info.run_id, "outputs"))
        counts = {key: len(client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics}
        found["runs"][run.info.run_name] = (run.info.status, run.data.params, run.data.metrics, counts, tags, kept)
    for kind in ("generator", "critic"):
        versions = tracker.versions(tracker.model_name(kind))
        names = ("md5", "status", "reason", "round", "promoted_by")
        found[kind] = [(v.number, v.aliases, {name: v.tags.get(name) for name in names}) for v in versions]
    return found


# ---- what waits


class Away:
    """MLflow does not answer, as far as recording goes."""

    def __init__(self, monkeypatch):
        self.record, self.away, self.tried = Tracker._record, True, 0
        monkeypatch.setattr(Tracker, "_record", lambda *args: self._call(*args))

    def _call(self, *args):
        self.tried += 1
        if self.away:
            raise Unreachable("MLflow at http://far: no answer")
        return self.record(*args)


def test_records_wait_whole_and_in_order_and_are_replayed_once(own, tmp_path, database, monkeypatch):
    away = Away(monkeypatch)
    own.tracker.told.clear()
    for name, prev in (("1", "base"), ("2", "1")):
        own.round(name, prev, only=STEPS)
    names = [entry.name for entry in waiting(own.root)]
    assert names == [f"{n:06}-{step}-{name}" for n, (name, step) in enumerate(((r, s) for r in "12" for s in STEPS), 1)]
    assert all("not in MLflow yet (MLflow at http://far: no answer): " in told for told in own.tracker.told)
    assert own.tracker.told[-1].endswith("12 in .dualipo/spool, which the next step or `dualipo replay` records")
    # what lies in the folder changes meanwhile; the records do not.
    own.round("2", "1", total=1.0, promoted=False, only=("none",))
    for name in (
        "generator_candidate/nested/model.safetensors",
        "generator_candidate_scores.json",
        "generator_decision.json",
    ):
        own.write(f"runs/2/{name}", {"later": True})
    shutil.rmtree(own.root / "runs/1/label_gate")
    told = dualipo(own, "history")
    assert "12 records wait" in told and aliases(own.tracker, GENERATOR) == {"champion": 1}
    away.away = False
    assert dualipo(own, "replay") == "12 records sent\n" and waiting(own.root) == []
    assert dualipo(own, "replay") == "0 records sent\n"

    experiment_in(tmp_path / "twin", database)
    twin = delivering(tmp_path / "twin")
    twin.start()
    for name, prev in (("1", "base"), ("2", "1")):
        twin.round(name, prev, only=STEPS)
    assert content(own) == content(twin)
    assert aliases(own.tracker, GENERATOR) == {"champion": 3, "previous": 2}


def test_the_next_step_sends_what_waits_before_its_own(own, monkeypatch):
    away = Away(monkeypatch)
    own.round("1", "base", only=("align",))
    own.round("1", "base", only=("align",))
    assert len(waiting(own.root)) == 1, "the same record waits once"
    away.away = False
    own.round("1", "base", only=("evaluate", "promote_generator"))
    assert waiting(own.root) == [] and own.tracker.told[-2:] == ["", ""]
    steps = [run.step for run in own.tracker.step_runs()]
    assert steps.index("align") < steps.index("evaluate") and aliases(own.tracker, GENERATOR)["champion"] == 2


def test_a_replay_that_is_killed_goes_on_and_doubles_nothing(own, monkeypatch):
    away = Away(monkeypatch)
    own.round("1", "base", only=STEPS)
    away.away = False
    remove, left = spool.remove, [3]

    def killed(path):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(spool, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        replay(own.root)
    assert len(waiting(own.root)) == 4, "the third is recorded, and still here"
    assert replay(own.root) == 4
    own.round("1", "base", only=STEPS)
    assert len(own.tracker.step_runs()) == 3 + 6 and len(moves(own.tracker)) == 4


def test_a_record_that_was_killed_on_its_way_into_the_spool_is_not_one(own, monkeypatch):
    away = Away(monkeypatch)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(spool, "write_json", killed)
        own.round("1", "base", only=("align",))
    assert waiting(own.root) == []
    own.round("1", "base", only=("align",))
    assert [entry.name for entry in waiting(own.root)] == ["000001-align-1"]
    assert [path.name for path in (own.root / ".dualipo/spool").iterdir()] == ["000001-align-1"]
    away.away = False
    assert replay(own.root) == 1


def test_a_person_waits_for_what_waits(own, monkeypatch):
    away = Away(monkeypatch)
    own.round("1", "base", only=("align", "promote_generator"))
    for command in (["promote", "generator/1"], ["rollback", "generator", "--reason", "x"], ["replay"]):
        with pytest.raises(UserError, match="no answer"):
            dualipo(own, *command)
    away.away = False
    assert "v2 -> v1, rollback" in dualipo(own, "rollback", "generator", "--reason", "x", "--by", "ann")


def test_what_mlflow_refuses_does_not_wait(own, monkeypatch):
    def refused(*args):
        raise UserError("MLflow at http://far: PERMISSION_DENIED")

    monkeypatch.setattr(Tracker, "_record", refused)
    with pytest.raises(UserError, match="PERMISSION_DENIED"):
        own.round("1", "base", only=("align",))
    assert waiting(own.root) == []


def test_a_record_that_is_refused_later_keeps_those_behind_it_waiting(own, monkeypatch):
    away = Away(monkeypatch)
    own.round("1", "base", only=("align", "promote_generator"))
    own.round("2", "1", only=("align",))
    [_, promoted, _] = waiting(own.root)
    record = json.loads((promoted / "record.json").read_text())
    record["outputs"]["generator"]["md5"] = "0" * 32 + ".dir"
    (promoted / "record.json").write_text(json.dumps(record))
    away.away = False
    with pytest.raises(UserError, match=r"000002-promote_generator-1: runs/1/generator_decision.json: says promoted"):
        replay(own.root)
    assert len(waiting(own.root)) == 2


def test_waiting_records_go_where_they_were_meant_to_unless_a_person_says_so(own, monkeypatch, tmp_path, database):
    away = Away(monkeypatch)
    own.round("1", "base", only=("align",))
    away.away = False
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(database, elsewhere / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlflow.db")
    with pytest.raises(
        UserError, match=r"this record waits for MLflow at sqlite:.*own/mlflow.db, not sqlite:.*elsewhere"
    ):
        own.round("1", "base", only=("evaluate",))
    assert replay(own.root) == 1 and len(own.tracker.step_runs()) == 1


def test_no_password_lies_in_the_spool(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret@example.org:5000/mlflow")
    assert spool._address(tmp_path) == "https://example.org:5000/mlflow"


@pytest.mark.parametrize("outage", ["spool", "stop"])
def test_an_address_that_never_answered_stops_the_run_at_once(tmp_path, monkeypatch, outage):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    own = delivering(tmp_path, tracking={"patience": 1000, "outage": outage})
    with pytest.raises(Unreachable, match="does not answer"):
        own.start()
    assert waiting(tmp_path) == [] and own.tracker.told == []


def test_a_folder_that_goes_with_its_process_keeps_nothing_and_waits_for_mlflow(own, monkeypatch):
    away, pauses = Away(monkeypatch), []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr("dualipo.tracking.store.time.monotonic", lambda: sum(pauses))
    own.config = parse_config({"experiment": {"name": "tiny"}, "tracking": {"patience": 20}})
    monkeypatch.setattr("test_recovery.deliver", lambda *args: spool.deliver(*args, ephemeral=True))
    with pytest.raises(Unreachable, match="no answer"):
        own.round("1", "base", only=("align",))
    assert pauses == [0.5, 1, 2, 4, 8] and away.tried == 6 and waiting(own.root) == []


def test_the_run_stops_where_it_was_asked_to(tmp_path, database, monkeypatch):
    experiment_in(tmp_path, database)
    own = delivering(tmp_path, tracking={"patience": 0, "outage": "stop"})
    own.start()
    Away(monkeypatch)
    with pytest.raises(Unreachable, match="no answer"):
        own.round("1", "base", only=("align",))
    assert waiting(tmp_path) == []


def test_a_short_outage_is_waited_for_with_growing_pauses(own, monkeypatch):
    away, pauses = Away(monkeypatch), []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        away.away = len(pauses) < 7

    monkeypatch.setattr(time, "sleep", sleep)
    own.config = parse_config({"experiment": {"name": "tiny"}, "tracking": {"patience": 100}})
    own.round("1", "base", only=("align",))
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15] and own.tracker.told[-1] == "" and away.tried == 8


def test_the_engine_publishes_says_so_in_one_line_and_records_later(tmp_path, database, monkeypatch):
    folder = tmp_path / "engine"
    (folder / "data").mkdir(parents=True)
    (folder / "data/source.txt").write_text("7")
    shutil.copy(database, folder / "mlflow.db")
    config = parse_config({"experiment": {"name": "tiny"}, **SHORT})
    monkeypatch.setitem(spool.GRAPH, "long", LONG)
    execute(LONG, config, folder, "1")
    away = Away(monkeypatch)
    (folder / "data/source.txt").write_text("8")
    for skipped in (False, True):
        outcome = execute(LONG, config, folder, "1")
        assert outcome.skipped is skipped and outcome.outputs["model"].is_dir() and not outcome.waits.count("\n")
        assert f"; {outcome.waits}" in str(outcome) and "1 in .dualipo/spool" in outcome.waits
    away.away = False
    outcome = execute(LONG, config, folder, "1")
    assert outcome.skipped and not outcome.waits and waiting(folder) == []
    tried = away.tried
    execute(LONG, config, folder, "1")
    assert away.tried == tried, "recorded: nobody is asked any more"
    versions = Tracker(folder, config).versions(GENERATOR)
    assert [v.md5 for v in versions][-1] == digest(folder / "runs/1/model").md5 and len(versions) == 2


# ---- a real server that stops, and a real S3 behind it


@dataclass
class Far:
    uri: str
    door: servers.Door
    stack: ExitStack
    folder: Path
    port: int

    def stop(self) -> None:
        self.stack.close()

    def start(self) -> None:
        self.stack.enter_context(servers.bare_mlflow(self.folder, self.port, "s3://dualipo-mlflow/artifacts"))


@pytest.fixture(scope="module")
def far(repository, tmp_path_factory, database):
    """MLflow, with artifacts in SeaweedFS behind a door."""
    import boto3

    folder = tmp_path_factory.mktemp("far")
    objects = render(repository / "k8s/overlays/local")
    (folder / "mlflow").mkdir()
    shutil.copy(database, folder / "mlflow/mlflow.db")
    [port] = servers.free_ports(1)
    with servers.seaweedfs(objects, folder / "s3") as s3, pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        door = servers.Door(int(s3.rpartition(":")[2]))
        at = f"http://{servers.HERE}:{door.port}"
        variables = servers.SECRETS["dualipo-s3"] | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}
        variables |= {"MLFLOW_S3_ENDPOINT_URL": at, "AWS_ENDPOINT_URL_S3": at}
        for name, value in variables.items():
            patch.setenv(name, value)
        servers.patiently(lambda: boto3.client("s3").create_bucket(Bucket="dualipo-mlflow"))
        made = Far(f"http://{servers.HERE}:{port}", door, stack, folder / "mlflow", port)
        made.start()
        yield made
        door.shut()


@pytest.fixture
def at_far(far, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", far.uri)
    return far


def test_a_server_that_stops_and_an_s3_that_is_away_lose_nothing(at_far, tmp_path, database, monkeypatch):
    own = delivering(tmp_path / "root")
    own.start()
    at_far.stop()
    own.round("1", "base", only=STEPS)
    assert len(waiting(own.root)) == 6 and "does not answer" in own.tracker.told[-1]
    with pytest.raises(UserError, match="the MLflow server does not answer"):
        dualipo(own, "promote", "generator/1")
    at_far.start()
    at_far.door.shut()
    own.round("2", "1", only=("train_critic", "check_critic", "promote_critic"))
    assert len(waiting(own.root)) == 9 and "not in MLflow yet" in own.tracker.told[-1]
    at_far.door.open()
    own.round("2", "1", only=("align", "evaluate", "promote_generator"))
    assert waiting(own.root) == [] and own.tracker.told[-3:] == ["", "", ""]
    found = content(own)
    got = Tracker(own.root, own.config).download(own.tracker.resolve("generator@champion"), tmp_path / "got")
    assert digest(got) == digest(own.root / "runs/2/generator")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI")
        experiment_in(tmp_path / "twin", database)
        twin = delivering(tmp_path / "twin")
        twin.start()
        for name, prev in (("1", "base"), ("2", "1")):
            twin.round(name, prev, only=STEPS)
        assert content(twin) == found


def test_of_two_machines_at_one_server_one_wins_and_steps_come_one_after_the_other(at_far, tmp_path):
    """Folders of their own, so no lock is between them; each has its move ready when the other has."""
    roots = [tmp_path / name for name in "ab"]
    own = Experiment(roots[0], experiment={"name": "tiny"})
    Experiment(roots[1])
    first = len(own.tracker.versions(GENERATOR))
    versions = [register(own, f"race {n}") for n in range(4)]
    if not first:
        crown(own.tracker, versions[0])
    before = aliases(own.tracker, GENERATOR)["champion"]
    done = len(moves(own.tracker))
    references = [f"generator/{version.number}" for version in versions[1:3]]
    ended = race(roots, at_far.uri, "writing", tmp_path, references)
    assert sorted(status for status, _ in ended) == [0, 2], ended
    [told] = [text for status, text in ended if status]
    [(_, _, former, to, by, _)] = moves(own.tracker)[done:]
    assert f"the champion of tiny-generator changed meanwhile from v{before} to v{to} (by {by}); look again" in told
    assert former == before and aliases(own.tracker, GENERATOR) == {"champion": to, "previous": before}

    shutil.rmtree(tmp_path / "meeting")
    other = next(v for v in versions[1:3] if v.number != to)
    ended = race(roots, at_far.uri, "step", tmp_path, [f"generator/{other.number}", f"generator/{versions[3].number}"])
    assert [status for status, _ in ended] == [0, 0], ended
    two = moves(own.tracker)[done + 1 :]
    assert {move[3] for move in two} == {other.number, versions[3].number}
    assert [move[2] for move in two] == [to, two[0][3]]
    assert aliases(own.tracker, GENERATOR) == {"champion": two[1][3], "previous": two[0][3]}
