"""Turns the judgement of the accepted critic, or of a VideoReward, into preferences for the generator."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualipo.artifacts import write_json
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.records import DIMENSIONS, Clip, ClipScores, Desirability, Preference, write_rows
from dualipo.steps import Job, Summary, derive_seed

if TYPE_CHECKING:
    from dualipo.resume import Chunks

PROMPTS_A_CHUNK = 16


def prefer(
    config: Config, job: Job, *, candidates: Path, critic: Path, reward: Path, preferences: Path, gate: Path
) -> Summary:
    """Writes pairs.jsonl (DPO: each prompt's top-1 and bottom-1, the middle dropped), desirability.jsonl (KTO: Good and
    Normal desirable, Bad not) and summary.json, and the gate's verdict on the pairs.

    `prefer.scorer` says who scores; what lies in that folder says how: a generative critic by its votes, a VideoReward
    by its scores (dualipo/critic/scoring.py). Our reading of KTO's labels: a clip is undesirable where any dimension is
    Bad. With `latent_reward.train` there is dimensions.jsonl too: each clip's score on each dimension.

    Where the experiment has a VideoReward and the critic scores, the summary's `videoreward` says what it makes of the
    clips, with 95 percent intervals over prompts: `score`, the mean of their overall scores, and of the pairs `margin`,
    the winner's score less the loser's, and `agrees`, the share of winners that score higher (equal scores count half).
    `reward` is the scorer's mean score with such an interval, `appearance` what winners look like against losers
    (dualipo/evaluation/appearance.py).

    Raises UserError where a VideoReward is to score and none was trained.
    """
    from dualipo.evaluation.appearance import of_pairs
    from dualipo.evaluation.bootstrap import interval
    from dualipo.media.sheets import side_by_side
    from dualipo.media.store import ClipStore
    from dualipo.quality.gate import preference_gate

    section, store = config.prefer, ClipStore(candidates)
    made = chunks(config, job, candidates=candidates, critic=critic, reward=reward).rows()
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
    if config.latent_reward.train:
        apart = [(item["row"]["clip"], item["dimensions"]) for item in made if "row" in item]
        rows = [ClipScores(clip=clip, **{name: own.get(name) for name in DIMENSIONS}) for clip, own in apart]
        write_rows(preferences / "dimensions.jsonl", rows)
    numbers = {
        "prompts": len(store.by_prompt()),
        "pairs": len(pairs),
        "clips": len(scored),
        "critic_reward": float(np.mean([row.score for row in scored])) if scored else 0.0,
        "desirable_share": float(np.mean([row.desirable for row in scored])) if scored else 0.0,
        "mean_margin": float(np.mean([pair.winner_score - pair.loser_score for pair in pairs])) if pairs else 0.0,
    }
    metrics = {key: float(value) for key, value in numbers.items()}
    scores = [row.score for row in scored]
    looks = {item["pair"][0]["prompt_id"]: item["looks"] for item in made if "pair" in item}
    winners, losers = ({prompt: own[side] for prompt, own in looks.items()} for side in (0, 1))
    summary: dict[str, Any] = {
        **numbers,
        "reward": interval(scores, [row.prompt_id for row in scored], job.seed) if scored else None,
        "appearance": of_pairs(winners, losers),
    }
    if observed := {item["row"]["clip"]: item["observed"] for item in made if "observed" in item}:
        summary["videoreward"] = _observation(scored, pairs, observed, job.seed)
        metrics |= {f"videoreward_{key}": found["mean"] for key, found in summary["videoreward"].items() if found}
    write_json(preferences / "summary.json", summary)
    verdict = preference_gate(gate, pairs, section)
    pictures = {}
    if shown := pairs[:8]:
        sheet = job.work / "pairs.png"
        better, worse = [store[pair.winner] for pair in shown], [store[pair.loser] for pair in shown]
        sheet.write_bytes(side_by_side(better, worse, [pair.prompt for pair in shown], ("winner", "loser")))
        pictures["pairs"] = sheet
    return Summary(metrics={**metrics, "passed": float(verdict.passed)}, pictures=pictures)


def _observation(
    scored: list[Desirability], pairs: list[Preference], observed: dict[str, float], seed: int
) -> dict[str, Any]:
    """What a VideoReward's overall scores, by clip, say of the scored clips and of the pairs; null without pairs."""
    from dualipo.evaluation.bootstrap import interval

    gaps = [observed[pair.winner] - observed[pair.loser] for pair in pairs]
    prompts = [pair.prompt_id for pair in pairs]
    return {
        "score": interval([observed[row.clip] for row in scored], [row.prompt_id for row in scored], seed),
        "margin": interval(gaps, prompts, seed) if pairs else None,
        "agrees": interval([(np.sign(gap) + 1) / 2 for gap in gaps], prompts, seed) if pairs else None,
    }


