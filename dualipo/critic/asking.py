"""Asking a critic: many questions, several reasoning paths each, one vote (self-consistency, Dual-IPO 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dualipo.critic.base import Critic, Features
from dualipo.critic.questions import Question
from dualipo.critic.voting import WORDS, majority, parse_verdict, swap_choice, tally
from dualipo.steps import derive_seed


@dataclass(frozen=True)
class Vote:
    """What the paths of one question came to, as the clips were shown."""

    question: Question
    votes: dict[str, int]
    verdict: str | None
    """Majority verdict; None where no path gave a readable one."""
    chosen: str | None
    """The first path that ends in the majority verdict; None where a tied vote was settled by a verdict nobody gave."""
    rejected: str | None
    """The first path that ends in another verdict; None where the vote was unanimous."""

    @property
    def turned(self) -> dict[str, int]:
        """The votes as if the clips had been shown the other way round."""
        return {swap_choice(word) if word in WORDS["choice"] else word: count for word, count in self.votes.items()}


@dataclass(frozen=True)
class Asking:
    """How questions are asked."""

    paths: int
    temperature: float
    max_new_tokens: int
    batch_size: int


def ask(critic: Critic, questions: Sequence[Question], features: Features, how: Asking, seed: int) -> list[Vote]:
    """One vote per question, in order."""
    paths = sample_paths(critic, questions, features, how, seed)
    return [count_votes(question, texts) for question, texts in zip(questions, paths, strict=True)]


def sample_paths(
    critic: Critic, questions: Sequence[Question], features: Features, how: Asking, seed: int
) -> list[list[str]]:
    """Paths of each question, in order. Questions of one topic share batches, since their lengths are alike."""
    order = sorted(range(len(questions)), key=lambda i: questions[i].topic)
    found: dict[int, list[str]] = {}
    for number, start in enumerate(range(0, len(order), how.batch_size)):
        rows = order[start : start + how.batch_size]
        batch = [questions[i] for i in rows]
        paths = critic.paths(batch, features, how.paths, how.temperature, how.max_new_tokens, derive_seed(seed, number))
        found.update(zip(rows, paths, strict=True))
    return [found[i] for i in range(len(questions))]


def count_votes(question: Question, paths: Sequence[str]) -> Vote:
    verdicts = [parse_verdict(path, question.kind) for path in paths]
    winner = majority(verdicts, question.kind)
    readable = [(path, verdict) for path, verdict in zip(paths, verdicts, strict=True) if verdict is not None]
    return Vote(
        question,
        tally(verdicts, WORDS[question.kind]),
        winner,
        next((path for path, verdict in readable if verdict == winner), None),
        next((path for path, verdict in readable if verdict != winner), None),
    )


def pooled(forward: Vote, backward: Vote) -> dict[str, int]:
    """Votes of both orders of a pair together, speaking of the clips as `forward` shows them."""
    turned = backward.turned
    return {word: count + turned.get(word, 0) for word, count in forward.votes.items()}
