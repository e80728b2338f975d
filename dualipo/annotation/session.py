"""One session: a folder that says what is asked and holds every answer. It is made once and then only answered.

session.json    how it was asked for, seed, annotators an item, share of golden items, guideline
items.jsonl     the items, golden ones with their answers
answers.jsonl   one line an answer, only ever appended to
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dualipo.annotation.answers import Answer, AnswerLog, read_answers
from dualipo.annotation.assignment import own_order, sides_swapped, upcoming
from dualipo.annotation.guideline import Guideline, read_guideline
from dualipo.annotation.items import CHOICE_DIMENSIONS, KINDS, AnnotationItem, Ask, KeptClip, Place, item_id
from dualipo.annotation.sources import Pool
from dualipo.artifacts import atomic, read_json, write_json
from dualipo.critic.voting import WORDS, swap_choice
from dualipo.errors import UserError
from dualipo.media.store import read_bytes
from dualipo.records import DIMENSIONS, Dimension, read_rows, write_rows
from dualipo.runtime import lock

SETTINGS, ITEMS, ANSWERS = "session.json", "items.jsonl", "answers.jsonl"
WAVE = 20
"""Items a wave: the most wanted are settled before others are begun, and annotators still differ in order."""
RESERVED_SECONDS = 600.0
"""So long an item that is shown to somebody is not given to more people than it needs."""
LONGEST = 2000
"""Characters of a reason."""

Mode = Literal["rate", "pair", "both"]


class Side(BaseModel):
    """One of the two generators of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    reference: str
    """As it was asked for."""
    clips: str
    label: str
    """The registered version, where it is one."""
    md5: str
    """Of the model, or else of the clips."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    request: dict[str, Any]
    """The options that the session was made with."""
    title: str
    seed: int = Field(ge=0)
    annotators: int = Field(ge=1)
    """An item is asked until it has so many."""
    golden_share: float = Field(ge=0, le=0.5)
    reasons: bool
    """Whether a verdict needs a reason."""
    dimensions: tuple[Dimension, ...]
    """Asked of pairs; clips are rated on all three."""
    guideline: Guideline
    study: tuple[Side, Side] | None = None


class Refused(Exception):
    """An answer or a request of the page that does not fit, in words."""


def make_session(folder: Path, settings: Settings, pool: Pool, golden: Pool, mode: Mode, count: int) -> None:
    """Writes a session of at most `count` items of each kind, whole or not at all.

    Clips are read once, so that a missing one is found now and a changed one later. Raises UserError where there is
    nothing to ask, or `folder` holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already there, and no session; choose another folder with --session")
    wanted = {"rating": pool.ratings if mode != "pair" else [], "choice": pool.choices if mode != "rate" else []}
    checks = {"rating": golden.ratings, "choice": golden.choices}
    md5 = _Md5s()
    items: dict[str, AnnotationItem] = {}
    hidden: dict[str, AnnotationItem] = {}
    wave = 0
    for kind in KINDS:
        most = min(count, len(wanted[kind]))
        room = round(most * settings.golden_share / (1 - settings.golden_share)) + 1 if settings.golden_share else 0
        asked: Sequence[str] = DIMENSIONS if kind == "rating" else settings.dimensions
        known = ({d: v for d, v in ask.known.items() if d in asked} for ask in checks[kind])
        for ask, answers in zip(checks[kind], known, strict=True):
            if room and most and answers:
                item = _item(folder, ask, md5, 0, answers)
                room -= item.id not in hidden
                hidden[item.id] = item
        number = 0
        for ask in wanted[kind]:
            if number == count:
                break
            item = _item(folder, ask, md5, wave + number // WAVE)
            if item.id not in items and item.id not in hidden:
                items[item.id] = item
                number += 1
        wave += -(-number // WAVE)
    if not items:
        what = {"pair": "no two clips of one prompt to compare", "rate": "no clip to rate", "both": "nothing to ask"}
        raise UserError(f"{settings.request.get('source', folder)}: {what[mode]}")
    # by id, so that golden items stand anywhere.
    every = sorted([*items.values(), *hidden.values()], key=lambda item: item.id)
    with atomic(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / SETTINGS, settings.model_dump(mode="json"))
        write_rows(temporary / ITEMS, every)


class _Md5s:
    """md5s of clips, each read once."""

    def __init__(self) -> None:
        self._found: dict[Place, str] = {}

    def __call__(self, place: Place) -> str:
        if place not in self._found:
            self._found[place] = hashlib.md5(read_bytes(place.folder, place.file)).hexdigest()
        return self._found[place]


def _item(folder: Path, ask: Ask, md5: _Md5s, wave: int, known: Mapping[str, str] | None = None) -> AnnotationItem:
    kept = tuple(
        KeptClip(folder=os.path.relpath(place.folder, folder), file=place.file, md5=md5(place)) for place in ask.clips
    )
    return AnnotationItem(
        id=item_id(ask.prompt, tuple(clip.md5 for clip in kept)),
        kind=ask.kind, prompt_id=ask.prompt_id, prompt=ask.prompt, clips=kept, wave=wave, known=dict(known or {}),
    )  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """A session as it lies on disk, to be read only."""

    folder: Path
    settings: Settings
    items: dict[str, AnnotationItem]
    answers: list[Answer]

    def dimensions(self, item: AnnotationItem) -> tuple[Dimension, ...]:
        return DIMENSIONS if item.kind == "rating" else self.settings.dimensions


def read_session(folder: Path) -> Recorded:
    """Raises UserError where `folder` holds no whole session."""
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder}: no session of annotation here; make one with `dualipo annotate --clips` or --round")
    try:
        settings = Settings.model_validate(read_json(folder / SETTINGS))
    except ValueError as error:
        raise UserError(f"{folder / SETTINGS}: not what `dualipo annotate` writes ({error})") from None
    items = {item.id: item for item in read_rows(folder / ITEMS, AnnotationItem)}
    answers = read_answers(folder / ANSWERS)
    if foreign := next((answer.item for answer in answers if answer.item not in items), None):
        raise UserError(f"{folder / ANSWERS}: answers item {foreign!r}, which {ITEMS} does not hold")
    return Recorded(folder, settings, items, answers)


@contextlib.contextmanager
def open_session(folder: Path, clock: Callable[[], float] = time.monotonic) -> Iterator[Session]:
    """A session to be answered. Raises UserError where another process has it open."""
    read_session(folder)
    with lock(folder / ".lock", "an annotation session"):
        log = AnswerLog(folder / ANSWERS)
        try:
            yield Session(read_session(folder), log, clock)
        finally:
            log.close()


def annotator_name(name: str) -> str:
    """The name as it is kept: case and white space do not make another person. Raises Refused on an unfit one."""
    kept = " ".join(unicodedata.normalize("NFC", name).casefold().split())
    if not 1 <= len(kept) <= 40 or not all(c.isalnum() or c in " ._-'" for c in kept):
        raise Refused("A name has 1 to 40 letters, digits, spaces, dots or hyphens.")
    return kept


class Session:
    """Gives out items and takes answers, from several threads at once."""

    def __init__(self, recorded: Recorded, log: AnswerLog, clock: Callable[[], float]):
        self.recorded, self.settings, self.items = recorded, recorded.settings, recorded.items
        self._log, self._clock, self._lock = log, clock, threading.Lock()
        self._ordinary = [item for item in self.items.values() if not item.golden]
        self._golden = [item for item in self.items.values() if item.golden]
        self._answers: dict[str, dict[str, Answer]] = {}
        self._done: dict[str, set[str]] = {item.id: set() for item in self._ordinary}
        """Annotators who judged each ordinary item."""
        self._shown: dict[str, tuple[str, float]] = {}
        """The item that each annotator has before them, and since when they were last heard of."""
        self._orders: dict[str, tuple[list[AnnotationItem], list[AnnotationItem]]] = {}
        for answer in recorded.answers:
            self._take(answer)

    def show(self, annotator: str, item: str | None = None) -> dict[str, Any]:
        """What the page shows: the annotator's item before them, or one of theirs to look at again.

        Nothing in it tells a golden item, nor what others said, nor where a clip comes from. `item` is None where
        nothing is left. Raises Refused where the item was never theirs.
        """
        with self._lock:
            name = annotator_name(annotator)
            current = self._current(name)
            mine = self._answers.get(name, {})
            history = list(mine)
            shown = item or current
            if shown is not None and shown != current and shown not in mine:
                raise Refused("That item is not yours.")
            place = history.index(shown) if shown in mine else len(history)
            after = [*history, *([current] if current and current not in mine else [])][place + 1 :]
            return {
                "item": self._view(name, shown) if shown else None,
                "back": history[place - 1] if place else None,
                "forward": after[0] if after else None,
                "number": place + 1,
                "answered": len(history),
                "left": max(len(self._upcoming(name)), int(current is not None)),
            }

    def answer(
        self, annotator: str, item: str, verdicts: Mapping[str, str], reasons: Mapping[str, str], seconds: float
    ) -> None:
        """Writes an answer, in the words of what this annotator was shown; without verdicts the item is skipped.

        An answer to an item that was answered before takes its place. Raises Refused where it does not fit, OSError
        where it can't be written; nothing is kept then.
        """
        with self._lock:
            name = annotator_name(annotator)
            if item != self._current(name) and item not in self._answers.get(name, {}):
                raise Refused("That item is not yours any more; reload the page.")
            asked, swapped = self.items[item], sides_swapped(self.settings.seed, name, self.items[item])
            kept = {key: text.strip() for key, text in reasons.items() if text.strip()}
            if verdicts:
                self._check(asked, verdicts, kept)
            if swapped:
                verdicts = {dimension: swap_choice(verdict) for dimension, verdict in verdicts.items()}
                kept = {swap_choice(side): text for side, text in kept.items()}
            answer = Answer(
                item=item, annotator=name, verdicts=dict(verdicts), reasons=dict(sorted(kept.items())), swapped=swapped,
                seconds=round(min(max(seconds, 0.0), 86400.0), 1), at=datetime.now(UTC).isoformat(timespec="seconds"),
            )  # fmt: skip
            self._log.append(answer)
            self._take(answer)

    def clips(self) -> Iterator[KeptClip]:
        for item in self.items.values():
            yield from item.clips

    def _check(self, item: AnnotationItem, verdicts: Mapping[str, str], reasons: Mapping[str, str]) -> None:
        asked = self.recorded.dimensions(item)
        if set(verdicts) != set(asked):
            raise Refused(f"A verdict is needed on each of {', '.join(asked)}.")
        if wrong := next((word for word in verdicts.values() if word not in WORDS[item.kind]), None):
            raise Refused(f"{wrong!r} is no verdict; one of {', '.join(WORDS[item.kind])} is.")
        boxes = reason_boxes(item, asked)
        if set(reasons) - set(boxes) or any(len(text) > LONGEST for text in reasons.values()):
            raise Refused(f"A reason has at most {LONGEST} characters and stands in a box of its own.")
        if self.settings.reasons and set(boxes) - set(reasons):
            raise Refused("A reason is needed in every box.")

    def _take(self, answer: Answer) -> None:
        self._answers.setdefault(answer.annotator, {})[answer.item] = answer
        if answer.item in self._done:
            (set.discard if answer.skipped else set.add)(self._done[answer.item], answer.annotator)
        if self._shown.get(answer.annotator, ("", 0))[0] == answer.item:
            del self._shown[answer.annotator]

    def _current(self, name: str) -> str | None:
        """The item before this annotator; it stays the same until it is answered, also over a reload."""
        now = self._clock()
        if name not in self._shown:
            free = self._upcoming(name, now)
            # what is only reserved is given all the same, rather than leave it unanswered.
            ahead = free or self._upcoming(name)
            if not ahead:
                return None
            self._shown[name] = (ahead[0].id, now)
        self._shown[name] = (self._shown[name][0], now)
        return self._shown[name][0]

    def _upcoming(self, name: str, now: float | None = None) -> list[AnnotationItem]:
        """As `assignment.upcoming`; with `now` without the items that others are just giving their last answer to."""
        seed = self.settings.seed
        if name not in self._orders:
            self._orders[name] = own_order(seed, name, self._ordinary), own_order(seed, name, self._golden)
        held: dict[str, int] = {}
        if now is not None:
            for other, (item, since) in self._shown.items():
                if other != name and now - since < RESERVED_SECONDS:
                    held[item] = held.get(item, 0) + 1

        def wanted(item: AnnotationItem) -> bool:
            return len(self._done[item.id]) + held.get(item.id, 0) < self.settings.annotators

        seen = self._answers.get(name, {}).keys()
        return upcoming(seed, name, self.settings.golden_share, seen, *self._orders[name], wanted)

    def _view(self, name: str, item_name: str) -> dict[str, Any]:
        item = self.items[item_name]
        swapped = sides_swapped(self.settings.seed, name, item)
        answer = self._answers.get(name, {}).get(item_name)
        turned: dict[str, Any] = {"verdicts": {}, "reasons": {}}
        if answer:
            turned = {"verdicts": answer.verdicts, "reasons": answer.reasons}
            if swapped:
                turned["verdicts"] = {key: swap_choice(word) for key, word in answer.verdicts.items()}
                turned["reasons"] = {swap_choice(side): text for side, text in answer.reasons.items()}
        asked = self.recorded.dimensions(item)
        return {
            "id": item.id,
            "kind": item.kind,
            "prompt": item.prompt,
            "clips": [clip.md5 for clip in (item.clips[::-1] if swapped else item.clips)],
            "questions": list(asked),
            "boxes": reason_boxes(item, asked),
            "skipped": bool(answer and answer.skipped),
            **turned,
        }


def reason_boxes(item: AnnotationItem, dimensions: Sequence[str]) -> list[str]:
    """Where reasons are written: a box a dimension of one clip; a box a clip of two, so that it can change sides."""
    return list(dimensions) if item.kind == "rating" else ["a", "b"]


def requested(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether the session is there already; raises UserError where it was made with other options."""
    if not (folder / SETTINGS).is_file():
        return False
    made = read_session(folder).settings.request
    now = json.loads(json.dumps(dict(request)))
    if different := next((key for key in [*made, *now] if made.get(key) != now.get(key)), None):
        raise UserError(
            f"{folder}: this session was made with {different} {made.get(different)!r}, not {now.get(different)!r}; "
            f"go on with it by `dualipo annotate --session {folder}`, or choose another --session"
        )
    return True


def settings_of(
    request: Mapping[str, Any],
    title: str,
    dimensions: Sequence[str] = CHOICE_DIMENSIONS,
    guideline: Path | None = None,
    study: tuple[Side, Side] | None = None,
) -> Settings:
    """Settings out of the options that they come from."""
    return Settings(
        request=dict(request),
        title=title,
        seed=request["seed"],
        annotators=request["annotators"],
        golden_share=request["golden_share"] if request["golden"] else 0.0,
        reasons=request["reasons"],
        dimensions=tuple(name for name in CHOICE_DIMENSIONS if name in dimensions),
        guideline=read_guideline(guideline) if guideline else read_guideline(),
        study=study,
    )
