"""The suite `vbench` end to end, VBench itself being a stand-in that writes its result format."""

import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from vbench_environment import StandIn, write_clips

from dualipo.artifacts import digest, read_json, write_json
from dualipo.cli import cli
from dualipo.config import Config, load_config, parse_config
from dualipo.engine import execute, execute_shard
from dualipo.errors import UserError
from dualipo.evaluation.benchmark import score_metrics
from dualipo.evaluation.paired import by_prompt_rows, by_prompt_table, paired_total
from dualipo.evaluation.suites import open_suite
from dualipo.evaluation.vbench.aggregate import DIMENSIONS, aggregate
from dualipo.evaluation.vbench.prompts import official, official_texts
from dualipo.evaluation.vbench.resampling import intervals
from dualipo.evaluation.vbench.results import pooled, read_results
from dualipo.evaluation.vbench.suite import VBench, write_archive
from dualipo.generator.base import Generator, load_generator
from dualipo.heldout import hold_out, require_apart
from dualipo.media.store import ClipStore, read_bytes
from dualipo.steps import GIVEN, GRAPH
from dualipo.steps.prompts import held_out_texts
from dualipo.steps.sharding import Shard
from dualipo.steps.start import measured_texts

torch.set_num_threads(1)
SECTION = {"suite": "vbench", "vbench_prompts": 1, "steps": 1, "bootstrap": 50}
CLIPS = 11 * 5 + 20
FEW = ["temporal_flickering", "imaging_quality", "color", "scene"]
"""Where all 16 tell no more: each is a process."""
KINDS = list(dict.fromkeys(entry.dimensions for entry in official()))


def configured(python: str | None = None, **changes: object) -> Config:
    return parse_config({"evaluate": {**SECTION, "vbench_python": python, **changes}})


@pytest.fixture
def vbench(tmp_path) -> StandIn:
    return StandIn(tmp_path / "environment")


@pytest.fixture(scope="module")
def benchmark(repository) -> Path:
    return repository / "data/benchmark.jsonl"


def sampled(folder: Path, benchmark: Path, seed: int = 0, **changes: object) -> Path:
    return write_clips(folder, open_suite(configured(**changes), benchmark).selection, seed)


@pytest.fixture(scope="module")
def made(tmp_path_factory, benchmark) -> Path:
    """A clip folder of one prompt of each kind; read only."""
    return sampled(tmp_path_factory.mktemp("made") / "clips", benchmark)


@pytest.fixture(scope="module")
def made_few(tmp_path_factory, benchmark) -> Path:
    """A clip folder of the dimensions `FEW`; read only."""
    return sampled(tmp_path_factory.mktemp("few") / "clips", benchmark, vbench_dimensions=FEW)


class Scoring:
    """The suite over a clip folder of its own, in one scratch folder."""

    def __init__(self, folder: Path, made: Path, benchmark: Path, **changes: object):
        self.clips, self.work, self.benchmark = folder / "clips", folder / "work", benchmark
        self.changes = changes
        shutil.copytree(made, self.clips)

    def run(self, python: str | None) -> dict:
        return open_suite(configured(python, **self.changes), self.benchmark).score(self.clips, self.work)

    def score_part(self, python: str | None, number: int, count: int = 2) -> None:
        """What a shard does with the clips that it sampled."""
        rows = ClipStore(self.clips).clips
        tars = sorted({clip.file.partition("/")[0] for clip in rows})[number::count]
        own = ClipStore(self.clips, [clip for clip in rows if clip.file.partition("/")[0] in tars])
        open_suite(configured(python, **self.changes), self.benchmark).score_part(own, self.part(number))

    def part(self, number: int) -> Path:
        return self.work.with_name(f"part-{number}")

    def put_together(self, count: int = 2) -> dict:
        for number in range(count):
            if self.part(number).exists():  # a shard without clips leaves nothing
                shutil.copytree(self.part(number), self.work, dirs_exist_ok=True)
        return self.run("/nowhere/python")

    def give(self, source: Path) -> None:
        self.work.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, self.work / GIVEN)

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in (self.clips / "scores.jsonl").read_text().splitlines()]


@pytest.fixture
def scoring(tmp_path, made, benchmark) -> Scoring:
    return Scoring(tmp_path / "scoring", made, benchmark)


@pytest.fixture
def few(tmp_path, made_few, benchmark) -> Scoring:
    return Scoring(tmp_path / "few", made_few, benchmark, vbench_dimensions=FEW)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, made, benchmark) -> tuple[Scoring, dict]:
    """An unbroken scoring; read only."""
    folder = tmp_path_factory.mktemp("whole")
    environment = StandIn(folder / "environment")
    scoring = Scoring(folder / "scoring", made, benchmark)
    return scoring, scoring.run(environment.python)


# ---- what is scored, and how


