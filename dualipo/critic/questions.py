"""What a critic is asked and how it answers: the words between clips and verdicts.

Every question ends in a short chain of thought and a verdict, `<reason> Verdict: <word>`; people's reasons teach the
critic to write its own (Dual-IPO 3.2, CoT-guided annotation).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dualipo.critic.voting import Kind, majority, swap_choice
from dualipo.records import HumanLabel, clips_of

NAMES = {
    "semantic": "semantic consistency",
    "motion": "motion smoothness",
    "faithfulness": "video faithfulness",
    "overall": "overall",
}


@dataclass(frozen=True)
class Question:
    """One clip to rate, or two to compare; `clips` are ids, in the order shown."""

    dimension: str
    prompt: str
    clips: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        return "rating" if len(self.clips) == 1 else "choice"

    @property
    def topic(self) -> str:
        """Questions of one topic are comparable with each other: `rating/motion`, `choice/overall`."""
        return f"{self.kind}/{self.dimension}"

    def swapped(self) -> Question:
        return replace(self, clips=self.clips[::-1])

    def text(self) -> str:
        """The question in words; the clips stand before it."""
        if self.kind == "rating":
            return f"Prompt: {self.prompt}. Rate the {NAMES[self.dimension]}: good, normal or bad?"
        which = "is better overall" if self.dimension == "overall" else f"has better {NAMES[self.dimension]}"
        return f"Prompt: {self.prompt}. Which clip {which}: a, b or tie?"


@dataclass(frozen=True)
class Answered:
    """A question with the answer that people gave, for instruction tuning."""

    question: Question
    verdict: str
    reason: str

    @property
    def answer(self) -> str:
        return answer(self.reason, self.verdict)


def answer(reason: str, verdict: str) -> str:
    return f"{reason.strip()} Verdict: {verdict}"


def human_answers(rows: Iterable[HumanLabel]) -> list[Answered]:
    """One example per item and dimension: the annotators' majority, with the reason of the first who gave it.

    An item whose vote is tied is settled by `majority`; where nobody gave the settled verdict it is left out, since
    there is no reason for it.
    """
    items: dict[Question, list[HumanLabel]] = {}
    for row in rows:
        items.setdefault(Question(row.dimension, row.prompt, clips_of(row)), []).append(row)
    answered = []
    for question, votes in items.items():
        verdict = majority([row.verdict for row in votes], question.kind)
        reason = next((row.reason for row in votes if row.verdict == verdict), None)
        if verdict is not None and reason is not None:
            answered.append(Answered(question, verdict, reason))
    return answered


def swapped_verdict(question: Question, verdict: str) -> str:
    return swap_choice(verdict) if question.kind == "choice" else verdict
