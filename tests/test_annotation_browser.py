"""The page of `dualipo annotate` in a real browser, worked by keyboard alone; a critic learns from what comes out."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from annotating import Server, annotate
from chromium import chromium, needs_chromium, wait
from test_critic import SECTION, step_inputs

from dualipo.annotation.session import read_session
from dualipo.config import Config
from dualipo.records import read_labels
from dualipo.steps import Job
from dualipo.steps.train_critic import train_critic

pytestmark = needs_chromium
PLAYS = "const all = [...document.querySelectorAll('video')]; return all.length && all.every(v => v.readyState >= 3)"
SHOWN = "return document.getElementById('work').className + ' ' + document.getElementById('count').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def done(browser, count: int) -> None:
    wait(browser, f"return document.getElementById('count').textContent.startsWith('{count} of')")


def begin(browser, server: Server, name: str) -> None:
    from selenium.webdriver.common.keys import Keys

    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(f"{server.url}/?token={server.token}")
    wait(browser, "return document.activeElement.id === 'name'")
    press(browser, name, Keys.ENTER)
    wait(browser, PLAYS)


def label(browser, number: int) -> None:
    """One item, by keys alone: verdicts that depend on `number`, and a reason in every box."""
    from selenium.webdriver.common.keys import Keys

    kind = browser.execute_script("return document.getElementById('work').className")
    if kind == "rating":
        for question, key in enumerate((str(1 + number % 3), "1", "2")):
            press(browser, key, f"steady {question}", Keys.ENTER)
    else:
        press(browser, *(("a", "b", "t")[number % 3], "t", "a", "b"))
        press(browser, "bar moves left", Keys.ENTER, "bar stays still", Keys.ENTER)


def test_twenty_items_by_keyboard_a_reload_in_the_middle_and_a_critic_that_learns_from_them(
    browser, packed_clips, tmp_path, critic_folder
):
    from selenium.webdriver.common.keys import Keys

    server = Server(
        "--clips", packed_clips, "--count", 10, "--annotators", 1, "--no-browser", "--session", "s", cwd=tmp_path
    )
    begin(browser, server, "Ann")
    assert browser.current_url == f"{server.url}/", "the token does not stay in the address bar"
    assert browser.execute_script(SHOWN) == "rating 0 of 20 done"
    for number in range(8):
        label(browser, number)
        done(browser, number + 1)
    press(browser, "2", "half a sen")
    shown = browser.execute_script("return document.getElementById('prompt').textContent")
    browser.refresh()
    wait(browser, PLAYS)
    assert browser.execute_script(SHOWN) == "rating 8 of 20 done"
    assert browser.execute_script("return document.getElementById('prompt').textContent") == shown
    boxes = "return [...document.querySelectorAll('textarea')].map(box => box.value)"
    assert browser.execute_script(boxes) == ["half a sen", "", ""], "what was not saved yet is there too"
    chosen = "return [...document.querySelectorAll('[aria-checked=true]')].map(b => b.dataset.word)"
    assert browser.execute_script(chosen) == ["normal"]
    press(browser, Keys.ARROW_UP, "r", "tence", Keys.ENTER, "1", "even", Keys.ENTER, "1", "whole", Keys.ENTER)
    done(browser, 9)
    assert read_session(tmp_path / "s").answers[8].reasons["semantic"] == "half a sentence"
    for key, number in ((Keys.ARROW_LEFT, 9), (Keys.ARROW_LEFT, 8), (Keys.ARROW_RIGHT, 9)):
        press(browser, key)
        wait(browser, f"return document.getElementById('past').textContent === 'Item {number}: your earlier answer'")
    assert browser.execute_script(boxes)[0] == "half a sentence"
    press(browser, Keys.ARROW_RIGHT)
    wait(browser, "return document.getElementById('past').hidden")
    for number in range(9, 20):
        wait(browser, PLAYS)
        label(browser, number)
        if number < 19:
            done(browser, number + 1)
    wait(browser, "return !document.getElementById('done').hidden")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert urls and [url for url in urls if not url.startswith((server.url, "data:"))] == []
    assert server.end(signal.SIGTERM) == 143

    answers = read_session(tmp_path / "s").answers
    assert len(answers) == 20 and {answer.annotator for answer in answers} == {"ann"}
    assert "seed: 30 ratings, 40 choices" in annotate("export", "s", "seed", cwd=tmp_path)
    ratings, choices = read_labels(tmp_path / "seed")
    assert (len(ratings), len(choices)) == (30, 40)
    assert {row.reason for row in choices} == {
        "a: bar moves left. b: bar stays still.",
        "a: bar stays still. b: bar moves left.",
    }, "each clip kept what was said of it"

    inputs = {**step_inputs(tmp_path / "more"), "seed_labels": tmp_path / "seed"}
    out = {"candidate": tmp_path / "candidate", "curves": tmp_path / "curves.csv"}
    job = Job("1", 3, tmp_path / "work")
    summary = train_critic(Config(train_critic=SECTION), job, critic=critic_folder, **inputs, **out)
    assert summary.metrics["examples"] == 30 + 40 + 1, "every exported label, and one pseudo-label"
    assert (out["candidate"] / "model.safetensors").is_file()
    assert len(out["curves"].read_text().splitlines()) == 1 + SECTION.steps


@pytest.fixture(scope="module")
def pairs(packed_clips, tmp_path_factory) -> Iterator[Server]:
    server = Server(
        "--clips",
        packed_clips,
        "--mode",
        "pair",
        "--annotators",
        1,
        "--no-browser",
        cwd=tmp_path_factory.mktemp("pairs"),
    )
    yield server
    server.end(signal.SIGTERM)


@pytest.fixture
def opened(browser, pairs):
    browser.get(f"{pairs.url}/static/page.css")  # of that origin, and runs no script
    browser.execute_script("sessionStorage.clear(); localStorage.clear()")
    begin(browser, pairs, "ben")
    return browser


def test_both_clips_loop_in_step_enlarged(opened):
    opened.execute_script("""
      window.starts = [0, 0]; window.gap = 0;
      const pair = [...document.querySelectorAll('video')];
      pair.forEach((video, i) => video.addEventListener('seeked', () => { starts[i] += 1; }));
      setInterval(() => {
        if (pair.every((v) => !v.paused && !v.ended && !v.seeking && v.currentTime > 0.3))
          gap = Math.max(gap, Math.abs(pair[0].currentTime - pair[1].currentTime));
      }, 20);""")
    wait(opened, "return Math.min(...starts) >= 3")
    first, second = opened.execute_script("return starts")
    assert abs(first - second) <= 1 and opened.execute_script("return gap") < 0.25, "seconds, two of the clip's frames"
    styles = (
        "return [...document.querySelectorAll('video')].map(v => [getComputedStyle(v).imageRendering, v.clientWidth])"
    )
    for rendering, width in opened.execute_script(styles):
        assert rendering == "pixelated" and width > 300, "32 pixels"


def test_keys_open_help_and_guideline_pause_slow_and_say_what_is_missing(opened):
    from selenium.webdriver.common.keys import Keys

    press(opened, "?")
    assert opened.execute_script("return document.getElementById('help').open")
    press(opened, "a", Keys.ESCAPE)
    assert opened.execute_script(
        "return !document.getElementById('help').open && !document.querySelector('[aria-checked=true]')"
    )
    hidden = "return document.getElementById('guide').hidden"
    assert opened.execute_script(hidden)
    press(opened, "g")
    assert not opened.execute_script(hidden)
    assert "Semantic consistency" in opened.find_element("id", "guide").text
    press(opened, "g", " ", "s")
    states = "return [...document.querySelectorAll('video')].map(v => [v.paused, v.playbackRate])"
    assert opened.execute_script(states) == [[True, 0.4]] * 2
    press(opened, Keys.ENTER)
    assert opened.find_element("id", "message").text == "Semantic consistency: a, b or t?"
    press(opened, Keys.ARROW_DOWN, "b", Keys.ARROW_UP, Keys.ARROW_UP, "t")
    chosen = "return [...document.querySelectorAll('[aria-checked=true]')].map(b => b.dataset.word)"
    assert opened.execute_script(chosen) == ["tie", "b"]
    press(opened, "a", "a")
    wait(opened, "return document.activeElement.dataset.box === 'a'")
    press(opened, "?x1", Keys.ENTER)
    assert opened.execute_script("return document.activeElement.dataset.box") == "b"
    assert opened.execute_script("return document.querySelector('textarea').value") == "?x1", (
        "letters are letters there"
    )
    press(opened, Keys.ESCAPE, "x")
    done(opened, 1)
    press(opened, Keys.ARROW_LEFT)
    wait(opened, "return document.getElementById('past').textContent === 'Item 1: skipped'")


def test_without_the_token_the_browser_is_told_what_to_do(browser, pairs):
    browser.delete_all_cookies()
    browser.get(pairs.url)
    assert "Open the address that `dualipo annotate` printed" in browser.find_element("tag name", "body").text


@pytest.mark.parametrize("width", [360, 820, 1280, 1920])
def test_nothing_overflows_the_window(opened, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.execute_script("return innerWidth") == width
        for _ in range(2):
            assert opened.execute_script("return document.documentElement.scrollWidth") <= width
            press(opened, "g")
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_modes(opened, scheme):
    """WCAG contrast of at least 4.5 for text on what lies behind it."""
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    press(opened, "a", "b", "g")
    low = opened.execute_script("""
      const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126*r + 0.7152*g + 0.0722*b; };
      const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
      const found = [];
      for (const e of document.querySelectorAll('p, h1, h2, h3, li, dt, dd, kbd, button, span, .title, .hint')) {
        if (!e.textContent.trim() || !e.getClientRects().length || e.disabled || e.closest(':disabled')) continue;
        if (getComputedStyle(e).backgroundColor.startsWith('color(')) continue;
        const pair = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a);
        const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (ratio < 4.5) found.push(`${e.tagName}.${e.className} ${e.textContent.trim()} ${ratio.toFixed(2)}`);
      }
      return [...new Set(found)];""")
    assert low == []
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(244, 245, 248)") == (scheme == "light")
