"""A record as files: record.json, record.md for people, answers.jsonl, and the calibration curve as CSV and picture."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualipo.artifacts import atomic, write_json, write_json_lines
from dualipo.evaluation.critics.answers import Answer

RECORD, TABLE, CURVE, PICTURE, ANSWERS = (
    "record.json",
    "record.md",
    "reliability.csv",
    "reliability.png",
    "answers.jsonl",
)
_KINDS = ("choices", "ratings")


def write_record(out: Path, record: Mapping[str, Any], answers: Mapping[str, Sequence[Answer]]) -> None:
    """Writes the folder `out`, whole or not at all."""
    with atomic(out) as temporary:
        temporary.mkdir()
        write_json(temporary / RECORD, record)
        (temporary / TABLE).write_text(format_record(record) + "\n", encoding="utf-8")
        rows = ({"set": name, **answer.as_row()} for name, own in answers.items() for answer in own)
        write_json_lines(temporary / ANSWERS, rows)
        curves = dict(_curves(record))
        if curves:
            _write_csv(temporary / CURVE, curves)
            _draw(temporary / PICTURE, curves)


def format_record(record: Mapping[str, Any]) -> str:
    """Markdown: what was asked and how, then every number with its interval."""
    critic = record["critic"]
    lines = [f"# {critic['path']}", "", f"{critic['kind']} critic, md5 {critic['md5']}. Numbers in percent."]
    for name, found in record["sets"].items():
        lines += ["", f"## {name}", "", _about(found)]
        if found["choices"]:
            head = ["pairs of", "pairs", "ties", "ties excluded", "ties: own rule", "calibrated here", "held out"]
            head += ["order changes", "first - second"]
            rows = []
            for dimension, own in found["choices"].items():
                position = own.get("position") or {}
                cells = [dimension, str(own["pairs"]), f"{100 * own['ties']:.1f}", _spoken(own["ties_excluded"])]
                cells += _three(own["ties_included"])
                rows.append([*cells, _spoken(position.get("changed")), _spoken(position.get("first_less_second"), "+")])
            lines += ["", *_table(head, rows)]
        if found["ratings"]:
            rows = [[d, str(own["clips"]), *_three(own["accuracy"])] for d, own in found["ratings"].items()]
            lines += ["", *_table(["ratings of", "clips", "own rule", "calibrated here", "held out"], rows)]
        for kind in _KINDS:
            if f"self_consistency_{kind}" in found:
                lines += ["", *_paths(kind, found[f"self_consistency_{kind}"])]
                curve = found[f"calibration_{kind}"]
                lines += ["", f"Calibration of {kind}: expected error {_spoken(curve['ece'])}.", ""]
                rows = [
                    [f"{100 * b['from']:.0f} to {100 * b['to']:.0f}", str(b["answers"]), f"{100 * b['vote_share']:.1f}",
                     _spoken(b["accuracy"])] for b in curve["bins"]
                ]  # fmt: skip
                lines += _table(["vote share", "answers", "mean vote share", "accuracy"], rows)
    lines += ["", "## How to read it", "", f"- normalisation: {record['protocol']['normalisation']}"]
    lines += [f"- {name}: {text}" for name, text in record["protocol"]["stated"].items()]
    return "\n".join(lines)


def _about(found: Mapping[str, Any]) -> str:
    part = "" if found["asked_prompts"] is None else f", a part of the set: {found['asked_prompts']} prompts"
    skipped = f", {found['skipped']} broken items left out" if found["skipped"] else ""
    labelled = ", ".join(found["annotators"][:8])
    return f"{found['source']}: {found['prompts']} prompts{part}{skipped}. Labels of {labelled}. md5 {found['md5']}."


def _three(accuracy: Mapping[str, Any]) -> list[str]:
    measured = [accuracy["own"], *((accuracy[name] or {}).get("accuracy") for name in ("calibrated", "held_out"))]
    return [_spoken(value) for value in measured]


def _paths(kind: str, sweep: Sequence[Mapping[str, Any]]) -> list[str]:
    head, rows = [f"paths, {kind}", "vote share", "unreadable", "accuracy"], []
    if kind == "choices":
        head += ["ties excluded", "order changes"]
    for row in sweep:
        cells = [str(row["paths"]), _spoken(row["vote_share"]), f"{100 * row['unreadable']:.1f}"]
        rows.append([*cells, *(_spoken(row[key]) for key in ("accuracy", "ties_excluded", "changed") if key in row)])
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _spoken(value: Mapping[str, float] | None, sign: str = "") -> str:
    if value is None:
        return "-"
    mean, low, high = (100 * value[key] for key in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _curves(record: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    for name, found in record["sets"].items():
        for kind in _KINDS:
            if curve := found.get(f"calibration_{kind}"):
                yield (name, kind), curve


def _write_csv(path: Path, curves: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["set", "kind", "from", "to", "answers", "vote_share", "accuracy", "low", "high"])
        for (name, kind), curve in curves.items():
            for b in curve["bins"]:
                accuracy = [b["accuracy"][key] for key in ("mean", "low", "high")]
                writer.writerow([name, kind, b["from"], b["to"], b["answers"], b["vote_share"], *accuracy])


def _draw(path: Path, curves: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(curves), 3.6), dpi=150, layout="constrained")
    for axes, ((name, kind), curve) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        shares = [b["vote_share"] for b in curve["bins"]]
        means = [b["accuracy"]["mean"] for b in curve["bins"]]
        errors = [
            [mean - b["accuracy"]["low"] for mean, b in zip(means, curve["bins"], strict=True)],
            [b["accuracy"]["high"] - mean for mean, b in zip(means, curve["bins"], strict=True)],
        ]
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axes.errorbar(shares, means, yerr=[[max(e, 0) for e in side] for side in errors], fmt="o", capsize=3)
        for share, mean, b in zip(shares, means, curve["bins"], strict=True):
            axes.annotate(str(b["answers"]), (share, mean), xytext=(5, -10), textcoords="offset points", fontsize=7)
        axes.set(xlim=(-0.02, 1.04), ylim=(-0.02, 1.04), xlabel="vote share", ylabel="agrees with people")
        axes.set_title(f"{name}, {kind}: error {100 * curve['ece']['mean']:.1f} %", fontsize=9)
    figure.savefig(path, metadata={"Software": None})
