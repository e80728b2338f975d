"""What people do with an experiment's champions: promote, roll back, look back. Steps too go through Registry.crown."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from dualipo.errors import UserError
from dualipo.tracking.entries import MODELS, Version
from dualipo.tracking.evidence import Evidence, read
from dualipo.tracking.history import Kind, Line, Move
from dualipo.tracking.registry import AWAITING, CHAMPION, PREVIOUS
from dualipo.tracking.tracker import Tracker

_REFUSED = ("rejected", "rolled back")


@dataclass(frozen=True)
class Intent:
    """A move that is allowed and has not been made; `line` is what its maker looked at."""

    version: Version
    kind: Kind
    by: str
    reason: str
    evidence: Evidence
    line: Line

    def __str__(self) -> str:
        before = f"now v{self.line.champion}" if self.line.moves else "none now"
        held = f"evidence {self.evidence.digest[:12]}, MLflow's copy is what was registered"
        return f"champion of {self.version.name}: v{self.version.number}, {before}; {self.kind}, {held}"


def promote(
    tracker: Tracker,
    reference: str,
    by: str,
    reason: str = "",
    approve: bool = False,
    override: bool = False,
    dry_run: bool = False,
) -> Intent | Move:
    """Makes the version meant by `reference` the champion of its model; with `dry_run` only says what would happen.

    `approve` is a person's word where `promotion.require_approval` asks for one, `override` where gates or a person
    said no before; both need a reason. Raises UserError, one sentence, where the version may not be promoted, or where
    another promoter came first.
    """
    version = tracker.resolve(reference)
    _own(tracker, version)
    line = tracker.registry.history.line(version.name)
    held = read(version)
    if line.champion == version.number:
        raise UserError(f"{version.label}: it is the champion already")
    status = version.tags.get("status", "")
    never = all(move.to != version.number for move in line.moves)
    refused = status in _REFUSED or (never and not held.promoted)
    if refused and not override:
        why = version.tags.get("reason") or "; ".join(held.content["decision"]["reasons"])
        raise UserError(
            f"{version.label}: it was {status if status in _REFUSED else 'rejected'} ({why[:300]}); only a person can "
            "promote it: --override --by WHO --reason WHY"
        )
    asked = tracker.config.promotion.require_approval or status == AWAITING
    if asked and not (approve or override):
        raise UserError(f"{version.label}: it awaits a person's approval; add --approve --by WHO --reason WHY")
    if (approve or override) and not reason.strip():
        raise UserError(f"{version.label}: say why it is promoted: --reason WHY")
    kind: Kind = "override" if refused else "approve" if approve else "promote"
    reason = reason.strip() or "; ".join(held.content["decision"]["reasons"]) or "no reason given"
    return _move(tracker, Intent(version, kind, by, reason, held, line), dry_run)


def rollback(tracker: Tracker, model: str, by: str, reason: str, dry_run: bool = False) -> Intent | Move:
    """Makes the champion before the present one champion again; repeated, it walks further back.

    `model` is critic, generator or reward. Raises UserError where there is none before, and as `promote`.
    """
    if not reason.strip():
        raise UserError(f"rollback {model}: say why: --reason WHY")
    line = tracker.registry.history.line(tracker.model_name(model))
    if line.previous is None:
        now = f"v{line.champion} is its first champion" if line.moves else "it has had no champion"
        raise UserError(f"{line.model}: there is nothing to roll back to, {now}")
    version = next((v for v in tracker.versions(line.model) if v.number == line.previous), None)
    if version is None:
        raise UserError(f"{line.model}/{line.previous}: deleted from MLflow; promote another version instead")
    return _move(tracker, Intent(version, "rollback", by, reason.strip(), read(version), line), dry_run)


def _move(tracker: Tracker, intent: Intent, dry_run: bool) -> Intent | Move:
    registry, version = tracker.registry, intent.version
    if dry_run:
        registry.vouch(version)
        return intent
    told = (intent.by, intent.reason, uuid.uuid4().hex)
    with tracker.store.writing():
        if intent.kind == "rollback":
            made = registry.restore(version, *told, expected=intent.line.last)
        else:
            made = registry.crown(version, intent.kind, *told, intent.evidence, intent.line.last)
    assert made, "whoever is champion already was told so, or was outrun"
    return made


def _own(tracker: Tracker, version: Version) -> None:
    known = [tracker.model_name(kind) for kind in MODELS]
    if version.name not in known:
        raise UserError(
            f"{version.label}: no model of experiment {tracker.config.experiment.name!r} ({', '.join(known)}); name "
            "its experiment with -S experiment.name=NAME"
        )


def history(tracker: Tracker, model: str | None = None) -> Iterator[str]:
    """A line a move, oldest first, then what is unusual: aliases that do not follow, versions that await approval."""
    kinds = [model] if model else MODELS
    names = {tracker.model_name(kind): kind for kind in kinds}
    versions = {name: {v.number: v for v in tracker.versions(name)} for name in names}
    moves = [move for move in tracker.registry.history.moves() if move.model in names]
    for move in moves:
        yield _line(move, versions[move.model].get(move.to))
    for name, known in versions.items():
        line = Line(name, tuple(move for move in moves if move.model == name))
        for alias, number in ((CHAMPION, line.champion), (PREVIOUS, line.previous)):
            holder = next((v.number for v in known.values() if alias in v.aliases), None)
            if holder is not None and not line.moves:
                yield f"{name}: alias {alias} is at v{holder}, set before moves were kept"
            elif holder != number:
                told = "no version" if holder is None else f"v{holder}"
                wanted = "none" if number is None else f"v{number}"
                yield (
                    f"{name}: alias {alias} is at {told}, by the moves it should be {wanted}; the next promotion or "
                    "rollback mends it"
                )
        for version in known.values():
            if version.tags.get("status") == AWAITING:
                how = f"dualipo promote {version.label} --approve --by WHO --reason WHY"
                yield f"{version.label}: awaits approval; {how}"


def _line(move: Move, version: Version | None) -> str:
    when = datetime.fromtimestamp(move.at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    way = f"v{move.to}" if move.former is None else f"v{move.former} -> v{move.to}"
    note = ""
    try:
        if version is None:
            note = ", version deleted"
        else:
            read(version, move.evidence)
    except UserError:
        note = ", evidence missing or changed"
    return (
        f"{move.number:4}  {when}  {move.model}  {way:10}  {move.kind:8}  evidence {move.evidence[:12]}{note}  "
        f"{move.by}: {move.reason}"
    )
