"""What differs between two versions of a model: `dualipo diff`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dualipo.artifacts import read_json
from dualipo.errors import UserError
from dualipo.tracking import StepRun, Tracker, Version
from dualipo.tracking.entries import MODELS
from dualipo.tracking.evidence import Evidence, read

_SCORES = {"generator": "scores", "critic": "agreement"}
"""Kind of model -> output port of the step that measures it."""
_JUDGED = {"generator": "preferences", "critic": "labels"}
"""Kind of model -> input port of the step that made it, which a critic had judged."""


def compare(tracker: Tracker, one: str, two: str, root: Path) -> Iterator[str]:
    """Lines of text, a section each for parameters, code, data, judge, scores and evidence; differences are two - one.

    Raises UserError where a version is unknown, or the two are of different models.
    """
    pair = tracker.resolve(one), tracker.resolve(two)
    kind = next((kind for kind in MODELS if pair[0].name == tracker.model_name(kind)), "")
    if pair[0].name != pair[1].name or not kind:
        raise UserError(
            f"{pair[0].label} and {pair[1].label}: two versions of one model of this experiment can be compared"
        )
    runs = tracker.step_runs()
    yield f"{pair[0].label} {_state(pair[0])} -> {pair[1].label} {_state(pair[1])}"
    if pair[0].md5 == pair[1].md5:
        yield "weights: the same bytes"
    yield from _section("parameters", *(_parameters(tracker, version) for version in pair))
    yield from _section("code", *({"commit": version.tags.get("git_commit", "unknown")} for version in pair))
    yield from _section("data", *(_inputs(version) for version in pair))
    yield from _section("judged by", *(_judge(tracker, runs, version, kind) for version in pair))
    yield from _scores(tracker, runs, pair, kind, root)
    yield from _section("evidence", *(_evidence(version) for version in pair))


def _state(version: Version) -> str:
    words = [version.tags.get("status", ""), *(f"@{alias}" for alias in version.aliases), f"round {version.round}"]
    return f"({', '.join(filter(None, words))})"


def _section(title: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[str]:
    differ = [key for key in [*one, *(key for key in two if key not in one)] if one.get(key) != two.get(key)]
    yield f"{title}: " + ("equal" if not differ else f"{len(differ)} differ")
    for key in differ:
        yield f"  {key}: {_shown(one.get(key))} -> {_shown(two.get(key))}"


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _parameters(tracker: Tracker, version: Version) -> dict[str, Any]:
    text = tracker.read_artifact(version.run_id, "config.json")
    return dict(_leaves(json.loads(text))) if text else {}


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _inputs(version: Version) -> dict[str, str]:
    tags = version.tags.items()
    return {key.removeprefix("input."): md5[:8] for key, md5 in tags if key.startswith("input.")}


def _judge(tracker: Tracker, runs: list[StepRun], version: Version, kind: str) -> dict[str, str]:
    """The critic, or VideoReward, behind the labels or preferences that the version was trained on."""
    judged = version.tags.get(f"input.{_JUDGED.get(kind, '')}")
    made = [run for run in runs if any(link.md5 == judged for link in run.outputs.values())]
    if not judged or not made:
        return {}
    run = max(made, key=lambda run: (run.config_digest == version.config_digest, run.started))
    found = {}
    for port, link in run.inputs.items():
        if link.kind in ("critic", "reward"):
            known = [v for v in tracker.versions(tracker.model_name(link.kind)) if v.md5 == link.md5]
            found[port] = known[0].label if known else f"{link.path} {link.md5[:8]}"
    return found


# ---- scores


def _scores(
    tracker: Tracker, runs: list[StepRun], pair: tuple[Version, Version], kind: str, root: Path
) -> Iterator[str]:
    port = _SCORES.get(kind)
    measured = [_measured(runs, version, kind, port) if port else None for version in pair]
    found = [_content(tracker, run, port, root) if run and port else None for run in measured]
    one, two = found
    if one is None or two is None or port is None:
        missing = [version.label for version, content in zip(pair, found, strict=True) if content is None]
        yield f"scores: none of {' and '.join(missing)}"
        return
    if one.get("suite") != two.get("suite"):
        yield f"scores: of different suites, {one.get('suite')} and {two.get('suite')}: not comparable"
        return
    asked = [_asked(run, kind) for run in measured]
    yield (
        "scores: "
        + ("" if asked[0] == asked[1] else "of DIFFERENT test data; ")
        + "V1 -> V2, paired by prompt where known"
    )
    paired = _paired(tracker, measured, found, root)
    for name, before, after in _dimensions(one, two):
        line = f"  {name}: {_interval(before)} -> {_interval(after)}"
        yield line + (f"  difference {_interval(paired[name], '+')}" if name in paired else "")


def _measured(runs: list[StepRun], version: Version, kind: str, port: str) -> StepRun | None:
    """The run that measured the version: a step that has its score among its outputs, and no decision."""

    def of(run: StepRun) -> bool:
        subject = run.outputs.get(kind) if run.round == "base" else run.inputs.get("candidate")
        return bool(subject and subject.md5 == version.md5 and port in run.outputs and "decision" not in run.outputs)

    known = [run for run in runs if of(run)]
    return max(known, key=lambda run: (run.config_digest == version.config_digest, run.started), default=None)


def _asked(run: StepRun | None, kind: str) -> str | None:
    link = run.inputs.get("benchmark" if kind == "generator" else "test_labels") if run else None
    return link.md5 if link else None


def _content(tracker: Tracker, run: StepRun, port: str, root: Path) -> dict[str, Any] | None:
    link = run.outputs[port]
    text = tracker.read_artifact(run.run_id, f"outputs/{Path(link.path).name}")
    if text:
        return json.loads(text)
    return read_json(root / link.path) if (root / link.path).is_file() else None


def _dimensions(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Everything that has a mean, under its name."""
    flat = [{**content.get("dimensions", {}), **content} for content in (one, two)]
    for name in sorted({*flat[0], *flat[1]}, key=lambda name: (name not in ("total", "agreement"), name)):
        sides = [side.get(name) for side in flat]
        if any(isinstance(side, Mapping) and "mean" in side for side in sides):
            yield name, *sides


