"""Sessions of annotation: who is asked what, what is kept, what comes out."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from annotating import make, reply, verdicts_of, work_through
from clips import numbered, write_clip
from test_report import SEEDS, make_clip, prompts, write_clips

from dualipo.annotation.answers import Answer, AnswerLog, read_answers
from dualipo.annotation.assignment import golden_turn, own_order, sides_swapped
from dualipo.annotation.export import Wanted, export_labels
from dualipo.annotation.items import AnnotationItem, KeptClip
from dualipo.annotation.ranges import Unsatisfiable, parse_range
from dualipo.annotation.report import format_report, session_report
from dualipo.annotation.session import Refused, annotator_name, open_session, read_session
from dualipo.annotation.sources import Pool, candidate_pool, clip_pool, golden_pool
from dualipo.annotation.study import find_side, format_study, study_pool, study_result
from dualipo.config import parse_config
from dualipo.critic.questions import human_answers
from dualipo.errors import UserError
from dualipo.media.playing import playable
from dualipo.media.store import ClipStore
from dualipo.media.video import check_clip, decode_clip, encode_clip, frame_times
from dualipo.records import (
    DIMENSIONS,
    PseudoChoice,
    PseudoRating,
    read_labels,
    write_rows,
)
from dualipo.steps.start import check_data

# ---- who is asked what


VISIBLE = {"id", "kind", "prompt", "clips", "questions", "boxes", "skipped", "verdicts", "reasons"}


def items(count: int) -> list[AnnotationItem]:
    clip = KeptClip(folder=".", file="x", md5="0")
    return [
        AnnotationItem(id=f"i{n}", kind="choice", prompt_id="p", prompt="p", clips=(clip, clip), wave=n // 20)
        for n in range(count)
    ]


def test_each_annotator_has_an_order_and_sides_of_their_own_which_never_change():
    asked = items(60)
    orders = {name: [item.id for item in own_order(0, name, asked)] for name in ("ann", "ben", "cho")}
    assert len({tuple(order) for order in orders.values()}) == 3
    assert [item.id for item in own_order(0, "ann", reversed(asked))] == orders["ann"], "whatever order they came in"
    for order in orders.values():
        assert set(order[:20]) == {f"i{n}" for n in range(20)}, "an earlier wave comes first"
    sides = {name: [sides_swapped(0, name, item) for item in asked] for name in orders}
    assert len({tuple(own) for own in sides.values()}) == 3 and sides["ann"] != [
        sides_swapped(1, "ann", item) for item in asked
    ]
    assert all(15 < sum(own) < 45 for own in sides.values())
    single = asked[0].model_copy(update={"kind": "rating"})
    assert not any(sides_swapped(seed, "ann", single) for seed in range(20))


@pytest.mark.parametrize(("share", "block"), [(0.5, 2), (0.2, 5), (0.1, 10)])
def test_one_item_of_every_block_is_golden_at_a_place_that_the_seed_knows(share, block):
    turns = [golden_turn(0, "ann", number, share) for number in range(40 * block)]
    assert all(sum(turns[start : start + block]) == 1 for start in range(0, len(turns), block))
    places = {turns[start : start + block].index(True) for start in range(0, len(turns), block)}
    assert places == set(range(block))
    assert not any(golden_turn(0, "ann", number, 0) for number in range(50))


@pytest.mark.parametrize("people", [3, 5])
def test_every_item_gets_its_annotators_and_golden_ones_do_not_show(tmp_path, packed_clips, known_labels, people):
    folder = make(tmp_path / "session", clip_pool(packed_clips, 0), golden_pool(known_labels, 0), count=12)
    names = [f"p{number}" for number in range(people)]
    judged: Counter[str] = Counter()
    met: dict[str, list[str]] = {name: [] for name in names}
    rng = random.Random(people)
    with open_session(folder) as session:
        busy = list(names)
        while busy:
            name = rng.choice(busy)
            shown = session.show(name)
            if shown["item"] is None:
                assert shown["left"] == 0
                busy.remove(name)
                continue
            assert shown.keys() == {"item", "back", "forward", "number", "answered", "left"}
            assert shown["item"].keys() == VISIBLE
            before = session.show(name)
            assert before["item"]["id"] == shown["item"]["id"], "asked again, the same is shown"
            reply(session, name, shown)
            met[name].append(shown["item"]["id"])
            judged[shown["item"]["id"]] += 1
            after = session.show(name)
            assert after["answered"] == before["answered"] + 1
            assert after["left"] <= before["left"] - 1 + (people > 3), "golden or not, one less is left"
    recorded = read_session(folder)
    hidden = {item.id for item in recorded.items.values() if item.golden}
    ordinary = recorded.items.keys() - hidden
    assert len(ordinary) == 22 and all(judged[item] >= 3 for item in ordinary)
    assert sum(judged[item] for item in ordinary) <= 3 * len(ordinary) + people, "hardly more than needed"
    assert all(len(own) == len(set(own)) for own in met.values()), "nobody is asked twice"
    assert len(recorded.answers) == sum(map(len, met.values()))
    for own in met.values():
        share = sum(item in hidden for item in own) / len(own)
        assert 0.1 < share < 0.3
    if people == 3:
        assert set(judged.values()) <= {1, 2, 3} and all(own[:22] != met["p0"][:22] for own in list(met.values())[1:])


def test_an_item_that_somebody_left_lying_is_given_to_others_in_time(tmp_path, packed_clips):
    folder = make(tmp_path / "session", clip_pool(packed_clips, 0), mode="pair", count=2, annotators=1)
    now = [0.0]
    with open_session(folder, clock=lambda: now[0]) as session:
        first = session.show("ann")["item"]["id"]
        second = session.show("ben")["item"]["id"]
        assert first != second, "what is before somebody is reserved"
        reply(session, "ben", session.show("ben"))
        assert session.show("ben")["item"]["id"] == first, "rather too many than none"
        session.answer("ben", first, {}, {}, 1.0)
        assert session.show("ben")["item"] is None, "what was skipped does not come back"
        now[0] = 1e6
        assert session.show("cho")["item"]["id"] == first, "a reservation ends, and skipping is no judgement"
        assert session.show("ann")["item"]["id"] == first


def test_an_answer_may_be_changed_and_only_by_whom_it_is_of(tmp_path, packed_clips):
    folder = make(tmp_path / "session", clip_pool(packed_clips, 0), mode="pair", count=5)
    with open_session(folder) as session:
        ids = []
        for _ in range(3):
            shown = session.show("Ann ")
            ids.append(shown["item"]["id"])
            reply(session, "ann", shown, choose=lambda item, question: "b")
        back = session.show("ANN", ids[1])
        assert (back["back"], back["forward"], back["number"], back["answered"]) == (ids[0], ids[2], 2, 3)
        assert set(back["item"]["verdicts"].values()) == {"b"}, "in the words of what was shown"
        assert session.show("ann", ids[2])["forward"] == session.show("ann")["item"]["id"]
        session.answer("ann", ids[1], verdicts_of(back["item"], lambda i, q: "tie"), {}, 1.0)
        with pytest.raises(Refused, match="not yours"):
            session.show("ben", ids[1])
        other = next(name for name in session.items if name not in (*ids, session.show("ben")["item"]["id"]))
        with pytest.raises(Refused, match="not yours"):
            session.answer("ben", other, {"overall": "a"}, {}, 1.0)
    answers = {answer.item: answer for answer in read_session(folder).answers}
    assert list(answers) == ids, "in the order in which they were first given"
    assert set(answers[ids[1]].verdicts.values()) == {"tie"}
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 4, "nothing is ever overwritten"


@pytest.mark.parametrize(
    ("verdicts", "reasons", "why"),
    [
        ({"overall": "a"}, {"a": "x", "b": "y"}, "needed on each"),
        (dict.fromkeys((*DIMENSIONS, "overall"), "good"), {"a": "x", "b": "y"}, "no verdict"),
        (dict.fromkeys((*DIMENSIONS, "overall"), "a"), {"a": "x", "b": "  "}, "needed in every box"),
        (dict.fromkeys((*DIMENSIONS, "overall"), "a"), {"a": "x", "b": "y" * 2001}, "at most 2000"),
        (dict.fromkeys((*DIMENSIONS, "overall"), "a"), {"a": "x", "b": "y", "motion": "z"}, "box of its own"),
    ],
)
def test_an_unfit_answer_is_refused_and_leaves_no_line(tmp_path, packed_clips, verdicts, reasons, why):
    folder = make(tmp_path / "session", clip_pool(packed_clips, 0), mode="pair", count=1, reasons=True)
    with open_session(folder) as session:
        item = session.show("ann")["item"]
        with pytest.raises(Refused, match=why):
            session.answer("ann", item["id"], verdicts, reasons, 1.0)
    assert (folder / "answers.jsonl").read_bytes() == b""


@pytest.mark.parametrize("name", ["", "  ", "a" * 41, "a<b", "a/b", "a\nb\0"])
def test_names_are_plain(name):
    with pytest.raises(Refused):
        annotator_name(name)
    assert annotator_name("  Zoë  O'Neill-3 ") == "zoë o'neill-3"


# ---- what is kept


def answer(number: int) -> Answer:
    return Answer(item=f"i{number}", annotator="ann", verdicts={"overall": "a"}, seconds=1.0, at="now")


def test_a_line_that_a_crash_cut_short_is_dropped_and_no_other(tmp_path):
    path = tmp_path / "answers.jsonl"
    for number in range(3):
        log = AnswerLog(path)
        log.append(answer(number))
        log.close()
        whole = path.read_bytes()
        path.write_bytes(whole + answer(9).model_dump_json().encode()[: 20 + number])
        assert [a.item for a in read_answers(path)] == [f"i{n}" for n in range(number + 1)]
    AnswerLog(path).close()
    assert path.read_bytes() == whole
    path.write_bytes(b"{\n" + whole)
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        read_answers(path)


def test_an_answer_that_the_disk_refuses_is_not_half_kept(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    log.append(answer(0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            log.append(answer(1))
    log.append(answer(2))
    log.close()
    assert [a.item for a in read_answers(path)] == ["i0", "i2"]


def test_a_session_is_open_once_and_made_once(tmp_path, packed_clips, known_labels):
    folder = make(tmp_path / "session", clip_pool(packed_clips, 0), count=2)
    with open_session(folder), pytest.raises(UserError, match="already going on"), open_session(folder):
        pass
    with pytest.raises(UserError, match="no session of annotation here"):
        read_session(tmp_path)
    with pytest.raises(UserError, match="already there, and no session"):
        make(packed_clips, clip_pool(packed_clips, 0))
    first = make(tmp_path / "one", clip_pool(packed_clips, 0), golden_pool(known_labels, 0)) / "items.jsonl"
    second = make(tmp_path / "two", clip_pool(packed_clips, 0), golden_pool(known_labels, 0)) / "items.jsonl"
    assert first.read_text() == second.read_text(), "the same seed asks the same"
    assert all(len(line) and "golden" not in json.loads(line)["id"] for line in first.read_text().splitlines())


# ---- what comes out


def brighter(folder: Path):
    """A choice of the clip whose file sorts first, wherever it is shown; what each clip is stands in the reasons."""
    recorded = read_session(folder)
    names = {clip.md5: f"{clip.folder}/{clip.file}" for item in recorded.items.values() for clip in item.clips}

    def choose(who, item, question):
        if item["kind"] == "rating":
            return None
        return "a" if names[item["clips"][0]] <= names[item["clips"][1]] else "b"

    def reasons(item):
        boxes = dict(zip(item["boxes"], item["clips"], strict=False))
        return {
            box: f"it is {names[boxes[box]]}" if item["kind"] == "choice" else f"{box} seen" for box in item["boxes"]
        }

    return choose, reasons


@pytest.fixture
def labelled(tmp_path, packed_clips, known_labels) -> Path:
    folder = make(tmp_path / "session", clip_pool(packed_clips, 0), golden_pool(known_labels, 0), count=8, reasons=True)
    work_through(folder, ["ann", "ben", "cho"], *brighter(folder))
    return folder


def test_labels_come_out_in_the_seed_format_turned_back_and_without_golden_items(labelled, tmp_path):
    recorded = read_session(labelled)
    assert {a.swapped for a in recorded.answers if recorded.items[a.item].kind == "choice"} == {True, False}
    done = export_labels(recorded, tmp_path / "out/seed", Wanted())
    ratings, choices = read_labels(tmp_path / "out/seed")
    assert (len(ratings), len(choices)) == (8 * 3 * 3, 8 * 3 * 4) and done.rows == {"ratings": 72, "choices": 96}
    assert {row.prompt.startswith("a known thing") for row in [*ratings, *choices]} == {False}
    assert Counter(row.annotator for row in choices) == {"ann": 32, "ben": 32, "cho": 32}
    files = {clip.md5: f"{clip.folder}/{clip.file}" for item in recorded.items.values() for clip in item.clips}
    for row in choices:
        first, second = (files[Path(clip).stem] for clip in (row.clip_a, row.clip_b))
        assert row.verdict == ("a" if first <= second else "b"), "however it was shown, the same clip won"
        assert row.reason == f"a: it is {first}. b: it is {second}."
    assert {row.reason for row in ratings} == {f"{name} seen" for name in DIMENSIONS}
    for name in {row.clip for row in ratings}:
        check_clip(tmp_path / "out/seed" / name)
    settled = human_answers([*ratings, *choices])
    assert len(settled) == 8 * 3 + 8 * 4, "the three of each item speak of one question"


def test_majority_partial_golden_and_left_out_annotators(labelled, tmp_path):
    recorded = read_session(labelled)
    export_labels(recorded, tmp_path / "settled", Wanted(settled=True))
    ratings, choices = read_labels(tmp_path / "settled")
    assert (len(ratings), len(choices)) == (24, 32) and {row.annotator for row in ratings} == {"majority"}
    export_labels(recorded, tmp_path / "all", Wanted(golden=True))
    assert any(row.prompt.startswith("a known thing") for row in read_labels(tmp_path / "all")[0])
    with pytest.raises(UserError, match=r"no item has answers of 3 annotators.*--partial"):
        export_labels(recorded, tmp_path / "none", Wanted(without=("cho",)))
    export_labels(recorded, tmp_path / "two", Wanted(without=("cho",), partial=True))
    assert {row.annotator for row in read_labels(tmp_path / "two")[1]} == {"ann", "ben"}
    with pytest.raises(UserError, match="'dan' answered nothing"):
        export_labels(recorded, tmp_path / "none", Wanted(without=("dan",)))
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".*"))


def test_an_export_is_a_data_folders_seed(labelled, tmp_path, known_labels):
    export_labels(read_session(labelled), tmp_path / "seed", Wanted())
    (tmp_path / "real").mkdir()
    write_clip(tmp_path / "real/r.mp4", numbered(3))
    (tmp_path / "real/captions.csv").write_text("clip,prompt\nr.mp4,something else\n")
    (tmp_path / "benchmark.jsonl").write_text('{"id": "b", "text": "held out"}\n')
    check_data(tmp_path / "seed", known_labels, tmp_path / "real", tmp_path / "benchmark.jsonl")


def test_a_clip_that_changed_since_is_never_labelled(tmp_path, known_labels):
    folder = tmp_path / "labels"
    (folder / "clips").mkdir(parents=True)
    for name in "ab":
        (folder / "clips" / f"{name}.mp4").write_bytes((known_labels / "clips" / f"0{name}.mp4").read_bytes())
    (folder / "choices.csv").write_text(
        "clip_a,clip_b,prompt,annotator,verdict,reason\nclips/a.mp4,clips/b.mp4,p,x,a,r\nclips/a.mp4,clips/b.mp4,p,y,a,r\n"
    )
    session = make(tmp_path / "session", clip_pool(folder, 0), annotators=1, mode="pair")
    work_through(session, ["ann"], lambda *asked: None)
    (folder / "clips/a.mp4").write_bytes((folder / "clips/b.mp4").read_bytes())
    with pytest.raises(UserError, match="not the clip that people were shown"):
        export_labels(read_session(session), tmp_path / "out", Wanted())


def test_the_report_tells_accuracy_on_golden_items_and_agreement_on_the_others(tmp_path, packed_clips, known_labels):
    folder = make(tmp_path / "session", clip_pool(packed_clips, 0), golden_pool(known_labels, 0), mode="rate", count=10)
    known = {item.id for item in read_session(folder).items.values() if item.golden}

    def choose(who, item, question):
        if item["id"] in known:
            return "good" if who == "ann" else "bad"
        return "normal" if who == "cho" and question == "motion" else "good" if int(item["id"], 16) % 2 else "bad"

    work_through(folder, ["ann", "ben", "cho"], choose)
    report = session_report(read_session(folder))
    assert (report["items"], report["settled"]) == (10, 10)
    assert {name: own["golden_accuracy"] for name, own in report["annotators"].items()} == {
        "ann": 1,
        "ben": 0,
        "cho": 0,
    }
    assert all(own["items"] == 10 and own["golden_verdicts"] >= 3 for own in report["annotators"].values())
    found = {own["question"]: own for own in report["agreement"]}
    assert found["rating/semantic"]["alpha"] == 1 and found["rating/semantic"]["mean"] == 1
    assert found["rating/motion"]["alpha"] < 0.8 and found["rating/motion"]["mean"] < 0.7
    assert found["rating/motion"]["items"] == 10 and found["rating/motion"]["annotators"] == 3
    text = format_report(report)
    assert "ben: 10 items, golden 0% (0 of" in text and "Krippendorff's alpha 1.00" in text
    alone = session_report(read_session(folder), without=("ben", "cho"))
    assert alone["agreement"] == [] and alone["settled"] == 0 and "ben: 10 items" in format_report(alone)
    json.dumps(report, allow_nan=False)


# ---- where items come from


def test_folders_of_every_format_are_read(tmp_path, packed_clips, known_labels):
    pool = clip_pool(packed_clips, 0)
    assert (len(pool.ratings), len(pool.choices)) == (20, 10)
    assert len({ask.prompt_id for ask in pool.ratings[:10]}) == 10, "round all prompts before any comes again"
    assert clip_pool(packed_clips, 1).ratings != pool.ratings == clip_pool(packed_clips, 0).ratings
    own = clip_pool(known_labels, 0)
    assert (len(own.ratings), len(own.choices)) == (14, 7), "the listed pairs, once"
    captioned = tmp_path / "captioned"
    for number in range(3):
        write_clip(captioned / f"deep/{number}.mp4", numbered(3))
        (captioned / f"deep/{number}.txt").write_text("one prompt" if number < 2 else "another")
    pool = clip_pool(captioned, 0)
    assert (len(pool.ratings), len(pool.choices)) == (3, 1)
    align = tmp_path / "align"
    for name in "xy":
        write_clip(align / f"{name}.mp4", numbered(3))
    (align / "t.csv").write_text("path_A,path_B,prompt,VQ,MQ,TA\nx.mp4,y.mp4,p,A,B,same\ngone.mp4,y.mp4,q,W,B,same\n")
    pool = clip_pool(align, 0)
    assert (len(pool.choices), pool.left_out) == (1, 1) and "'W' is none of" in pool.first
    (align / "t.csv").write_text("some,thing\n1,2\n")
    with pytest.raises(UserError, match="of no known format"):
        clip_pool(align, 0)
    with pytest.raises(UserError, match="no such folder"):
        clip_pool(tmp_path / "absent", 0)
    with pytest.raises(UserError, match="no two clips of one prompt"):
        make(tmp_path / "s", Pool(clip_pool(captioned, 0).ratings, []), mode="pair")
    assert not (tmp_path / "s").exists()


def test_a_rounds_least_certain_pairs_come_first(packed_clips, tmp_path):
    ids = [clip.id for clip in ClipStore(packed_clips).clips]
    common = {"prompt_id": "p", "prompt": "p", "kept": True, "chosen": "c", "rejected": None, "dimension": "overall"}
    common |= {"forward": "a", "backward": "a", "consistent": True, "verdict": "a"}

    def pair(number: int, votes: dict[str, int], certainty: float) -> PseudoChoice:
        a, b = ids[2 * number : 2 * number + 2]
        return PseudoChoice(clip_a=a, clip_b=b, votes=votes, certainty=certainty, **common)

    rows = [
        pair(0, {"a": 8, "b": 0, "tie": 0, "invalid": 0}, 0.9),
        pair(1, {"a": 5, "b": 3, "tie": 0, "invalid": 0}, 0.9),
        pair(2, {"a": 2, "b": 1, "tie": 1, "invalid": 4}, 0.9),
        pair(3, {"a": 8, "b": 0, "tie": 0, "invalid": 0}, 0.4),
    ]
    write_rows(tmp_path / "choices.jsonl", rows)
    rating = {**{key: common[key] for key in ("prompt_id", "prompt", "kept", "chosen", "rejected")}, "verdict": "good"}
    write_rows(
        tmp_path / "ratings.jsonl",
        [
            PseudoRating(clip=ids[n], dimension=d, votes={"good": 4 - n, "bad": n}, certainty=0.5, **rating)
            for n in range(3)
            for d in DIMENSIONS
        ],
    )
    pool = candidate_pool(packed_clips, tmp_path, 0, uncertain=True)
    assert [ask.clips[0].file.split("/")[1][:-4] for ask in pool.choices] == [ids[2 * n] for n in (2, 1, 3, 0)]
    assert [ask.clips[0].file.split("/")[1][:-4] for ask in pool.ratings] == [ids[n] for n in (2, 1, 0)]
    session = read_session(make(tmp_path / "session", pool, mode="pair", count=2))
    assert {c.file.split("/")[1][:-4] for i in session.items.values() for c in i.clips} == set(ids[2:6])
    with pytest.raises(UserError, match="--select random"):
        candidate_pool(packed_clips, tmp_path / "absent", 0, uncertain=True)
    assert candidate_pool(packed_clips, tmp_path / "absent", 0, uncertain=False) == clip_pool(packed_clips, 0)
    write_rows(tmp_path / "choices.jsonl", [rows[0].model_copy(update={"clip_a": "other"})])
    with pytest.raises(UserError, match="no clip 'other'"):
        candidate_pool(packed_clips, tmp_path, 0, uncertain=True)


# ---- a study of two generators


@pytest.fixture
def rival(tmp_path) -> Path:
    write_clips(tmp_path / "rival", prompts(10), SEEDS, 0.95)
    return tmp_path / "rival"


def side(folder: Path):
    return find_side(folder, lambda: parse_config({}), str(folder))[0]


def study_of(tmp_path: Path, packed_clips: Path, rival: Path, **options) -> Path:
    return make(
        tmp_path / "study",
        study_pool(rival, packed_clips, 0),
        mode="pair",
        study=(side(rival), side(packed_clips)),
        **options,
    )


def test_a_study_tells_win_tie_and_loss_whichever_side_is_which(tmp_path, packed_clips, rival):
    folder = study_of(tmp_path, packed_clips, rival)
    new = {clip.md5 for item in read_session(folder).items.values() for clip in item.clips if "rival" in clip.folder}
    assert session_report(read_session(folder))["study"]["interval"] is None

    def choose(who, item, question):
        number = int(item["id"], 16) % 4
        if question != "overall":
            return "tie"
        better = "a" if item["clips"][0] in new else "b"
        worse = "b" if better == "a" else "a"
        # of four kinds of items two go to the new one, one of them by two votes of three.
        return [better, worse if who == "cho" else better, "tie", worse][number]

    work_through(folder, ["ann", "ben", "cho"], choose)
    recorded = read_session(folder)
    kinds = Counter(int(item, 16) % 4 for item in recorded.items)
    found = study_result(recorded)
    assert (found["wins"], found["ties"], found["losses"]) == (kinds[0] + kinds[1], kinds[2], kinds[3])
    assert found["items"] == found["asked"] == 20 and found["win"] == (kinds[0] + kinds[1]) / 20
    share = found["interval"]
    assert share["mean"] == pytest.approx(found["win"] - found["loss"]) and share["low"] < share["mean"] < share["high"]
    assert found["dimensions"]["motion"]["tie"] == 1 and found["dimensions"]["overall"]["win"] == found["win"]
    assert found["dimensions"]["motion"]["interval"] == {"mean": 0, "low": 0, "high": 0}
    text = format_study(found)
    assert f"{rival} against {packed_clips}, 20 of 20 items settled" in text and "win - loss" in text
    assert study_result(recorded, without=("cho",))["items"] == 0, "two of three settle nothing"
    with pytest.raises(UserError, match="no model may learn from"):
        export_labels(recorded, tmp_path / "out", Wanted())


def test_what_is_compared_must_be_of_one_benchmark(tmp_path, packed_clips):
    write_clips(tmp_path / "seeds", prompts(10), (1, 2), 0.9)
    with pytest.raises(UserError, match="no clip of the same prompt and seed"):
        study_pool(packed_clips, tmp_path / "seeds", 0)
    write_clips(tmp_path / "texts", prompts(10, " now"), SEEDS, 0.9)
    with pytest.raises(UserError, match=r"reads .* in one and .* in the other"):
        study_pool(packed_clips, tmp_path / "texts", 0)
    with pytest.raises(UserError, match="no manifest"):
        side(tmp_path)


def test_generators_are_found_by_their_registered_versions(tmp_path):
    from test_tracking import Experiment

    own = Experiment(tmp_path)
    own.start()
    measured = ("align", "evaluate", "promote_generator")
    own.round("1", "base", only=measured)
    own.round("2", "1", promoted=False, only=measured)
    found = {}
    for reference in ("generator/1", "generator@champion", "tiny-generator/3"):
        entry, folder = find_side(tmp_path, lambda: own.config, reference)
        found[reference] = entry.label, entry.clips
        assert folder == tmp_path / entry.clips
    assert found == {
        "generator/1": ("tiny-generator/1", "runs/base/benchmark_clips"),
        "generator@champion": ("tiny-generator/2", "runs/1/benchmark_clips"),
        "tiny-generator/3": ("tiny-generator/3", "runs/2/benchmark_clips"),
    }
    own.write("runs/1/benchmark_clips/manifest.jsonl", "changed")
    with pytest.raises(UserError, match=r"runs/1/benchmark_clips.* have changed"):
        find_side(tmp_path, lambda: own.config, "generator@champion")
    with pytest.raises(UserError, match="no such version"):
        find_side(tmp_path, lambda: own.config, "generator/9")


# ---- clips that every browser plays


def test_tiny_clips_are_enlarged_and_keep_their_colours_and_timing(tmp_path):
    made = make_clip("red", "left", 1.0, 3)
    shown = playable(encode_clip(made, 8), "x.mp4")
    assert shown.tiny and shown.media_type == "video/mp4" and shown.data
    big = decode_clip(shown.data)
    assert big.shape == (9, 256, 256, 3)
    back = big.reshape(9, 32, 8, 32, 8, 3)[:, :, 4, :, 4].astype(int)
    assert np.abs(back - made).mean() < 6
    source = write_clip(tmp_path / "v.mkv", numbered(5, 48, 64), milliseconds=[0, 40, 200, 240, 500])
    times = [round(float(t), 3) for t in frame_times(playable(source, "v.mkv").data)]
    assert times == [0, 0.04, 0.2, 0.24, 0.5]
    source = write_clip(tmp_path / "plain.mp4", numbered(5, 144, 160))
    assert playable(source) == playable(source.read_bytes()) and playable(source).data is None
    assert not playable(source).tiny


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=0-1", (0, 2)),
        ("bytes=4-99", (4, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=3-2", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
    ],
)
def test_ranges(header, found):
    assert parse_range(header, 10) == found


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=-0"])
def test_a_range_behind_the_end_does_not_exist(header):
    with pytest.raises(Unsatisfiable):
        parse_range(header, 10)
