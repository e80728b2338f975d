"""Critics on the record: every number against arithmetic on the answers, and the command on all kinds of critics."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bright import LEVELS, write_labels
from click.testing import CliRunner
from PIL import Image

from dualipo.artifacts import digest, read_json
from dualipo.cli import cli
from dualipo.config import parse_config
from dualipo.critic.base import load_critic
from dualipo.critic.questions import Question
from dualipo.critic.videoreward.model import VideoReward
from dualipo.critic.videoreward.settings import Settings
from dualipo.errors import UserError
from dualipo.evaluation.calibration import Calibration
from dualipo.evaluation.critics.answers import Answer
from dualipo.evaluation.critics.measures import measure, reliability
from dualipo.evaluation.ties import calibrate_ties, ties_excluded_accuracy
from dualipo.records import read_labels
from dualipo.steps import BASE, GRAPH, Summary
from dualipo.tracking import Artifact, Tracker
from dualipo.world.shrink import shrink

CLASSES = ("a", "b", "tie")


def pair(people: str, forward: str, backward: str, prompt: str = "p", dimension: str = "overall") -> Answer:
    """Paths written as one letter each: a, b, t for tie, - for an unreadable one."""
    words = {"a": "a", "b": "b", "t": "tie", "-": None}
    question = Question(dimension, prompt, (f"{prompt}/x", f"{prompt}/y"))
    return Answer(question, people, *(tuple(words[letter] for letter in order) for order in (forward, backward)))


def scored(people: str, first: float, second: float, prompt: str = "p", dimension: str = "overall") -> Answer:
    return Answer(Question(dimension, prompt, ("x", "y")), people, scores=(first, second))


def mean(found: dict) -> float:
    assert found["low"] <= found["mean"] <= found["high"]
    return found["mean"]


# ---- numbers by hand


VOTED = [
    pair("a", "aab", "bbb", "p1"),  # 5 of 6 for a: right, the same in both orders
    pair("b", "aaa", "aaa", "p1"),  # first shown wins whoever it is: 3 to 3, a tie; changed by the swap
    pair("tie", "ttt", "tta", "p2"),  # 5 of 6 for a tie: right
    pair("a", "t-b", "t--", "p2"),  # 2 ties of 3 readable: a tie, wrong; b leads by one vote
    pair("b", "---", "---", "p3"),  # nothing readable
]


def test_votes_against_arithmetic():
    found = measure(VOTED, (1, 3), None, 0)
    own = found["choices"]["overall"]
    assert (own["pairs"], own["prompts"], own["ties"]) == (5, 3, 0.2)
    assert mean(own["ties_included"]["own"]) == 2 / 5
    # people chose in four: right, equal votes, wrong, no votes at all.
    assert mean(own["ties_excluded"]) == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    gaps, people = [4 / 6, 0.0, -1 / 6, -1 / 3, 0.0], [answer.people for answer in VOTED]
    threshold, accuracy = calibrate_ties(gaps, people)
    assert own["ties_included"]["calibrated"]["threshold"] == pytest.approx(threshold)
    assert mean(own["ties_included"]["calibrated"]["accuracy"]) == accuracy == 2 / 5
    # the second pair, the fourth (a tie, then a tie: the same), the fifth without a verdict.
    assert mean(own["position"]["changed"]) == 2 / 5
    # showings won by the first: pair 1 loses one and wins one, pair 2 wins both.
    assert mean(own["position"]["first_less_second"]) == pytest.approx(1 / 5) == own["position"]["bias"]


def test_fewer_paths_are_the_first_ones():
    one, three = measure(VOTED, (1, 3), None, 0)["self_consistency_choices"]
    assert (one["paths"], three["paths"]) == (1, 3)
    assert mean(one["vote_share"]) == pytest.approx((4 + 0) / 5), "one path agrees with itself where it can be read"
    shares = [(2 / 3 + 1) / 2, 1, (1 + 2 / 3) / 2, (1 / 3 + 1 / 3) / 2, 0]
    assert mean(three["vote_share"]) == pytest.approx(np.mean(shares))
    assert three["unreadable"] == pytest.approx(((1 + 2) / 6 + 1) / 5)
    # a/b -> b turned is a: right; a, a -> tie: wrong; tie: right; tie: wrong; nothing: wrong.
    assert mean(one["accuracy"]) == 2 / 5 and mean(three["accuracy"]) == 2 / 5
    assert mean(one["changed"]) == 2 / 5


def test_calibration_by_hand():
    # shares of the verdict given: 5/6, nobody's tie 0, 5/6, 2/6, none 0.
    found = reliability(VOTED, 3, 0)
    bins = {(b["from"], b["to"]): (b["answers"], b["vote_share"], b["accuracy"]["mean"]) for b in found["bins"]}
    assert bins == {
        (0.0, 0.1): (2, 0.0, 0.0),
        (0.3, 0.4): (1, pytest.approx(2 / 6), 0.0),
        (0.8, 0.9): (2, pytest.approx(5 / 6), 1.0),
    }
    assert mean(found["ece"]) == pytest.approx((2 * 0 + 2 / 6 + 2 * (1 - 5 / 6)) / 5)


def test_a_calibrated_critic_has_a_small_error_and_a_boastful_one_a_large_one():
    rng = np.random.default_rng(0)

    def critic(shift: float) -> list[Answer]:
        found = []
        for k in range(1500):
            count = int(rng.integers(6, 11))
            right = rng.random() < count / 10 - shift
            word = "a" if right else "b"
            forward, backward = [word] * 5, [{"a": "b", "b": "a"}[word]] * 5
            for place in range(10 - count):  # the others vote for a tie
                (forward if place % 2 else backward)[place // 2] = "tie"
            question = Question("overall", f"p{k % 300}", ("x", "y"))
            found.append(Answer(question, "a", tuple(forward), tuple(backward)))
        return found

    honest, boastful = (reliability(critic(shift), 5, 0, 300)["ece"] for shift in (0.0, 0.3))
    assert honest["mean"] < 0.06 and boastful["low"] > 0.25 and boastful["high"] < 0.35


def test_a_critic_that_takes_the_first_is_told_by_its_position():
    first = [pair("ab"[k % 2], "aaa", "aaa", f"p{k}") for k in range(10)]
    last = [pair("ab"[k % 2], "bbb", "bbb", f"p{k}") for k in range(10)]
    fair = [pair("ab"[k % 2], "aaa", "bbb", f"p{k}") for k in range(10)]
    found = [measure(own, (3,), None, 0)["choices"]["overall"]["position"] for own in (first, last, fair)]
    assert [mean(own["changed"]) for own in found] == [1, 1, 0]
    assert [mean(own["first_less_second"]) for own in found] == [1, -1, 0]
    assert [own["bias"] for own in found] == [1, 1, 0]


def test_the_threshold_of_the_other_half_is_not_the_best_on_this_one():
    rng = np.random.default_rng(0)
    answers = []
    for k in range(60):
        gap = rng.normal()
        answers.append(scored(str(rng.choice(CLASSES)), gap, 0.0, f"p{k}"))
    own = measure(answers, (1,), None, 0)["choices"]["overall"]["ties_included"]
    assert mean(own["calibrated"]["accuracy"]) > mean(own["held_out"]["accuracy"]), "noise is fitted"
    assert own["own"] is None, "scores bring no thresholds"
    assert set(own["held_out"]["thresholds"]) == {"0", "1"}
    single = measure([scored("a", 1.0, 0.0)], (1,), None, 0)["choices"]["overall"]["ties_included"]
    assert single["held_out"] is None, "one prompt has no other half"


def test_scores_with_thresholds_of_their_own():
    calibration = Calibration(ties={"overall": 0.5}, ratings={"motion": (0.0, 1.0)})
    answers = [scored("tie", 1.0, 0.6, "p1"), scored("a", 1.0, 0.4, "p2"), scored("b", 0.0, 0.1, "p3")]
    rated = [
        Answer(Question("motion", f"p{k}", ("x",)), people, scores=(value,))
        for k, (people, value) in enumerate([("bad", -1.0), ("normal", 0.5), ("good", 0.6)])
    ]
    found = measure([*answers, *rated], (1,), calibration, 0)
    own = found["choices"]["overall"]
    assert mean(own["ties_included"]["own"]) == pytest.approx(2 / 3) and mean(own["ties_excluded"]) == 1
    assert "position" not in own and not any(key.startswith("calibration") for key in found)
    assert mean(found["ratings"]["motion"]["accuracy"]["own"]) == pytest.approx(2 / 3)
    assert mean(found["ratings"]["motion"]["accuracy"]["calibrated"]["accuracy"]) == 1


# ---- the command


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["benchmark-critic", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def bright(tmp_path_factory) -> dict[str, Path]:
    """Clips of six prompts, as labelled by one who likes bright ones: our own set and both public layouts."""
    root = tmp_path_factory.mktemp("bright")
    own = write_labels(root / "own", [f"a pillar, number {k}" for k in range(6)])
    names = {"a": "A", "b": "B", "tie": "same"}
    reward = [["path_A", "path_B", "prompt", "VQ", "MQ", "TA", "Overall"]]
    genai = [["left_video", "right_video", "prompt", "vote_type"]]
    for row in read_labels(own)[1]:
        clips = row.clip_a, row.clip_b
        reward.append([*clips, row.prompt, names[row.verdict], "same", "", names[row.verdict]])
        vote = {"a": "leftvote", "b": "rightvote", "tie": "tievote"}[row.verdict]
        genai.append([*clips, row.prompt, vote])
    for name, rows in (("reward.csv", reward), ("genai.csv", genai)):
        with open(root / name, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return {"own": own, "videogen_rewardbench": root / "reward.csv", "genai_bench": root / "genai.csv"}


def sets(bright: dict[str, Path], *kinds: str) -> list[str]:
    found = [f"--set={kind}={bright[kind]}" for kind in kinds or bright]
    return found + [f"--clips={k}={bright['own']}" for k in kinds or bright if k != "own"]


def light(clip: str) -> float:
    return float(LEVELS[Path(clip).stem.partition("-")[2]])


def test_external_scores_on_every_layout(bright, tmp_path):
    rows = ["clip,VQ,MQ,TA"]
    rows += [f"{p.name},{light(p.name)},{-light(p.name)},{len(p.stem)}" for p in sorted(bright["own"].glob("*.mp4"))]
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    shown = run(tmp_path / "scores.csv", *sets(bright), "--out", tmp_path / "out")
    record = read_json(tmp_path / "out/record.json")
    assert record["critic"]["kind"] == "external"
    assert "the mean of the three dimensions" in record["protocol"]["normalisation"]
    found = record["sets"]["videogen_rewardbench"]
    assert sorted(found["choices"]) == ["faithfulness", "motion", "overall"], "no label on TA"
    assert mean(found["choices"]["faithfulness"]["ties_excluded"]) == 1
    assert mean(found["choices"]["faithfulness"]["ties_included"]["calibrated"]["accuracy"]) == 1
    assert found["choices"]["motion"]["ties"] == 1 and found["choices"]["motion"]["ties_excluded"] is None
    assert sorted(record["sets"]["genai_bench"]["choices"]) == ["overall"]
    assert mean(record["sets"]["own"]["ratings"]["faithfulness"]["accuracy"]["calibrated"]["accuracy"]) == 1
    # overall: standardised VQ and -VQ cancel, the length of the name is left.
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    overall = [a for a in answers if a["set"] == "genai_bench"]
    gaps = [len(Path(a["clips"][0]).stem) - len(Path(a["clips"][1]).stem) for a in overall]
    expected = ties_excluded_accuracy(gaps, [a["people"] for a in overall])
    assert mean(record["sets"]["genai_bench"]["choices"]["overall"]["ties_excluded"]) == pytest.approx(expected)
    assert "| faithfulness | 18 | 33.3 | 100.0 [100.0, 100.0] | - | 100.0 [100.0, 100.0]" in shown
    assert "normalisation: scores as given" in shown and "Deutsch et al. 2023" in shown
    assert not (tmp_path / "out/reliability.png").exists(), "no votes, no curve"


def test_a_videoreward_brings_its_thresholds(bright, critic_folder, tmp_path):
    thresholds = Calibration(ties={"overall": 0.0}, ratings={})
    settings = Settings(mean=(0.0,) * 3, deviation=(1.0,) * 3, calibration=thresholds)
    VideoReward(load_critic(critic_folder), settings).save(tmp_path / "reward")
    run(tmp_path / "reward", *sets(bright, "genai_bench"), "--out", tmp_path / "out")
    record = read_json(tmp_path / "out/record.json")
    assert record["critic"] == {
        "kind": "videoreward",
        "md5": digest(tmp_path / "reward").md5,
        "path": str(tmp_path / "reward"),
    }
    own = record["sets"]["genai_bench"]["choices"]["overall"]
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    gaps = np.array([a["scores"][0] - a["scores"][1] for a in answers])
    words = np.where(gaps == 0, "tie", np.where(gaps > 0, "a", "b"))
    assert len(set(gaps)) > 3
    assert mean(own["ties_included"]["own"]) == pytest.approx(np.mean(words == [a["people"] for a in answers]))
    assert "paths" not in record["protocol"] and "VideoAlign H.2" in record["protocol"]["normalisation"]


@pytest.fixture(scope="module")
def shipped(repository, tmp_path_factory) -> Path:
    """The shipped small critic beside three prompts of the shipped test set."""
    return shrink(repository / "data", tmp_path_factory.mktemp("shipped") / "data", 1, 3, 1, 1)


@pytest.fixture(scope="module")
def recorded(shipped, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("record") / "out"
    run(shipped / "critic", f"--set=own={shipped / 'test'}", "--paths", "1,3", "--out", out)
    return out


def test_a_generative_critics_record_follows_from_its_answers(recorded, shipped):
    record = read_json(recorded / "record.json")["sets"]["own"]
    answers = [json.loads(line) for line in (recorded / "answers.jsonl").read_text().splitlines()]
    pairs = [a for a in answers if "backward" in a]
    _, choices = read_labels(shipped / "test")
    assert len(pairs) == len({(c.clip_a, c.clip_b) for c in choices}) and len(answers) > len(pairs)
    turn = {"a": "b", "b": "a"}
    right = decided = 0.0
    chosen = 0
    for a in pairs:
        votes = Counter([*a["forward"], *(turn.get(word, word) for word in a["backward"])])
        assert votes.total() == 6
        most = max(votes[word] for word in CLASSES)
        leaders = [word for word in CLASSES if votes[word] == most]
        right += a["people"] == (leaders[0] if len(leaders) == 1 else "tie")
        if a["people"] != "tie":
            lead = votes[a["people"]] - votes[turn[a["people"]]]
            decided += 1.0 if lead > 0 else 0.5 if lead == 0 else 0.0
            chosen += 1
    own = record["choices"]["overall"]
    assert mean(own["ties_included"]["own"]) == pytest.approx(right / len(pairs))
    assert mean(own["ties_excluded"]) == pytest.approx(decided / chosen)
    assert [row["paths"] for row in record["self_consistency_choices"]] == [1, 3]
    assert mean(record["self_consistency_choices"][0]["vote_share"]) > 0.9, "a single path, nearly always readable"
    assert sorted(record["ratings"]) == ["faithfulness", "motion", "semantic"]
    assert record["annotators"] == ["ann", "ben", "cho"]
    assert sum(b["answers"] for b in record["calibration_choices"]["bins"]) == len(pairs)


def test_the_record_can_be_read(recorded):
    text = (recorded / "record.md").read_text()
    for words in ("ties excluded", "order changes", "first - second", "vote share", "How to read it", "bootstrap over"):
        assert words in text
    rows = list(csv.DictReader((recorded / "reliability.csv").open()))
    assert {row["kind"] for row in rows} == {"choices", "ratings"}
    bins = read_json(recorded / "record.json")["sets"]["own"]["calibration_choices"]["bins"]
    assert [float(r["accuracy"]) for r in rows if r["kind"] == "choices"] == [b["accuracy"]["mean"] for b in bins]
    with Image.open(recorded / "reliability.png") as picture:
        assert picture.width > picture.height > 300 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert {path.name for path in recorded.parent.iterdir()} == {"out"}, "no scratch is left"


def test_a_record_that_was_stopped_goes_on(recorded, shipped, bright, tmp_path, monkeypatch):
    from dualipo.critic.base import Critic

    plain, asked = Critic.paths, []

    def until_genai(self, questions, *arguments):
        asked.extend(question.prompt for question in questions)
        if any("number" in prompt for prompt in asked):
            raise KeyboardInterrupt
        return plain(self, questions, *arguments)

    command = [shipped / "critic", f"--set=own={shipped / 'test'}", *sets(bright, "genai_bench"), "--paths", "1,3"]
    monkeypatch.setattr(Critic, "paths", until_genai)
    with pytest.raises((KeyboardInterrupt, SystemExit, AssertionError)):
        run(*command, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    asked.clear()

    def counted(self, questions, *arguments):
        asked.extend(question.prompt for question in questions)
        return plain(self, questions, *arguments)

    monkeypatch.setattr(Critic, "paths", counted)
    run(*command, "--out", tmp_path / "out")
    assert asked and all("number" in prompt for prompt in asked), "the finished set is not asked again"
    whole = [line for line in (tmp_path / "out/answers.jsonl").read_text().splitlines() if '"set": "own"' in line]
    assert whole == (recorded / "answers.jsonl").read_text().splitlines(), "as in one go"


def test_a_part_of_a_set_says_so(bright, shipped, tmp_path):
    shown = run(
        shipped / "critic", *sets(bright, "videogen_rewardbench"), "--paths", 1, "--prompts", 2, "--out", tmp_path / "o"
    )
    record = read_json(tmp_path / "o/record.json")["sets"]["videogen_rewardbench"]
    assert record["prompts"] == record["asked_prompts"] == 2
    assert "a part of the set: 2 prompts" in shown


def test_broken_items_are_counted_within_the_budget(bright, shipped, tmp_path):
    lines = bright["genai_bench"].read_text().splitlines()
    (tmp_path / "table.csv").write_text("\n".join([*lines, "gone.mp4,0-grey.mp4,a pillar,leftvote"]))
    command = [
        shipped / "critic",
        f"--set=genai_bench={tmp_path / 'table.csv'}",
        f"--clips=genai_bench={bright['own']}",
    ]
    command += ["--prompts", 2, "--paths", 1, "--out", tmp_path / "out"]
    with pytest.raises(UserError, match=r"1 of 19 items are broken, first .*line 20: .*gone\.mp4: no such clip"):
        run(*command)
    run(*command, "--max-broken", 1)
    assert read_json(tmp_path / "out/record.json")["sets"]["genai_bench"]["skipped"] == 1


# ---- MLflow


def test_the_record_is_bound_to_the_critics_version(recorded, shipped, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text("experiment: {name: tiny}\n")
    command = [shipped / "critic", f"--set=own={shipped / 'test'}", "--paths", "1", "--prompts", 2, "--log"]
    command += ["--folder", tmp_path]
    with pytest.raises(UserError, match="no version of tiny-critic with these bytes"):
        run(*command, "--out", tmp_path / "one")
    assert not (tmp_path / "one").exists()
    tracker = Tracker(tmp_path, parse_config({"experiment": {"name": "tiny"}}))
    register_critic(tracker, shipped / "critic", tmp_path)
    run(*command, "--out", tmp_path / "one")
    (version,) = tracker.versions("tiny-critic")
    record = read_json(tmp_path / "one/record.json")
    (logged,) = tracker.store.find_runs(level="critic_record")
    assert logged.data.tags["dualipo.version"] == version.label and logged.info.status == "FINISHED"
    key = "critic_record/own.choices.overall.ties_excluded.mean"
    expected = record["sets"]["own"]["choices"]["overall"]["ties_excluded"]["mean"]
    assert logged.data.metrics[key] == pytest.approx(expected)
    bound = {m.key: m for m in tracker.store.client.get_logged_model(version.model_id).metrics}
    assert bound[key].value == pytest.approx(expected)
    assert bound[key].dataset_digest == digest(shipped / "test").md5
    files = {f.path for f in tracker.store.client.list_artifacts(logged.info.run_id, "critic_record")}
    assert "critic_record/reliability.png" in files and "critic_record/record.json" in files
    shutil.rmtree(tmp_path / "one")
    run(*command, "--out", tmp_path / "one")
    assert len(tracker.store.find_runs(level="critic_record")) == 1, "the same record again changes nothing"


def register_critic(tracker: Tracker, critic: Path, root: Path) -> None:
    """As `start` records the base critic; the other artifacts are stand-ins."""
    step = GRAPH["start"]

    def bind(ports: dict) -> dict[str, Artifact]:
        found = {}
        for port, entry in ports.items():
            path = root / "stand-in" / port
            if entry.kind == "critic":
                path = critic
            elif entry.kind == "scores":
                path = path.with_suffix(".json")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({"agreement": {"mean": 0.8}, "total": {"mean": 1.0}}))
            else:
                path.mkdir(parents=True)
                (path / "model.safetensors").write_text(port)
            found[port] = Artifact(f"x/{port}", path, digest(path), entry.kind)
        return found

    tracker.record(step, BASE, "", bind(step.inputs), bind(step.outputs), Summary(), 1.0, None)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set=own"], r"--set own: write KIND=PATH, where KIND is one of own, videogen_rewardbench, genai_bench"),
        (["--set=vbench=x"], "--set vbench=x: write KIND=PATH"),
        (["--set=own=nowhere"], "nowhere: exactly one of choices.csv and choices.jsonl is needed"),
        (["--set=genai_bench=nowhere"], "nowhere: no such file or folder"),
        (["--set=own={own}", "--set=own={own}"], "own is given twice"),
        (["--set=own={own}", "--clips=own={own}"], "--clips own=...: goes with --set own=TABLE of a public layout"),
        (["--set=own={own}", "--paths=3,1"], "--paths 3,1: write rising numbers of paths"),
        (["--set=own={own}", "--paths=0"], "--paths 0: write rising numbers"),
        (["--set=own={own}", "--paths=many"], "--paths many: write rising numbers"),
        (["--set=own={own}", "--max-broken=-1"], "--max-broken -1"),
    ],
)
def test_bad_options_are_refused_with_a_sentence(bright, tmp_path, arguments, sentence):
    (tmp_path / "scores.csv").write_text("clip,VQ\n")
    with pytest.raises(UserError, match=sentence):
        run(tmp_path / "scores.csv", *(a.format(own=bright["own"]) for a in arguments), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("clip\n0-dark.mp4", "the header needs clip and at least one score"),
        ("clip,light\n", "no scores of clip '0-dark.mp4'"),
        ("clip,VQ,faithfulness\n{rows}", "two columns for one dimension"),
        ("clip,light,MQ\n{rows}", "column light is no dimension; name it one of semantic"),
        ("clip,VQ,MQ\n{rows}", "judges none of its dimensions"),
    ],
)
def test_bad_scores_are_refused_with_a_sentence(bright, tmp_path, table, sentence):
    rows = "\n".join(f"{path.name},1,2" for path in sorted(bright["own"].glob("*.mp4")))
    (tmp_path / "scores.csv").write_text(table.format(rows=rows))
    with pytest.raises(UserError, match=sentence):
        run(tmp_path / "scores.csv", *sets(bright, "genai_bench"), "--out", tmp_path / "out")


def test_what_is_no_critic_and_what_is_there_already_are_refused(bright, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no critic checkpoint here"):
        run(tmp_path / "empty", *sets(bright, "own"), "--out", tmp_path / "out")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"a critic's folder or a \.csv of scores is needed"):
        run(tmp_path / "notes.txt", *sets(bright, "own"), "--out", tmp_path / "out")
    with pytest.raises(UserError, match="already there; choose another folder"):
        run(tmp_path / "empty", *sets(bright, "own"), "--out", tmp_path / "empty")
