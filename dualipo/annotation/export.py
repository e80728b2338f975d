"""Answers to labels: the folder that `dualipo run --data` reads as seed/ or test/ (docs/data.md)."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dualipo.annotation.answers import Answer
from dualipo.annotation.items import KINDS, AnnotationItem, KeptClip
from dualipo.annotation.session import Recorded
from dualipo.critic.questions import NAMES, human_answers
from dualipo.errors import UserError
from dualipo.formats.base import Item
from dualipo.formats.budget import Budget
from dualipo.formats.importing import Imported, import_items
from dualipo.media.store import locate, read_bytes
from dualipo.records import HumanChoice, HumanLabel, HumanRating

MAJORITY = "majority"
"""Annotator of a settled label."""


@dataclass(frozen=True)
class Wanted:
    """Which answers become labels."""

    partial: bool = False
    """Also items with fewer annotators than the session asks for."""
    golden: bool = False
    """Also golden items."""
    settled: bool = False
    """One row a question, the majority's, instead of one for each annotator."""
    without: tuple[str, ...] = ()
    """Annotators who do not count."""


def export_labels(session: Recorded, dest: Path, wanted: Wanted, add: bool = False, link: bool = False) -> Imported:
    """Writes `dest`: clips/, ratings.jsonl and choices.jsonl, whole or not at all; `add` and `link` as `import_items`.

    Raises UserError where nothing is to be exported, a clip is not what was shown, or the session is a study: its
    prompts are the benchmark's, which no model may learn from.
    """
    if session.settings.study:
        raise UserError(
            f"{session.folder}: a study of benchmark clips, which no model may learn from; "
            "see `dualipo annotate report` for its outcome"
        )
    if unknown := sorted(set(wanted.without) - {answer.annotator for answer in session.answers}):
        raise UserError(f"{session.folder}: {unknown[0]!r} answered nothing here, so there is nothing to leave out")
    answers = _chosen(session, wanted)
    if not answers:
        need = session.settings.annotators
        raise UserError(
            f"{session.folder}: no item has answers of {need} annotators yet; go on labelling, or export with --partial"
        )
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}.") as scratch:
        loose = _Loose(session.folder, Path(scratch))
        items = list(_items(session, answers, wanted.settled, loose))
        return import_items(items, session.folder, dest, Budget(count=0), add=add, link=link)


def _chosen(session: Recorded, wanted: Wanted) -> dict[str, list[Answer]]:
    """Answers of each item that is exported: ratings first, in the order of items and of annotators."""
    order = sorted(session.items.values(), key=lambda item: (KINDS.index(item.kind), item.id))
    found: dict[str, list[Answer]] = {item.id: [] for item in order}
    for answer in sorted(session.answers, key=lambda answer: answer.annotator):
        if not answer.skipped and answer.annotator not in wanted.without:
            found[answer.item].append(answer)
    need = 1 if wanted.partial else session.settings.annotators

    def fits(item: AnnotationItem, count: int) -> bool:
        # golden items are shown to whom they fall to: nobody waits for their number.
        return wanted.golden and count > 0 if item.golden else count >= need

    return {name: own for name, own in found.items() if fits(session.items[name], len(own))}


def _items(session: Recorded, answers: dict[str, list[Answer]], settled: bool, loose: _Loose) -> Iterator[Item]:
    for name, own in answers.items():
        item = session.items[name]
        paths = [loose(clip) for clip in item.clips]
        rows = [row for answer in own for row in answer_rows(session, answer, paths)]
        if settled:
            rows = list(_majority(rows))
        for row in rows:
            yield Item(f"item {name}", (row,))


def answer_rows(session: Recorded, answer: Answer, paths: Sequence[str] = ()) -> Iterator[HumanLabel]:
    """An answer's labels, one a dimension; clips are named by `paths`, or else by their md5."""
    item = session.items[answer.item]
    paths = paths or [clip.md5 for clip in item.clips]
    for dimension in session.dimensions(item):
        common = {"prompt": item.prompt, "annotator": answer.annotator, "dimension": dimension}
        common["verdict"] = answer.verdicts[dimension]
        if item.kind == "rating":
            reason = answer.reasons.get(dimension) or f"Rated on {NAMES[dimension]}."
            yield HumanRating.model_validate({"clip": paths[0], "reason": reason, **common})
        else:
            reason = " ".join(f"{side}: {_sentence(answer.reasons[side])}" for side in "ab" if side in answer.reasons)
            reason = reason or f"Compared on {NAMES[dimension]}."
            yield HumanChoice.model_validate({"clip_a": paths[0], "clip_b": paths[1], "reason": reason, **common})


def _majority(rows: Sequence[HumanLabel]) -> Iterator[HumanLabel]:
    """One row for each question, as `human_answers` settles it: none where nobody gave the settled verdict."""
    for answered in human_answers(rows):
        row = next(row for row in rows if row.dimension == answered.question.dimension)
        yield row.model_copy(update={"annotator": MAJORITY, "verdict": answered.verdict, "reason": answered.reason})


def _sentence(text: str) -> str:
    return text if text[-1] in ".!?" else f"{text}."


class _Loose:
    """Paths of clips as files of their own; what lies packed is written to `scratch`."""

    def __init__(self, session: Path, scratch: Path):
        self.session, self.scratch = session, scratch
        self.found: dict[str, str] = {}

    def __call__(self, clip: KeptClip) -> str:
        if clip.md5 not in self.found:
            place = clip.place(self.session)
            path, offset, size = locate(place.folder, place.file)
            data = read_bytes(place.folder, place.file)
            if hashlib.md5(data).hexdigest() != clip.md5:
                raise UserError(f"{path}: {place.file} is not the clip that people were shown; restore it")
            if (offset, size) != (0, path.stat().st_size):
                path = self.scratch / f"{clip.md5}{Path(place.file).suffix}"
                path.write_bytes(data)
            self.found[clip.md5] = str(path)
        return self.found[clip.md5]
