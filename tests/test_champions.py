"""Promotion as an operation: who is champion, why, and what no crash and no other promoter can break."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from mlflow import MlflowClient
from test_tracking import Experiment, aliases, experiment_in

from dualipo.artifacts import digest
from dualipo.cli import cli
from dualipo.errors import UserError
from dualipo.tracking import Artifact, Tracker, Version
from dualipo.tracking.evidence import gather, read
from dualipo.tracking.history import History
from dualipo.tracking.promotion import history, promote, rollback
from dualipo.tracking.store import Unreachable

GENERATOR, CRITIC = "tiny-generator", "tiny-critic"
WRITES = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_model_version_tag",
    "create_model_version",
    "create_registered_model",
)
"""Everything that a promotion changes in MLflow."""


def register(experiment: Experiment, name: str, kind: str = "generator", promoted: bool | None = True) -> Version:
    """A version as its round's steps leave it: with evidence that says promoted or not, or with none (None)."""
    tracker, path = experiment.tracker, f"made/{kind}-{name}"
    experiment.write(f"{path}/model.safetensors", f"{kind} {name}")
    artifact = Artifact(path, experiment.root / path, digest(experiment.root / path), kind)
    with tracker.store.writing():
        run = tracker.store.client.create_run(tracker.store.create_experiment()).info.run_id
        tags = {"round": name, "step": "align", "config_digest": tracker.config_digest, "status": "candidate"}
        version = tracker.registry.register(tracker.model_name(kind), artifact, run, tags)
        if promoted is not None:
            decision = {"promoted": promoted, "reasons": ["gates held" if promoted else "total fell"]}
            tracker.registry.attach(version, gather(version, decision, {}, {}, {"run_id": run}))
            if not promoted:
                tracker.registry.set_tags(version, {"status": "rejected", "reason": "total fell"})
    return next(v for v in tracker.versions(version.name) if v.number == version.number)


def crown(tracker: Tracker, version: Version, key: str = "base", kind: str = "base") -> None:
    with tracker.store.writing():
        tracker.registry.crown(version, kind, "start", "the base model, as it came", key)


@pytest.fixture(scope="module")
def template(tmp_path_factory, database):
    """Generators 1 (base, champion), 2 to 4 (accepted), 5 (rejected), 6 (without evidence); critics 1 and 2."""
    experiment = experiment_in(tmp_path_factory.mktemp("template") / "root", database)
    for name in "1234":
        register(experiment, name)
    register(experiment, "5", promoted=False)
    register(experiment, "6", promoted=None)
    for name in "12":
        register(experiment, name, "critic")
    crown(experiment.tracker, experiment.tracker.versions(GENERATOR)[0])
    return experiment.root


