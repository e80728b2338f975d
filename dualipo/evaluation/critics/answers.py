"""What a critic answers: every reasoning path's verdict in both orders, or scores of clips."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualipo.artifacts import digest
from dualipo.critic.adapter import read_external
from dualipo.critic.questions import Answered, Question
from dualipo.critic.videoreward.settings import is_videoreward
from dualipo.errors import UserError
from dualipo.evaluation.calibration import Calibration
from dualipo.evaluation.critics.sets import LabelledSet
from dualipo.formats.pairs import DIMENSION_OF
from dualipo.records import DIMENSIONS
from dualipo.steps import derive_seed

Verdict = str | None
"""One reasoning path's verdict; None where it is not readable."""


@dataclass(frozen=True)
class Answer:
    """One question, what people said of it, and what the critic did: `forward` or `scores`."""

    question: Question
    people: str
    forward: tuple[Verdict, ...] = ()
    """Each path's verdict with the clips as the set lists them."""
    backward: tuple[Verdict, ...] = ()
    """Of a pair shown the other way round, in the words of that showing."""
    scores: tuple[float, ...] = ()
    """Of each clip, where the critic gives scores."""

    def as_row(self) -> dict[str, Any]:
        q = self.question
        row = {"dimension": q.dimension, "prompt": q.prompt, "clips": list(q.clips), "people": self.people}
        given = {"forward": self.forward, "backward": self.backward, "scores": self.scores}
        return row | {key: list(value) for key, value in given.items() if value}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Answer:
        question = Question(row["dimension"], row["prompt"], tuple(row["clips"]))
        return cls(question, row["people"], *(tuple(row.get(key, ())) for key in ("forward", "backward", "scores")))


class Judge(ABC):
    """A critic as it is put on record."""

    kind: str
    normalisation: str
    """How answers become the differences and scores that thresholds are held against."""
    calibration: Calibration | None = None
    """Thresholds that the critic brings along."""

    @abstractmethod
    def identity(self) -> str:
        """md5 of what answers."""

    @abstractmethod
    def answer(self, labels: LabelledSet, work: Path) -> list[Answer]:
        """Answers to every question that the critic can be asked. Goes on from what lies in `work`.

        Raises UserError where a clip can't be read or has no score.
        """


class Voter(Judge):
    """A generative critic: `paths` reasoning paths a question, pairs in both orders."""

    kind = "generative"
    normalisation = (
        "of a pair: (votes for a - votes for b) / readable votes, both orders together, in [-1, 1]; 0 without any; "
        "nothing else is normalised"
    )

    def __init__(self, folder: Path, paths: int, temperature: float, max_new_tokens: int, batch_size: int, seed: int):
        from dualipo.critic.asking import Asking
        from dualipo.critic.base import load_critic

        self.folder, self.seed = folder, seed
        self.critic = load_critic(folder)
        self.how = Asking(paths, temperature, max_new_tokens, batch_size)

    def identity(self) -> str:
        return digest(self.folder).md5

    def answer(self, labels: LabelledSet, work: Path) -> list[Answer]:
        from dualipo.resume import Chunks, chunk_size

        groups: dict[str, list[Answered]] = {}
        for item in labels.answered:
            groups.setdefault(item.question.prompt, []).append(item)
        clips = [list({clip for item in own for clip in item.question.clips}) for own in groups.values()]
        items = list(groups.values())
        chunks = Chunks(work, f"answers-{labels.name}", items, chunk_size(clips, 64), self._chunk)
        return [Answer.of(row) for row in chunks.stream()]

    def _chunk(self, index: int, groups: Sequence[list[Answered]]) -> list[dict[str, Any]]:
        from dualipo.critic.asking import sample_paths
        from dualipo.critic.voting import parse_verdict

        answered = [item for group in groups for item in group]
        questions = [item.question for item in answered]
        features = _seen(self.critic, questions)
        pairs = [question for question in questions if question.kind == "choice"]
        found = {}
        for order, asked in (("forward", questions), ("backward", [question.swapped() for question in pairs])):
            own = sample_paths(self.critic, asked, features, self.how, derive_seed(self.seed, index, order))
            found[order] = [
                tuple(parse_verdict(path, question.kind) for path in paths)
                for question, paths in zip(asked, own, strict=True)
            ]
        turned = iter(found["backward"])
        return [
            Answer(
                item.question, item.verdict, forward, next(turned) if item.question.kind == "choice" else ()
            ).as_row()
            for item, forward in zip(answered, found["forward"], strict=True)
        ]


class Rewarding(Judge):
    """A VideoReward: scores, whatever stands beside a clip."""

    kind = "videoreward"
    normalisation = (
        "each dimension's score less the mean, over the deviation, of the held-out seed clips (VideoAlign H.2); "
        "overall is the mean of the dimensions"
    )

    def __init__(self, folder: Path, batch_size: int):
        from dualipo.critic.videoreward.model import load_videoreward

        self.folder, self.batch_size = folder, batch_size
        self.model = load_videoreward(folder)
        self.calibration = self.model.settings.calibration

    def identity(self) -> str:
        return digest(self.folder).md5

    def answer(self, labels: LabelledSet, work: Path) -> list[Answer]:
        from dualipo.resume import CLIPS_A_CHUNK, Chunks

        known = (*self.model.settings.dimensions, "overall")
        asked = list(dict.fromkeys((i.question.prompt, clip) for i in labels.answered for clip in i.question.clips))

        def chunk(index: int, part: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
            seen = self.model.see(_frames([clip for _, clip in part]))
            scores = self.model.scores(part, seen, self.batch_size)
            return [{"prompt": prompt, "clip": clip, "scores": scores[prompt, clip]} for prompt, clip in part]

        rows = Chunks(work, f"answers-{labels.name}", asked, CLIPS_A_CHUNK, chunk).stream()
        return _scored(labels, {(row["prompt"], row["clip"]): row["scores"] for row in rows}, known)


class External(Judge):
    """Scores made elsewhere: a CSV of `clip`, relative to the set's folder, optionally `prompt`, and a column a
    dimension, by our name or VideoAlign's."""

    kind = "external"

    def __init__(self, table: Path):
        self.table = table
        self.normalisation = "none: scores as given"

    def identity(self) -> str:
        return digest(self.table).md5

    def answer(self, labels: LabelledSet, work: Path) -> list[Answer]:
        named = {clip: _relative(clip, labels.folder) for i in labels.answered for clip in i.question.clips}
        asked = [
            replace(item, question=replace(item.question, clips=tuple(named[clip] for clip in item.question.clips)))
            for item in labels.answered
        ]
        names, values = read_external(self.table, asked)
        dimensions = [DIMENSION_OF.get(name, name) for name in names]
        if unknown := [n for n, d in zip(names, dimensions, strict=True) if d not in (*DIMENSIONS, "overall")]:
            known = ", ".join((*DIMENSIONS, "overall", *DIMENSION_OF))
            raise UserError(f"{self.table}: column {unknown[0]} is no dimension; name it one of {known}, or drop it")
        if len(set(dimensions)) != len(dimensions):
            raise UserError(f"{self.table}: two columns for one dimension ({', '.join(names)}); keep one of each")
        found = {key: dict(zip(dimensions, map(float, row), strict=True)) for key, row in values.items()}
        if "overall" not in dimensions and set(DIMENSIONS) <= set(dimensions):
            self.normalisation = (
                "scores as given; overall, which the table lacks, is the mean of the three dimensions, each less its "
                "mean, over its deviation, of the set's own clips"
            )
            _add_overall(found, self.table)
            dimensions.append("overall")
        own = {(prompt, clip): found[prompt, named[clip]] for i in labels.answered
               for prompt, clip in ((i.question.prompt, c) for c in i.question.clips)}  # fmt: skip
        return _scored(labels, own, dimensions)


def _relative(clip: str, folder: Path) -> str:
    return Path(clip).relative_to(folder).as_posix() if Path(clip).is_relative_to(folder) else clip


def _add_overall(scores: Mapping[tuple[str, str], dict[str, float]], table: Path) -> None:
    from dualipo.critic.videoreward.scale import Scale, overall

    values = np.array([[row[name] for name in DIMENSIONS] for row in scores.values()])
    try:
        whole = overall(Scale.of(values).normalise(values))
    except ValueError as error:
        raise UserError(f"{table}: {error}; give a column overall") from None
    for row, value in zip(scores.values(), whole, strict=True):
        row["overall"] = float(value)


def open_judge(critic: Path, paths: int, temperature: float, max_new_tokens: int, batch_size: int, seed: int) -> Judge:
    """Of a critic's folder, or a CSV of scores; raises UserError where it is neither."""
    if critic.is_file():
        if critic.suffix != ".csv":
            raise UserError(f"{critic}: a critic's folder or a .csv of scores is needed")
        return External(critic)
    if is_videoreward(critic):
        return Rewarding(critic, batch_size)
    return Voter(critic, paths, temperature, max_new_tokens, batch_size, seed)


def _frames(clips: Sequence[str]) -> dict[str, Any]:
    from dualipo.critic.frames import MAX_FRAMES
    from dualipo.media.video import sample_clip

    return {clip: sample_clip(clip, MAX_FRAMES) for clip in dict.fromkeys(clips)}


def _seen(critic: Any, questions: Sequence[Question]) -> Any:
    return critic.see(_frames([clip for question in questions for clip in question.clips]))


def _scored(
    labels: LabelledSet, scores: Mapping[tuple[str, str], Mapping[str, float]], known: Sequence[str]
) -> list[Answer]:
    return [
        Answer(q, item.verdict, scores=tuple(scores[q.prompt, clip][q.dimension] for clip in q.clips))
        for item in labels.answered
        if (q := item.question).dimension in known
    ]
