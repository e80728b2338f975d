"""Gathers a run's folder into one plain dict: numbers, decisions, curves, hashes and a few clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualipo import __version__
from dualipo.artifacts import INDEX, Digest, digest, read_json
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.evaluation.paired import paired_total
from dualipo.media.store import MANIFEST, ClipStore
from dualipo.quality.evidence import Course, Decision, Settlement, Verdict
from dualipo.records import (
    CHOICES,
    RATINGS,
    Clip,
    Desirability,
    Preference,
    Prompt,
    PseudoChoice,
    PseudoLabel,
    PseudoRating,
    Record,
    joined,
    read_rows,
)
from dualipo.report.clips import embedded
from dualipo.report.formats import (
    Agreement,
    Baselines,
    ClipScores,
    PreferenceSummary,
    Scores,
    read_as,
    read_curves,
)
from dualipo.steps import BASE, steps_of

GATES = ("label_gate", "critic_gate", "preference_gate")
LINEAGE = {
    "reward": (),
    "prompts.jsonl": ("prompt space",),
    "candidates": ("prompts.jsonl", "{prev}/generator"),
    "labels": ("candidates", "{prev}/critic"),
    "accepted_critic": ("labels", "human seed labels", "{prev}/critic"),
    "preferences": ("candidates", "accepted_critic"),
    "generator": ("preferences", "real clips", "{prev}/generator"),
    "critic": ("accepted_critic", "{prev}/critic"),
    "benchmark_clips": ("generator_candidate", "benchmark"),
}
"""Artifacts of a round that bear a hash, and what each was made from."""
SCORERS = {"critic": "the critic", "videoreward": "VideoReward"}
"""Who scores the preferences, in words."""
BINS = 20
MAX_PAIRS = 12
SHOWN_SIZE = 192
"""Pixels that a small clip's longer side is enlarged to."""


def collect(config: Config, runs: Path) -> dict[str, Any]:
    """Everything the page shows, as plain values (clips as base64 mp4). A run that stopped half-way is fine.

    Raises UserError where the base model was not measured yet, or a file is malformed.
    """
    if not (runs / BASE / "scores.json").is_file():
        raise UserError(f"{runs / BASE}: scores.json is missing; a report needs at least the base model's measurements")
    observer = config.train_reward.enabled
    rounds = [_round(runs, BASE, None, observer)]
    if rounds[0]["scores"]["total"] is None:
        raise UserError(
            f"{runs / BASE / 'scores.json'}: the total is null; measure the base model again, in every dimension"
        )
    not_run: dict[str, dict[str, Any]] = {}
    for name, entry in config.rounds.items():
        ended = read_as(runs / entry.prev / "course.json", Course)
        if ended and ended["stop"]:
            not_run[name] = ended
        else:
            rounds.append(_round(runs, name, entry.prev, observer))
    _mark_carried(rounds)
    by_name = {entry["name"]: entry for entry in rounds}
    final, shown = _final(rounds, by_name)
    baselines = read_as(runs / BASE / "baselines.json", Baselines) or Baselines().model_dump()
    return {
        "version": __version__,
        "experiment": config.experiment.name,
        "seed": config.experiment.seed,
        "loss": config.align.loss,
        "critic_algorithm": config.train_critic.algorithm,
        "scorer": SCORERS[config.prefer.scorer],
        "baselines": baselines,
        "config_md5": config.digest(),
        "suite": rounds[0]["scores"]["suite"],
        "min_agreement": config.check_critic.min_agreement,
        "certainty_threshold": config.label.certainty_threshold if config.label.filter_by_certainty else None,
        "rounds": rounds,
        "not_run": not_run,
        "stops": config.settle.stop,
        "rolls_back": config.settle.roll_back_critic,
        "final": final,
        "final_clips": shown,
        "gain": _gain(runs, shown, config.evaluate.bootstrap),
        "clips": _clips(runs, shown),
        "warnings": _warnings(rounds) + _observed_warnings(rounds, baselines),
    }


