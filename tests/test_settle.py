"""The end of a round: the critic's rollback, the retry, what the next round is told, and rounds that do not happen."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_steps import anything
from test_promotion import agreement, scores

from dualipo import engine
from dualipo.artifacts import digest, read_json, write_json
from dualipo.config import Config, parse_config
from dualipo.curves import write_curves
from dualipo.engine import execute, execute_shard
from dualipo.errors import UserError
from dualipo.quality.evidence import Course, Settlement, load
from dualipo.quality.settlement import begin, pathologies
from dualipo.steps import BASE, GRAPH, HANDED_ON, Job, Step
from dualipo.steps.settle import settle
from dualipo.steps.sharding import Shard
from dualipo.steps.standing_in import NOTE, SKIPPED
from dualipo.steps.train_critic import idle, train_critic

BACK = {"settle": {"roll_back_critic": True, "stop": True}}


def by_prompt(total: float) -> dict:
    """scores.json with ten prompts' totals."""
    return scores(total) | {"by_prompt": [["total", f"p{n}", total + n - 4.5, 3] for n in range(10)]}


@dataclass
class End:
    """The step on a folder. Round after round: what was handed on is what the next one starts from."""

    folder: Path

    def begin(self):
        self.model("critic", "base")
        write_json(self.folder / "agreement", agreement(0.8))
        begin(by_prompt(50.0), agreement(0.8), self.folder / "settlement", self.folder / "next_course")
        self.champion = by_prompt(50.0)
        return self

    def model(self, name, content):
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "weights").write_text(content)

    def round(self, name, total, config=None, accepted=True, promoted=None, watch=(), curves=None, max_drop=0.0):
        """One in which the candidate's benchmark is `total`; returns the settlement."""
        config = Config() if config is None else parse_config(config)
        where = self.folder
        for port, former in (("former_critic", "critic"), ("former_agreement", "agreement"),
                             ("former_settlement", "settlement"), ("course", "next_course")):  # fmt: skip
            if (where / port / "weights").exists():
                (where / port / "weights").unlink()
                (where / port).rmdir()
            (where / former).rename(where / port)
        old = self.champion["total"]["mean"]
        promoted = total >= old - max_drop if promoted is None else promoted
        if promoted:
            self.champion = by_prompt(total)
        write_json(where / "scores", self.champion)
        evidence = {"total": {"candidate": {"mean": total}, "incumbent": {"mean": old}}, "max_drop": max_drop}
        evidence["watch"] = list(watch)
        write_json(where / "generator_decision", {"promoted": promoted, "reasons": ["r"], "evidence": evidence})
        write_json(where / "critic_decision", {"promoted": accepted, "reasons": ["r"], "evidence": {}})
        self.model("accepted_critic", f"critic {name}" if accepted else (where / "former_critic/weights").read_text())
        write_json(where / "accepted_agreement", agreement(0.82) if accepted else read_json(where / "former_agreement"))
        write_json(where / "preferences/summary.json", {"reward": {"mean": 0.5, "low": 0.45, "high": 0.55}})
        for port in ("critic_curves", "align_curves"):
            write_curves(where / port, (curves or {}).get(port, {"loss": [(1, 0.7), (2, 0.5)]}))
        ports = {port: where / port for port in GRAPH["settle"].takes}
        summary = settle(config, Job(name, 0, where / "work"), **ports)
        found = load(Settlement, where / "settlement")
        assert (
            summary.metrics["stop"] == found.stop and summary.metrics["critic_rolled_back"] == found.critic_rolled_back
        )
        return found

    @property
    def critic(self):
        return (self.folder / "critic/weights").read_text(), read_json(self.folder / "agreement")["agreement"]["mean"]

    @property
    def course(self):
        return load(Course, self.folder / "next_course")


@pytest.fixture
def end(tmp_path):
    return End(tmp_path).begin()


# ---- the critic


def test_by_default_a_critic_stays_and_what_would_have_been_done_is_said(end):
    fell = end.round("1", 40.0)
    assert not fell.critic_rolled_back and end.critic == ("critic 1", 0.82)
    assert (
        fell.reasons[0].startswith("critic: kept, though the benchmark fell")
        and "roll_back_critic is off" in fell.reasons[0]
    )
    again = end.round("2", 41.0)
    assert again.evidence["stopping"]["called_for"] and not again.stop
    assert again.reasons[-1] == "goes on all the same: settle.stop is off."
    assert end.course == Course(stop=False)


def test_a_critic_after_whose_update_the_benchmark_fell_is_rolled_back_and_the_round_retried(end):
    fell = end.round("1", 49.9, BACK)
    assert fell.critic_rolled_back and end.critic == ("base", 0.8) and not fell.stop
    assert fell.reasons[0].startswith("critic: rolled back") and "retry 1 of 1" in fell.reasons[1]
    assert fell.evidence["benchmark"] == {
        "candidate": 49.9, "incumbent": 50.0, "max_drop": 0.0, "degraded": True, "paired_difference": None
    }  # fmt: skip
    assert fell.history[-1].degraded and fell.history[-1].critic_rolled_back and fell.history[-1].champion == BASE
    better = end.round("2", 60.0, BACK)
    assert not better.critic_rolled_back and end.critic == ("critic 2", 0.82)
    assert [s.champion for s in better.history] == [BASE, BASE, "2"] and set(better.draws) == {BASE, "2"}


