"""Where a model version comes from, back to the human labels, and whether every link still holds.

The links are md5s that the steps' runs bear: an input of one step is the output, of the same path and md5, of another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dualipo.artifacts import digest
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.steps import COURSE, GRAPH, Kind
from dualipo.tracking import Link, StepRun, Tracker, Version
from dualipo.tracking.entries import MODELS

_DATA = {
    "seed_labels": "human seed labels",
    "test_labels": "human test labels",
    "real_clips": "real clips",
    "benchmark": "held-out prompts",
    "base_generator": "base model",
    "base_critic": "base model",
    "critic_reference": "base model",
}
"""Ports at which the chain begins."""


@dataclass(frozen=True)
class Node:
    """A file or folder, the step that made it, and what that step read."""

    port: str
    link: Link
    run: StepRun | None
    """None where the chain begins: in the data folder, or where no step is recorded to have made it."""
    version: Version | None
    """The registered version of these bytes, for models."""
    origin: str
    """What it is where the chain begins in the data folder, e.g. `human seed labels`; else empty."""
    inputs: tuple[Node, ...] = ()
    repeated: bool = False
    """What the step read is told where the step is met first."""

    @property
    def recorded(self) -> bool:
        return self.run is not None or bool(self.origin)


def lineage(root: str | Path, source: Config | Tracker, reference: str) -> Node:
    """The tree of everything that went into the version meant by `reference` (`name@alias`, `name/3` or `name`).

    Raises UserError where there is no such version.
    """
    tracker = source if isinstance(source, Tracker) else Tracker(root, source)
    version = tracker.resolve(reference)
    kind: Kind = next((kind for kind in MODELS if version.name == tracker.model_name(kind)), "generator")
    if not version.md5:
        raise UserError(f"{version.label}: it bears no md5, so it was not registered by dualipo; name another version")
    walk = _Walk(tracker)
    run = next((run for run in walk.runs if run.run_id == version.run_id), None)
    return walk.node("", Link(version.tags["path"], version.md5, kind), run, version, "")


class _Walk:
    def __init__(self, tracker: Tracker):
        self.runs = tracker.step_runs()
        self.models = {kind: tracker.versions(tracker.model_name(kind)) for kind in MODELS}
        self.told: set[str] = set()

    def node(self, port: str, link: Link, run: StepRun | None, version: Version | None, origin: str) -> Node:
        if run is None or run.run_id in self.told:
            return Node(port, link, run, version, origin, repeated=run is not None)
        self.told.add(run.run_id)
        return Node(port, link, run, version, origin, tuple(self._inputs(run)))

    def _inputs(self, run: StepRun) -> Iterator[Node]:
        ports = GRAPH[run.step].inputs if run.step in GRAPH else {}
        for port, link in run.inputs.items():
            if port == COURSE and port not in GRAPH[run.step].takes:
                continue  # it said that the step is to run, and nothing of what it made
            if port in ports and ports[port].path.startswith("{data}"):
                yield self.node(port, link, None, self._version(link, None), _DATA.get(port, "data"))
            else:
                maker = self._maker(link, run)
                yield self.node(port, link, maker, self._version(link, maker), "")

    def _maker(self, link: Link, reader: StepRun) -> StepRun | None:
        """The step run that made the link: of the reader's configuration if there is one, the newest of them."""
        made = [
            run
            for run in self.runs
            if any((out.path, out.md5) == (link.path, link.md5) for out in run.outputs.values())
        ]
        return max(made, key=lambda run: (run.config_digest == reader.config_digest, run.started), default=None)

    def _version(self, link: Link, maker: StepRun | None) -> Version | None:
        same = [version for version in self.models.get(link.kind, []) if version.md5 == link.md5]
        return max(same, key=lambda v: (maker is not None and v.run_id == maker.run_id, -v.number), default=None)


def nodes(tree: Node) -> Iterator[Node]:
    """Every node of the tree, each before its inputs."""
    yield tree
    for node in tree.inputs:
        yield from nodes(node)


def format_lineage(tree: Node) -> str:
    """An indented tree for the terminal: kind, path, short md5, step and round a line."""
    return "\n".join(_lines(tree, "", ""))


