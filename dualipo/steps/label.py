"""Pseudo-labels: the incumbent critic votes over reasoning paths, sees every pair in both orders, and is filtered."""

from __future__ import annotations

import functools
import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualipo.artifacts import write_json
from dualipo.config import Config, Label
from dualipo.records import DIMENSIONS, Clip, PseudoChoice, PseudoLabel, PseudoRating, write_rows
from dualipo.steps import Job, Summary, derive_seed

if TYPE_CHECKING:
    from dualipo.critic.asking import Vote
    from dualipo.critic.base import Seen
    from dualipo.critic.voting import Kind
    from dualipo.resume import Chunks

PROMPTS_A_CHUNK = 16


def label(config: Config, job: Job, *, candidates: Path, critic: Path, critic_reference: Path, labels: Path) -> Summary:
    """Writes ratings.jsonl, choices.jsonl and summary.json of the candidates.

    A rating is kept where its certainty passes; a choice also needs the same verdict in both orders (IPO 4.3). Our
    reading of the certainty's models: pi is the critic that labels, ref the critic before any human label; Q is the
    mean reward over the answers of one topic and verdict, so that the filter neither compares long answers with short
    ones nor keeps the verdicts alone that training made more likely.
    """
    section = config.label
    rows = chunks(config, job, candidates=candidates, critic=critic, critic_reference=critic_reference)
    # Read three times, never held: there are millions at full scale.
    mean, unreadable = _mean_rewards(rows.stream())
    counted = _Counted()
    write_rows(labels / "ratings.jsonl", counted.each(_labels(rows.stream(), "rating", mean, section)))
    write_rows(labels / "choices.jsonl", counted.each(_labels(rows.stream(), "choice", mean, section)))
    summary = counted.summary(unreadable)
    write_json(labels / "summary.json", summary)
    return Summary(metrics={key: float(value) for key, value in summary.items() if not isinstance(value, dict)})


def chunks(config: Config, job: Job, *, candidates: Path, critic: Path, critic_reference: Path) -> Chunks[list[Clip]]:
    """The questions and their rewards, some prompts' clips at a time; certainties need the rewards of all."""
    from dualipo.critic.base import load_critic
    from dualipo.media.store import ClipStore
    from dualipo.resume import Chunks, chunk_size

    section = config.label
    store = ClipStore(candidates)
    load = functools.cache(load_critic)

    def chunk(index: int, groups: Sequence[list[Clip]]) -> list[dict[str, Any]]:
        judge, reference = load(critic), load(critic_reference)
        clips = [clip for group in groups for clip in group]
        seen: dict[str, Seen] = {}
        seen_before: dict[str, Seen] = {}
        for frames in store.read([clip.id for clip in clips]):
            seen |= judge.see(frames)
            seen_before |= reference.see(frames)
        seed = derive_seed(job.seed, index)
        rows = _judge(judge, seen, groups, section, seed)
        answers = [row for row in rows if row["chosen"] is not None]
        for start in range(0, len(answers), section.batch_size):
            part = answers[start : start + section.batch_size]
            rewards = _rewards(judge, reference, seen, seen_before, part)
            for row, reward in zip(part, rewards, strict=True):
                row["reward"] = reward
        return [{key: value for key, value in row.items() if key != "question"} for row in rows]

    groups = list(store.by_prompt().values())
    return Chunks(job.work, "labelling", groups, chunk_size(groups, PROMPTS_A_CHUNK), chunk)


def _judge(judge: Any, seen: Any, groups: Sequence[list[Clip]], section: Label, seed: int) -> list[dict[str, Any]]:
    """Votes on every clip and on some pairs of each prompt, as plain rows."""
    from dualipo.critic.asking import Asking, ask
    from dualipo.critic.questions import Question

    how = Asking(section.paths, section.temperature, section.max_new_tokens, section.batch_size)
    rows: list[dict[str, Any]] = []
    clips = {clip.id: clip for group in groups for clip in group}
    singles = [Question(dimension, clip.prompt, (clip.id,)) for clip in clips.values() for dimension in DIMENSIONS]
    for vote in ask(judge, singles, seen, how, derive_seed(seed, "ratings")):
        rows.append(_row(vote, clips, vote.verdict, vote.votes))
    pairs = [pair for group in groups for pair in _pairs(group, section.pairs_per_prompt, seed)]
    forward = [Question("overall", clips[a].prompt, (a, b)) for a, b in pairs]
    votes = ask(judge, [*forward, *(q.swapped() for q in forward)], seen, how, derive_seed(seed, "choices"))
    for first, second in zip(votes[: len(forward)], votes[len(forward) :], strict=True):
        rows.append(_pair_row(first, second, clips))
    return rows


def _row(vote: Vote, clips: dict[str, Clip], verdict: str | None, votes: dict[str, int]) -> dict[str, Any]:
    clip = clips[vote.question.clips[0]]
    return {
        "question": vote.question,
        "kind": vote.question.kind,
        "clips": list(vote.question.clips),
        "prompt_id": clip.prompt_id,
        "prompt": clip.prompt,
        "dimension": vote.question.dimension,
        "verdict": verdict,
        "votes": votes,
        # A tied vote has no path that ends in its verdict: there is nothing to learn from it.
        "chosen": vote.chosen if vote.verdict == verdict else None,
        "rejected": vote.rejected,
        "reward": None,
    }


