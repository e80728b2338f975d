"""Records that wait for MLflow: kept whole in a folder, and replayed in order.

`.dualipo/spool/<number>-<step>-<round>/` holds `record.json`, what `Tracker.record` was called with, and the files that
it reads: gates, scores, pictures, and models that become versions. A record leaves the spool once MLflow has it.
Recording is idempotent, so a kill between the two doubles nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dualipo.artifacts import PARTIAL, Digest, atomic, copy, read_json, remove, write_json
from dualipo.config import Config, config_json, parse_config
from dualipo.errors import UserError
from dualipo.steps import GRAPH, Step, Summary
from dualipo.tracking.entries import KEPT, Artifact
from dualipo.tracking.store import Unreachable, now, tracking_uri
from dualipo.tracking.tracker import DECISION, Tracker, record_key

STATE = ".dualipo"
_RECORD = "record.json"


@dataclass(frozen=True)
class Record:
    """What `Tracker.record` is called with."""

    step: Step
    round: str
    prev: str
    inputs: dict[str, Artifact]
    outputs: dict[str, Artifact]
    summary: Summary
    seconds: float
    git_commit: str | None

    def tell(self, tracker: Tracker, **more: Any) -> None:
        what = (self.step, self.round, self.prev, self.inputs, self.outputs, self.summary, self.seconds)
        tracker.record(*what, self.git_commit, **more)


def deliver(root: Path, config: Config, record: Record, ephemeral: bool = False) -> str:
    """Records a step, after whatever waits; or lets it wait too. Returns one line that says so, or nothing.

    A record waits only where MLflow at this very address has answered this folder before (`tracking.outage`); else
    Unreachable is raised, as is UserError for whatever MLflow refuses. An `ephemeral` folder goes with the process:
    nothing waits there, and MLflow is given time whether it has answered or not.
    """
    with _alone(root):
        known = _knows(root)
        try:
            _replay(root)
            record.tell(Tracker(root, config, known or ephemeral))
        except Unreachable as error:
            if ephemeral or not known or config.tracking.outage == "stop":
                raise
            _add(root, config, record)
            return (
                f"not in MLflow yet ({str(error)[:200]}): {len(waiting(root))} in {STATE}/spool, which the next step "
                "or `dualipo replay` records"
            )
        _remember(root)
        return ""


def replay(root: Path) -> int:
    """Records everything that waits in the experiment's folder, in order; returns how many there were.

    Raises UserError where MLflow does not answer, or refuses one: that and all behind it keep waiting.
    """
    with _alone(root):
        done = _replay(root, asked=True)
        if done:
            _remember(root)
        return done


def waiting(root: Path) -> list[Path]:
    """The records that wait, oldest first."""
    return sorted(path.parent for path in (root / STATE / "spool").glob(f"[0-9]*/{_RECORD}"))


def _replay(root: Path, asked: bool = False) -> int:
    """`asked`: a person wants it at today's address, whatever it was."""
    entries = waiting(root)
    for entry in entries:
        content = read_json(entry / _RECORD)
        if content["address"] != _address(root) and not asked:
            raise UserError(
                f"{entry}: this record waits for MLflow at {content['address']}, not {_address(root)}; set "
                "MLFLOW_TRACKING_URI back, or send it there with `dualipo replay`"
            )
        tracker = Tracker(root, parse_config(content["config"], str(entry / _RECORD)))
        if not asked:
            tracker.store.patience = 0  # it was waited for when the first of them was put here
        try:
            _read(root, entry, content).tell(tracker, ended=content["ended"])
        except Unreachable:
            raise
        except UserError as error:
            raise UserError(f"{entry}: {error}") from error
        remove(entry)
    return len(entries)


