"""The report page in a real browser: its clips play in step, nothing overflows, is logged or is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import chromium, needs_chromium, wait
from test_report import make_run

from dualipo.report import collect, render

pytestmark = needs_chromium
SECTIONS = ("result", "clips", "dimensions", "critic", "labels", "decisions", "settlement", "curves", "lineage")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, upto, until in (("whole", "3", "all"), ("stopped", "2", "label")):
        folder = tmp_path_factory.mktemp(name)
        config = make_run(folder / "runs", upto, until)
        made[name] = folder / "index.html"
        made[name].write_text(render(collect(config, folder / "runs")), encoding="utf-8")
    return made


@pytest.fixture
def opened(browser, pages, request):
    """Opens the page named by the test's parameter, the whole run's by default, with its logs emptied before."""
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(pages[getattr(request, "param", "whole")].as_uri())
    return browser


def test_every_clip_loads_and_plays(opened):
    opened.execute_script("document.getElementById('clips').scrollIntoView()")
    wait(opened, "return [...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
    widths = opened.execute_script("return [...document.querySelectorAll('video')].map(v => v.videoWidth)")
    assert widths == [192] * 24
    wait(opened, "const v = document.querySelector('video'); return !v.paused && v.currentTime > 0.2")
    every = """
      const done = arguments[0];
      Promise.all([...document.querySelectorAll('video')].map(async (video) => {
        const before = video.currentTime = 0;
        await video.play();
        for (let i = 0; i < 200 && !(video.currentTime > before); i++) await new Promise((r) => setTimeout(r, 25));
        return video.currentTime > before;
      })).then(done, (error) => done(String(error)));"""
    opened.set_script_timeout(30)
    assert opened.execute_async_script(every) == [True] * 24


def test_a_pair_loops_in_step(opened):
    """Over three ends, the second clip of a pair never restarts before the first one ended, nor runs ahead of it."""
    opened.execute_script("document.getElementById('clips').scrollIntoView()")
    opened.execute_script("""
      window.starts = [0, 0]; window.gap = 0;
      const pair = [...document.querySelector('.pair').querySelectorAll('video')];
      pair.forEach((video, i) => video.addEventListener('seeked', () => { starts[i] += 1; }));
      setInterval(() => {
        if (pair.every((v) => !v.paused && !v.ended && !v.seeking && v.currentTime > 0.3))
          gap = Math.max(gap, Math.abs(pair[0].currentTime - pair[1].currentTime));
      }, 20);""")
    wait(opened, "return Math.min(...starts) >= 3")
    first, second = opened.execute_script("return starts")
    assert abs(first - second) <= 1
    assert opened.execute_script("return gap") < 0.25, "seconds, two of the clip's frames"


def test_buttons_pause_and_slow_down(opened):
    wait(opened, "return !document.querySelector('.controls').hidden")
    opened.execute_script("document.getElementById('clips').scrollIntoView()")
    wait(opened, "return !document.querySelector('video').paused")
    opened.execute_script("document.querySelector('[data-toggle]').click()")
    assert wait(opened, "return [...document.querySelectorAll('video')].every(v => v.paused)")
    assert opened.execute_script("return document.querySelector('[data-toggle]').textContent") == "Play all"
    opened.execute_script("document.querySelector('[data-slow]').click()")
    assert opened.execute_script("return document.querySelector('video').playbackRate") == pytest.approx(0.4)
    opened.execute_script("document.querySelector('[data-toggle]').click()")
    assert wait(opened, "return !document.querySelector('video').paused")


@pytest.mark.parametrize("opened", ["whole", "stopped"], indirect=True)
def test_quiet_and_without_requests(opened):
    wait(opened, "return [...document.querySelectorAll('video')].every(v => v.readyState >= 2)")
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert urls, "the page itself is seen, so the log works"
    assert [url[:80] for url in urls if not url.startswith(("file:", "data:"))] == []
    blocked = opened.execute_async_script(
        "fetch('https://example.invalid/').then(() => arguments[0](false), () => arguments[0](true))"
    )
    assert blocked and any("Content Security Policy" in entry["message"] for entry in opened.get_log("browser"))


@pytest.mark.parametrize("opened", ["whole", "stopped"], indirect=True)
def test_sections_are_visible_and_named(opened):
    for name in SECTIONS:
        section = opened.find_element("id", name)
        assert section.is_displayed() and section.find_element("tag name", "h2").text
    nameless = """return [...document.querySelectorAll('svg.chart, video, [role=img], [role=region], nav')]
      .filter(e => !(e.getAttribute('aria-label') || '').trim()).length"""
    assert opened.execute_script(nameless) == 0
    loose = "return [...document.querySelectorAll('thead th, tbody th')].filter(e => !e.scope).length"
    assert opened.execute_script(loose) == 0


@pytest.mark.parametrize("width", [360, 820, 1280, 1920])
@pytest.mark.parametrize("opened", ["whole", "stopped"], indirect=True)
def test_nothing_overflows_the_window(opened, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.execute_script("return innerWidth") == width
        opened.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_modes(opened, scheme):
    """WCAG contrast of at least 4.5 for body, soft and tag text on what lies behind them."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    low = opened.execute_script("""
      const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
        return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126*r + 0.7152*g + 0.0722*b; };
      const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
      const found = [];
      const texts = 'p, th, td, dt, dd, li, a, h1, h2, h3, .tag, figcaption, .bar span, b';
      for (const e of document.querySelectorAll(texts)) {
        if (!e.textContent.trim() || !e.getClientRects().length) continue;
        const pair = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a);
        const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (ratio < 4.5) found.push(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
      }
      return [...new Set(found)];""")
    assert low == []
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