def _round(runs: Path, name: str, prev: str | None, observer: bool) -> dict[str, Any]:
    folder = runs / name
    done, missing = _progress(runs, name, prev)
    return {
        "name": name,
        "prev": prev,
        "done": done,
        "missing": missing,
        "finished": missing is None,
        "prompts": _count(folder / "prompts.jsonl", Prompt),
        "candidates": _count(folder / "candidates" / MANIFEST, Clip),
        "scores": read_as(folder / "scores.json", Scores),
        "candidate_scores": read_as(folder / "generator_candidate_scores.json", Scores),
        "agreement": read_as(folder / "agreement.json", Agreement),
        "candidate_agreement": read_as(folder / "critic_candidate_agreement.json", Agreement),
        "critic_decision": read_as(folder / "critic_decision.json", Decision),
        "generator_decision": read_as(folder / "generator_decision.json", Decision),
        "settlement": read_as(folder / "settlement.json", Settlement) if prev else None,
        "gates": {gate: read_as(folder / gate / "verdict.json", Verdict) for gate in GATES} if prev else {},
        "labels": _labels(folder / "labels"),
        "preferences": _preferences(folder / "preferences"),
        "align_curves": read_curves(folder / "align_curves.csv"),
        "critic_curves": read_curves(folder / "critic_curves.csv"),
        "lineage": _lineage(runs, name, prev, observer),
    }


def _progress(runs: Path, name: str, prev: str | None) -> tuple[str | None, str | None]:
    """Names of the last step whose outputs all exist and of the first one whose do not; None for none."""
    done, index = None, _index(runs)
    for step in steps_of("round" if prev else "base"):
        outputs = (port.bind("", name, prev or BASE) for port in step.outputs.values())
        if not all(output in index or (runs / Path(output).relative_to("runs")).exists() for output in outputs):
            return done, step.name
        done = step.name
    return done, None


def _count(path: Path, kind: type[Record]) -> int | None:
    return len(read_rows(path, kind)) if path.is_file() else None


def _labels(folder: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    ratings = read_rows(folder / "ratings.jsonl", PseudoRating, allow_empty=True)
    choices = read_rows(folder / "choices.jsonl", PseudoChoice, allow_empty=True)
    shares = {}
    for kind, rows, verdicts in (("rating", ratings, RATINGS), ("choice", choices, CHOICES)):
        for dimension in dict.fromkeys(row.dimension for row in rows):
            here = [row for row in rows if row.dimension == dimension]
            kept = [row for row in here if row.kept]
            shares[f"{kind}: {dimension}"] = {
                "kind": kind,
                "dimension": dimension,
                "asked": {"count": len(here), "shares": _shares([row.verdict for row in here], verdicts)},
                "kept": {"count": len(kept), "shares": _shares([row.verdict for row in kept], verdicts)},
            }
    votes: Counter[str] = Counter()
    for row in joined(ratings, choices):
        votes.update(row.votes)
    return {
        "ratings": _kept(ratings),
        "choices": _kept(choices),
        "ties": _share(row.verdict == "tie" for row in choices),
        "consistent": _share(row.consistent for row in choices),
        "unreadable": votes["invalid"] / votes.total() if votes.total() else None,
        "verdicts": shares,
        "certainty": {"ratings": _histogram(ratings), "choices": _histogram(choices)},
    }


def _kept(rows: Sequence[PseudoLabel]) -> dict[str, Any]:
    return {"count": len(rows), "kept": sum(row.kept for row in rows), "share": _share(row.kept for row in rows)}


def _share(flags: Iterable[bool]) -> float | None:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else None


def _shares(verdicts: list[str], names: tuple[str, ...]) -> dict[str, float]:
    counts = Counter(verdicts)
    return {name: counts[name] / len(verdicts) if verdicts else 0.0 for name in names}


def _histogram(rows: Sequence[PseudoLabel]) -> dict[str, list[int]]:
    """Counts of certainty over BINS equal bins of [0, 1], of kept and of dropped labels."""
    edges = np.linspace(0, 1, BINS + 1)
    return {
        name: np.histogram([row.certainty for row in rows if row.kept == kept], edges)[0].tolist()
        for name, kept in (("kept", True), ("dropped", False))
    }


def _preferences(folder: Path) -> dict[str, Any] | None:
    if not folder.is_dir():
        return None
    pairs = read_rows(folder / "pairs.jsonl", Preference, allow_empty=True)
    table = folder / "desirability.jsonl"
    clips = read_rows(table, Desirability, allow_empty=True) if table.is_file() else []
    return {
        "pairs": len(pairs),
        "margin": float(np.mean([row.winner_score - row.loser_score for row in pairs])) if pairs else None,
        "clips": len(clips),
        "desirable": _share(row.desirable for row in clips),
        "reward": float(np.mean([row.score for row in clips])) if clips else None,
        **(read_as(folder / "summary.json", PreferenceSummary) or PreferenceSummary().model_dump()),
    }


def _index(runs: Path) -> dict[str, Digest]:
    """What a pipeline says of its artifacts, large ones that it left out of the folder among them; else nothing."""
    entries = read_json(runs / INDEX) if (runs / INDEX).is_file() else {}
    return {path: Digest(entry["md5"], entry["size"], entry["files"]) for path, entry in entries.items()}


def _lineage(runs: Path, round_name: str, prev: str | None, observer: bool) -> list[dict[str, Any]]:
    """`observer` says whether the experiment has a VideoReward; its folder stands there without one too."""
    rows, index = [], _index(runs)
    for name, sources in LINEAGE.items():
        if name == "reward" and not observer:
            continue
        path = runs / round_name / name
        found = index.get(f"runs/{round_name}/{name}") or (digest(path) if path.exists() else None)
        if found:
            made_from = [source.format(prev=prev) for source in sources if prev]
            made_from += ["base/reward"] if name == "preferences" and observer else []
            rows.append({"artifact": name, "md5": found.md5, "size": found.size, "files": found.files})
            rows[-1] |= {"made_from": made_from or ["data folder"], "same_as": None}
    return rows


def _mark_carried(rounds: list[dict[str, Any]]) -> None:
    """Names, for each artifact, the earliest round that holds the very same bytes."""
    seen: dict[tuple[str, str], str] = {}
    for entry in rounds:
        for row in entry["lineage"]:
            first = seen.setdefault((row["artifact"], row["md5"]), entry["name"])
            row["same_as"] = first if first != entry["name"] else None


def _final(rounds: list[dict[str, Any]], by_name: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The last round with a champion, and the round whose benchmark clips are that champion's."""
    final = [entry["name"] for entry in rounds if entry["scores"] and entry["scores"]["total"]][-1]
    name = final
    while name != BASE and not (by_name[name]["generator_decision"] or {}).get("promoted"):
        name = by_name[name]["prev"]
    return final, name


def _clip_scores(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "scores.jsonl"
    rows = read_rows(path, ClipScores) if path.is_file() else []
    return {row.clip: row.model_dump() for row in rows}


def _gain(runs: Path, final: str, resamples: int) -> dict[str, Any] | None:
    """Final minus base, paired by prompt: mean and 95 percent percentile bootstrap interval over prompts, in points."""
    if final == BASE:
        return None
    before, after = read_json(runs / BASE / "scores.json"), read_json(runs / final / "scores.json")
    found = paired_total(before, after, 0, resamples)
    return found and {**found, "prompts": before["prompts"]}


def pick_pairs(base: ClipStore, final: ClipStore, limit: int = MAX_PAIRS) -> list[tuple[Clip, Clip]]:
    """Clips of the same prompt and seed, at most `limit`, spread evenly over the benchmark's order of prompts."""
    others = {(clip.prompt_id, clip.seed): clip for clip in reversed(final.clips)}
    firsts = []
    for clips in base.by_prompt().values():
        match = next((clip for clip in clips if (clip.prompt_id, clip.seed) in others), None)
        if match:
            firsts.append((match, others[match.prompt_id, match.seed]))
    picked = np.linspace(0, len(firsts) - 1, min(limit, len(firsts))).round().astype(int)
    return [firsts[index] for index in picked]


def _clips(runs: Path, final: str) -> dict[str, Any]:
    folders = {"base": runs / BASE / "benchmark_clips", "final": runs / final / "benchmark_clips"}
    if not all((folder / MANIFEST).is_file() for folder in folders.values()):
        return {"benchmark_prompts": 0, "pairs": []}
    stores = {side: ClipStore(folder) for side, folder in folders.items()}
    scores = {side: _clip_scores(folder) for side, folder in folders.items()}
    pairs = []
    for base, last in pick_pairs(stores["base"], stores["final"]):
        pair: dict[str, Any] = {"prompt": base.prompt, "prompt_id": base.prompt_id, "seed": base.seed}
        for side, clip in (("base", base), ("final", last)):
            pair[side] = {"clip": clip.id, **_video(stores[side][clip.id]), "scores": scores[side].get(clip.id)}
        pairs.append(pair)
    return {"benchmark_prompts": len(stores["base"].by_prompt()), "pairs": pairs}


def _video(frames: np.ndarray) -> dict[str, Any]:
    return embedded(frames, scale=max(1, SHOWN_SIZE // max(frames.shape[1:3])))


def _warnings(rounds: list[dict[str, Any]]) -> list[str]:
    """Known failures that the numbers show, one sentence each."""
    found = []
    for entry in rounds:
        curves = entry["align_curves"] or {}
        if _rises(curves.get("error_winner", [])) and _rises(curves.get("error_loser", [])):
            found.append(
                f"Round {entry['name']}: the denoising errors of winners and losers both rise during alignment, "
                "the classic failure of preference training; lower the learning rate or raise lambda_winner."
            )
        found += [f"Round {entry['name']}: {sign}" for sign in (entry["settlement"] or {"watch": []})["watch"]]
    return found


def _observed_warnings(rounds: list[dict[str, Any]], baselines: dict[str, Any]) -> list[str]:
    """Where a VideoReward, which learnt from people alone, parts from the critic by more than its interval. One that
    does not tell people's winners better than a coin has no say."""
    found, before = [], None
    told = (baselines["videoreward"] or {}).get("ties_excluded")
    if not told or told["low"] <= 0.5:
        return []
    observed = [e for e in rounds if e["preferences"] and (e["preferences"]["videoreward"] or {}).get("score")]
    for entry in observed:
        name, reward, seen = entry["name"], entry["preferences"]["reward"], entry["preferences"]["videoreward"]
        if seen["agrees"] and seen["agrees"]["high"] < 0.5:
            found.append(
                f"Round {name}: VideoReward scores the critic's winners higher in only "
                f"{100 * seen['agrees']['mean']:.0f} percent of the pairs; the generator may learn what people like "
                "less."
            )
        if before and reward > before[0] and seen["score"]["high"] < before[1]["mean"]:
            found.append(
                f"Round {name}: the critic scores the candidates higher than before ({before[0]:.2f} to {reward:.2f}), "
                f"VideoReward scores them lower ({before[1]['mean']:.2f} to {seen['score']['mean']:.2f}); watch for "
                "reward hacking."
            )
        before = (reward, seen["score"])
    return found


def _rises(points: list[tuple[float, float]]) -> bool:
    """Whether the last third's mean lies above the first third's by more than two standard errors."""
    values = np.array([value for _, value in points])
    third = len(values) // 3
    if third < 3:
        return False
    first, last = values[:third], values[-third:]
    error = np.sqrt(first.var(ddof=1) / third + last.var(ddof=1) / third)
    return bool(last.mean() - first.mean() > 2 * error)
