"""What a critic learns from: human seed labels and kept pseudo-labels, with the clips already seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dualipo.critic.base import Critic, Features, Seen
from dualipo.critic.frames import MAX_FRAMES
from dualipo.critic.questions import Answered, Question, human_answers
from dualipo.media.store import ClipStore
from dualipo.media.video import sample_clip
from dualipo.records import PseudoLabel, clips_of, joined, read_labels


@dataclass(frozen=True)
class PathPair:
    """Two reasoning paths of one question: one that ends in the majority verdict, one that ends in another."""

    question: Question
    chosen: str
    rejected: str


@dataclass(frozen=True)
class TrainingSet:
    features: Features
    examples: list[tuple[Question, str]]
    """Questions with the answer to learn, for instruction tuning."""
    pairs: list[PathPair] = field(default_factory=list)


def read_human(folder: Path) -> list[Answered]:
    """Majority answers of a folder of human labels (ratings and choices tables beside clips/)."""
    ratings, choices = read_labels(folder)
    return human_answers(joined(ratings, choices))


def see_files(critic: Critic, folder: Path, files: Sequence[str]) -> dict[str, Seen]:
    """Clips of a folder of mp4 files, seen once each: frames evenly spread over time, whatever the frame rate."""
    return critic.see({file: sample_clip(folder / file, MAX_FRAMES) for file in dict.fromkeys(files)})


def human_set(critic: Critic, folder: Path) -> TrainingSet:
    answered = read_human(folder)
    features = see_files(critic, folder, [clip for item in answered for clip in item.question.clips])
    return TrainingSet(features, [(item.question, item.answer) for item in answered])


def pseudo_set(critic: Critic, candidates: Path, rows: Sequence[PseudoLabel]) -> TrainingSet:
    """Pairs of paths where the vote was split, instruction examples where it was unanimous (our reading of y)."""
    store = ClipStore(candidates)
    examples, pairs = [], []
    for row in rows:
        question = Question(row.dimension, row.prompt, clips_of(row))
        if row.rejected is None:
            examples.append((question, row.chosen))
        else:
            pairs.append(PathPair(question, row.chosen, row.rejected))
    names = dict.fromkeys(
        clip for question in [*(q for q, _ in examples), *(p.question for p in pairs)] for clip in question.clips
    )
    return TrainingSet(critic.see({name: store[name] for name in names}), examples, pairs)