def test_clips_lie_as_vbench_looks_for_them(whole):
    scoring, _ = whole
    folder, store = scoring.work / "vbench", ClipStore(scoring.clips)
    selection = open_suite(configured(), scoring.benchmark).selection
    flickering = {e.prompt for e in selection.of("temporal_flickering")}
    plain = {f"{e.prompt}-{k}.mp4" for e in selection.entries if e.prompt not in flickering for k in range(5)}
    assert {path.name for path in (folder / "clips").iterdir()} == plain
    assert {path.name for path in (folder / "flickering").iterdir()} == {
        f"{prompt}-{k}.mp4" for prompt in flickering for k in range(25)
    }
    clip = store.by_prompt()[selection.of("color")[0].prompt_id][3]
    name = f"{selection.of('color')[0].prompt}-3.mp4"
    assert (folder / "clips" / name).read_bytes() == read_bytes(scoring.clips, clip.file)


def test_scores_follow_from_vbenchs_own_files(whole):
    scoring, found = whole
    raw = {name: read_json(scoring.clips / f"vbench/{name}_eval_results.json")[name] for name in DIMENSIONS}
    for name, (mean, rows) in raw.items():
        assert found["dimensions"][name]["mean"] == pytest.approx(100 * mean)
        low, high = found["dimensions"][name]["low"], found["dimensions"][name]["high"]
        assert low - 1e-9 <= 100 * mean <= high + 1e-9
        assert all("/" not in row["video_path"] for row in rows)
        assert len(rows) == 5 or name in ("color", "temporal_flickering")
    totals = aggregate({name: 100 * mean for name, (mean, _) in raw.items()})
    assert {name: found[name]["mean"] for name in totals} == pytest.approx(totals)
    assert max(row["video_results"] for row in raw["imaging_quality"][1]) > 1
    assert {row["video_results"] for row in raw["dynamic_degree"][1]} == {True, False}
    left_out = found["vbench"]["left_out"]
    assert left_out.pop("color") == 1 and set(left_out.values()) == {0}


def test_every_clip_has_its_row(whole):
    scoring, found = whole
    rows = {row["clip"]: row for row in scoring.rows}
    assert len(rows) == found["clips"] == CLIPS and found["prompts"] == 11
    imaging = [row["imaging_quality"] for row in rows.values() if "imaging_quality" in row]
    assert len(imaging) == 5 and sum(imaging) / 5 == pytest.approx(found["dimensions"]["imaging_quality"]["mean"])
    colours = [row["color"] for row in rows.values() if "color" in row]
    assert len(colours) == 5 and colours.count(None) == 1
    flickering = [row["temporal_flickering"] for row in rows.values() if "temporal_flickering" in row]
    assert len(flickering) == 25
    scored = [value for value in flickering if value is not None]
    assert len(scored) == found["vbench"]["scored"]["temporal_flickering"] == 5


def test_metrics_name_the_subset(whole):
    metrics = score_metrics(whole[1])
    assert set(metrics) == {f"vbench_subset_11/{name}" for name in (*DIMENSIONS, "quality", "semantic", "total")}


