"""Generator versions compared: a small made-up registry, the page made of it, and that page in a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from test_report import text_of
from test_report_browser import browser, pytestmark, wait  # noqa: F401
from test_tracking import Experiment

from dualipo.artifacts import digest
from dualipo.cli import cli
from dualipo.compare import collect, render
from dualipo.compare.sampled import SCRATCH, spread
from dualipo.errors import UserError
from dualipo.evaluation.bootstrap import interval, paired_difference
from dualipo.evaluation.suites import CLIP_SCORES, write_clip_scores
from dualipo.generator import sampling
from dualipo.generator.base import load_generator
from dualipo.media.store import ClipStore, pack_shard
from dualipo.media.video import decode_clip
from dualipo.records import Clip, Prompt, write_rows
from dualipo.report.charts import Series, bar_chart, radar_chart
from dualipo.report.clips import compact
from dualipo.tracking import Tracker

in_a_browser, pytestmark = pytestmark, []
COLOURS = ("red", "blue", "green", "yellow", "cyan", "magenta")
PROMPTS = [
    Prompt(
        id=f"p{number}",
        text=f"a large {colour} circle staying still on a grey background",
        categories={"difficulty": "simple" if number < 4 else "hard"},
        attributes={"size": "large", "colour": colour, "shape": "circle", "motion": "still", "background": "grey"},
    )
    for number, colour in enumerate(COLOURS)
]
TOTALS = {
    "base": (50, 50, 50, 50, 50, 50),
    "1": (90, 70, 52, 50, 45, 75),
    "2": (58, 20, 55, 51, 50, 45),
}
"""Mean of each prompt's clips, by round."""
SEEDS = (7, 8)
FRAMES, STEP = 5, 40


def mark(place: int, seed: int, name: str) -> tuple[int, int, int]:
    """A colour that no other clip has."""
    return 30 + 40 * place, 60 + 60 * SEEDS.index(seed % 100), {"base": 40, "1": 120, "2": 200}.get(name, 240)


def made_clip(place: int, seed: int, name: str) -> np.ndarray:
    """uint8 (5, 32, 32, 3): the upper half marks the clip, the lower half's grey tells the frame."""
    frames = np.zeros((FRAMES, 32, 32, 3), np.uint8)
    frames[:, :16] = mark(place, seed, name)
    frames[:, 16:] = (20 + STEP * np.arange(FRAMES))[:, None, None, None]
    return frames


