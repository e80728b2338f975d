"""Foreign formats to data folders: real small mp4 files of mixed sizes, rates and lengths, some of them broken."""

import csv
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from clips import cut_short, grey, numbered, numbers, write_clip

from dualipo import cli
from dualipo.errors import UserError
from dualipo.formats.budget import Budget
from dualipo.media.video import check_clip, decode_clip
from dualipo.records import HumanChoice, HumanRating, Prompt, RealClip, read_labels, read_rows, write_rows
from dualipo.steps.start import check_data

SIZES = {"a": (9, 48, 64, 8), "b": (20, 64, 48, 24), "c": (33, 120, 208, 29.97), "d": (17, 48, 64, 16)}
"""Frames, height, width and rate of every clip of the sources below."""
TRAINING = ["path_A", "path_B", "prompt", "VQ", "MQ", "TA", "fps_A", "num_frames_A", "fps_B", "num_frames_B"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The clips, encoded once; read only."""
    folder = tmp_path_factory.mktemp("clips")
    for name, (total, height, width, fps) in SIZES.items():
        write_clip(folder / f"{name}.mp4", numbered(total, height, width), fps)
    return folder


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`dualipo import ...` in this process: its status, what it prints and what it says on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dualipo", "import", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if line.strip() and "%|" not in line]
        return end.value.code, told.out, "\n".join(lines)

    return run


def write_csv(path: Path, columns: list[str], rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def training_row(first: str, second: str, *labels: str, prompt: str = "a dog, running") -> list[object]:
    return [f"{first}.mp4", f"videos/{second}.mp4", prompt, *labels, 24, 48, 24, 48]


@pytest.fixture
def training(made, tmp_path) -> Path:
    """VideoAlign's training CSV; clips lie beside it and in videos/."""
    source = tmp_path / "source"
    shutil.copytree(made, source / "videos")
    shutil.copy(made / "a.mp4", source)
    rows = [
        training_row("a", "b", "A", "same", "B"),
        training_row("c", "d", "B", "B", "A", prompt="a cat"),
        training_row("a", "c", "A", "", "A", prompt="a cow"),
    ]
    write_csv(source / "train.csv", TRAINING, rows)
    return source


def md5_name(path: Path) -> str:
    return f"clips/{hashlib.md5(path.read_bytes()).hexdigest()}.mp4"


def labels(rows: list[HumanChoice]) -> list[tuple[str, str, str]]:
    return [(row.prompt, row.dimension, row.verdict) for row in rows]


def nothing_left(folder: Path) -> bool:
    return not (folder / "dest").exists() and not list(folder.glob(".*"))


# ---- each format


def test_videoalign(training, call, made, tmp_path):
    before = {path: path.read_bytes() for path in training.rglob("*") if path.is_file()}
    status, out, err = call("videoalign", training, "dest")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "dest: 8 choices, 4 clips",
        "note: as seed/ this still lacks ratings and overall choices; add them with --add (docs/data.md)",
    ]
    ratings, choices = read_labels(tmp_path / "dest")
    assert ratings == []
    assert labels(choices) == [
        ("a dog, running", "faithfulness", "a"),
        ("a dog, running", "motion", "tie"),
        ("a dog, running", "semantic", "b"),
        ("a cat", "faithfulness", "b"),
        ("a cat", "motion", "b"),
        ("a cat", "semantic", "a"),
        ("a cow", "faithfulness", "a"),
        ("a cow", "semantic", "a"),
    ]
    assert {row.annotator for row in choices} == {"videoalign"}
    assert choices[1].reason == "Compared on motion smoothness."
    assert [(row.clip_a, row.clip_b) for row in choices[:1]] == [(md5_name(made / "a.mp4"), md5_name(made / "b.mp4"))]
    kept = {f"clips/{path.name}": path.read_bytes() for path in (tmp_path / "dest/clips").iterdir()}
    assert kept == {md5_name(path): path.read_bytes() for path in made.iterdir()}
    assert before == {path: path.read_bytes() for path in training.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [("A A A", "a"), ("A B B", "b"), ("A B same", "tie"), ("same same B", "b"), ("same same same", "tie")],
)
def test_videoalign_with_an_overall_choice_by_majority(training, call, tmp_path, given, expected):
    write_csv(training / "train.csv", TRAINING, [training_row("a", "b", *given.split())])
    call("videoalign", training / "train.csv", "dest", "--overall", "majority")
    _, choices = read_labels(tmp_path / "dest")
    assert [(row.verdict, row.annotator) for row in choices if row.dimension == "overall"] == [
        (expected, "videoalign-majority")
    ]


def test_a_pair_not_judged_on_all_three_has_no_majority(training, call, tmp_path):
    call("videoalign", training, "dest", "--overall", "majority")
    _, choices = read_labels(tmp_path / "dest")
    assert [row.prompt for row in choices if row.dimension == "overall"] == ["a dog, running", "a cat"]


def test_videogen_rewardbench(made, call, tmp_path):
    columns = ["path_A", "path_B", "A_model", "B_model", "prompt", "VQ", "MQ", "TA", "Overall"]
    write_csv(tmp_path / "bench/set.csv", columns, [["a.mp4", "b.mp4", "x", "y", "a dog", "A", "B", "same", "B"]])
    status, out, _ = call("videogen-rewardbench", "bench", "dest", "--clips", made)
    assert status == 0 and out.startswith("dest: 4 choices, 2 clips\n")
    _, choices = read_labels(tmp_path / "dest")
    expected = {"faithfulness": "a", "motion": "b", "semantic": "tie", "overall": "b"}
    assert {row.dimension: row.verdict for row in choices} == expected


def test_genai_bench(made, call, tmp_path):
    votes = {"leftvote": "a", "rightvote": "b", "tievote": "tie", "bothbad_vote": "tie"}
    rows = [
        {"left_video": "a.mp4", "right_video": "b.mp4", "left_model": "x", "prompt": f"dog {vote}", "vote_type": vote}
        for vote in votes
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = call("genai-bench", "bench.jsonl", "dest", "--clips", made)
    assert status == 0, err
    _, choices = read_labels(tmp_path / "dest")
    assert labels(choices) == [(f"dog {vote}", "overall", verdict) for vote, verdict in votes.items()]


@pytest.fixture
def captioned(made, tmp_path) -> Path:
    source = tmp_path / "clips"
    for number, name in enumerate(SIZES):
        folder = source / ("part1" if number % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / f"{name}.mp4", folder)
        (folder / f"{name}.txt").write_text(f" a {name},\n moving é \n", encoding="utf-8")
    return source


def test_a_folder_of_clips_and_texts(captioned, call, made, tmp_path):
    (captioned / ".hidden.mp4").write_bytes(b"")
    status, out, err = call("clip-folder", captioned, "dest")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "dest: 4 captions, 4 clips"
    assert out.splitlines()[1].startswith(
        "note: real clips of 4 shapes (9 frames of 48x64 and 17 frames of 48x64); a generator takes one"
    )
    rows = read_rows(tmp_path / "dest/captions.jsonl", RealClip)
    expected = {md5_name(made / f"{name}.mp4"): f"a {name}, moving é" for name in SIZES}
    assert {row.clip: row.prompt for row in rows} == expected


def test_real_clips_of_one_shape(captioned, call, tmp_path):
    arguments = ["--frames", 5, "--fps", 8, "--size", "32x48"]
    status, out, err = call("clip-folder", captioned, "dest", *arguments)
    assert (status, err, out) == (0, "", "dest: 4 captions, 4 clips\n")
    rows = {row.prompt: row.clip for row in read_rows(tmp_path / "dest/captions.jsonl", RealClip)}
    for name, (_, _, _, fps) in SIZES.items():
        path = tmp_path / "dest" / rows[f"a {name}, moving é"]
        info = check_clip(path)
        assert (info.frames, info.height, info.width) == (5, 32, 48)
        assert info.seconds == pytest.approx(4 / 8)
        middle = decode_clip(path)[:, 20:24, 28:30].mean((1, 2, 3))
        assert middle == pytest.approx([grey(round(k * fps / 8)) for k in range(5)], abs=2.5), "neighbours differ by 3"


def test_too_short_clips_of_one_shape_are_broken(captioned, call, tmp_path):
    arguments = ["--frames", 9, "--fps", 8, "--size", "32x48", "--max-broken", "1"]
    status, out, err = call("clip-folder", captioned, "dest", *arguments)
    assert status == 0 and out == "dest: 3 captions, 3 clips\n"
    assert "skipped clips/part1/b.mp4: lasts 0.83 s, 1.00 s are needed" in err.replace(f"{tmp_path}/", "")


def test_own_tables(made, call, tmp_path):
    rating = HumanRating(clip="a.mp4", prompt="a dog", annotator="ann", dimension="motion", verdict="good", reason="r")
    choice = HumanChoice(clip_a="b.mp4", clip_b="c.mp4", prompt="a cat", annotator="ann", verdict="tie", reason="r")
    source = tmp_path / "source"
    source.mkdir()
    write_rows(source / "ratings.jsonl", [rating])
    write_rows(source / "choices.jsonl", [choice])
    status, out, _ = call("own", source, "dest", "--clips", made)
    assert (status, out) == (0, "dest: 1 ratings, 1 choices, 3 clips\n")
    clips = {name: md5_name(made / f"{name}.mp4") for name in "abc"}
    ratings, choices = read_labels(tmp_path / "dest")
    assert ratings == [rating.model_copy(update={"clip": clips["a"]})]
    assert choices == [choice.model_copy(update={"clip_a": clips["b"], "clip_b": clips["c"]})]


def test_imported_folders_make_a_data_folder_that_start_accepts(training, captioned, made, call, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    rating = HumanRating(clip="a.mp4", prompt="a dog", annotator="ann", dimension="motion", verdict="good", reason="r")
    write_rows(own / "ratings.jsonl", [rating])
    write_csv(
        tmp_path / "bench.csv",
        ["path_A", "path_B", "prompt", "VQ", "MQ", "TA", "Overall"],
        [["a.mp4", "b.mp4", "a bird", "A", "A", "A", "A"]],
    )
    assert call("videoalign", training, "data/seed", "--overall", "majority")[0] == 0
    status, out, _ = call("own", own, "data/seed", "--clips", made, "--add")
    assert (status, out) == (0, "data/seed: 1 ratings, 1 clips\n")
    assert call("videogen-rewardbench", "bench.csv", "data/test", "--clips", made)[0] == 0
    assert call("clip-folder", captioned, "data/real")[0] == 0
    write_rows(tmp_path / "data/benchmark.jsonl", [Prompt(id="b", text="a fish")])
    check_data(*(tmp_path / "data" / name for name in ("seed", "test", "real", "benchmark.jsonl")))
    ratings, choices = read_labels(tmp_path / "data/seed")
    assert (len(ratings), len(choices), len(list((tmp_path / "data/seed/clips").iterdir()))) == (1, 10, 4)


# ---- joining and linking


def test_adding_twice_changes_nothing(training, call, tmp_path):
    call("videoalign", training, "dest")
    before = {path: path.read_bytes() for path in (tmp_path / "dest").rglob("*.*")}
    status, out, _ = call("videoalign", training, "dest", "--add")
    assert status == 0 and out.startswith("dest: 0 choices, 4 clips\n")
    assert before == {path: path.read_bytes() for path in (tmp_path / "dest").rglob("*.*")}
    assert sorted(path.name for path in (tmp_path / "dest").iterdir()) == ["choices.jsonl", "clips"]


def test_adding_to_a_csv_keeps_its_rows_first(training, call, made, tmp_path):
    shutil.copytree(made, tmp_path / "dest/clips")
    write_csv(
        tmp_path / "dest/choices.csv",
        ["clip_a", "clip_b", "prompt", "annotator", "verdict", "reason"],
        [["clips/a.mp4", "clips/b.mp4", "mine", "ann", "a", "better"]],
    )
    status, out, _ = call("videoalign", training, "dest", "--add")
    assert status == 0 and out.startswith("dest: 8 choices, 4 clips\n")
    _, choices = read_labels(tmp_path / "dest")
    assert len(choices) == 9 and (choices[0].prompt, choices[0].clip_a) == ("mine", "clips/a.mp4")


def test_a_failed_addition_leaves_the_folder_as_it_was(training, call, tmp_path):
    call("videoalign", training, "dest")
    before = {path: path.read_bytes() for path in (tmp_path / "dest").rglob("*.*")}
    cut_short(training / "videos/d.mp4")
    assert call("videoalign", training, "dest", "--add")[0] == 2
    assert before == {path: path.read_bytes() for path in (tmp_path / "dest").rglob("*.*")}
    assert not list(tmp_path.glob(".*"))


def test_links_share_the_file_and_copies_do_not(training, call, tmp_path):
    call("videoalign", training, "linked", "--link")
    call("videoalign", training, "copied")
    name = md5_name(training / "videos/c.mp4")
    assert os.path.samefile(tmp_path / "linked" / name, training / "videos/c.mp4")
    assert not os.path.samefile(tmp_path / "copied" / name, training / "videos/c.mp4")


# ---- broken sources


def damage_row(source: Path, line: int, column: str, value: str) -> None:
    rows = list(csv.reader((source / "train.csv").read_text().splitlines()))
    rows[line - 1][TRAINING.index(column)] = value
    write_csv(source / "train.csv", rows[0], rows[1:])


DAMAGES = {
    "a truncated clip": (
        lambda source: cut_short(source / "videos/d.mp4"),
        3,
        r"source/videos/d\.mp4: (truncated|not a readable clip).*",
    ),
    "a clip that is not there": (
        lambda source: (source / "videos/b.mp4").unlink(),
        2,
        r"source/videos/b\.mp4: no such clip",
    ),
    "no frames": (
        lambda source: (source / "videos/c.mp4").write_bytes(b""),
        3,
        r"source/c\.mp4: no such clip|source/videos/c\.mp4: not a readable clip.*",
    ),
    "an empty prompt": (lambda source: damage_row(source, 4, "prompt", "  "), 4, r"prompt is empty"),
    "an unknown label": (lambda source: damage_row(source, 2, "MQ", "C"), 2, r"MQ 'C' is none of a, b, same, tie"),
    "no label": (
        lambda source: [damage_row(source, 3, name, "") for name in ("VQ", "MQ", "TA")],
        3,
        r"no label in VQ, MQ, TA",
    ),
    "a path that leads out": (
        lambda source: damage_row(source, 2, "path_A", "../../etc/passwd"),
        2,
        r"path_A '\.\./\.\./etc/passwd' leads out of source; write it relative to the folder of the clips",
    ),
    "an absolute path": (
        lambda source: damage_row(source, 2, "path_B", "/etc/passwd"),
        2,
        r"path_B .* leads out of .*",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_item_stops_the_run_or_is_skipped_within_the_budget(training, call, tmp_path, name):
    damage, line, expected = DAMAGES[name]
    damage(training)
    where = rf"source/train\.csv, line {line}: "
    status, out, err = call("videoalign", "source", "dest")
    assert (status, out) == (2, "") and nothing_left(tmp_path)
    ending = "; mend it, or allow more with --max-broken"
    assert re.fullmatch(rf"error: source: an item is broken, first {where}({expected}){ending}", err), err
    # c.mp4 is part of two pairs.
    broken = 2 if name == "no frames" else 1
    status, out, err = call("videoalign", "source", "dest", "--max-broken", broken)
    assert status == 0, err
    told = err.splitlines()
    assert re.fullmatch(rf"skipped {where}({expected})", told[0]) and len(told) == broken + 1
    assert told[-1].startswith(f"skipped {broken} items in all, ")
    skipped = [json.loads(line) for line in (tmp_path / "dest/skipped.jsonl").read_text().splitlines()]
    assert [f"skipped {item['where']}: {item['why']}" for item in skipped] == told[:-1]
    _, choices = read_labels(tmp_path / "dest")
    prompts = {2: "a dog, running", 3: "a cat", 4: "a cow"}
    left = {prompts[number] for number in (2, 3, 4) if number != line and not (broken == 2 and number == 4)}
    assert {row.prompt for row in choices} == left


@pytest.mark.parametrize(
    ("budget", "stops"), [("1", True), ("2", False), ("34%", True), ("67%", False), ("0.67", False)]
)
def test_the_budget_is_a_number_or_a_share(training, call, tmp_path, budget, stops):
    damage_row(training, 2, "prompt", "")
    damage_row(training, 3, "prompt", "")
    status, _, err = call("videoalign", "source", "dest", "--max-broken", budget)
    assert status == (2 if stops else 0)
    if stops:
        begins = "error: source: more than 1 of 3 items are broken, first source/train.csv, line 2: prompt is empty; "
        assert err.startswith(begins) and nothing_left(tmp_path)


def test_a_share_of_many_is_exact():
    assert Budget.parse("29%").of(100) == 29 and Budget.parse("0.07").of(100) == 7
    assert Budget.parse("0.999").of(1000) == 999 and Budget.parse("7").of(3) == 7
    assert Budget.parse("1").of(50) == 1 and Budget.parse("1.0").of(50) == 50
    for text in ("-1", "101%", "1.5", "few", "nan", "%", ""):
        with pytest.raises(UserError, match="write a number of items"):
            Budget.parse(text)


@pytest.mark.parametrize(
    ("make", "arguments", "expected"),
    [
        (lambda d: (d / "t.csv").write_text("path_A,path_B,prompt\na,b,c\n"), ["videoalign", "t.csv"],
         r"t\.csv, line 2: without VQ, MQ, TA; the columns path_A, path_B, prompt, VQ, MQ, TA are needed"),
        (lambda d: (d / "t.csv").write_text(""), ["genai-bench", "t.csv"], r"t\.csv: the table is empty"),
        (lambda d: (d / "t.jsonl").write_text("[1]\n"), ["genai-bench", "t.jsonl"], r"t\.jsonl, line 1: without all; "),
        (lambda d: (d / "t.csv").write_bytes(b"\xff\xfe\x00"), ["videoalign", "t.csv"],
         r"t\.csv: not a readable csv table"),
        (lambda d: None, ["videoalign", "absent"], r"absent: no such file or folder"),
        (lambda d: (d / "s").mkdir(), ["videoalign", "s"], r"s: one \.csv or \.jsonl table is needed here"),
        (lambda d: (d / "s").mkdir(), ["own", "s"], r"s: no table here; one of ratings\.jsonl, "),
        (lambda d: (d / "s").mkdir(), ["clip-folder", "s"], r"s: neither clips nor texts here; "),
        (lambda d: (d / "dest").mkdir(), ["videoalign", "absent"], r"dest: already there"),
        (lambda d: (d / "s").mkdir(), ["clip-folder", "s", "--size", "8x8"], r"--frames, --fps: needed too"),
        (lambda d: (d / "s").mkdir(), ["clip-folder", "s", "--size", "9x8", "--fps", "8", "--frames", "1"],
         r"--size 9x8: height and width must be even"),
        (lambda d: (d / "s").mkdir(), ["clip-folder", "s", "--size", "big", "--fps", "8", "--frames", "1"],
         r"--size big: write HEIGHTxWIDTH"),
        (lambda d: (d / "t.csv").write_text("a,b\n1,2,3\n"), ["videoalign", "t.csv"], r"t\.csv, line 2: more fields"),
    ],
)  # fmt: skip
def test_an_unusable_source_is_one_sentence(tmp_path, call, make, arguments, expected):
    make(tmp_path)
    status, out, err = call(arguments[0], arguments[1], "dest", *arguments[2:])
    assert (status, out) == (2, "") and err.count("\n") == 0
    assert re.match(f"error: (?:{expected})", err), err
    assert not list(tmp_path.glob(".*"))


def test_an_existing_folder_is_refused_without_add(training, call, tmp_path):
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest/mine").write_text("kept")
    status, _, err = call("videoalign", training, "dest")
    assert status == 2 and err.startswith("error: dest: already there; choose another folder, or --add")
    assert [path.name for path in (tmp_path / "dest").iterdir()] == ["mine"]


def test_nothing_usable_is_an_error_whatever_the_budget(training, call, tmp_path):
    shutil.rmtree(training / "videos")
    status, _, err = call("videoalign", "source", "dest", "--max-broken", "100%")
    assert status == 2 and nothing_left(tmp_path)
    assert err.startswith(
        "error: source: nothing usable in it, first source/train.csv, line 2: source/videos/b.mp4: no"
    )


def test_captions_and_clips_that_do_not_belong_together(captioned, call, tmp_path):
    (captioned / "a.txt").write_text(" \n")
    (captioned / "c.txt").unlink()
    (captioned / "lone.txt").write_text("no clip")
    (captioned / "part1/b.txt").write_bytes(b"\xff\xfe caption")
    status, out, err = call("clip-folder", "clips", "dest", "--max-broken", "4")
    assert (status, out) == (0, "dest: 1 captions, 1 clips\n")
    assert err.splitlines()[:4] == [
        "skipped clips/a.txt: the caption is empty",
        "skipped clips/c.mp4: no .txt beside it",
        "skipped clips/lone.txt: no clip beside it",
        "skipped clips/part1/b.txt: the caption is not UTF-8",
    ]


def test_bad_rows_of_own_tables_are_named(made, call, tmp_path):
    (tmp_path / "source").mkdir()
    lines = [
        '{"clip": "a.mp4", "prompt": "fine"}',
        '{"clip": "a.mp4", "prompt": ""}',
        '{"clip": "a.mp4"}',
        '{"clip": "a.mp4", "prompt": NaN}',
        '{"clip": "a.mp4", "prompt": " "}',
        '{"clip": "x.mp4", "prompt": "absent"}',
    ]
    (tmp_path / "source/captions.jsonl").write_text("\n".join(lines) + "\n")
    status, out, err = call("own", "source", "dest", "--clips", made, "--max-broken", "5")
    assert (status, out) == (0, "dest: 1 captions, 1 clips\n"), err
    told = [line.removeprefix("skipped source/captions.jsonl, ") for line in err.splitlines()[:-1]]
    assert [line.partition(":")[0] for line in told] == [f"line {number}" for number in range(2, 7)]
    assert "prompt" in told[0] and told[1] == "line 3: prompt: Field required" and told[3] == "line 5: prompt is empty"
    assert told[4].endswith("x.mp4: no such clip")


def test_only_twenty_broken_items_are_printed_and_all_are_kept(made, call, tmp_path):
    rows = [training_row("a", "b", "A", "A", "A", prompt="")] * 25
    write_csv(tmp_path / "source/train.csv", TRAINING, [*rows, training_row("a", "../b", "A", "A", "A")])
    for name in "ab":
        shutil.copy(made / f"{name}.mp4", tmp_path / "source")
    status, _, err = call("videoalign", "source", "dest", "--max-broken", "25")
    assert status == 0 and len(err.splitlines()) == 22 and err.splitlines()[20] == "and 5 more"
    assert len((tmp_path / "dest/skipped.jsonl").read_text().splitlines()) == 25


def test_numbered_frames_survive_encoding(made):
    for name, (total, *_) in SIZES.items():
        assert numbers(decode_clip(made / f"{name}.mp4")) == list(range(total))