def test_vbenchs_interpreter_sees_nothing_of_ours(few, vbench, monkeypatch, tmp_path):
    (tmp_path / "shadow/vbench").mkdir(parents=True)
    (tmp_path / "shadow/vbench/__init__.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))
    assert few.run(vbench.python)["dimensions"]["color"]


def test_other_clips_are_scored_anew(few, vbench, benchmark):
    before, rows = few.run(vbench.python), few.rows
    assert vbench.calls() == ["static_filter", *FEW]
    assert few.run(vbench.python) == before and few.rows == rows and vbench.calls() == []
    shutil.rmtree(few.clips)
    sampled(few.clips, benchmark, seed=1, vbench_dimensions=FEW)
    (few.work / "vbench/laid.json").unlink()
    after = few.run(vbench.python)
    assert vbench.calls() == ["static_filter", *FEW]
    assert after["vbench"]["clips_md5"] != before["vbench"]["clips_md5"]
    # the two are compared by prompt only where both have a total.
    assert paired_total(before, after, 0, 10) is None


# ---- what goes wrong


def test_a_failing_dimension_is_named_and_the_others_are_kept(few, vbench):
    vbench.control(fail=["color", "scene"])
    with pytest.raises(UserError, match=r"failed on 2 of 4 dimensions: color .*detectron2.*; scene ") as caught:
        few.run(vbench.python)
    assert "evaluate.vbench_dimensions" in str(caught.value)
    assert not (few.clips / "scores.jsonl").exists() and not (few.clips / "vbench").exists()
    assert "detectron2" in (few.work / "vbench/logs/color.log").read_text()
    assert vbench.calls() == ["static_filter", *FEW]
    vbench.control()
    assert few.run(vbench.python)["vbench"]["scored"] == dict(zip(FEW, [5, 5, 4, 5], strict=True))
    assert vbench.calls() == ["color", "scene"]


def test_dimensions_left_out_make_the_totals_null(few, vbench):
    found = few.run(vbench.python)
    assert [found[name] for name in ("quality", "semantic", "total")] == [None] * 3
    assert {name for name, value in found["dimensions"].items() if value} == set(FEW)
    assert set(found["dimensions"]) == set(DIMENSIONS)
    assert set(score_metrics(found)) == {f"vbench_subset_4/{name}" for name in FEW}


@pytest.mark.parametrize(
    ("control", "told"),
    [
        ({"drop": {"scene": 3}}, "scene is partial, 3 of 5 clips have no score"),
        ({"drop": {"temporal_flickering": 1}}, "temporal_flickering is partial, 1 of 5"),
        ({"empty": ["imaging_quality"]}, "NaN in it: VBench found no clip"),
        ({"empty": ["color"]}, r"1 of 4 dimensions: color \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_a_partial_result_is_no_result(few, vbench, control, told):
    vbench.control(**control)
    with pytest.raises(UserError, match=told):
        few.run(vbench.python)
    assert not (few.clips / "scores.jsonl").exists() and not (few.clips / "vbench").exists()


def test_where_everything_moves_flickering_is_missing_and_no_total_is_made(scoring, whole, vbench, tmp_path):
    results = raw_folder(whole, tmp_path / "elsewhere")
    (results / "temporal_flickering_eval_results.json").unlink()
    scoring.give(results)
    vbench.control(all_move=True)
    found = scoring.run(vbench.python)
    assert vbench.calls() == ["static_filter"]
    assert found["dimensions"]["temporal_flickering"] is None
    assert found["quality"] is None and found["total"] is None and found["semantic"]["mean"] > 0


def test_without_the_filter_the_first_five_are_scored_and_the_name_says_so(tmp_path, benchmark, vbench):
    changes = {"vbench_static_filter": False, "vbench_dimensions": ["temporal_flickering"]}
    scoring = Scoring(tmp_path / "own", sampled(tmp_path / "clips", benchmark, **changes), benchmark, **changes)
    found = scoring.run(vbench.python)
    assert found["suite"] == "vbench_unfiltered_subset_1" and found["clips"] == 5
    assert vbench.calls() == ["temporal_flickering"]
    assert found["vbench"]["scored"] == {"temporal_flickering": 5}


@pytest.mark.parametrize(
    ("version", "told"), [("0.1.4", "vbench is 0.1.4 in .*vbench==0.1.5"), (None, "vbench is not installed in")]
)
def test_a_wrong_version_is_refused_before_anything_is_sampled(tmp_path, benchmark, version, told):
    environment = StandIn(tmp_path / "other", version)
    with pytest.raises(UserError, match=told):
        open_suite(configured(environment.python), benchmark).prepare(tmp_path)
    environment.install("0.1.5")
    open_suite(configured(environment.python), benchmark).prepare(tmp_path)
    assert environment.calls() == []


def test_an_interpreter_that_is_not_there(tmp_path, benchmark):
    with pytest.raises(UserError, match=r"evaluate\.vbench_python: .*nowhere can't be run"):
        open_suite(configured(str(tmp_path / "nowhere")), benchmark).prepare(tmp_path)


def test_the_runner_exits_with_1_where_vbench_raises(vbench, tmp_path):
    from dualipo.evaluation.vbench import runner

    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a clip-0.mp4").write_bytes(b"")
    write_json(tmp_path / "info.json", [{"prompt_en": "a clip", "dimension": ["color"]}])
    options = ["--dimension", "color", "--clips", tmp_path / "clips", "--info", tmp_path / "info.json"]
    command = [vbench.python, runner.__file__, "--version", "0.1.5", *options, "--out", tmp_path / "out"]
    vbench.control(fail=["color"])
    assert subprocess.run(command, capture_output=True).returncode == 1


# ---- shared by shards


TWO = {"vbench_prompts": 2, "vbench_dimensions": FEW}
"""Two prompts of each of four kinds; a tar holds one prompt, and each of two shards one of each kind."""


@pytest.fixture(scope="module")
def made_apart(tmp_path_factory, benchmark) -> Path:
    """A clip folder of `TWO`; read only."""
    selection = open_suite(configured(**TWO), benchmark).selection
    return write_clips(tmp_path_factory.mktemp("apart") / "clips", selection, per_tar=1)


@pytest.fixture
def apart(tmp_path, made_apart, benchmark) -> Scoring:
    return Scoring(tmp_path / "apart", made_apart, benchmark, **TWO)


@pytest.fixture
def alone(tmp_path, made_apart, benchmark) -> Scoring:
    """The same clips, for one process."""
    return Scoring(tmp_path / "alone", made_apart, benchmark, **TWO)


def prompts_of(scoring: Scoring, dimension: str) -> list[str]:
    selection = open_suite(configured(**scoring.changes), scoring.benchmark).selection
    return [entry.prompt for entry in selection.of(dimension)]


def same(one: Scoring, other: Scoring) -> bool:
    return digest(one.clips) == digest(other.clips)


@pytest.mark.parametrize("count", [3, 9])
def test_any_number_of_shards_gives_one_processs_scores(apart, alone, vbench, count):
    for number in range(count):
        apart.score_part(vbench.python, number, count)
    assert vbench.calls().count("scene") == min(count, 2)
    assert apart.put_together(count) == alone.run(vbench.python) and same(apart, alone)


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_clips_that_vbench_leaves_out_may_be_all_of_one_shards(apart, alone, vbench, which):
    vbench.control(
        colourless=[prompts_of(apart, "color")[k] for k in which],
        moving=[prompts_of(apart, "temporal_flickering")[k] for k in which],
    )
    for number in range(2):
        apart.score_part(vbench.python, number)
    if len(which) == 2:
        with pytest.raises(UserError, match="color has no scored clip"):
            apart.put_together()
        with pytest.raises(UserError, match=r"color \(ZeroDivisionError"):
            alone.run(vbench.python)
        return
    found = apart.put_together()
    assert found == alone.run(vbench.python) and same(apart, alone)
    assert found["vbench"]["scored"]["color"] == 4 and found["vbench"]["left_out"]["color"] == 6


def test_a_killed_shard_goes_on_by_dimension(apart, alone, vbench, repository):
    tars = " ".join(f"clips-{number:05d}.tar" for number in range(1, 8, 2))
    killed(vbench, repository, apart, apart.part(1), signal.SIGKILL, tars)
    assert vbench.calls() == ["static_filter", *FEW[:3]]
    assert not (apart.part(1) / "vbench/scored").exists()
    for number in range(2):
        apart.score_part(vbench.python, number)
    assert vbench.calls() == ["static_filter", *FEW, "color", "scene"]
    apart.score_part(vbench.python, 1)
    assert vbench.calls() == [], "what is finished is not begun again"
    assert apart.put_together() == alone.run(vbench.python) and same(apart, alone)


def test_a_shard_names_the_dimension_that_failed_and_keeps_the_others(apart, alone, vbench):
    apart.score_part(vbench.python, 0)
    vbench.control(fail=["color"])
    with pytest.raises(UserError, match=r"failed on 1 of 4 dimensions: color \(.*detectron2.*\)"):
        apart.score_part(vbench.python, 1)
    assert "detectron2" in (apart.part(1) / "vbench/logs/color.log").read_text()
    assert not (apart.part(1) / "vbench/scored").exists()
    vbench.control()
    vbench.calls()
    apart.score_part(vbench.python, 1)
    assert vbench.calls() == ["color"]
    assert apart.put_together() == alone.run(vbench.python) and same(apart, alone)


def test_without_vbench_a_shard_only_samples(apart, alone, vbench):
    for number in range(2):
        apart.score_part(None, number)
        assert not apart.part(number).exists()
    assert apart.run(vbench.python) == alone.run(vbench.python) and same(apart, alone)


def _no_dimension(scored):
    del scored["results"]["scene"]


def _no_row(scored):
    scored["results"]["scene"].pop()


def _row_twice(scored):
    scored["results"]["scene"].append(scored["results"]["scene"][0])


def _unknown_row(scored):
    scored["results"]["scene"][0]["video_path"] = "another-0.mp4"


def _nan(scored):
    scored["results"]["scene"][0]["video_results"] = float("nan")


def _no_frames(scored):
    del scored["results"]["scene"][0]["frame_count"]


def _other_clips(scored):
    scored["clips_md5"] = "0" * 32


def _unknown_static(scored):
    scored["static"]["another-0.mp4"] = "another-3.mp4"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (None, r"clips-00006\.json: missing, while shards have scored other clips; make its shard again"),
        (_no_dimension, r"clips-00006\.json: the scores of scene are missing; make its shard again"),
        (_no_row, "scene is partial, 1 of 10 clips have no score"),
        (_row_twice, "scene scores a clip twice"),
        (_unknown_row, "scene scores 'another-0.mp4', which is not among the clips"),
        (_nan, "scene is no result of VBench"),
        (_no_frames, "a row of scene lacks what VBench takes the mean of"),
        (_other_clips, r"clips-00006\.json: scores of other clips than are in clips-00006\.tar"),
        (_unknown_static, "'another-3.mp4' is not among the clips"),
    ],
)
def test_what_is_missing_or_spoiled_where_parts_meet_is_told(apart, scored_apart, spoil, told):
    shutil.copytree(scored_apart, apart.work / "vbench/scored")
    prompts = {clip.prompt_id: clip.file.partition(".")[0] for clip in ClipStore(apart.clips).clips}
    (entry, _) = open_suite(configured(**TWO), apart.benchmark).selection.of("scene")
    assert prompts[entry.prompt_id] == "clips-00006"
    file = apart.work / "vbench/scored/clips-00006.json"
    if spoil:
        content = read_json(file)
        spoil(content)
        file.write_text(json.dumps(content))
    else:
        file.unlink()
    with pytest.raises(UserError, match=told):
        apart.run("/nowhere/python")
    assert not (apart.clips / "scores.jsonl").exists() and not (apart.clips / "vbench").exists()


@pytest.fixture(scope="module")
def scored_apart(tmp_path_factory, made_apart, benchmark) -> Path:
    """What shards say of the clips of `TWO`; read only."""
    folder = tmp_path_factory.mktemp("scored")
    environment = StandIn(folder / "environment")
    scoring = Scoring(folder / "scoring", made_apart, benchmark, **TWO)
    scoring.score_part(environment.python, 0, 1)
    return scoring.part(0) / "vbench/scored"


@pytest.mark.parametrize(
    ("dimension", "rows", "mean"),
    [
        ("scene", [{"success_frame_count": 1, "frame_count": 16}, {"success_frame_count": 4, "frame_count": 4}], 0.25),
        (
            "background_consistency",
            [{"video_sim": 3.0, "cnt_per_video": 6}, {"video_sim": 2, "cnt_per_video": 2}],
            5 / 8,
        ),
        ("appearance_style", [{"frame_results": [0.0, 0.5, 1.0]}, {"frame_results": [0.5]}], 0.5),
        ("spatial_relationship", [{"frame_results": [1, 0, 0]}, {"frame_results": [1]}], 0.5),
        ("imaging_quality", [{"video_results": 60.0}, {"video_results": 70.0}], 0.65),
        ("human_action", [{"video_results": True}, {"video_results": False}], 0.5),
        ("motion_smoothness", [{"video_results": 1e16}, {"video_results": 1.0}, {"video_results": -1e16}], 1 / 3),
    ],
)
def test_the_mean_is_over_what_vbench_pools(dimension, rows, mean):
    assert pooled(dimension, rows, "here") == mean == pooled(dimension, rows[::-1], "here")


# ---- scores from elsewhere


def raw_folder(whole: tuple[Scoring, dict], target: Path) -> Path:
    return Path(shutil.copytree(whole[0].clips / "vbench", target))


def test_results_from_elsewhere_are_taken(whole, scoring, tmp_path):
    scoring.give(raw_folder(whole, tmp_path / "elsewhere"))
    found = scoring.run(None)
    assert found["vbench"].pop("imported") == sorted(DIMENSIONS)
    own = whole[1]["vbench"].copy()
    own.pop("imported")
    # what the filter left out, nobody told.
    assert {**found, "vbench": None} == {**whole[1], "vbench": None}
    assert found["vbench"]["clips_md5"] == own["clips_md5"]


@pytest.mark.parametrize("form", ["file", "zip"])
def test_one_file_or_a_zip_will_do(whole, scoring, tmp_path, form):
    folder = raw_folder(whole, tmp_path / "elsewhere")
    if form == "zip":
        scoring.give(Path(shutil.make_archive(str(tmp_path / "results"), "zip", folder)))
    else:
        merged = {k: v for path in folder.iterdir() for k, v in read_json(path).items()}
        write_json(tmp_path / "results.json", merged)
        scoring.give(tmp_path / "results.json")
    assert scoring.run(None)["total"] == whole[1]["total"]


def test_what_was_not_imported_is_scored_here_or_told(whole, scoring, vbench, tmp_path):
    folder = raw_folder(whole, tmp_path / "elsewhere")
    for name in ("color", "scene"):
        (folder / f"{name}_eval_results.json").unlink()
    scoring.give(folder)
    with pytest.raises(UserError, match=r"2 of VBench's dimensions have no scores: color, scene; set .*--import"):
        scoring.run(None)
    found = scoring.run(vbench.python)
    assert found["total"] == whole[1]["total"] and len(found["vbench"]["imported"]) == 14
    assert vbench.calls() == ["color", "scene"]


def _drop(content):
    content["scene"][1].pop()


def _rename(content):
    content["scene"][1][0]["video_path"] = "x/another-0.mp4"


def _twice(content):
    content["scene"][1][0] = content["scene"][1][1]


def _scale(content):
    content["scene"][0] *= 100


def _shape(content):
    content["scene"] = 0.5


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_drop, "scene is partial, 1 of 5"),
        (_rename, "'another-0.mp4', which is not among the clips"),
        (_twice, "scores a clip twice"),
        (_scale, "its clips' mean is"),
        (_shape, "scene is no result of VBench"),
    ],
)
def test_spoiled_results_are_refused(whole, scoring, tmp_path, spoil, told):
    folder = raw_folder(whole, tmp_path / "elsewhere")
    content = read_json(folder / "scene_eval_results.json")
    spoil(content)
    write_json(folder / "scene_eval_results.json", content)
    scoring.give(folder)
    with pytest.raises(UserError, match=told):
        scoring.run(None)