@pytest.mark.parametrize(
    ("options", "config", "reason"),
    [
        ({"total": 50.0}, {}, "kept, the benchmark did not fall"),
        ({"total": 49.0, "max_drop": 1.5}, {}, "kept, the benchmark did not fall"),
        ({"total": 60.0, "promoted": False}, {}, "kept, the benchmark did not fall"),
        ({"total": 40.0, "accepted": False}, {}, "the critic had not been updated"),
        ({"total": 40.0}, {"train_critic": {"algorithm": "none"}}, "the critic had not been updated"),
        ({"total": 40.0}, {"train_critic": {"update": "after_degradation"}}, "the critic had not been updated"),
    ],
)
def test_nothing_is_rolled_back_where_the_update_is_not_to_blame(end, options, config, reason):
    found = end.round("1", config=BACK | config, **options)
    assert not found.critic_rolled_back and reason in found.reasons[0]
    assert end.critic[0] == ("critic 1" if options.get("accepted", True) else "base")


def test_retries_are_bounded(end):
    assert not end.round("1", 40.0, BACK).stop
    second = end.round("2", 41.0, BACK)
    assert second.stop and "2 rounds in a row gave no new champion" in second.reasons[1]
    assert end.course.stop and end.course.round == "2" and end.course.reasons == second.reasons[1:]
    assert end.critic == ("base", 0.8)


def test_a_critic_that_waits_for_degradation_is_asked_for_after_it(end):
    waits = {"train_critic": {"update": "after_degradation"}}
    assert not end.course.refine_critic
    end.round("1", 55.0, waits)
    assert not end.course.refine_critic
    end.round("2", 50.0, waits)
    assert end.course == Course(stop=False, refine_critic=True)
    end.round("3", 60.0, waits)
    end.round("4", 70.0, waits, curves={"align_curves": {"loss": [(1, 0.7), (2, float("nan"))]}})
    assert end.course.refine_critic
    every = parse_config({})
    assert not idle(every, Course(stop=False)) and idle(parse_config({"train_critic": {"algorithm": "none"}}), None)
    waiting = parse_config(waits)
    assert [idle(waiting, course) for course in (None, Course(stop=False), Course(stop=False, refine_critic=True))] == [
        True, True, False
    ]  # fmt: skip


def test_a_critic_that_rests_is_handed_on_untouched(tmp_path):
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic/weights").write_text("as it is")
    write_json(tmp_path / "course", Course(stop=False).model_dump())
    ports = {port: tmp_path / port for port in GRAPH["train_critic"].takes}
    waits = parse_config({"train_critic": {"update": "after_degradation", "training": {"processes": 2}}})
    summary = train_critic(waits, Job("1", 0, tmp_path / "work"), **ports)
    assert digest(tmp_path / "candidate") == digest(tmp_path / "critic") and summary.metrics["pairs"] == 0


# ---- what is said


def test_signs_and_sick_curves_are_named(end):
    rising = {name: [(n, 0.1 + n / 50) for n in range(40)] for name in ("error_winner", "error_loser")}
    curves = {"align_curves": {"loss": [(1, 0.5)], **rising}, "critic_curves": {"srpo_loss": [(3, float("inf"))]}}
    found = end.round("1", 60.0, watch=["appearance: winners have motion"], curves=curves)
    assert found.watch == [
        "appearance: winners have motion",
        "curves: aligning the generator: winner and loser errors both rise.",
        "curves: updating the critic: srpo_loss is inf at step 3.",
    ]
    assert pathologies({"loss": [(1, 0.5)]}, Config().align.training) == []


def test_what_changes_nothing_for_the_next_round_leaves_its_course_as_it_was(end):
    """Or else another bound would make every step of every later round again."""
    before = digest(end.folder / "next_course")
    end.round("1", 60.0)
    assert digest(end.folder / "next_course") == before
    end.round("2", 40.0, {"settle": {"patience": 3, "max_retries": 0}})
    assert digest(end.folder / "next_course") == before


