"""Renders a comparison as one HTML file that needs nothing else. Style, player and charts are the report's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dualipo.report.charts import Series, bar_chart, radar_chart
from dualipo.report.page import environment, plain, round_name, title_of

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
        facts=_facts(versions),
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


Cell = tuple[str, str]
"""A text, and an md5 or the like to stand below it; either may be empty."""


def _facts(versions: list[dict[str, Any]]) -> list[tuple[str, list[Cell]]]:
    """Rows of the table of provenance: a title, and a cell for each version."""
    columns = [_column(version) for version in versions]
    titles = dict.fromkeys(title for column in columns for title in column)
    order = sorted(titles, key=lambda title: _ORDER.index(title) if title in _ORDER else _ORDER.index("Weights"))
    return [(title, [column.get(title, ("", "")) for column in columns]) for title in order]


_ORDER = (
    *("Version", "Made by", "Why not promoted", "Alignment", "Critic", "VideoReward", "Weights"),
    *("Held-out prompts", "Sampling", "Clips", "Scores", "Code", "Parameters", "MLflow run"),
)
"""What a version was made from comes after its weights."""


def _column(version: dict[str, Any]) -> dict[str, Cell]:
    origin = version["provenance"]
    params = [f"{name} {origin['params'][key]}" for key, name in TOLD.items() if _is_set(origin["params"].get(key))]
    found = {
        "Version": (" ".join([origin["label"], *(f"@{alias}" for alias in origin["aliases"])]), ""),
        "Made by": (f"{origin['step']}, {round_name(origin['round']).lower()}", ""),
        "Why not promoted": (origin["reason"], ""),
        "Weights": ("", origin["md5"]),
        "Alignment": (", ".join(params), ""),
        **{_JUDGES[judge["kind"]]: (_judge(judge), judge["md5"]) for judge in origin["judges"]},
        **{
            title_of(made["port"]): (", ".join(filter(None, (made["version"], made["path"]))), made["md5"])
            for made in origin["made_from"]
            if made["port"] != "benchmark"
        },
        **{_HASHES[name]: ("", md5) for name, md5 in version["hashes"].items()},
        "Sampling": (_settings(version["settings"]), ""),
        "Code": ("", origin["git_commit"]),
        "Parameters": ("", origin["config_digest"]),
        "MLflow run": ("", origin["run_id"]),
    }
    return {title: cell for title, cell in found.items() if any(cell)}


_JUDGES = {"critic": "Critic", "reward": "VideoReward"}
_HASHES = {"clips": "Clips", "scores": "Scores", "prompts": "Held-out prompts"}


def _is_set(value: str | None) -> bool:
    return value not in (None, "null")


def _judge(judge: dict[str, Any]) -> str:
    told = judge["label"]
    if judge["agreement"] is not None:
        told += f", agrees with people on {100 * judge['agreement']:.1f} %"
    return told if judge["scored"] else f"{told}, only looked on"


def _settings(settings: dict[str, Any]) -> str:
    shown = {key.removeprefix("evaluate."): value for key, value in settings.items() if value is not None}
    return ", ".join(f"{name} {plain(value)}" for name, value in shown.items())