def test_what_is_no_result_at_all(scoring, tmp_path):
    (tmp_path / "empty.json").write_text("{}")
    scoring.give(tmp_path / "empty.json")
    with pytest.raises(UserError, match="no results of VBench in here"):
        scoring.run(None)


SCORE = """
import json, sys
from pathlib import Path
from dualipo.config import parse_config
from dualipo.evaluation.suites import open_suite
from dualipo.media.store import ClipStore

section, benchmark, clips, work, tars = sys.argv[1:]
suite = open_suite(parse_config({"evaluate": json.loads(section)}), Path(benchmark))
if tars:
    own = [clip for clip in ClipStore(clips).clips if clip.file.partition("/")[0] in tars]
    suite.score_part(ClipStore(clips, own), Path(work))
else:
    suite.score(Path(clips), Path(work))
"""


def killed(vbench: StandIn, repository: Path, scoring: Scoring, work: Path, blow: int, tars: str = "") -> None:
    """Scores all clips, or those of `tars` as a shard does, in a process that gets `blow` amid color."""
    section = {**SECTION, **scoring.changes, "vbench_python": vbench.python}
    arguments = [sys.executable, "-c", SCORE, json.dumps(section), scoring.benchmark, scoring.clips, work, tars]
    vbench.control(sleep={"color": 600})
    with subprocess.Popen(arguments, env={**os.environ, "PYTHONPATH": str(repository)}) as process:
        while "color" not in _calls(vbench):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(blow)
    while _running(vbench.python):  # it sees that nobody waits for it
        time.sleep(0.1)
    vbench.control()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_scoring_goes_on_and_leaves_no_child(few, vbench, repository, blow):
    killed(vbench, repository, few, few.work, blow)
    assert vbench.calls() == ["static_filter", *FEW[:3]]
    assert not (few.clips / "scores.jsonl").exists()
    assert few.run(vbench.python)["vbench"]["scored"] == dict(zip(FEW, [5, 5, 4, 5], strict=True))
    assert vbench.calls() == ["color", "scene"]