def _add(root: Path, config: Config, record: Record) -> None:
    entries = waiting(root)
    key = [record.step.name, record.round, config.digest(), record_key(record.inputs, record.outputs)]
    if any(read_json(entry / _RECORD)["key"] == key for entry in entries):
        return
    number = int(entries[-1].name.partition("-")[0]) + 1 if entries else 1
    target = root / STATE / "spool" / f"{number:06}-{record.step.name}-{record.round}"
    for left in target.parent.glob(f".*{PARTIAL}"):
        remove(left)  # of one that was killed here
    with atomic(target) as folder:
        folder.mkdir()
        pictures = {name: Path(picture) for name, picture in record.summary.pictures.items()}
        for place, (name, picture) in enumerate(pictures.items()):
            pictures[name] = Path("pictures") / f"{place}{picture.suffix}"
            _keep(picture, folder / pictures[name])
        content = {
            "key": key,
            "address": _address(root),
            "config": json.loads(config_json(config)),
            "step": record.step.name,
            "round": record.round,
            "prev": record.prev,
            "inputs": _kept(root, folder, "inputs", record.inputs, models=False),
            "outputs": _kept(root, folder, "outputs", record.outputs, models=DECISION not in record.outputs),
            "summary": replace(record.summary, pictures=pictures).packed(),
            "seconds": record.seconds,
            "git_commit": record.git_commit,
            "ended": now(),
        }
        write_json(folder / _RECORD, content)


def _kept(root: Path, folder: Path, side: str, artifacts: Mapping[str, Artifact], models: bool) -> dict[str, Any]:
    """The artifacts as JSON; bytes that recording reads are copied into `folder`. A promote step's models are not: the
    step that made them was recorded before, or waits further ahead."""
    content = {}
    for port, artifact in artifacts.items():
        location = artifact.location.absolute()
        where = location.as_posix()
        if location.is_relative_to(root.absolute()):
            where = artifact.path
        if artifact.kind in KEPT or (models and artifact.is_version):
            where = f"{side}/{port}/{Path(artifact.path).name}"
            _keep(location, folder / where)
        elif artifact.kind == "clips" and side == "outputs":
            _keep_scores(location, folder / f"{side}/{port}")
            where = f"{side}/{port}" if (folder / side / port).is_dir() else where
        found = artifact.digest
        digest = {"md5": found.md5, "size": found.size, "files": found.files}
        content[port] = {"path": artifact.path, "kind": artifact.kind, "location": where, **digest}
    return content


def _keep_scores(clips: Path, target: Path) -> None:
    from dualipo.evaluation.suites import CLIP_SCORES

    if (clips / CLIP_SCORES).is_file():
        _keep(clips / CLIP_SCORES, target / CLIP_SCORES)


def _keep(source: Path, target: Path) -> None:
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(source, target)


def _read(root: Path, entry: Path, content: Mapping[str, Any]) -> Record:
    def artifacts(side: str) -> dict[str, Artifact]:
        found = {}
        for port, one in content[side].items():
            here = entry / one["location"]
            location = here if here.exists() else root / one["location"]
            found[port] = Artifact(one["path"], location, Digest(one["md5"], one["size"], one["files"]), one["kind"])
        return found

    summary = Summary.unpacked(content["summary"])
    summary.pictures = {name: entry / picture for name, picture in summary.pictures.items()}
    told = (content["round"], content["prev"], artifacts("inputs"), artifacts("outputs"), summary)
    return Record(GRAPH[content["step"]], *told, content["seconds"], content["git_commit"])


# ---- where MLflow has answered before


def _address(root: Path) -> str:
    """The tracking address without a password."""
    uri = tracking_uri(root)
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def _knows(root: Path) -> bool:
    known = root / STATE / "tracking.json"
    return known.is_file() and read_json(known)["address"] == _address(root)


def _remember(root: Path) -> None:
    if not _knows(root):
        write_json(root / STATE / "tracking.json", {"address": _address(root)})


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time in this folder: the order of the spool is that of the steps."""
    from filelock import FileLock

    lock = root / STATE / "locks" / "spool.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield
