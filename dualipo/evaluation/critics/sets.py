"""Sets that a critic is held against: our own human test set, and the layouts of public benchmarks of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dualipo.critic.questions import Answered, Question, human_answers
from dualipo.errors import UserError
from dualipo.formats.base import Broken, Found, open_table
from dualipo.formats.budget import Budget
from dualipo.formats.pairs import genai_bench, videogen_rewardbench
from dualipo.records import HumanChoice, joined, read_labels

LAYOUTS: dict[str, Callable[[Path, Path | None], Found]] = {
    "videogen_rewardbench": videogen_rewardbench,
    "genai_bench": genai_bench,
}
OWN = "own"
KINDS = (OWN, *LAYOUTS)


@dataclass(frozen=True)
class LabelledSet:
    """Questions with people's answers; their clips are absolute paths."""

    name: str
    source: Path
    """The folder or table that was read."""
    folder: Path
    """What an external model's table of scores names clips relative to."""
    answered: tuple[Answered, ...]
    annotators: tuple[str, ...]
    skipped: tuple[Broken, ...] = ()
    asked_prompts: int | None = None
    """Prompts that were picked of the set; None for all of it."""


def read_set(kind: str, source: Path, clips: Path | None, budget: Budget, prompts: int | None) -> LabelledSet:
    """One set. `kind` is one of KINDS; `clips` the folder that a layout's clips are relative to, where it is not the
    table's own; `prompts` keeps that many, evenly spread over the set's order.

    Raises UserError where the source is malformed, more items are broken than `budget` allows, or nothing is left.
    """
    found = _own(source) if kind == OWN else _layout(kind, source, clips, budget)
    every = list(dict.fromkeys(item.question.prompt for item in found.answered))
    if not every:
        raise UserError(f"{source}: no question with an answer to hold a critic against; give labels")
    if prompts is None or prompts >= len(every):
        return found
    kept = {every[k * len(every) // prompts] for k in range(prompts)}
    answered = tuple(item for item in found.answered if item.question.prompt in kept)
    return LabelledSet(found.name, found.source, found.folder, answered, found.annotators, found.skipped, prompts)


def _own(source: Path) -> LabelledSet:
    ratings, choices = read_labels(source)
    answered = [
        Answered(
            Question(i.question.dimension, i.question.prompt, tuple(str(source / clip) for clip in i.question.clips)),
            i.verdict,
            i.reason,
        )
        for i in human_answers(joined(ratings, choices))
    ]
    for clip in dict.fromkeys(clip for item in answered for clip in item.question.clips):
        if not Path(clip).is_file():
            raise UserError(f"{clip}: no such clip; replace it or drop its rows")
    annotators = tuple(sorted({row.annotator for row in joined(ratings, choices)}))
    return LabelledSet(OWN, source, source, tuple(answered), annotators)


def _layout(kind: str, source: Path, clips: Path | None, budget: Budget) -> LabelledSet:
    rows: list[HumanChoice] = []
    broken: list[Broken] = []
    total = 0
    for item in LAYOUTS[kind](source, clips):
        total += 1
        if isinstance(item, Broken):
            broken.append(item)
        elif missing := [clip for clip in item.clips if not Path(clip).is_file()]:
            broken.append(Broken(item.where, f"{missing[0]}: no such clip"))
        else:
            rows += [row for row in item.rows if isinstance(row, HumanChoice)]
    if len(broken) > budget.of(total):
        first = f"first {broken[0].where}: {broken[0].why}"
        raise UserError(
            f"{source}: {len(broken)} of {total} items are broken, {first}; mend them, or allow more with --max-broken"
        )
    annotators = tuple(sorted({row.annotator for row in rows}))
    table = open_table(source)
    return LabelledSet(kind, table, clips or table.parent, tuple(human_answers(rows)), annotators, tuple(broken))