def _calls(standin: StandIn) -> list[str]:
    file = standin.packages / "calls.txt"
    return file.read_text().split() if file.is_file() else []


def _running(python: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if python.encode() in path.read_bytes() and b"runner.py" in path.read_bytes():
                return True
        except OSError:
            continue
    return False


# ---- as a step


@pytest.fixture(scope="module")
def standin(tmp_path_factory) -> StandIn:
    return StandIn(tmp_path_factory.mktemp("standin") / "environment")


@pytest.fixture(scope="module")
def inputs(generator_folder, benchmark, course) -> dict[str, Path]:
    return {"candidate": generator_folder, "benchmark": benchmark, "course": course}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, standin, inputs):
    """The folder and the outcome of a recorded run of all 16 dimensions."""
    root = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualipo.generator.sampling.SHARD_PROMPTS", 4)
        return root, execute(GRAPH["evaluate"], configured(standin.python), root, "1", inputs)


def test_scores_are_bound_to_the_generator_and_the_clips(unbroken, inputs):
    from dualipo.tracking import Tracker

    root, outcome = unbroken
    found = read_json(outcome.outputs["scores"])
    tracker = Tracker(root, configured())
    (version,) = tracker.versions("small-world-generator")
    assert version.md5 == digest(inputs["candidate"]).md5
    (run,) = tracker.step_runs()
    assert run.outputs["benchmark_clips"].md5 == digest(outcome.outputs["benchmark_clips"]).md5
    logged = tracker.store.client.get_run(run.run_id).data
    metrics = {key: value for key, value in logged.metrics.items() if key.startswith("vbench_subset_11/")}
    for name in (*DIMENSIONS, "total", "quality", "semantic"):
        value = found["dimensions"][name] if name in DIMENSIONS else found[name]
        assert metrics[f"vbench_subset_11/{name}"] == pytest.approx(value["mean"])
        key = f"dimensions.{name}" if name in DIMENSIONS else name
        assert metrics[f"vbench_subset_11/{key}.low"] == pytest.approx(value["low"])
    # no number that could pass for another suite's.
    assert {key for key in logged.metrics if not key.startswith("vbench")} == {"seconds"}
    assert "by_prompt" not in json.loads(version.tags["scores"])
    assert "evaluate.vbench_python" not in logged.params