def copied(template: Path, root: Path) -> Experiment:
    """Artifacts stay where they are: MLflow knows them by absolute paths."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(template / "mlflow.db", root / "mlflow.db")
    return Experiment(root)


@pytest.fixture
def own(template, tmp_path):
    return copied(template, tmp_path / "own")


def moves(tracker: Tracker) -> list[tuple]:
    return [(m.model, m.kind, m.former, m.to, m.by, m.reason) for m in tracker.registry.history.moves()]


def status(tracker: Tracker, number: int) -> str | None:
    return tracker.versions(GENERATOR)[number - 1].tags.get("status")


def dualipo(experiment: Experiment, *arguments: str) -> str:
    (experiment.root / "params.yaml").write_text(experiment.config.model_dump_json())
    result = CliRunner().invoke(cli, [*arguments, "--folder", str(experiment.root)])
    if result.exception:
        raise result.exception
    return result.output


# ---- by hand


def test_promote_rollback_and_history(own):
    t = own.tracker
    assert "would be champion of tiny-generator: v2, now v1" in dualipo(own, "promote", "generator/2", "--dry-run")
    assert aliases(t, GENERATOR) == {"champion": 1} and len(moves(t)) == 1
    assert "v1 -> v2, promote, by ann: gates held" in dualipo(own, "promote", "generator/2", "--by", "ann")
    promote(t, "generator/3", "ben", "sharper")
    promote(t, "generator/4", "ben")
    assert aliases(t, GENERATOR) == {"champion": 4, "previous": 3} and status(t, 4) == "promoted"
    told = dualipo(own, "rollback", "generator", "--by", "ann", "--reason", "flickers")
    assert "v4 -> v3, rollback, by ann: flickers" in told
    assert aliases(t, GENERATOR) == {"champion": 3, "previous": 2}
    assert (status(t, 4), t.versions(GENERATOR)[3].tags["reason"]) == ("rolled back", "flickers")
    rollback(t, "generator", "ann", "still")
    rollback(t, "generator", "ann", "still")
    assert aliases(t, GENERATOR) == {"champion": 1}
    with pytest.raises(UserError, match="tiny-generator: there is nothing to roll back to, v1 is its first champion"):
        rollback(t, "generator", "ann", "still")
    with pytest.raises(UserError, match="say why: --reason WHY"):
        rollback(t, "generator", "ann", " ")
    lines = dualipo(own, "history", "generator").splitlines()
    assert len(lines) == len(moves(t)) == 7
    for line, move in zip(lines, t.registry.history.moves(), strict=True):
        assert (
            line.split()[0] == str(move.number) and f"evidence {move.evidence[:12]}  {move.by}: {move.reason}" in line
        )


def test_a_plain_client_gets_what_was_promoted_and_nothing_else(own, template, tmp_path):
    promote(own.tracker, "generator/3", "ann")
    register(own, "7")
    code = f"import mlflow; mlflow.artifacts.download_artifacts('models:/{GENERATOR}@champion', dst_path='got')"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": own.tracker.uri}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, env=environment)
    assert digest(tmp_path / "got") == digest(template / "made/generator-3")


@pytest.mark.parametrize(
    ("reference", "more", "message"),
    [
        ("generator/1", {}, "tiny-generator/1: it is the champion already"),
        ("generator/6", {}, "tiny-generator/6: it bears no evidence, so it can't be promoted; run its round"),
        ("generator/6", {"override": True, "reason": "x"}, "it bears no evidence"),
        ("generator/5", {}, r"it was rejected \(total fell\); only a person can promote it: --override --by WHO"),
        ("generator/5", {"approve": True, "reason": "x"}, "it was rejected"),
        ("generator/5", {"override": True}, "say why it is promoted: --reason WHY"),
        ("tiny-history/1", {}, "no model of experiment 'tiny'"),
    ],
)
def test_what_may_not_be_promoted_is_told_in_a_sentence(own, reference, more, message):
    with pytest.raises(UserError, match=message):
        promote(own.tracker, reference, "ann", **more)
    assert aliases(own.tracker, GENERATOR) == {"champion": 1} and len(moves(own.tracker)) == 1


def test_a_person_overrides_and_that_is_recorded(own):
    with pytest.raises(UserError, match="say who decides"):
        dualipo(own, "promote", "generator/5", "--override", "--reason", "demo")
    dualipo(own, "promote", "generator/5", "--override", "--by", "ann", "--reason", "demo")
    version = own.tracker.resolve("generator@champion")
    assert moves(own.tracker)[-1] == (GENERATOR, "override", 1, 5, "ann", "demo")
    assert version.tags["promoted_by"] == "ann" and version.tags["promoted_reason"] == "demo"
    held = read(version)
    assert (
        not held.promoted
        and held.content["signed"].items() >= {"kind": "override", "by": "ann", "reason": "demo"}.items()
    )
    assert held.digest == own.tracker.registry.history.moves()[-1].evidence
    rollback(own.tracker, "generator", "ann", "no")
    with pytest.raises(UserError, match=r"it was rolled back \(no\); only a person"):
        promote(own.tracker, "generator/5", "ben")


def test_a_champion_of_before_is_crowned_again_by_a_step(own):
    t = own.tracker
    for number in (2, 3, 4):
        promote(t, f"generator/{number}", "ann")
    one, two, _, four = t.versions(GENERATOR)[:4]
    for _ in range(2):
        with t.store.writing():
            t.registry.restore(two, "settle, round 3", "the benchmark fell", "a run's id")
    assert moves(t)[-1] == (GENERATOR, "rollback", 4, 2, "settle, round 3", "the benchmark fell")
    assert len(moves(t)) == 5 and t.registry.history.line(GENERATOR).champions == [1, 2]
    with pytest.raises(UserError, match="tiny-generator/4: it never was champion, or was rolled back"):
        t.registry.restore(four, "settle", "x", "other")
    assert t.registry.restore(two, "settle", "x", "other") is None
    assert t.registry.restore(one, "settle", "x", "third").to == 1


# ---- what was signed is what is there


@pytest.fixture
def whole(tmp_path, database):
    """With artifacts of its own, which a test may spoil."""
    experiment = experiment_in(tmp_path / "root", database)
    for name in "12":
        register(experiment, name)
    crown(experiment.tracker, experiment.tracker.versions(GENERATOR)[0])
    return experiment


def _bytes(experiment: Experiment) -> None:
    model = experiment.tracker.versions(GENERATOR)[1].model_id
    [stored] = (experiment.root / "mlartifacts").rglob(f"{model}/**/*.safetensors")
    stored.write_text("other")


def _md5(experiment: Experiment) -> None:
    experiment.tracker.store.client.set_model_version_tag(GENERATOR, "2", "dualipo.md5", "0" * 32 + ".dir")


def _evidence(experiment: Experiment) -> None:
    [version] = experiment.tracker.versions(GENERATOR)[1:]
    key = f"dualipo.evidence.{version.tags['evidence'][:16]}"
    changed = version.tags[key.removeprefix("dualipo.")].replace("gates held", "gates fell")
    experiment.tracker.store.client.set_model_version_tag(GENERATOR, "2", key, changed)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_bytes, r"tiny-generator/2: MLflow hands out other bytes \(\w+\) than were registered"),
        (_md5, "its evidence, or its md5, was changed after it was signed"),
        (_evidence, "its evidence, or its md5, was changed after it was signed"),
    ],
)
def test_a_version_that_is_not_what_was_signed_is_not_promoted(whole, spoil, message):
    spoil(whole)
    for dry_run in (True, False):
        with pytest.raises(UserError, match=message):
            promote(whole.tracker, "generator/2", "ann", dry_run=dry_run)
    assert aliases(whole.tracker, GENERATOR) == {"champion": 1} and len(moves(whole.tracker)) == 1


def test_a_rollback_to_other_bytes_is_refused(whole):
    promote(whole.tracker, "generator/2", "ann")
    register(whole, "3")
    promote(whole.tracker, "generator/3", "ann")
    _bytes(whole)
    with pytest.raises(UserError, match="tiny-generator/2: MLflow hands out other bytes"):
        rollback(whole.tracker, "generator", "ann", "no")
    assert aliases(whole.tracker, GENERATOR) == {"champion": 3, "previous": 2}


def test_a_history_that_was_tampered_with_is_told(own):
    t, client = own.tracker, own.tracker.store.client
    promote(t, "generator/2", "ann")
    promote(t, "generator/3", "ann")
    client.set_model_version_tag("tiny-history", "2", "dualipo.by", "someone else")
    with pytest.raises(
        UserError, match=r"tiny-history/2: this move of tiny-generator, or one before it, was deleted or"
    ):
        list(history(t))
    client.set_model_version_tag("tiny-history", "2", "dualipo.by", "ann")
    assert len(list(history(t))) == 3
    client.delete_model_version("tiny-history", "2")
    with pytest.raises(UserError, match=r"tiny-history/3: this move of tiny-generator, or one before it, was deleted"):
        promote(t, "generator/4", "ann")


def test_an_alias_that_was_moved_by_hand_is_told_and_moved_back(own):
    t = own.tracker
    t.store.client.set_registered_model_alias(GENERATOR, "champion", "6")
    assert any("alias champion is at v6, by the moves it should be v1" in line for line in history(t))
    promote(t, "generator/2", "ann")
    assert moves(t)[-1][:4] == (GENERATOR, "promote", 1, 2) and aliases(t, GENERATOR) == {"champion": 2, "previous": 1}


def test_no_order_is_read_off_a_clock(own, monkeypatch):
    """The mover's clock goes backwards, a day at a time."""
    t, clock = own.tracker, iter(range(10**12, 0, -86_400_000))
    monkeypatch.setattr("dualipo.tracking.registry.now", lambda: next(clock))
    for number in (2, 3, 4):
        promote(t, f"generator/{number}", "ann")
    rollback(t, "generator", "ann", "no")
    assert [move.to for move in t.registry.history.moves()] == [1, 2, 3, 4, 3]
    assert aliases(t, GENERATOR) == {"champion": 3, "previous": 2}