class Fabricated(Experiment):
    """An experiment whose benchmark clips and scores are real files."""

    seeds = SEEDS
    checkpoints: dict[str, Path] = {}  # noqa: RUF012

    def write(self, path: str, content) -> None:
        name = Path(path).parts[1]
        if path == "data/benchmark.jsonl":
            write_rows(self.root / path, PROMPTS)
        elif path.endswith("benchmark_clips/manifest.jsonl"):
            self.write_clips(self.root / Path(path).parent, name)
        elif path.endswith("scores.json"):
            super().write(path, self.scores(name))
        elif path.endswith("generator_candidate/nested/model.safetensors") and name in self.checkpoints:
            shutil.copytree(self.checkpoints[name], self.root / f"runs/{name}/generator_candidate")
        else:
            super().write(path, content)

    def rows(self, name: str) -> list[dict]:
        found = []
        for place, prompt in enumerate(PROMPTS):
            for number in range(len(self.seeds)):
                total = TOTALS.get(name, TOTALS["2"])[place] + (4 if number else -4)
                row = {"clip": f"{prompt.id}-{number}", "prompt_id": prompt.id, "prompt": prompt.text, "total": total}
                row |= {"motion_smoothness": total + 2.0, "dynamic_degree": 100.0 - total}
                row |= {"colour": 60.0 + place, "speed": total / 2 if place % 2 else None}
                found.append(row)
        return found

    def scores(self, name: str) -> dict:
        rows = self.rows(name)

        def over_prompts(key: str) -> dict[str, float]:
            present = [row for row in rows if row[key] is not None]
            return interval([row[key] for row in present], [row["prompt_id"] for row in present], 0)

        names = ("motion_smoothness", "dynamic_degree", "colour", "speed")
        dimensions = {key: over_prompts(key) for key in names} | {"aesthetic_quality": None}
        content = {"suite": "small_world", "total": over_prompts("total"), "dimensions": dimensions}
        return content | {"prompts": len(PROMPTS), "clips": len(rows)}

    def write_clips(self, folder: Path, name: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        clips, frames = [], []
        for place, prompt in enumerate(PROMPTS):
            for number, seed in enumerate(self.seeds):
                own = f"{prompt.id}-{number}"
                clips.append(Clip(id=own, prompt_id=prompt.id, prompt=prompt.text, file=f"c.tar/{own}.mp4", seed=seed))
                frames.append((f"{own}.mp4", made_clip(place, seed, name)))
        pack_shard(folder / "c.tar", frames, 4)
        ClipStore.write_manifest(folder, clips)
        write_clip_scores(folder, self.rows(name))


STEPS = ("train_critic", "check_critic", "promote_critic", "prefer", "align", "evaluate", "promote_generator")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Fabricated:
    """Base, round 1 (promoted) and round 2 (rejected); read only."""
    made = Fabricated(tmp_path_factory.mktemp("registry"))
    (made.root / "params.yaml").write_text(yaml.safe_dump({"experiment": {"name": "tiny"}}))
    made.start()
    made.round("1", "base", only=STEPS)
    made.round("2", "1", promoted=False, only=STEPS)
    return made


@pytest.fixture
def copied(registry, tmp_path) -> Fabricated:
    """A copy of the registry's folder that a test may change; MLflow's artifacts stay where they are."""
    shutil.copytree(registry.root, tmp_path / "root")
    made = Fabricated.__new__(Fabricated)
    made.root, made.config = tmp_path / "root", registry.config
    made.tracker = Tracker(made.root, made.config)
    return made


def compared(made: Fabricated, *references: str, **options) -> dict:
    return collect(made.root, made.config, references, made.root / "data/benchmark.jsonl", **options)


@pytest.fixture(scope="module")
def three(registry) -> dict:
    return compared(registry, "base", "1", "2")


# ---- what is meant, and what is not


def test_references_mean_versions_by_round_alias_and_number(registry):
    names = [("base", "generator"), ("tiny-generator/1", "1"), ("tiny-generator@previous", "generator@champion")]
    for references in names:
        versions = compared(registry, *references, max_clips=1)["versions"]
        assert [version["provenance"]["label"] for version in versions] == ["tiny-generator/1", "tiny-generator/2"]
        assert [version["name"] for version in versions] == ["Base", "Round 1"]


@pytest.mark.parametrize(
    ("references", "said"),
    [
        (["base"], "two or more"),
        (["base", "7"], "7: neither a round with a generator (base, 1, 2) nor a registered model"),
        (
            ["base", "generator/9"],
            "generator/9: no such version of tiny-generator; there are 1@previous, 2@champion, 3",
        ),
        (["base", "critic"], "critic: tiny-critic/3 is no generator; compare versions of tiny-generator"),
        (["1", "generator"], "1 and generator both mean tiny-generator/2"),
        (["base", "a@b@c"], "'a@b@c' is no model version"),
        (["base", "elsewhere-generator/1"], "elsewhere-generator: no such model"),
    ],
)
def test_a_bad_reference_gives_one_clear_sentence(registry, tmp_path, references, said):
    out = tmp_path / "page.html"
    result = CliRunner().invoke(cli, ["compare", *references, "--folder", str(registry.root), "--out", str(out)])
    assert isinstance(result.exception, UserError) and not out.exists()
    message = str(result.exception)
    assert said in message and "\n" not in message and ". " not in message.replace("e.g. ", "")


def test_nothing_recorded_is_told(tmp_path):
    with pytest.raises(UserError, match="run the experiment first"):
        collect(tmp_path, Experiment(tmp_path).config, ["base", "1"], tmp_path / "benchmark.jsonl")


def test_clips_that_are_gone_or_changed_are_not_shown(copied):
    scores = copied.root / "runs/1/benchmark_clips" / CLIP_SCORES
    scores.write_text(scores.read_text() + "\n")
    with pytest.raises(UserError, match=r"tiny-generator/2: .*1/benchmark_clips holds other bytes.*--prompts 24"):
        compared(copied, "base", "1")
    shutil.rmtree(copied.root / "runs/1/benchmark_clips")
    with pytest.raises(UserError, match=r"tiny-generator/2: .*is not there any more; add --prompts"):
        compared(copied, "base", "1")


def test_other_seeds_are_refused_and_other_experiments_welcome(copied):
    copied.seeds = (107, 108)
    copied.round("3", "1", only=("align", "evaluate"))
    with pytest.raises(UserError, match=r"on other prompts or seeds \(0 clips of 12 and 12 in common\); add --prompts"):
        compared(copied, "base", "3")
    other = Fabricated(copied.root, experiment={"name": "other"})
    other.round("5", "1", only=("align", "evaluate"))
    assert [v["name"] for v in compared(copied, "1", "other-generator/1", max_clips=1)["versions"]] == [
        "Round 1",
        "Round 5",
    ]


def test_other_settings_of_sampling_are_a_warning(copied):
    changed = Fabricated(copied.root, evaluate={"steps": 3})
    changed.round("4", "1", only=("align", "evaluate"))
    found = compared(copied, "1", "4", max_clips=1)
    assert len(found["warnings"]) == 1 and "evaluate.steps differs (Round 1 with 12, Round 4 with 3)" in render(found)


# ---- numbers


def test_differences_are_paired_by_prompt_with_the_first(registry, three):
    base, first, second = three["versions"]
    assert base["difference"] is None
    for version, name in ((first, "1"), (second, "2")):
        tables = [{p.id: float(t) for p, t in zip(PROMPTS, TOTALS[key], strict=True)} for key in ("base", name)]
        assert version["difference"]["total"] == paired_difference(*tables, seed=0, resamples=2000)
        assert version["total"]["mean"] == pytest.approx(fmean(TOTALS[name]))
        moved = [after - before for before, after in zip(*(table.values() for table in tables), strict=True)]
        counts = [version["difference"][key] for key in ("gained", "lost", "same")]
        assert counts == [sum(m > 0 for m in moved), sum(m < 0 for m in moved), moved.count(0)]
    assert second["difference"]["dimensions"]["speed"]["mean"] == pytest.approx(fmean([-15.0, 0.5, -2.5]))
    assert first["difference"]["dimensions"]["colour"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert three["dimensions"] == ["motion_smoothness", "dynamic_degree", "colour", "speed"], "as in the clips' rows"
    page = render(three)
    assert f"+{first['difference']['total']['mean']:.1f}" in text_of(page, "result")
    assert "higher" in text_of(page, "result") and "cannot be told" in text_of(page, "result")


def test_prompts_come_where_last_and_first_differ_most(three):
    assert [prompt["id"] for prompt in three["prompts"][:3]] == ["p1", "p0", "p2"] and len(three["prompts"]) == 6
    assert three["prompts"][0]["scores"] == [50, 70, 20]
    assert three["prompts"][0]["dimensions"]["speed"] == [25, 35, 10]
    assert "speed" not in three["prompts"][1]["dimensions"], "not asked of this prompt"


def test_clips_are_those_of_their_version_prompt_and_seed(registry, three):
    assert three["count"] == {"prompts": 6, "clips": 12, "seeds": 2, "shown_prompts": 6, "shown": 12}
    for prompt in three["prompts"]:
        for seed in prompt["seeds"]:
            for place, name in zip(seed["shown"], ("base", "1", "2"), strict=True):
                embedded = three["clips"][place]
                frames = decode_clip(base64.b64decode(embedded["mp4"]))
                assert frames.shape == (FRAMES, 64, 64, 3) and (embedded["frames"], embedded["fps"]) == (FRAMES, 4.0)
                shown = frames[:, 4:28, 4:60].reshape(-1, 3).mean(0)
                assert np.abs(shown - mark(int(prompt["id"][1:]), seed["seed"], name)).max() < 12


def test_few_clips_go_to_the_prompts_that_differ_most(registry):
    few = compared(registry, "base", "1", "2", max_clips=2)
    with_clips = {prompt["id"] for prompt in few["prompts"] if prompt["seeds"][0]["shown"]}
    assert with_clips == {"p1", "p0"} and len(few["prompts"]) == 6 and len(few["clips"]) == 6
    page = render(few)
    assert "2 of each version's 12 clips" in text_of(page, "clips") and page.count("clip left out") == 12
    every_first = text_of(render(compared(registry, "base", "1", max_clips=6)), "clips")
    assert "every prompt's first seed, not picked by its score" in every_first


def test_large_clips_are_reduced_and_small_ones_doubled():
    assert {key: compact(made_clip(0, 7, "1"), 4.0)[key] for key in ("width", "height")} == {"width": 64, "height": 64}
    large = compact(np.zeros((2, 480, 720, 3), np.uint8), 8.0)
    assert (large["height"], large["width"]) == (342, 512)


def test_provenance_names_judge_data_and_reason(registry, three):
    first, second = (version["provenance"] for version in three["versions"][1:])
    assert [judge["label"] for judge in second["judges"]] == ["tiny-critic/3"]
    assert second["judges"][0]["agreement"] == pytest.approx(0.82)
    assert {made["port"]: made["md5"] for made in first["made_from"]}["preferences"] == digest(
        registry.root / "runs/1/preferences"
    ).md5
    text = text_of(render(three), "provenance")
    for words in (
        "total fell from 50 to 40 points",
        "loss dpo, beta 1000.0",
        "agrees with people on 82.0 %",
        "steps 12",
    ):
        assert words in text
    assert digest(registry.root / "runs/2/benchmark_clips").md5 in text and "human seed labels" in text


def test_the_small_world_says_what_it_is(three):
    assert "it is not VBench" in render(three)
    assert "VBench" not in re.sub(r"data:[^\"]*", "", render({**three, "small_world": False, "suite": "other"}))


def test_a_suite_without_totals_of_clips_is_compared_by_its_dimensions(copied):
    for name in ("base", "1"):
        folder = copied.root / f"runs/{name}/benchmark_clips"
        lines = [json.loads(line) for line in (folder / CLIP_SCORES).read_text().splitlines()]
        write_clip_scores(folder, [{**line, "total": None} for line in lines])
    fresh = Fabricated(copied.root, experiment={"name": "vbenchlike"})
    fresh.write = lambda *_: None  # the files lie there
    for step, name, prev in (("start", "base", ""), ("align", "1", "base"), ("evaluate", "1", "base")):
        fresh.record(step, name, prev)
    found = compared(fresh, "base", "1", max_clips=1)
    assert found["prompt_score"] == "dimensions" and found["versions"][1]["difference"]["total"] is None
    row = next(prompt for prompt in found["prompts"] if prompt["id"] == "p1")
    assert row["scores"][1] == pytest.approx(fmean([72.0, 30.0, 61.0, 35.0]))
    assert "mean over the dimensions that the prompt is asked for" in render(found)


def test_texts_are_escaped(three):
    rows = [{**three["prompts"][0], "text": "</script><b>&", "categories": {"a": '"<i>'}}]
    page = render({**three, "prompts": rows})
    assert "</script><b>" not in page and '"<i>' not in page and "&lt;/script&gt;&lt;b&gt;&amp;" in page


# ---- charts


def test_charts_leave_out_what_was_not_measured():
    found = {"mean": 40.0, "low": 30.0, "high": 60.0}
    one, two = Series("One", [found] * 4, "r1"), Series("Two", [found, found, found, None], "r2")
    web = radar_chart(list("abcd"), [one, two], "web")
    assert web.count("<circle") == 6 and ">d</text>" not in web
    assert radar_chart(list("abcd"), [Series("Two", [found, found, None, None], "r2")], "web") == ""
    bars = bar_chart(list("abcd"), [one, two], "bars")
    assert bars.count("<rect") == 7 and "d, Two: not measured" in bars and "a, One: 40.0, 95% interval 30.0" in bars


# ---- the command


def test_the_command_writes_one_page_that_needs_nothing_else(registry, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    out = tmp_path / "pages/compare.html"
    command = ["compare", "base", "1", "2", "--folder", str(registry.root), "--out", str(out), "--open"]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    told = result.stdout.splitlines()
    assert told[0].startswith("tiny-generator/2 (Round 1) against Base: +13.7 [") and "3 versions, 6 prompts" in told[2]
    assert shown == [out.as_uri()]
    page = out.read_text()
    assert "http" not in re.sub(r"http-equiv", "", page) and "default-src 'none'" in page


# ---- clips anew


def test_prompts_are_spread_over_the_benchmark():
    assert spread(60, 4) == [0, 20, 39, 59] and spread(3, 9) == [0, 1, 2] and spread(5, 1) == [0]


@pytest.fixture
def real(registry, tmp_path, generator_folder, monkeypatch) -> Fabricated:
    """Two generators of real weights; round 1's is gone from disk but for the registry."""
    from safetensors.numpy import load_file, save_file

    changed = tmp_path / "changed"
    shutil.copytree(generator_folder, changed)
    weights = changed / "transformer/diffusion_pytorch_model.safetensors"
    save_file({key: value * np.float32(1.5) for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    monkeypatch.setattr(Fabricated, "checkpoints", {"1": changed})
    (tmp_path / "root").mkdir()
    # making a database takes MLflow seconds.
    shutil.copy(registry.root / "mlflow.db", tmp_path / "root")
    evaluate = {"steps": 2, "samples_per_prompt": 1}
    made = Fabricated(tmp_path / "root", experiment={"name": "real"}, evaluate=evaluate)
    shutil.rmtree(made.root / "data/generator")
    shutil.copytree(generator_folder, made.root / "data/generator")
    made.start()
    made.round("1", "base", only=("align", "evaluate"))
    shutil.rmtree(made.root / "runs/1")
    return made


def test_clips_are_sampled_anew_alike_and_go_on_where_they_were(real, monkeypatch):
    with pytest.raises(UserError, match="--prompts"):
        compared(real, "base", "1")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dualipo.world.benchmark.score_clip", stopped)
        with pytest.raises(KeyboardInterrupt):
            compared(real, "base", "1", anew=2)
    shards = {file: file.stat().st_mtime_ns for file in (real.root / SCRATCH).rglob("*.tar")}
    assert len(shards) == 1, "the base's clips were sampled, not scored"
    loaded = []
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "load_generator", lambda folder: loaded.append(folder) or load_generator(folder))
        found = compared(real, "base", "1", anew=2)
    assert [folder.name for folder in loaded] == ["model"], "only what MLflow handed out; the base goes on"
    assert found["anew"] and [prompt["id"] for prompt in sorted(found["prompts"], key=lambda p: p["id"])] == [
        "p0",
        "p5",
    ]
    assert all(version["total"] for version in found["versions"]) and found["count"]["shown"] == 2
    videos = [decode_clip(base64.b64decode(clip["mp4"])) for clip in found["clips"]]
    assert len({video.tobytes() for video in videos}) == 4, "two prompts, two generators of different weights"
    assert not list((real.root / SCRATCH).rglob("model")), "checkpoints are not kept twice"
    kept = {file: file.stat().st_mtime_ns for file in (real.root / SCRATCH).rglob("*.tar")}
    assert compared(real, "base", "1", anew=2) == found
    assert kept == {file: file.stat().st_mtime_ns for file in (real.root / SCRATCH).rglob("*.tar")}
    assert "Sampled anew" in render(found)
    again = compared(real, "1", "base", anew=2)["prompts"]
    assert {p["id"]: p["scores"][::-1] for p in again} == {p["id"]: p["scores"] for p in found["prompts"]}


# ---- in a browser


@pytest.fixture(scope="module")
def page(three, tmp_path_factory) -> Path:
    written = tmp_path_factory.mktemp("page") / "compare.html"
    written.write_text(render(three), encoding="utf-8")
    return written


@pytest.fixture
def opened(browser, page):  # noqa: F811
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri())
    browser.execute_script("document.querySelector('.versions').scrollIntoView()")
    wait(browser, f"return ({LIVE}).length >= 6 && ({LIVE}).every(v => v.readyState >= 2)")
    return browser


LIVE = "[...document.querySelectorAll('video')].filter(v => v.dataset.held !== undefined)"
"""Clips that are in sight."""
SHOWN = f"""
  const canvas = document.createElement('canvas'), pen = canvas.getContext('2d', {{willReadFrequently: true}});
  canvas.width = canvas.height = 64;
  return ({LIVE}).map((v) => {{ pen.drawImage(v, 0, 0, 64, 64); return pen.getImageData(32, 48, 1, 1).data[0]; }});
"""


def press(driver, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(key).perform()


def frames_shown(driver) -> set[int]:
    """Numbers of the frames that the clips in sight show, read from their pixels."""
    wait(driver, f"return ({LIVE}).every(v => !v.seeking && v.readyState >= 2)")
    return {round((grey - 20) / STEP) for grey in driver.execute_script(SHOWN)}


def order(driver) -> list[str]:
    texts = driver.execute_script(
        "return [...document.querySelectorAll('.versions > li')].filter(e => !e.hidden)"
        ".map(e => e.querySelector('h3').textContent)"
    )
    return [next(prompt.id for prompt in PROMPTS if prompt.text == text) for text in texts]


def choose(driver, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("css selector", f"[data-{name}]")).select_by_value(value)


@in_a_browser
def test_all_clips_play_loop_and_stay_in_step(opened):
    opened.execute_script(f"""
      window.gap = 0; window.starts = 0;
      const clips = {LIVE};
      clips[0].addEventListener('seeked', () => {{ starts += 1; }});
      setInterval(() => {{
        if (clips.every((v) => !v.paused && !v.ended && !v.seeking && v.currentTime > 0.2))
          gap = Math.max(gap, ...clips.map((v) => Math.abs(v.currentTime - clips[0].currentTime)));
      }}, 20);""")
    wait(opened, "return starts >= 3 && gap > 0")
    assert opened.execute_script("return gap") < 0.25, "seconds: one frame of these clips"
    wait(opened, "return document.querySelector('[data-at]').textContent !== 'frame 1 of 5'")


@in_a_browser
def test_keys_step_every_clip_to_the_same_frame(opened):
    from selenium.webdriver.common.keys import Keys

    press(opened, Keys.HOME)
    assert frames_shown(opened) == {0}
    assert opened.execute_script("return document.querySelector('[data-toggle]').textContent") == "Play all"
    for expected in (1, 2, 3, 4, 4):
        press(opened, Keys.ARROW_RIGHT)
        assert frames_shown(opened) == {expected}
    assert opened.execute_script("return document.querySelector('[data-at]').textContent") == "frame 5 of 5"
    press(opened, Keys.ARROW_LEFT)
    assert frames_shown(opened) == {3}
    # clips that come into sight later show the same frame.
    opened.execute_script("scrollTo(0, 0)")
    wait(opened, f"return ({LIVE}).length === 0")
    opened.execute_script("document.querySelector('.versions > li:last-child').scrollIntoView()")
    wait(opened, f"return ({LIVE}).length >= 3")
    assert frames_shown(opened) == {3}
    opened.execute_script(
        "const s = document.querySelector('[data-frame]'); s.value = 1; s.dispatchEvent(new Event('input'))"
    )
    assert frames_shown(opened) == {1}
    press(opened, " ")
    wait(opened, f"return ({LIVE}).every(v => !v.paused)")
    press(opened, "s")
    assert set(opened.execute_script(f"return ({LIVE}).map(v => v.playbackRate)")) == {0.4}


@in_a_browser
def test_sorting_and_filtering(opened):
    assert order(opened)[:2] == ["p1", "p0"]
    choose(opened, "sort", "gain")
    assert order(opened) == ["p0", "p2", "p3", "p4", "p5", "p1"]
    choose(opened, "to", "1")
    assert order(opened) == ["p0", "p5", "p1", "p2", "p3", "p4"]
    badges = "return [...document.querySelectorAll('[data-gain]')].map(e => e.textContent)"
    assert opened.execute_script(badges) == ["+40.0", "+25.0", "+20.0", "+2.0", "+0.0", "−5.0"]
    choose(opened, "sort", "loss")
    assert order(opened)[0] == "p4"
    choose(opened, "sort", "text")
    assert order(opened) == [prompt.id for prompt in sorted(PROMPTS, key=lambda prompt: prompt.text)]
    wait(opened, f"return ({LIVE}).length && ({LIVE}).every(v => !v.paused || v.ended)")
    choose(opened, "tag", "difficulty: hard")
    assert order(opened) == ["p4", "p5"]
    opened.find_element("css selector", "[data-words]").send_keys("CIRCLE magenta s ")
    assert order(opened) == ["p5"]
    assert opened.execute_script("return document.querySelector('[data-found]').textContent") == "1 of 6 prompts"
    opened.find_element("css selector", "[data-words]").send_keys("nothing")
    assert order(opened) == [] and opened.find_element("css selector", "[data-nothing]").is_displayed()


@in_a_browser
def test_another_seed_shows_other_clips(opened):
    from selenium.webdriver.common.keys import Keys

    press(opened, Keys.HOME)
    first = opened.find_element("css selector", ".versions > li")
    green = "const c = document.createElement('canvas').getContext('2d'); c.drawImage(arguments[0], 0, 0, 64, 64);"
    green += "return c.getImageData(32, 12, 1, 1).data[1]"
    video = first.find_element("tag name", "video")
    assert opened.execute_script(green, video) == pytest.approx(60, abs=12)
    assert "this clip 46" in first.text
    first.find_elements("css selector", "[data-seed]")[1].click()
    wait(opened, f"return ({LIVE}).every(v => !v.seeking && v.readyState >= 2)")
    assert opened.execute_script(green, video) == pytest.approx(120, abs=12)
    assert "this clip 54" in first.text and frames_shown(opened) == {0}


@in_a_browser
@pytest.mark.parametrize("width", [360, 820, 1280, 1920])
def test_nothing_overflows_and_nothing_is_logged_or_fetched(opened, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        opened.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert urls and [url[:80] for url in urls if not url.startswith(("file:", "data:"))] == []
    nameless = """return [...document.querySelectorAll('svg.chart, video, [role=region], nav, input, select')]
      .filter(e => !(e.getAttribute('aria-label') || e.closest('label')?.textContent || '').trim()).length"""
    assert opened.execute_script(nameless) == 0