def _interval(value: Any, sign: str = "") -> str:
    if not isinstance(value, Mapping) or value.get("mean") is None:
        return "undefined"
    text = f"{value['mean']:{sign}.4g}"
    if value.get("low") is not None and value.get("high") is not None:
        text += f" [{value['low']:{sign}.4g}, {value['high']:{sign}.4g}]"
    return text


def _paired(
    tracker: Tracker, measured: list[StepRun | None], contents: list[dict[str, Any] | None], root: Path
) -> dict[str, dict[str, float]]:
    """Interval of the difference of each dimension, over the prompts that both have."""
    from dualipo.evaluation.bootstrap import paired_difference

    by_prompt = [
        _by_prompt(tracker, run, content or {}, root) for run, content in zip(measured, contents, strict=True) if run
    ]
    if len(by_prompt) < 2:
        return {}
    before, after = by_prompt
    return {
        name: paired_difference(before[name], after[name], seed=0)
        for name in before.keys() & after.keys()
        if before[name].keys() & after[name].keys()
    }


def _by_prompt(tracker: Tracker, run: StepRun, content: Mapping[str, Any], root: Path) -> dict[str, dict[str, float]]:
    """Dimension -> prompt -> mean over its clips."""
    rows = [(dimension, prompt, mean) for dimension, prompt, mean, _ in content.get("by_prompt", [])]
    if not rows:
        rows = [
            (dimension, row["prompt_id"], row[dimension])
            for row in _clip_scores(tracker, run, root)
            for dimension in row
            if dimension not in ("clip", "prompt_id", "prompt") and row[dimension] is not None
        ]
    values: dict[str, dict[str, list[float]]] = {}
    for dimension, prompt, value in rows:
        values.setdefault(dimension, {}).setdefault(prompt, []).append(float(value))
    return {name: {p: sum(v) / len(v) for p, v in prompts.items()} for name, prompts in values.items()}


def _clip_scores(tracker: Tracker, run: StepRun, root: Path) -> list[dict[str, Any]]:
    from dualipo.evaluation.suites import CLIP_SCORES

    for port, link in run.outputs.items():
        if link.kind == "clips":
            text = tracker.read_artifact(run.run_id, f"outputs/{port}/{CLIP_SCORES}")
            if text:
                return [json.loads(line) for line in text.splitlines()]
    return []


# ---- evidence


def _evidence(version: Version) -> dict[str, Any]:
    try:
        held: Evidence = read(version)
    except UserError as error:
        return {"evidence": str(error).partition(": ")[2].partition(",")[0]}
    signed, decision = held.content.get("signed", {}), held.content["decision"]
    gates = {
        f"gate {port}": "passed" if gate.get("passed") else "failed" for port, gate in held.content["gates"].items()
    }
    said = "; ".join(decision.get("reasons", []))
    return {
        "digest": held.digest[:12],
        "decision": f"{'promoted' if decision['promoted'] else 'rejected'}: {said}",
        **gates,
        "signed by": f"{signed['by']} ({signed['kind']}: {signed['reason']})" if signed else None,
    }