def _pair_row(first: Vote, second: Vote, clips: dict[str, Clip]) -> dict[str, Any]:
    from dualipo.critic.asking import pooled
    from dualipo.critic.voting import reconcile, swap_choice

    verdict, consistent = reconcile(first.verdict, second.verdict)
    row = _row(first, clips, verdict or first.verdict, pooled(first, second))
    backward = swap_choice(second.verdict) if second.verdict else None
    return {**row, "forward": first.verdict, "backward": backward, "consistent": consistent}


def _pairs(group: list[Clip], count: int, seed: int) -> list[tuple[str, str]]:
    """`count` of the prompt's pairs at random, each in a random order."""
    every = list(itertools.combinations([clip.id for clip in group], 2))
    rng = np.random.default_rng(derive_seed(seed, "pairs", group[0].prompt_id))
    chosen = sorted(rng.permutation(len(every))[:count])
    return [every[i] if rng.random() < 0.5 else every[i][::-1] for i in chosen]


def _rewards(judge: Any, reference: Any, seen: Any, seen_before: Any, rows: list[dict[str, Any]]) -> list[float]:
    """R(y|x) = log pi(y|x) - log ref(y|x) of the chosen paths (Dual-IPO eq. 2)."""
    import torch

    from dualipo.critic.certainty import implicit_reward

    questions, answers = [row["question"] for row in rows], [row["chosen"] for row in rows]
    with torch.inference_mode():
        policy = judge.logprobs(questions, seen, answers)
        return implicit_reward(policy, reference.logprobs(questions, seen_before, answers)).tolist()


Topic = tuple[str, str, str]
"""Kind, dimension and verdict: answers whose rewards are comparable."""


def _topic(row: dict[str, Any]) -> Topic:
    return row["kind"], row["dimension"], row["verdict"]


def _mean_rewards(rows: Iterable[dict[str, Any]]) -> tuple[dict[Topic, float], int]:
    """Mean reward of each topic, and how many rows have none."""
    rewards: dict[Topic, array[float]] = {}
    without = 0
    for row in rows:
        if row["reward"] is None:
            without += 1
        else:
            rewards.setdefault(_topic(row), array("d")).append(row["reward"])
    return {topic: float(np.mean(np.array(own))) for topic, own in rewards.items()}, without


def _labels(
    rows: Iterable[dict[str, Any]], kind: Kind, mean: dict[Topic, float], section: Label
) -> Iterator[PseudoLabel]:
    """Labels of one kind; without those that no path ended in."""
    for row in rows:
        if row["kind"] != kind or row["reward"] is None:
            continue
        certainty = _certainty(row["reward"], mean[_topic(row)], section.certainty_beta)
        passed = certainty > section.certainty_threshold or not section.filter_by_certainty
        common = {
            key: row[key] for key in ("prompt_id", "prompt", "dimension", "verdict", "votes", "chosen", "rejected")
        }
        if kind == "rating":
            yield PseudoRating(clip=row["clips"][0], certainty=certainty, kept=passed, **common)
        else:
            kept = passed and row["consistent"]
            turns = {key: row[key] for key in ("forward", "backward", "consistent")}
            clip_a, clip_b = row["clips"]
            yield PseudoChoice(clip_a=clip_a, clip_b=clip_b, certainty=certainty, kept=kept, **turns, **common)


def _certainty(reward: float, mean: float, beta: float) -> float:
    """PCE of a reward (Dual-IPO eq. 3), in float64."""
    import torch

    from dualipo.critic.certainty import certainty

    value = certainty(torch.tensor([reward], dtype=torch.float64), mean, beta).item()
    return min(max(value, 1e-9), 1 - 1e-9)


class _Counted:
    """What summary.json says of the labels, counted while they are written."""

    def __init__(self) -> None:
        self.count, self.kept = Counter[str](), Counter[str]()
        self.consistent = self.unanimous = 0
        self.certainties = array("d")
        self.verdicts: dict[str, Counter[str]] = {name: Counter() for name in (*DIMENSIONS, "overall")}

    def each(self, rows: Iterable[PseudoLabel]) -> Iterator[PseudoLabel]:
        for row in rows:
            kind = "ratings" if isinstance(row, PseudoRating) else "choices"
            self.count[kind] += 1
            self.kept[kind] += row.kept
            self.consistent += isinstance(row, PseudoChoice) and row.consistent
            self.unanimous += row.rejected is None
            self.certainties.append(row.certainty)
            self.verdicts[row.dimension if kind == "ratings" else "overall"][row.verdict] += 1
            yield row

    def summary(self, unreadable: int) -> dict[str, Any]:
        total = sum(self.count.values())
        return {
            "ratings": self.count["ratings"],
            "choices": self.count["choices"],
            "without_majority_path": unreadable,
            "kept_ratings": self.kept["ratings"],
            "kept_choices": self.kept["choices"],
            "kept_share": sum(self.kept.values()) / max(total, 1),
            "order_consistency": self.consistent / max(self.count["choices"], 1),
            "unanimous_share": self.unanimous / max(total, 1),
            "mean_certainty": float(np.mean(np.array(self.certainties))) if total else 0.0,
            "verdicts": {
                name: {word: count / own.total() for word, count in sorted(own.items())}
                for name, own in self.verdicts.items()
            },
        }