def chunks(config: Config, job: Job, *, candidates: Path, critic: Path, reward: Path) -> Chunks[list[Clip]]:
    """The scoring, some prompts' clips at a time: rows of scores, with what a VideoReward beside the critic makes of
    the clip, and of pairs."""
    from dualipo.critic.scoring import Reward, load_scorer
    from dualipo.critic.videoreward.model import load_videoreward
    from dualipo.critic.videoreward.settings import is_videoreward
    from dualipo.evaluation.appearance import look
    from dualipo.media.store import ClipStore
    from dualipo.resume import Chunks, chunk_size

    section, store = config.prefer, ClipStore(candidates)
    has_reward = is_videoreward(reward)
    if section.scorer == "videoreward" and not has_reward:
        raise UserError(
            f"{reward}: no VideoReward here to score with; run `dualipo train_reward` with these parameters"
        )
    watching = has_reward and section.scorer == "critic"
    load = functools.cache(lambda: load_scorer(critic if section.scorer == "critic" else reward, config.label, section))
    observer = functools.cache(lambda: Reward(load_videoreward(reward), config.label.batch_size))

    def chunk(index: int, groups: Sequence[list[Clip]]) -> list[dict[str, Any]]:
        scorer = load()
        clips = [clip for group in groups for clip in group]
        seen: dict[str, Any] = {}
        observed: dict[str, float] = {}
        looks: dict[str, Any] = {}
        for frames in store.read([clip.id for clip in clips]):
            seen |= scorer.see(frames)
            looks |= {clip: look(pixels) for clip, pixels in frames.items()}
            if watching:
                observed |= observer().observe([clip for clip in clips if clip.id in frames], frames)
        rated = scorer.rate(clips, seen, derive_seed(job.seed, index, "ratings"))
        rows = [
            Desirability(
                clip=clip.id, prompt_id=clip.prompt_id, prompt=clip.prompt,
                desirable=rated[clip.id].desirable, score=rated[clip.id].score,
            )
            for clip in clips
            if clip.id in rated
        ]  # fmt: skip
        found = [_ends([row for row in rows if row.prompt_id == group[0].prompt_id]) for group in groups]
        ends = [pair for pair in found if pair and pair[0].score - pair[1].score >= section.min_margin]
        if section.confirm and ends:
            shown = [(top.prompt, top.clip, bottom.clip) for top, bottom in ends]
            against = scorer.contradicts(shown, seen, derive_seed(job.seed, index, "pairs"))
            ends = [pair for pair, contradicted in zip(ends, against, strict=True) if not contradicted]
        told: list[dict[str, Any]] = [
            {
                "row": row.model_dump(),
                "dimensions": dict(rated[row.clip].dimensions),
                **({"observed": observed[row.clip]} if watching else {}),
            }
            for row in rows
        ]
        told += [
            {"pair": [row.model_dump() for row in pair], "looks": [looks[row.clip] for row in pair]} for pair in ends
        ]
        return told

    groups = list(store.by_prompt().values())
    return Chunks(job.work, "preferring", groups, chunk_size(groups, PROMPTS_A_CHUNK), chunk)


def _ends(rows: Sequence[Desirability]) -> tuple[Desirability, Desirability] | None:
    """Best and worst of one prompt's scored clips; of equals the first. None where all are equal."""
    if len({row.score for row in rows}) < 2:
        return None
    return max(rows, key=lambda row: row.score), min(rows, key=lambda row: row.score)