def test_a_registry_from_before_moves_were_kept(tmp_path, database):
    own = experiment_in(tmp_path / "old", database)
    for name in "123":
        register(own, name, promoted=None if name == "1" else True)
    own.tracker.store.client.set_registered_model_alias(GENERATOR, "champion", "1")
    assert list(history(own.tracker)) == ["tiny-generator: alias champion is at v1, set before moves were kept"]
    promote(own.tracker, "generator/2", "ann")
    promote(own.tracker, "generator/3", "ann")
    assert [move[2:4] for move in moves(own.tracker)] == [(1, 2), (2, 3)]
    rollback(own.tracker, "generator", "ann", "no")
    assert aliases(own.tracker, GENERATOR) == {"champion": 2, "previous": 1}
    with pytest.raises(UserError, match="tiny-generator/1: it bears no evidence"):
        rollback(own.tracker, "generator", "ann", "no")


# ---- steps


def test_steps_keep_evidence_of_what_they_decided_on(tmp_path, database):
    own = experiment_in(tmp_path / "root", database)
    own.start()
    own.round("1", "base", only=("align", "evaluate", "promote_generator"))
    own.round("2", "1", total=40.0, promoted=False, only=("align", "evaluate", "promote_generator"))
    base, first, second = own.tracker.versions(GENERATOR)
    assert read(base).content["scores"]["scores"]["total"]["mean"] == 50.0
    held = read(first).content
    assert (
        held["version"]["md5"] == first.md5
        and held["version"]["made_of"]["preferences"] == digest(own.root / "runs/1/preferences").md5
    )
    assert held["scores"]["candidate_scores"]["total"]["mean"] == 60.0
    assert held["gates"].keys() == {"label_gate", "preference_gate"} and held["gates"]["label_gate"]["passed"]
    assert held["files"]["label_gate"]["md5"] == digest(own.root / "runs/1/label_gate").md5
    assert held["decision"]["promoted"] and held["signed"]["by"] == "promote_generator, round 1"
    assert held["run"]["run_id"] == next(r for r in own.tracker.step_runs() if r.step == "promote_generator").run_id
    assert not read(second).promoted and "signed" not in read(second).content
    assert [move[1:4] for move in moves(own.tracker) if move[0] == GENERATOR] == [("base", None, 1), ("promote", 1, 2)]
    rejected = promote(own.tracker, "generator/3", "ann", "a demo", override=True)
    assert rejected.evidence == read(own.tracker.resolve("generator")).digest


def test_a_rejection_makes_the_incumbent_champion_again(tmp_path, database):
    """Round 2 starts from the base models, while round 1's generator is champion."""
    own = experiment_in(tmp_path / "root", database)
    own.start()
    own.round("1", "base", only=("align", "evaluate", "promote_generator"))
    own.round("2", "base", total=40.0, promoted=False, only=("align", "evaluate", "promote_generator"))
    reason = "its candidate was rejected: total fell from 50 to 40 points; dimension motion fell"
    assert moves(own.tracker)[-1] == (GENERATOR, "keep", 2, 1, "promote_generator, round 2", reason)
    assert aliases(own.tracker, GENERATOR) == {"champion": 1, "previous": 2}
    first, again = (m for m in own.tracker.registry.history.moves() if m.to == 1 and m.model == GENERATOR)
    assert first.evidence == again.evidence and [status(own.tracker, n) for n in (1, 2, 3)] == [
        "base",
        "promoted",
        "rejected",
    ]


def test_with_approval_asked_for_the_champion_waits_for_a_person(tmp_path, database):
    root = tmp_path / "root"
    experiment_in(root, database)
    own = Experiment(root, promotion={"require_approval": True})
    assert own.tracker.config_digest == Experiment(root).tracker.config_digest
    own.start()
    for name, prev in (("1", "base"), ("2", "1")):
        own.round(name, prev, only=("align", "evaluate", "promote_generator"))
    t = own.tracker
    assert aliases(t, GENERATOR) == {"champion": 1}, "the base model: there must be one"
    assert [status(t, n) for n in (1, 2, 3)] == ["base", "awaiting approval", "awaiting approval"]
    assert "tiny-generator/2: awaits approval; dualipo promote tiny-generator/2 --approve" in dualipo(own, "history")
    with pytest.raises(UserError, match="tiny-generator/3: it awaits a person's approval; add --approve --by WHO"):
        promote(t, "generator/3", "ann")
    dualipo(own, "promote", "generator/3", "--approve", "--by", "ann", "--reason", "watched fifty clips")
    assert moves(t)[-1] == (GENERATOR, "approve", 1, 3, "ann", "watched fifty clips")
    assert (status(t, 3), t.versions(GENERATOR)[2].tags["promoted_by"]) == ("promoted", "ann")
    own.round("3", "2", total=40.0, promoted=False, only=("align", "evaluate", "promote_generator"))
    assert aliases(t, GENERATOR) == {"champion": 3, "previous": 1}, "a rejection moves nothing either"


# ---- killed anywhere, in any order


class Killed(BaseException):
    pass


class Faults:
    """Ends whatever is going on before the n-th write to MLflow from now."""

    def __init__(self, monkeypatch):
        self.left = 0
        for name in WRITES:
            original = getattr(MlflowClient, name)

            def call(*args, original=original, **kwargs):
                self.left -= 1
                if self.left == 0:
                    raise Killed
                return original(*args, **kwargs)

            monkeypatch.setattr(MlflowClient, name, call)


CRASH = st.integers(0, 14)
"""Before which write; 0 is never."""


class Champions(RuleBasedStateMachine):
    """`lines` says, from the operations alone, which champions there were, without those rolled back from."""

    examples = 0

    def __init__(self, template: Path, folder: Path, faults: Faults):
        super().__init__()
        Champions.examples += 1
        self.own = copied(template, folder / str(Champions.examples))
        self.faults, self.keys = faults, 0
        self.lines = {GENERATOR: [1], CRITIC: []}
        self.certain = {GENERATOR, CRITIC}
        """Models of which no move has been cut off since the last whole one."""

    def attempt(self, model: str, crash: int, after: list[int] | None, operation) -> None:
        """Does it, or is killed; `after` is the line it leads to, None where it has to be refused."""
        self.own.tracker = Tracker(self.own.root, self.own.config)  # a process of its own
        self.faults.left = crash
        try:
            operation(self.own.tracker)
        except Killed:
            self.certain.discard(model)
            reached = self.own.tracker.registry.history.line(model).champions
            assert reached in (self.lines[model], after)
            self.lines[model] = reached
        except UserError:
            assert after is None
        else:
            assert after is not None
            self.lines[model] = after
            self.certain.add(model)
        finally:
            self.faults.left = 0

    @rule(number=st.sampled_from([1, 2, 3, 4, 5]), crash=CRASH)
    def a_person_promotes(self, number, crash):
        line = self.lines[GENERATOR]
        after = None if line[-1] == number else [*line, number]
        more = {"approve": True, "override": True, "reason": "so"}
        self.attempt(GENERATOR, crash, after, lambda t: promote(t, f"generator/{number}", "ann", **more))

    @rule(model=st.sampled_from([GENERATOR, CRITIC]), number=st.integers(1, 2), crash=CRASH, again=st.booleans())
    def a_step_promotes(self, model, number, crash, again):
        """`again`: a step that was cut off is recorded once more, as its run's id tells."""
        line, self.keys = self.lines[model], self.keys + 1

        def operation(tracker: Tracker) -> None:
            version = tracker.versions(model)[number - 1]
            with tracker.store.writing():
                told = ("promote", "promote, round 1", "gates held", f"run {self.keys}", read(version))
                tracker.registry.crown(version, *told)

        after = line if line[-1:] == [number] else [*line, number]
        self.attempt(model, crash, after, operation)
        if again:
            self.attempt(model, 0, after, operation)

    @rule(model=st.sampled_from([GENERATOR, CRITIC]), crash=CRASH)
    def a_person_rolls_back(self, model, crash):
        line = self.lines[model]
        after = None if len(line) < 2 else line[: len(line[:-1]) - line[:-1][::-1].index(line[-2])]
        kind = model.removeprefix("tiny-")
        self.attempt(model, crash, after, lambda t: rollback(t, kind, "ann", "no"))

    @rule(number=st.integers(2, 5))
    def a_step_rejects(self, number):
        tracker = self.own.tracker
        version = tracker.versions(GENERATOR)[number - 1]
        if not {"champion", "previous"} & set(version.aliases):
            tracker.registry.set_tags(version, {"status": "rejected", "reason": "total fell"})

    @invariant()
    def one_champion_with_its_evidence(self):
        client = MlflowClient(self.own.tracker.uri)
        done = self.own.tracker.registry.history.moves()
        for model, line in self.lines.items():
            held = {alias: int(n) for alias, n in client.get_registered_model(model).aliases.items()}
            crowned = {move.to: move.evidence for move in done if move.model == model}
            if model in self.certain:
                told = dict(zip(("champion", "previous"), line[:-3:-1], strict=False))
                assert held == told
            if "champion" not in held:
                assert not crowned or (model not in self.certain and len(crowned) == 1)
                continue
            version = self.own.tracker.versions(model)[held["champion"] - 1]
            assert read(version, crowned[version.number]).md5 == version.md5


