"""What a session has come to: progress, annotators, agreement, and the outcome of a study."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dualipo.annotation.answers import Answer
from dualipo.annotation.export import answer_rows
from dualipo.annotation.session import Recorded
from dualipo.annotation.study import format_study, study_result
from dualipo.critic.questions import human_answers
from dualipo.critic.voting import swap_choice
from dualipo.evaluation.people import agreement_of_people
from dualipo.records import HumanLabel


def session_report(session: Recorded, without: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON-able summary. Golden items count in their annotators' accuracy and nowhere else; the answers of annotators
    in `without` count nowhere but in what is said of themselves."""
    answers = [answer for answer in session.answers if not answer.skipped]
    counted = [a for a in answers if a.annotator not in without and not session.items[a.item].golden]
    judged: Counter[str] = Counter(answer.item for answer in counted)
    rows = [row for answer in counted for row in answer_rows(session, answer)]
    asked = [item for item in session.items.values() if not item.golden]
    return {
        "title": session.settings.title,
        "items": len(asked),
        "settled": sum(judged[item.id] >= session.settings.annotators for item in asked),
        "annotators_an_item": session.settings.annotators,
        "left_out": sorted(without),
        "annotators": {
            name: _annotator(session, [a for a in session.answers if a.annotator == name])
            for name in sorted({answer.annotator for answer in session.answers})
        },
        "verdicts": _verdicts(rows),
        "agreement": agreement_of_people(rows, session.settings.seed),
        **({"study": study_result(session, without)} if session.settings.study else {}),
    }


def _verdicts(rows: Sequence[HumanLabel]) -> dict[str, dict[str, int]]:
    """Settled verdicts of each question, each item's by its majority."""
    found: dict[str, Counter[str]] = {}
    for answered in human_answers(rows):
        found.setdefault(answered.question.topic, Counter())[answered.verdict] += 1
    return {topic: dict(sorted(counts.items())) for topic, counts in sorted(found.items())}


def _annotator(session: Recorded, answers: Sequence[Answer]) -> dict[str, Any]:
    given = [answer for answer in answers if not answer.skipped]
    right = asked = 0
    shown: Counter[str] = Counter()
    for answer in given:
        item = session.items[answer.item]
        hits = [answer.verdicts[dimension] == verdict for dimension, verdict in item.known.items()]
        right, asked = right + sum(hits), asked + len(hits)
        if item.kind == "choice":
            shown.update(swap_choice(word) if answer.swapped else word for word in answer.verdicts.values())
    chosen = shown["a"] + shown["b"]
    return {
        "items": sum(not session.items[answer.item].golden for answer in given),
        "skipped": len(answers) - len(given),
        "golden_verdicts": asked,
        "golden_right": right,
        "golden_accuracy": right / asked if asked else None,
        "seconds": statistics.median(answer.seconds for answer in given) if given else None,
        "left_share": shown["a"] / chosen if chosen else None,
    }


def format_report(report: dict[str, Any]) -> str:
    """Lines for the terminal."""
    need = report["annotators_an_item"]
    lines = [
        f"{report['title']}: {report['settled']} of {report['items']} items have all the annotators they need, {need}"
    ]
    for name, found in report["annotators"].items():
        parts = [f"{found['items']} items", *([f"{found['skipped']} skipped"] if found["skipped"] else [])]
        if found["golden_accuracy"] is not None:
            right = f"{found['golden_right']} of {found['golden_verdicts']}"
            parts.append(f"golden {found['golden_accuracy']:.0%} ({right})")
        if found["seconds"] is not None:
            parts.append(f"{found['seconds']:.0f} s an item")
        if found["left_share"] is not None:
            parts.append(f"left side {found['left_share']:.0%}")
        lines.append(f"  {name}: {', '.join(parts)}{' (left out)' if name in report['left_out'] else ''}")
    for topic, counts in report["verdicts"].items():
        lines.append(f"  {topic}: {', '.join(f'{word} {count}' for word, count in counts.items())}")
    for found in report["agreement"]:
        alpha = "" if found["alpha"] is None else f", Krippendorff's alpha {found['alpha']:.2f} ({found['level']})"
        share = f"{found['mean']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"
        lines.append(f"  {found['question']}: {share} agree with the others on {found['items']} items{alpha}")
    if "study" in report:
        lines.append(format_study(report["study"]))
    return "\n".join(lines)
