"""A candidate is handed on only if every gate passed and the benchmark did not degrade; else the incumbent is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dualipo.artifacts import read_json, write_json
from dualipo.config import Config, Prefer, PromoteGenerator, TrainReward
from dualipo.errors import UserError
from dualipo.quality.evidence import ExpectationVerdict, SuiteVerdict, Verdict
from dualipo.quality.settlement import begin
from dualipo.steps import GRAPH, Job

FAULT = "balance: position_bias is 0.9, required is at most 0.25: answering by position is not looking at clips."
GATES = {"critic": ("label_gate", "critic_gate"), "generator": ("label_gate", "preference_gate")}
NUMBERS = {"critic": "agreement", "generator": "scores"}


def write_gate(folder, passed):
    expectation = ExpectationVerdict(name="e", column="c", passed=passed, observed=0.9, required="r", why="w")
    suite = SuiteVerdict(passed=passed, expectations=[expectation])
    verdict = Verdict(passed=passed, reasons=[] if passed else [FAULT], suites={"balance": suite})
    write_json(folder / "verdict.json", verdict.model_dump())


def scores(total, suite="small_world"):
    whole = total if total is None else {"mean": total, "low": None, "high": None}
    return {"suite": suite, "total": whole, "dimensions": {}, "prompts": 8, "clips": 16}


def agreement(mean):
    return {"agreement": {"mean": mean, "low": None, "high": None}, "pairs": 100, "ties": 0.1}


class Bench:
    """Both promotion steps on a folder: `kind` is critic or generator."""

    def __init__(self, folder, kind):
        self.folder, self.kind = folder, kind
        self.step = GRAPH[f"promote_{kind}"]
        for name in ("candidate", "incumbent"):
            (folder / name).mkdir()
            (folder / name / "weights").write_text(name)
        for gate in GATES[kind]:
            write_gate(folder / gate, True)
        make = agreement if kind == "critic" else scores
        unit = 0.01 if kind == "critic" else 1
        write_json(folder / "preferences/summary.json", {})
        begin(scores(80.0), agreement(0.8), folder / "former_settlement", folder / "course")
        self.numbers("candidate", make(81 * unit))
        self.numbers("incumbent", make(80 * unit))

    def numbers(self, whose, content):
        (self.folder / f"{whose}_{NUMBERS[self.kind]}").write_text(json.dumps(content))

    def run(self, max_drop=0.0, hold_on_watch=False, **sections):
        rule = PromoteGenerator(max_drop=max_drop, hold_on_watch=hold_on_watch)
        config = Config(promote_generator=rule, **sections)
        ports = {port: self.folder / port for port in self.step.takes}
        summary = self.step.function(config, Job("1", 0, self.folder / "work"), **ports)
        decision = read_json(self.folder / "decision")
        chosen = "candidate" if decision["promoted"] else "incumbent"
        # The model handed on and its numbers are of one and the same owner.
        assert (self.folder / self.kind / "weights").read_text() == chosen
        own = NUMBERS[self.kind]
        assert read_json(self.folder / own) == read_json(self.folder / f"{chosen}_{own}")
        assert summary.metrics["promoted"] == decision["promoted"]
        assert summary.tags["decision"] == ("promoted" if decision["promoted"] else "rejected")
        assert summary.tags["reason"] == " ".join(decision["reasons"]) != ""
        return decision

    def made(self):
        return [port for port in self.step.outputs if (self.folder / port).exists()]


@pytest.fixture(params=["critic", "generator"])
def bench(request, tmp_path):
    return Bench(tmp_path, request.param)


@pytest.fixture
def critic(tmp_path):
    return Bench(tmp_path, "critic")


@pytest.fixture
def generator(tmp_path):
    return Bench(tmp_path, "generator")


def test_a_better_candidate_is_promoted(bench):
    decision = bench.run()
    assert decision["promoted"]
    numbers = {"critic": ("0.81", "0.8"), "generator": ("81", "80")}[bench.kind]
    assert len(decision["reasons"]) == 1 and all(f" {n}" in decision["reasons"][0] for n in numbers)
    assert set(decision["evidence"]["gates_passed"].values()) == {True}


@pytest.mark.parametrize("which", [0, 1])
def test_one_failed_gate_rejects(bench, which):
    gate = GATES[bench.kind][which]
    write_gate(bench.folder / gate, False)
    decision = bench.run()
    name = gate.replace("_", " ")
    assert not decision["promoted"]
    assert decision["reasons"] == [f"{name}: {FAULT}"]
    assert decision["evidence"]["gates_passed"][name] is False


def test_critic_evidence_and_an_agreement_that_is_not_there(critic):
    assert critic.run()["evidence"]["agreement"] == {"candidate": 0.81, "incumbent": 0.8}
    # Whether a critic agrees enough is the critic gate's to say, not promotion's.
    critic.numbers("candidate", agreement(None))
    write_gate(critic.folder / "critic_gate", False)
    assert critic.run()["evidence"]["agreement"]["candidate"] is None


@pytest.mark.parametrize(
    ("new", "old", "max_drop", "promoted"),
    [
        (80.0, 80.0, 0.0, True),
        (79.9, 80.0, 0.0, False),
        (79.5, 80.0, 0.5, True),
        (79.4, 80.0, 0.5, False),
        (None, 80.0, 100.0, False),
        (80.0, None, 100.0, False),
        (None, None, 100.0, False),
    ],
)
def test_the_benchmark_decides(generator, new, old, max_drop, promoted):
    generator.numbers("candidate", scores(new))
    generator.numbers("incumbent", scores(old))
    decision = generator.run(max_drop)
    assert decision["promoted"] is promoted
    assert decision["evidence"]["max_drop"] == max_drop
    if new is None:
        assert decision["reasons"] == ["benchmark: the candidate has no total score, since a dimension is missing."]
    elif old is None:
        assert "the incumbent has no total score" in decision["reasons"][0]
    elif not promoted:
        assert f"the candidate's total is {new}" in decision["reasons"][0]


def test_a_total_of_null_mean_counts_as_missing(generator):
    generator.numbers("candidate", scores(90.0) | {"total": {"mean": None, "low": None, "high": None}})
    assert "a dimension is missing" in generator.run()["reasons"][0]


def test_a_benchmark_that_leaves_out_promotes_nothing(generator):
    def measured(total, **left_out):
        dimensions = {"motion": {"mean": 50.0}, "scene": {"mean": 70.0}} | left_out
        return scores(total) | {"dimensions": dimensions}

    generator.numbers("incumbent", measured(80.0, colour=None))
    generator.numbers("candidate", measured(80.0, colour={"mean": 3.0}))
    assert generator.run()["promoted"], "more may be measured than before"
    generator.numbers("candidate", measured(99.0, motion=None, scene={"mean": None}))
    [reason] = generator.run()["reasons"]
    assert reason.startswith("benchmark: the candidate was not measured in motion, scene, the incumbent was")
    generator.numbers("candidate", measured(99.0) | {"prompts": 4})
    [reason] = generator.run()["reasons"]
    assert "the candidate was measured on 4 prompts, the incumbent on 8" in reason


def test_every_reason_is_listed(generator):
    for gate in GATES["generator"]:
        write_gate(generator.folder / gate, False)
    generator.numbers("candidate", scores(10.0))
    reasons = generator.run()["reasons"]
    assert [reason.split(":")[0] for reason in reasons] == ["label gate", "preference gate", "benchmark"]


IN_PLACE = {"train_reward": TrainReward(enabled=True), "prefer": Prefer(scorer="videoreward")}


@pytest.mark.parametrize(("mean", "promoted"), [(0.75, True), (0.7499, False), (None, False)])
def test_a_videoreward_that_scores_has_to_agree_with_people(generator, mean, promoted):
    write_json(generator.folder / "baselines", {"videoreward": agreement(mean)})
    assert generator.run()["promoted"], "where the critic scores, nobody asks"
    decision = generator.run(**IN_PLACE)
    assert decision["promoted"] == promoted
    assert decision["evidence"]["scorer_agreement"] == mean and decision["evidence"]["min_agreement"] == 0.75
    if not promoted:
        [reason] = decision["reasons"]
        found = "undefined" if mean is None else "0.7499"
        assert reason.startswith(f"scorer: VideoReward agrees with people on {found} of the test pairs, required is")


def test_a_videoreward_that_was_not_measured_is_named(generator):
    write_json(generator.folder / "baselines", {})
    with pytest.raises(
        UserError, match=r"baselines: holds no agreement of the VideoReward that prefer.scorer names; run"
    ):
        generator.run(**IN_PLACE)
    assert generator.made() == []


def test_scores_of_different_suites_are_refused(generator):
    generator.numbers("candidate", scores(90.0, "vbench"))
    with pytest.raises(UserError, match="score both with the same suite"):
        generator.run()
    assert generator.made() == []


def _remove_gate(bench):
    (bench.folder / GATES[bench.kind][0] / "verdict.json").unlink()


def _contradict(bench):
    path = bench.folder / GATES[bench.kind][0] / "verdict.json"
    write_json(path, read_json(path) | {"passed": False})


def _nan(bench):
    bench.numbers("candidate", (agreement if bench.kind == "critic" else scores)(float("nan")))


def _field(bench):
    bench.numbers("candidate", {"pairs": 3, "suite": "small_world"})


def _truncated(bench):
    (bench.folder / f"incumbent_{NUMBERS[bench.kind]}").write_text('{"agreement": {')


def _no_model(bench):
    (bench.folder / "candidate" / "weights").unlink()
    (bench.folder / "candidate").rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove_gate, "no such file; run the step that makes it first"),
        (_contradict, "`passed` contradicts the expectations"),
        (_nan, "mean: Input should be a finite number"),
        (_field, "Field required"),
        (_truncated, "not valid JSON"),
        (_no_model, "no such model folder"),
    ],
)
def test_broken_inputs_raise_and_leave_nothing(bench, spoil, message):
    spoil(bench)
    with pytest.raises(UserError, match=message):
        bench.run()
    assert bench.made() == []


def test_running_again_replaces_what_was_there(bench):
    assert bench.run()["promoted"]
    write_gate(bench.folder / "label_gate", False)
    assert not bench.run()["promoted"]
    assert (bench.folder / "candidate" / "weights").read_text() == "candidate"


# ---- looks that drift


def seen(shift: float, count: int = 40) -> list:
    """Rows of an appearance table whose brightness is raised by so many of its own deviations over prompts."""
    deviation = np.std(np.arange(count), ddof=1)
    return [[f"p{i:02d}", i + shift * deviation, i % 7, i % 5, i % 3, None] for i in range(count)]


@pytest.mark.parametrize(("shift", "named"), [(0.4, False), (0.6, True), (-0.6, True)])
def test_a_candidate_that_looks_otherwise_is_named_and_held_where_asked(generator, shift, named):
    for whose, table in (("candidate", seen(shift)), ("incumbent", seen(0.0))):
        generator.numbers(whose, scores({"candidate": 81.0, "incumbent": 80.0}[whose]) | {"appearance": table})
    decision = generator.run()
    assert decision["promoted"]
    told = decision["evidence"]
    assert told["appearance"]["candidate"]["brightness"]["mean"] == pytest.approx(shift)
    assert told["appearance"]["candidate"]["diversity"] is None
    assert bool(told["watch"]) is named
    if named:
        [sign] = told["watch"]
        assert sign.startswith("appearance: the candidate's clips have brightness") and f"{shift:+.2f}" in sign
    held = generator.run(hold_on_watch=True)
    assert held["promoted"] is not named
    assert held["reasons"] == [f"watch: {told['watch'][0]}"] if named else len(held["reasons"]) == 1


def test_winners_that_look_otherwise_than_losers_are_named(generator):
    effects = {"motion": {"mean": -1.2, "low": -1.5, "high": -0.9}, "saturation": None}
    write_json(generator.folder / "preferences/summary.json", {"appearance": effects})
    [sign] = generator.run()["evidence"]["watch"]
    assert sign.startswith("appearance: winners have motion -1.20 [-1.50, -0.90] standard deviations from losers")
