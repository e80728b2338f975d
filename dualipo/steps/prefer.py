"""Turns the accepted critic's judgement into preferences for the generator."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualipo.artifacts import write_json
from dualipo.config import Config
from dualipo.records import Clip, Desirability, Preference, write_rows
from dualipo.steps import Job, Summary, derive_seed

if TYPE_CHECKING:
    from dualipo.resume import Chunks

PROMPTS_A_CHUNK = 16


def prefer(config: Config, job: Job, *, candidates: Path, critic: Path, preferences: Path, gate: Path) -> Summary:
    """Writes pairs.jsonl (DPO: each prompt's top-1 and bottom-1, the middle dropped), desirability.jsonl (KTO: Good and
    Normal desirable, Bad not) and summary.json, and the gate's verdict on the pairs.

    What lies in the critic's folder says how a clip is scored: by a generative critic's votes, or by a VideoReward
    (dualipo/critic/scoring.py). Our reading of KTO's labels: a clip is undesirable where any dimension is Bad.
    """
    from dualipo.media.sheets import side_by_side
    from dualipo.media.store import ClipStore
    from dualipo.quality.gate import preference_gate

    section, store = config.prefer, ClipStore(candidates)
    made = chunks(config, job, candidates=candidates, critic=critic).rows()
    scored = [Desirability.model_validate(item["row"]) for item in made if "row" in item]
    pairs = [
        Preference(
            prompt_id=top["prompt_id"], prompt=top["prompt"], winner=top["clip"], loser=bottom["clip"],
            winner_score=top["score"], loser_score=bottom["score"],
        )
        for top, bottom in (item["pair"] for item in made if "pair" in item)
    ]  # fmt: skip
    write_rows(preferences / "pairs.jsonl", pairs)
    write_rows(preferences / "desirability.jsonl", scored)
    summary = {
        "prompts": len(store.by_prompt()),
        "pairs": len(pairs),
        "clips": len(scored),
        "critic_reward": float(np.mean([row.score for row in scored])) if scored else 0.0,
        "desirable_share": float(np.mean([row.desirable for row in scored])) if scored else 0.0,
        "mean_margin": float(np.mean([pair.winner_score - pair.loser_score for pair in pairs])) if pairs else 0.0,
    }
    write_json(preferences / "summary.json", summary)
    verdict = preference_gate(gate, pairs, section)
    pictures = {}
    if shown := pairs[:8]:
        sheet = job.work / "pairs.png"
        sides = [[store[clip] for clip in ids] for ids in zip(*((p.winner, p.loser) for p in shown), strict=True)]
        sheet.write_bytes(side_by_side(*sides, [pair.prompt for pair in shown], ("winner", "loser")))
        pictures["pairs"] = sheet
    return Summary(
        metrics={**{k: float(v) for k, v in summary.items()}, "passed": float(verdict.passed)}, pictures=pictures
    )


def chunks(config: Config, job: Job, *, candidates: Path, critic: Path) -> Chunks:
    """The scoring, some prompts' clips at a time: rows of scores, and of pairs."""
    from dualipo.critic.scoring import load_scorer
    from dualipo.media.store import ClipStore
    from dualipo.resume import Chunks, chunk_size

    section, store = config.prefer, ClipStore(candidates)
    load = functools.cache(lambda: load_scorer(critic, config.label))

    def chunk(index: int, groups: Sequence[list[Clip]]) -> list[dict[str, Any]]:
        scorer = load()
        clips = [clip for group in groups for clip in group]
        seen: dict[str, Any] = {}
        for frames in store.read([clip.id for clip in clips]):
            seen |= scorer.see(frames)
        rated = scorer.rate(clips, seen, derive_seed(job.seed, index, "ratings"))
        rows = [
            {"clip": clip.id, "prompt_id": clip.prompt_id, "prompt": clip.prompt, **asdict(rated[clip.id])}
            for clip in clips
            if clip.id in rated
        ]
        ends = [_ends([row for row in rows if row["prompt_id"] == group[0].prompt_id]) for group in groups]
        ends = [pair for pair in ends if pair and pair[0]["score"] - pair[1]["score"] >= section.min_margin]
        if section.confirm and ends:
            shown = [(top["prompt"], top["clip"], bottom["clip"]) for top, bottom in ends]
            against = scorer.contradicts(shown, seen, derive_seed(job.seed, index, "pairs"))
            ends = [pair for pair, contradicted in zip(ends, against, strict=True) if not contradicted]
        return [*({"row": row} for row in rows), *({"pair": pair} for pair in ends)]

    groups = list(store.by_prompt().values())
    return Chunks(job.work, "preferring", groups, chunk_size(groups, PROMPTS_A_CHUNK), chunk)


def _ends(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Best and worst of one prompt's scored clips; of equals the first. None where all are equal."""
    if len({row["score"] for row in rows}) < 2:
        return None
    return max(rows, key=lambda row: row["score"]), min(rows, key=lambda row: row["score"])
