"""Renders a comparison as one HTML file that needs nothing else. Style, player and charts are the report's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dualipo.report.charts import Series, bar_chart, radar_chart
from dualipo.report.page import environment, title_of

_COLOURS = 6
TOLD = {
    "align.loss": "loss",
    "align.beta": "beta",
    "align.learning_rate": "learning rate",
    "align.steps": "steps",
    "align.batch_size": "batch",
    "align.reference": "reference",
    "align.lora": "LoRA rank",
}
"""Parameters of alignment told in short."""
SORTS = {
    "differ": "differ most",
    "gain": "biggest gain",
    "loss": "biggest loss",
    "text": "prompt, A to Z",
}


def render(comparison: dict[str, Any]) -> str:
    """The page as HTML text; equal comparisons give equal text."""
    template = environment(Path(__file__).parent).get_template("compare.html.j2")
    versions = comparison["versions"]
    return template.render(
        page=comparison,
        styles=[style(number) for number in range(len(versions))],
        charts=_charts(comparison),
        verdicts=[_verdict(version["difference"]) for version in versions],
        told=[_told(version["provenance"]["params"]) for version in versions],
        tags=sorted({tag for prompt in comparison["prompts"] for tag in tags(prompt)}),
        tags_of=tags,
        scored=any(score is not None for prompt in comparison["prompts"] for score in prompt["scores"]),
        sorts=SORTS,
    )


def style(number: int) -> str:
    """The CSS classes of a version's colour; after six they come again, dashed."""
    return f"r{number % _COLOURS + 1}" + (" dashed" if number // _COLOURS % 2 else "")


def tags(prompt: dict[str, Any]) -> list[str]:
    """What a prompt can be filtered by: its categories, or where it has none the dimensions it is asked for."""
    if prompt["categories"]:
        return [f"{key.replace('_', ' ')}: {value}" for key, value in sorted(prompt["categories"].items())]
    return [title_of(name) for name in prompt["asked"]]


def _charts(comparison: dict[str, Any]) -> dict[str, Markup]:
    names = comparison["dimensions"]
    if not names:
        return {"radar": Markup(""), "bars": Markup("")}
    versions = comparison["versions"]
    series = [
        Series(each["name"], [each["dimensions"][name] for name in names], style(number))
        for number, each in enumerate(versions)
    ]
    totals = [
        Series(each["name"], [each["total"], *one.estimates], one.style)
        for each, one in zip(versions, series, strict=True)
    ]
    rows = [title_of(name) for name in names]
    return {
        "radar": radar_chart(rows, series, _spoken("Scores by dimension, of 100", rows, series)),
        "bars": bar_chart(["Total", *rows], totals, _spoken("Scores and intervals, of 100", ["Total", *rows], totals)),
    }


def _spoken(title: str, rows: list[str], series: Iterable[Series]) -> str:
    return f"{title}. {'; '.join(each.told(row, index) for each in series for index, row in enumerate(rows))}."


def _verdict(difference: dict[str, Any] | None) -> str:
    """What the interval of the total's difference says, in a word; empty for the first version."""
    if difference is None:
        return ""
    total = difference["total"]
    if total is None:
        return "not measured"
    return "higher" if total["low"] > 0 else "lower" if total["high"] < 0 else "cannot be told"


def _told(params: dict[str, str]) -> list[tuple[str, str]]:
    return [(name, params[key]) for key, name in TOLD.items() if params.get(key, "null") != "null"]