def test_a_finished_evaluation_is_not_made_again_for_another_interpreter(unbroken, inputs):
    root, _ = unbroken
    assert execute(GRAPH["evaluate"], configured("/another/python"), root, "1", inputs).skipped


@pytest.fixture(scope="module")
def parts(tmp_path_factory, unbroken, standin, inputs) -> list[Path]:
    """What two shards hand on: 4 + 3 and 4 of the 11 prompts."""
    folder, parts = tmp_path_factory.mktemp("parts"), []
    loaded: list[weakref.ref] = []

    def load(checkpoint: Path) -> Generator:
        generator = load_generator(checkpoint)
        loaded.append(weakref.ref(generator))
        return generator

    def score(suite: VBench, *arguments: object) -> None:
        gc.collect()
        assert loaded and loaded.pop()() is None, "the generator leaves its memory to VBench"
        score_part(suite, *arguments)

    score_part = VBench.score_part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualipo.generator.sampling.SHARD_PROMPTS", 4)
        patch.setattr("dualipo.generator.sampling.load_generator", load)
        patch.setattr(VBench, "score_part", score)
        for number in range(2):
            parts.append(folder / f"part-{number}")
            at = folder / f"root-{number}"
            standin.calls()
            execute_shard(GRAPH["evaluate"], configured(standin.python), Shard(number, 2), parts[-1], at, "1", inputs)
            (folder / f"calls-{number}").write_text("\n".join(standin.calls()))
    return parts


