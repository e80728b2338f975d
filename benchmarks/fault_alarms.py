"""How often a gate closes on nothing: undamaged rounds with other seeds, and real label sets resampled."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from injecting import PARAMS, ROUND, Lab

from dualipo.artifacts import read_json, remove, write_json
from dualipo.config import load_config
from dualipo.prompts import round_target
from dualipo.quality.evidence import read_verdict
from dualipo.quality.frames import balance_frame, choices_frame, coverage_frame, health_frame, ratings_frame
from dualipo.quality.gate import run_gate
from dualipo.quality.profile import drift, profile_humans, profile_labels
from dualipo.quality.suites import balance_suite, choices_suite, coverage_suite, health_suite, ratings_suite
from dualipo.records import Prompt, PseudoChoice, PseudoRating, read_labels, read_rows

SETS = 20


def alarms(lab: Lab, count: int) -> dict[str, Any]:
    """Undamaged rounds of seeds 1 to `count`, up to their label gates. What was found of a seed is kept in the lab's
    folder, so that a command that was stopped goes on."""
    kept, digest = lab.out / "undamaged.json", lab.config.digest()
    known = read_json(kept) if kept.is_file() else {}
    found: dict[str, list[str]] = known["reasons"] if known.get("config") == digest else {}
    for seed in map(str, range(1, count + 1)):
        if seed in found:
            continue
        folder = lab.copy("undamaged")
        config = load_config(*PARAMS, overrides={"experiment.seed": int(seed)})
        steps = ("prompts", "generate", "label", "check_labels")
        for name in steps:
            lab.unmade(folder, name)
        ended = lab.call(folder, *steps, config=config)
        if ended.how != "done":
            raise RuntimeError(f"undamaged, seed {seed}: {ended.how} {ended.message}")
        found[seed] = read_verdict(folder / f"runs/{ROUND}/label_gate").reasons
        print(f"undamaged, seed {seed}: {found[seed] or 'not stopped'}", file=sys.stderr)
        remove(folder)
        write_json(kept, {"config": digest, "reasons": found})
    asked = {seed: found[seed] for seed in map(str, range(1, count + 1))}
    reasons = [f"seed {seed}: {reason}" for seed, own in asked.items() for reason in own]
    return {"count": count, "stopped": sum(map(bool, asked.values())), "reasons": reasons}


def resampled(rounds: Sequence[Path]) -> dict[str, Any]:
    """Halves of the prompts of real rounds' labels, held against the bounds of params.yaml."""
    config = load_config(PARAMS[0])
    section, label = config.check_labels, config.label
    stopped, reasons = 0, []
    for number in range(SETS if rounds else 0):
        folder = rounds[number % len(rounds)]
        prompts = read_rows(folder / "prompts.jsonl", Prompt)
        rng = np.random.default_rng(number)
        drawn = {prompts[i].id for i in rng.permutation(len(prompts))[: len(prompts) // 2]}
        rows = [prompt for prompt in prompts if prompt.id in drawn]
        ratings = [r for r in read_rows(folder / "labels/ratings.jsonl", PseudoRating) if r.prompt_id in drawn]
        choices = [c for c in read_rows(folder / "labels/choices.jsonl", PseudoChoice) if c.prompt_id in drawn]
        human = read_labels(PARAMS[0].parent / "data/seed")
        moved = drift(profile_labels("half", ratings, choices), profile_humans(*human))
        balance, health = balance_frame(ratings, choices, *human), health_frame(ratings, choices, moved, 0.0)
        coverage = coverage_frame(rows, ratings, choices, round_target(config.prompts, ROUND)[1])
        checks = {
            "ratings": (ratings_frame(ratings), ratings_suite(label)),
            "choices": (choices_frame(choices), choices_suite(label)),
            "balance": (balance, balance_suite(list(balance), section)),
            "health": (health, health_suite(list(health), section, label)),
            "coverage": (coverage, coverage_suite(list(coverage), section)),
        }
        gate = PARAMS[0].parent / "benchmarks/out/faults/resampled"
        found = [f"half {number} of {folder.name}: {reason}" for reason in run_gate(gate, checks).reasons]
        stopped += bool(found)
        reasons += found
    return {"count": SETS if rounds else 0, "sources": len(rounds), "stopped": stopped, "reasons": reasons}
