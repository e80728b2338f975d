"""Which version is champion: an append-only list of moves, of which the aliases are a copy.

An alias or a tag is a register: it can be read and written, and of two writers the later wins unseen. With registers
alone no protocol lets exactly one of two writers win whatever crashes (Herlihy 1991). `create_model_version` is more:
the store hands out the next number of a registered model, under a primary key of name and number, and commits number
and tags in one transaction. So the versions of the registered model `<experiment>-history` are a list that everybody
sees in one order and nobody can write into the middle of. Each is a move. It names the move that its writer had seen
last; where another came in between, it never happened. Every reader comes to the same verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from dualipo.errors import UserError
from dualipo.tracking.store import PREFIX, Store, Unreachable, pages

Kind = Literal["base", "promote", "approve", "override", "keep", "rollback"]
"""`base`: as it came; `promote`: the gates held; `approve`, `override`: a person said so, after the gates held or
failed; `keep`: the incumbent again, after a rejection; `rollback`: back to a champion of before."""
_ATTEMPTS = 8
"""At one move, while others add moves of other models."""


@dataclass(frozen=True)
class Move:
    """One change of champion of the registered model `model`. Versions are numbers."""

    model: str
    kind: Kind
    former: int | None
    to: int
    by: str
    """A step with its round, or a person."""
    reason: str
    at: int
    """Milliseconds since the epoch by the mover's clock: to be read, never compared."""
    evidence: str
    """SHA-256 of the evidence, which the version `to` bears."""
    key: str
    """The same for every attempt at the same move, so that none happens twice."""
    after: int = 0
    """Number of the model's move before this one; 0 for the first."""
    chain: str = ""
    """SHA-256 over that move's chain and everything above."""
    number: int = 0
    """Given by MLflow: the place in the one order of all models' moves."""

    def sealed(self, before: str) -> str:
        """What `chain` has to be, after a move of chain `before`."""
        content = {key: value for key, value in asdict(self).items() if key not in ("chain", "number")}
        return hashlib.sha256((before + canonical(content)).encode()).hexdigest()

    def __str__(self) -> str:
        way = f"v{self.to}" if self.former is None else f"v{self.former} -> v{self.to}"
        return f"{self.model}: {way}, {self.kind}, by {self.by}: {self.reason}"


@dataclass(frozen=True)
class Line:
    """One model's moves that happened, oldest first."""

    model: str
    moves: tuple[Move, ...] = ()

    @property
    def last(self) -> int:
        """Number of the latest move, 0 before the first."""
        return self.moves[-1].number if self.moves else 0

    @property
    def champions(self) -> list[int]:
        """The way back, oldest first: the champion, and which one each rollback from there leads to."""
        line: list[int] = []
        for move in self.moves:
            if not line and move.former is not None:
                line = [move.former]  # champion before moves were kept
            if move.kind == "rollback" and move.to in line:
                del line[len(line) - line[::-1].index(move.to) :]
            elif line[-1:] != [move.to]:
                line.append(move.to)
        return line

    @property
    def champion(self) -> int | None:
        return self.moves[-1].to if self.moves else None

    @property
    def previous(self) -> int | None:
        return self.champions[-2] if len(self.champions) > 1 else None

    def find(self, key: str) -> Move | None:
        return next((move for move in self.moves if move.key == key), None)


class History:
    """The moves of an experiment's models."""

    def __init__(self, store: Store):
        self.store = store
        self.name = f"{store.experiment}-history"

    def moves(self) -> list[Move]:
        """Those that happened, of all models, in order. Raises UserError where one is gone or was changed."""
        if self.store.experiment_id is None:
            return []
        client, query, order = self.store.client, f"name = '{self.name}'", ["version_number ASC"]
        with self.store.errors():
            entries = list(pages(lambda token: client.search_model_versions(query, 1000, order, token)))
        return self._happened(sorted((_move(entry) for entry in entries), key=lambda move: move.number))

    def line(self, model: str) -> Line:
        return Line(model, tuple(move for move in self.moves() if move.model == model))

    def append(self, move: Move, line: Line) -> Move | None:
        """Adds a move after `line`; None where another came first. Two attempts at one move are one."""
        before = line.moves[-1].chain if line.moves else ""
        move = replace(move, after=line.last)
        move = replace(move, chain=move.sealed(before))
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self.store.errors():
                    self._create(move)
            except Unreachable:
                # another took the number, or the answer was lost and it is written: the list tells.
                if attempt == _ATTEMPTS and self.line(move.model).last == line.last:
                    raise
            now = self.line(move.model)
            found = now.find(move.key)
            if found or now.last != line.last:
                return found
        raise UserError(f"{self.name}: MLflow at {self.store.uri} takes no new version; look at its log")

    def _create(self, move: Move) -> None:
        content = {PREFIX + key: "" if value is None else str(value) for key, value in asdict(move).items()}
        del content[f"{PREFIX}number"]
        self.store.create_registered_model(self.name)
        # an address of no artifacts: a move has none.
        source = f"dualipo-move:/{move.model}/{move.to}"
        self.store.client.create_model_version(self.name, source, tags=content, description=str(move)[:1000])

    def _happened(self, moves: Iterable[Move]) -> list[Move]:
        found: list[Move] = []
        chains: dict[str, dict[int, str]] = {}
        for move in moves:
            chain = chains.setdefault(move.model, {0: ""})
            if move.after not in chain or move.sealed(chain[move.after]) != move.chain:
                raise UserError(
                    f"{self.name}/{move.number}: this move of {move.model}, or one before it, was deleted or changed, "
                    "so nobody can tell the champion; bring MLflow's backup back"
                )
            if move.after == max(chain):
                chain[move.number] = move.chain
                found.append(move)
        return found


def canonical(content: Any) -> str:
    """One text for equal contents: what digests are taken of."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _move(entry: Any) -> Move:
    tags = {key.removeprefix(PREFIX): value for key, value in entry.tags.items()}
    try:
        kind: Any = tags["kind"]
        if kind not in get_args(Kind):
            raise ValueError(kind)
        return Move(
            model=tags["model"],
            kind=kind,
            former=int(tags["former"]) if tags["former"] else None,
            to=int(tags["to"]),
            by=tags["by"],
            reason=tags["reason"],
            at=int(tags["at"]),
            evidence=tags["evidence"],
            key=tags["key"],
            after=int(tags["after"]),
            chain=tags["chain"],
            number=int(entry.version),
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{entry.name}/{entry.version}: no move that dualipo wrote ({error}); delete that version, or bring "
            "MLflow's backup back"
        ) from None