def test_no_sequence_leaves_a_model_without_its_champion_or_a_champion_without_evidence(
    template, tmp_path, monkeypatch
):
    machine = partial(Champions, template, tmp_path, Faults(monkeypatch))
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    how = settings(
        max_examples=8, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=checks
    )
    run_state_machine_as_test(machine, settings=how)
    assert Champions.examples >= 8


def test_a_promotion_killed_before_each_write_in_turn_is_finished_or_forgotten(template, tmp_path, monkeypatch):
    faults, outcomes = Faults(monkeypatch), []
    for crash in range(1, 20):
        own = copied(template, tmp_path / str(crash))
        faults.left = crash
        try:
            promote(own.tracker, "generator/2", "ann")
        except Killed:
            faults.left = 0
        else:
            break
        champion = own.tracker.registry.champion(GENERATOR)
        assert champion.number in (1, 2) and read(champion)
        outcomes.append(len(moves(own.tracker)))
        promote(own.tracker, "generator/3", "ben")  # the next command, whatever was left
        assert aliases(own.tracker, GENERATOR) == {"champion": 3, "previous": 1 if outcomes[-1] == 1 else 2}
    assert faults.left > 0 and set(outcomes) == {1, 2} and outcomes == sorted(outcomes)


def test_a_number_that_another_took_is_asked_for_again(own, monkeypatch):
    """As MLflow refuses one of two at once."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    create, refused = MlflowClient.create_model_version, []

    def taken(self, name, *args, **kwargs):
        if name == "tiny-history" and len(refused) < 3:
            refused.append(name)
            raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: model_versions", BAD_REQUEST)
        return create(self, name, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_model_version", taken)
    assert promote(own.tracker, "generator/2", "ann").to == 2 and len(refused) == 3


def test_a_tag_or_an_alias_that_another_sets_at_this_moment_is_set_again(own, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    refused = []
    for name in ("set_model_version_tag", "set_registered_model_alias"):
        original = getattr(MlflowClient, name)

        def taken(*args, original=original, **kwargs):
            if args not in refused:
                refused.append(args)
                raise MlflowException("(psycopg2.errors.UniqueViolation) IntegrityError", BAD_REQUEST)
            return original(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, taken)
    promote(own.tracker, "generator/2", "ann")
    assert aliases(own.tracker, GENERATOR) == {"champion": 2, "previous": 1} and len(refused) > 4


def test_an_answer_that_was_lost_makes_no_second_move(own, monkeypatch):
    create, lost = MlflowClient.create_model_version, []

    def unheard(self, name, *args, **kwargs):
        made = create(self, name, *args, **kwargs)
        if name == "tiny-history" and not lost:
            lost.append(made.version)
            raise Unreachable("no answer")
        return made

    monkeypatch.setattr(MlflowClient, "create_model_version", unheard)
    assert promote(own.tracker, "generator/2", "ann").number == int(lost[0])
    assert len(moves(own.tracker)) == 2
    # and where MLflow is sent the same twice, the second one never happened.
    line = own.tracker.registry.history.line(GENERATOR)
    before = type(line)(line.model, line.moves[:1])
    assert own.tracker.registry.history.append(line.moves[1], before) is not None
    assert len(moves(own.tracker)) == 2 and own.tracker.registry.history.line(GENERATOR).last == int(lost[0])


# ---- two at once


def race(roots: list[Path], uri: str, where: str, tmp_path: Path, references: list[str]) -> list[tuple[int, str]]:
    """Promoters in processes of their own, which wait for one another at `where`; exit status and what each said."""
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    program = str(Path(__file__).with_name("promoters.py"))
    started = [
        subprocess.Popen(
            [sys.executable, program, str(root), reference, where, str(meeting), str(len(roots))],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for root, reference in zip(roots, references, strict=True)
    ]
    told = [process.communicate(timeout=240)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, told, strict=True)]


def test_of_two_processes_in_one_folder_one_wins_and_the_other_is_told(own, tmp_path):
    ended = race([own.root] * 2, own.tracker.uri, "looked", tmp_path, ["generator/2", "generator/3"])
    assert sorted(status for status, _ in ended) == [0, 2], ended
    [told] = [text for status, text in ended if status]
    [(_, _, former, to, by, _)] = moves(own.tracker)[1:]
    assert f"the champion of tiny-generator changed meanwhile from v1 to v{to} (by {by}); look again" in told
    assert former == 1 and aliases(own.tracker, GENERATOR) == {"champion": to, "previous": 1}


# ---- what differs


def test_diff_tells_what_differs(tmp_path, database):
    own = experiment_in(tmp_path / "root", database)
    own.start()
    rows = {"1": 50.0, "2": 70.0}
    for name, prev in (("1", "base"), ("2", "1")):
        clips = own.root / f"runs/{name}/benchmark_clips"
        clips.mkdir(parents=True)
        scores = [{"clip": f"c{n}", "prompt_id": f"p{n}", "prompt": "", "total": rows[name] + n} for n in range(8)]
        (clips / "scores.jsonl").write_text("\n".join(json.dumps(row) for row in scores))
        if name == "2":
            own = Experiment(own.root, align={"beta": 500})
        steps = ("label", "train_critic", "promote_critic", "prefer", "align", "evaluate", "promote_generator")
        own.round(name, prev, total=rows[name] + 3.5, only=steps)
    told = dualipo(own, "diff", "generator/2", "generator/3")
    assert "tiny-generator/2 (promoted, @previous, round 1) -> tiny-generator/3 (promoted, @champion, round 2)" in told
    assert "parameters: 1 differ\n  align.beta: 1000.0 -> 500.0" in told and "code: equal" in told
    assert "preferences: " in told.partition("data: 3 differ")[2]
    assert "judged by: 1 differ\n  critic: tiny-critic/2 -> tiny-critic/3" in told
    assert "total: 53.5 [1, 99] -> 73.5 [1, 99]  difference +20 [+20, +20]" in told
    assert "signed by: promote_generator, round 1" in told
    with pytest.raises(UserError, match="two versions of one model"):
        dualipo(own, "diff", "generator/2", "critic/1")


def test_the_moves_of_one_writer_are_read_by_another_of_another_experiment_not_at_all(own):
    other = Experiment(own.root, experiment={"name": "other"})
    assert other.tracker.registry.history.moves() == [] and History(other.tracker.store).name == "other-history"