def test_shards_put_together_equal_one_process(unbroken, parts, inputs, tmp_path, monkeypatch):
    begun = [(part.parent / f"calls-{number}").read_text().split() for number, part in enumerate(parts)]
    # each prompt's clips are scored where they were sampled, all of them once, with no dimension begun for nothing.
    assert sorted(itertools.chain(*begun)) == sorted(["static_filter", *DIMENSIONS]) and all(begun)
    for part in parts:
        assert {path.name for path in (part / "vbench").iterdir()} == {"scored"}, "clips are handed on once"
    monkeypatch.setattr("dualipo.generator.sampling.SHARD_PROMPTS", 4)
    monkeypatch.setattr("dualipo.generator.sampling.load_generator", lambda folder: pytest.fail("sampled again"))
    config = configured("/nowhere/python")  # what puts parts together needs no VBench
    whole = unbroken[1]
    outcome = execute(GRAPH["evaluate"], config, tmp_path, "1", inputs, track=False, parts=parts)
    assert outcome.fingerprint == whole.fingerprint and outcome.digests == whole.digests
    assert outcome.summary.metrics == whole.summary.metrics


def test_results_from_elsewhere_come_before_those_of_shards(unbroken, parts, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("dualipo.generator.sampling.SHARD_PROMPTS", 4)
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(unbroken[1].outputs["benchmark_clips"] / "vbench/scene_eval_results.json", results)
    config = configured("/nowhere/python")
    outcome = execute(GRAPH["evaluate"], config, tmp_path, "1", inputs, track=False, parts=parts, given=results)
    scores = read_json(outcome.outputs["scores"])
    assert scores["vbench"].pop("imported") == ["scene"]
    whole = read_json(unbroken[1].outputs["scores"])
    assert whole["vbench"].pop("imported") == [] and scores == whole


def test_a_shard_without_the_right_vbench_samples_nothing(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("dualipo.generator.sampling.load_generator", lambda folder: pytest.fail("sampled"))
    config = configured(StandIn(tmp_path / "other", "0.1.4").python)
    with pytest.raises(UserError, match=r"vbench is 0\.1\.4 in"):
        execute_shard(GRAPH["evaluate"], config, Shard(0, 2), tmp_path / "part", tmp_path, "1", inputs)


def test_the_command_imports_and_refuses_an_archive_of_a_subset(unbroken, inputs, tmp_path):
    outcome = unbroken[1]
    few = {**SECTION, "suite": "small_world", "vbench_dimensions": ["color", "scene"]}
    write_json(tmp_path / "params.yaml", {"evaluate": few})
    command = [
        "evaluate",
        "--round",
        "1",
        "--folder",
        tmp_path,
        "--import",
        outcome.outputs["benchmark_clips"] / "vbench",
    ]
    command += ["--candidate", inputs["candidate"], "--benchmark", inputs["benchmark"]]
    refused = CliRunner().invoke(cli, [str(part) for part in command])
    assert "add --suite vbench" in str(refused.exception)
    command += ["--suite", "vbench", "--archive", tmp_path / "leaderboard.zip"]
    done = CliRunner().invoke(cli, [str(part) for part in command])
    assert isinstance(done.exception, UserError) and "no leaderboard archive without" in str(done.exception)
    scores = read_json(tmp_path / "runs/1/generator_candidate_scores.json")
    assert scores["dimensions"]["color"] == read_json(outcome.outputs["scores"])["dimensions"]["color"]
    assert scores["vbench"]["imported"] == ["color", "scene"] and scores["total"] is None
    again = CliRunner().invoke(cli, [str(part) for part in command[:-2]])
    assert "nothing was imported; add --force" in str(again.exception)


def test_the_archive_is_what_the_leaderboard_reads(unbroken, tmp_path):
    clips = unbroken[1].outputs["benchmark_clips"]
    write_archive(clips, {"suite": "vbench_enhanced"}, tmp_path / "results.zip")
    upload = {}
    with zipfile.ZipFile(tmp_path / "results.zip") as archive:  # as VBench's cal_final_score.py takes it
        for name in archive.namelist():
            assert "/" not in name and name.endswith(".json")
            for key, value in json.loads(archive.read(name)).items():
                upload[key.replace("_", " ")] = value[0]
    assert set(upload) == {name.replace("_", " ") for name in DIMENSIONS}
    assert read_results(tmp_path / "results.zip")[0].keys() == set(DIMENSIONS)
    shutil.copytree(clips / "vbench", tmp_path / "part/vbench")
    (tmp_path / "part/vbench/color_eval_results.json").unlink()
    with pytest.raises(UserError, match="no leaderboard archive without VBench's color"):
        write_archive(tmp_path / "part", {"suite": "vbench"}, tmp_path / "other.zip")
    with pytest.raises(UserError, match="which the leaderboard does not take"):
        write_archive(clips, read_json(unbroken[1].outputs["scores"]), tmp_path / "other.zip")
    assert not (tmp_path / "other.zip").exists()


# ---- comparisons


def shifted(scores: dict, points: dict[str, float]) -> dict:
    rows = [[name, prompt, mean + points.get(name, 0.0), count] for name, prompt, mean, count in scores["by_prompt"]]
    table = by_prompt_table(rows)
    return {**scores, "by_prompt": rows, **{k: v for k, v in intervals(table, 0, 50).items() if k == "total"}}


def test_two_versions_are_compared_prompt_by_prompt(whole):
    before = whole[1]
    # a shift of every prompt alike is told without doubt: 6.5 weights of quality, 9 of semantic, 4 to 1.
    found = paired_total(before, shifted(before, {"imaging_quality": 6.5, "object_class": 9.0}), 0, 200)
    assert found == pytest.approx({"mean": 1.0, "low": 1.0, "high": 1.0})
    assert paired_total(before, before, 0, 200) == pytest.approx({"mean": 0, "low": 0, "high": 0})
    assert paired_total(before, {**before, "suite": "vbench"}, 0, 200) is None
    assert paired_total(before, {**before, "total": None}, 0, 200) is None
    assert paired_total({"suite": "small_world"}, {"suite": "small_world"}, 0, 200) is None


def test_pairing_tells_more_than_two_intervals_do():
    rng = np.random.default_rng(0)
    prompts = {kind: list(dict.fromkeys(e.prompt_id for e in official() if e.dimensions == kind)) for kind in KINDS}
    level = {name: {p: rng.uniform(20, 80) for p in prompts[kind]} for kind in KINDS for name in kind}

    def scores(gain: float) -> dict:
        table = {n: {p: (5 * (v + gain + rng.normal()), 5) for p, v in own.items()} for n, own in level.items()}
        return {"suite": "vbench", "by_prompt": by_prompt_rows(table), **intervals(table, 0, 200)}

    before, after = scores(0.0), scores(1.0)
    assert before["total"]["high"] > after["total"]["low"]  # apart they overlap
    found = paired_total(before, after, 0, 200)
    assert 0 < found["low"] < found["mean"] < found["high"]
    assert found["mean"] == pytest.approx(after["total"]["mean"] - before["total"]["mean"])


# ---- what may not be trained on


def test_vbenchs_prompts_are_never_drawn(repository, benchmark, tmp_path):
    held_out = held_out_texts(repository / "data/test", benchmark)
    assert official_texts() <= held_out
    assert len(held_out - official_texts()) > 0


def test_a_caption_of_vbench_is_refused():
    captions = {"real": ["a red car on its way", "A red  car."]}
    require_apart(hold_out([], measured_texts(["a red bar"], vbench=False)), captions)
    with pytest.raises(UserError, match=r"real: prompt 'A red  car\.' also stands in the benchmark"):
        require_apart(hold_out([], measured_texts(["a red bar"], vbench=True)), captions)


# ---- parameters


def test_parameters_of_vbench_change_nothing_for_another_suite():
    plain = parse_config({})
    other = parse_config({"evaluate": {"vbench_python": "/x", "vbench_prompts": 3, "vbench_dimensions": ["color"]}})
    assert plain.digest() == other.digest() and plain.identity("evaluate") == other.identity("evaluate")
    assert configured("/x").digest() == configured("/y").digest() != configured("/x", vbench_prompts=7).digest()


@pytest.mark.parametrize("preset", ["cogvideox-2b", "cogvideox-5b", "wan-1.3b", "single-gpu"])
def test_presets_measure_with_vbench(repository, benchmark, preset):
    config = load_config(repository / "params.yaml", repository / f"params/{preset}.yaml")
    name = open_suite(config, benchmark).selection.name
    assert name == ("vbench_subset_99" if preset == "single-gpu" else "vbench")