# ---- rounds that do not happen


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A folder whose first round said stop; steps that are called fail."""

    def called(self):
        raise AssertionError(f"{self.name} was called")

    monkeypatch.setattr(Step, "function", property(called))
    monkeypatch.setattr(Step, "chunks", property(called))
    monkeypatch.setattr(engine, "prepare_torch", lambda count: pytest.fail("torch was prepared"))
    first = tmp_path / "runs/1"
    for name in ("generator", "critic"):
        (first / name).mkdir(parents=True)
        (first / name / "weights").write_text(name)
    for name in ("agreement.json", "scores.json", "settlement.json", "label_profile.json"):
        write_json(first / name, {"of": name})
    write_json(first / "course.json", Course(stop=True, round="1", reasons=["stop: enough."]).model_dump())
    for name in ("generator", "critic_reference", "seed", "test", "real"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "content").write_text(name)
    (tmp_path / "data/benchmark.jsonl").write_text("{}")
    (tmp_path / "runs/base/reward").mkdir(parents=True)
    (tmp_path / "runs/base/reward/config.json").write_text("{}")
    for name in ("baselines.json", "held_out.json"):
        write_json(tmp_path / "runs/base" / name, {})
    return tmp_path


def test_a_round_after_a_stop_calls_nothing_and_hands_on_what_there_was(stopped):
    config = parse_config({"rounds": {"1": {"prev": "base"}, "2": {"prev": "1"}, "3": {"prev": "2"}}})
    for name in ("2", "3"):
        for step in (step for step in GRAPH.values() if step.scope == "round"):
            made = execute(step, config, stopped, name, track=False)
            assert made.summary.tags == {SKIPPED: "stopped after round 1: stop: enough."} and not made.summary.metrics
            assert str(made) == f"round {name}, {step.name}: not run, stopped after round 1: stop: enough."
            assert all(path.exists() for path in made.outputs.values())
            assert execute(step, config, stopped, name, track=False).skipped
        for handed in HANDED_ON:
            assert digest(stopped / f"runs/{name}/{handed}") == digest(stopped / f"runs/1/{handed}")
    note = {"happened": False, "stopped_after": "1", "reasons": ["stop: enough."]}
    for path in ("candidates", "labels", "label_gate", "critic_candidate", "preferences", "generator_candidate"):
        assert read_json(stopped / f"runs/2/{path}" / NOTE) == note
    for path in ("prompts_audit.json", "critic_decision.json", "generator_candidate_scores.json"):
        assert read_json(stopped / f"runs/2/{path}") == note
    assert (stopped / "runs/2/align_curves.csv").read_text() == "step,loss\n"
    size = sum(file.stat().st_size for file in (stopped / "runs/2").rglob("*") if file.is_file())
    assert size < 20_000, "next to nothing, beside the models that are handed on"
    assert not [path for kind in ("staging", "work") for path in (stopped / ".dualipo" / kind).glob("*")]


def test_what_a_round_hands_on_is_what_it_was_given_where_it_does_not_happen():
    for step in GRAPH.values():
        for port in step.outputs.values():
            name = port.path.removeprefix("runs/{round}/")
            if step.scope == "round" and name in HANDED_ON:
                assert port.stays and step.inputs[port.stays].path == f"runs/{{prev}}/{name}", (step.name, name)


def test_shards_of_a_round_after_a_stop_make_nothing_and_are_put_together(stopped):
    config = parse_config({"rounds": {"1": {"prev": "base"}, "2": {"prev": "1"}}})
    execute(GRAPH["prompts"], config, stopped, "2", track=False)
    parts = [stopped / f"part-{number}" for number in range(2)]
    for number, part in enumerate(parts):
        execute_shard(GRAPH["generate"], config, Shard(number, 2), part, stopped, "2")
        assert [file.name for file in part.iterdir()] == ["part.json"]
    execute(GRAPH["generate"], config, stopped, "2", parts=parts, track=False)
    assert (stopped / "runs/2/candidates" / NOTE).exists()


def test_no_machines_are_asked_for_after_a_stop(stopped):
    digest_pinned = f"example/dualipo@sha256:{'0' * 64}"
    config = parse_config(
        {
            "rounds": {"1": {"prev": "base"}, "2": {"prev": "1"}},
            "train_job": {"launcher": "kubeflow", "image": digest_pinned},
        }
    )
    for name in ("prompts", "generate", "label", "train_critic"):
        execute(GRAPH[name], config, stopped, "2", track=False)


def test_a_step_alone_needs_no_word_of_the_round_before_and_stays_up_to_date_when_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(Step, "function", property(anything))
    (tmp_path / "data/test").mkdir(parents=True)
    (tmp_path / "data/benchmark.jsonl").write_text("{}")
    assert not execute(GRAPH["prompts"], Config(), tmp_path, "1", track=False).skipped
    begin(by_prompt(50.0), agreement(0.8), tmp_path / "settlement", tmp_path / "runs/base/course.json")
    assert execute(GRAPH["prompts"], Config(), tmp_path, "1", track=False).skipped
    with pytest.raises(
        UserError, match=r"runs/base/course.json: missing, round 1, train_critic needs it; run `dualipo start`"
    ):
        paths = {port: tmp_path / "data/test" for port in GRAPH["train_critic"].inputs if port != "course"}
        (tmp_path / "runs/base/course.json").unlink()
        execute(GRAPH["train_critic"], Config(), tmp_path, "1", paths, track=False)


def test_a_course_that_is_no_course_is_told(stopped):
    (stopped / "runs/1/course.json").write_text('{"go": "on"}')
    config = parse_config({"rounds": {"1": {"prev": "base"}, "2": {"prev": "1"}}})
    with pytest.raises(UserError, match=r"runs/1/course.json: stop: Field required; run the step that makes it again"):
        execute(GRAPH["prompts"], config, stopped, "2", track=False)