def _lines(node: Node, first: str, rest: str) -> Iterator[str]:
    yield first + _line(node)
    for number, child in enumerate(node.inputs, start=1):
        last = number == len(node.inputs)
        yield from _lines(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def _line(node: Node) -> str:
    parts = [node.link.kind, node.link.path, node.link.md5[:8]]
    if node.run:
        parts.append(f"{node.run.step}, round {node.run.round}")
        if not node.port and node.run.git_commit:
            parts.append(f"commit {node.run.git_commit[:8]}")
    else:
        parts.append(node.origin or "made by no recorded step")
    if node.version:
        aliases = "".join(f" @{alias}" for alias in node.version.aliases)
        status = node.version.tags.get("status", "")
        told = f" ({status})" if status in ("rejected", "rolled back", "awaiting approval") else ""
        parts.append(f"= {node.version.label}{aliases}{told}")
    if node.repeated:
        parts.append("(see above)")
    return "  ".join(parts)


@dataclass(frozen=True)
class Check:
    """What was found at one link."""

    place: Literal["disk", "registry", "record"]
    name: str
    """The path, or the version's label in the registry."""
    md5: str
    """As recorded."""
    state: Literal["holds", "changed", "missing"]
    note: str = ""
    broken: bool = False


def verify(root: str | Path, source: Config | Tracker, reference: str) -> list[Check]:
    """Recomputes every md5 in the lineage of `reference`: on disk, and of registered versions as MLflow hands them out.

    A link is broken where bytes changed or are nowhere to be found, or where no recorded step made them. A model that
    is gone from disk but whole in the registry is missing, not broken.
    """
    root = Path(root)
    tracker = source if isinstance(source, Tracker) else Tracker(root, source)
    found = list(nodes(lineage(root, tracker, reference)))
    versions = {node.version.label: node.version for node in found if node.version}
    registered = {label: _check_version(tracker, version) for label, version in sorted(versions.items())}
    whole = {check.md5 for check in registered.values() if check.state == "holds"}
    unique = {(node.link.path, node.link.md5): node for node in found}
    checks = [_check_path(root, node.link, node.link.md5 in whole) for node in unique.values()]
    checks += registered.values()
    checks += [
        Check("record", node.link.path, node.link.md5, "missing", "made by no recorded step", broken=True)
        for node in unique.values()
        if not node.recorded
    ]
    return checks


def _check_path(root: Path, link: Link, in_registry: bool) -> Check:
    path = root / link.path
    if not path.exists():
        note = "not on disk, but the registered version holds" if in_registry else "not on disk"
        return Check("disk", link.path, link.md5, "missing", note, broken=not in_registry)
    now = digest(path).md5
    if now == link.md5:
        return Check("disk", link.path, link.md5, "holds")
    return Check("disk", link.path, link.md5, "changed", f"now {now[:8]}", broken=True)


def _check_version(tracker: Tracker, version: Version) -> Check:
    with tempfile.TemporaryDirectory() as folder:
        try:
            now = digest(tracker.download(version, folder)).md5
        except (UserError, OSError) as error:
            note = f"MLflow does not hand it out: {' '.join(str(error).split()):.200}"
            return Check("registry", version.label, version.md5, "missing", note, broken=True)
    if now == version.md5:
        return Check("registry", version.label, version.md5, "holds")
    return Check("registry", version.label, version.md5, "changed", f"now {now[:8]}", broken=True)


def broken(checks: Iterable[Check]) -> bool:
    """Whether any link is broken: the command's exit status."""
    return any(check.broken for check in checks)


def format_checks(checks: list[Check]) -> str:
    """One line a check, and one that sums them up."""
    width = max((len(check.name) for check in checks), default=0)
    lines = [
        f"{check.state:8} {check.place:9} {check.name:{width}}  {check.md5[:8]}  {check.note}".rstrip()
        for check in checks
    ]
    bad = sum(check.broken for check in checks)
    held = sum(check.state == "holds" for check in checks)
    lines.append(f"{held} of {len(checks)} links hold, {bad} broken")
    return "\n".join(lines)
