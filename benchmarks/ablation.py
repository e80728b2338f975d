"""What the gates are for: the same poisoned round with the gates on, and with them off.

    python benchmarks/ablation.py --seeds 0 1 2 [--lender RUNS ...]

The round is the first one of params.yaml. Its pseudo-labels are turned round before the critic learns from them: good
for bad, A for B, reasoning paths and votes too, in ratings and choices alike, so that they agree with each other. The
critic learns from them alone, harder than the experiment does (TRAINING), with the gates on and off alike. Everything
after that is the round as it is. Runs lie in benchmarks/out/ablation/seed-<n>/; started again it goes on where it
was. `--lender` names folders of finished experiments: what they made of the same inputs, with the same seed, is taken
from there.

Prints tables and writes benchmarks/results/ablation.json. Exits with 1 unless the round makes the generator worse
without gates, with a 95 percent interval over all seeds' prompts below 0, and with the gates on the critic is refused
and the generator handed on is the base, or no worse, for every seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from measuring import CAVEAT, REPOSITORY, RESULTS, between, finish, table
from poisoning import change_labels, turn_all

from dualipo.artifacts import digest, read_json, write_json
from dualipo.config import Config, load_config
from dualipo.engine import execute, run
from dualipo.quality.evidence import Decision, load
from dualipo.steps import BASE, GRAPH
from dualipo.studies.comparing import pooled_difference
from dualipo.studies.measuring import prompt_totals

ROUND = "1"
TRAINING = {
    "train_critic.steps": 40,
    "train_critic.learning_rate": 2e-4,
    "train_critic.seed_share": 0.0,
    "train_critic.instruction_weight": 1.0,
}
GATES_OFF = {
    "check_labels.min_kept": 1,
    "check_labels.max_verdict_kl": 1e6,
    "check_labels.max_position_bias": 1.0,
    "check_labels.max_tie_share": 1.0,
    "check_labels.max_prompt_share_error": 1.0,
    "check_labels.min_vote_entropy": 0.0,
    "check_labels.max_vote_entropy": 1e6,
    "check_labels.min_certainty_spread": 0.0,
    "check_labels.min_kept_share": 0.0,
    "check_labels.max_kept_share": 1.0,
    "check_labels.min_choices_follow_ratings": 0.0,
    "check_labels.min_coverage": 0.0,
    "check_labels.max_duplicate_clips": 1.0,
    "check_labels.max_drift": 1.0,
    "check_critic.min_agreement": 0.0,
    "check_critic.max_drop": 1.0,
    "check_critic.max_rating_drop": 1.0,
    "prefer.max_winner_is_loser": 1.0,
    "prefer.min_pairs": 1,
    "promote_generator.max_drop": 100.0,
    "settle.roll_back_critic": False,
}
ARMS = {"on": {}, "off": GATES_OFF}


@dataclass(frozen=True)
class Arm:
    """A poisoned round, with the gates on or off."""

    base: dict[str, float]
    """Total of the base, by prompt, points."""
    candidate: dict[str, float]
    in_use: dict[str, float]
    """The same of the generator handed on."""
    critic_promoted: bool
    generator_promoted: bool
    agreement: float
    """Of the critic candidate with the human test pairs, of 1."""
    ratings: float
    """Of the same with their ratings, the mean of the dimensions."""
    survived: bool
    """Whether the generator handed on is the base, byte for byte, or one with a total that is no lower."""
    reasons: tuple[str, ...]


def poisoned(config: Config, folder: Path, data: Path, lenders: Sequence[Path]) -> None:
    """Runs the round up to its labels, turns them round, and runs the rest on them, or what is left of it."""
    folder.mkdir(parents=True, exist_ok=True)
    labels, note = folder / f"runs/{ROUND}/labels", folder / "turned.json"
    if not note.is_file() or read_json(note)["labels"] != digest(labels).md5:
        run(config, folder, f"{ROUND}/label", data, track=False, lenders=lenders)
        change_labels(labels, turn_all)
        write_json(note, {"labels": digest(labels).md5})
    steps = [step for step in GRAPH.values() if step.scope == "round"]
    for step in steps[steps.index(GRAPH["label"]) + 1 :]:
        print(execute(step, config, folder, ROUND, track=False, data=data, lenders=lenders), file=sys.stderr)


def read_arm(folder: Path) -> Arm:
    runs = folder / "runs"
    critic, generator = (load(Decision, runs / f"{ROUND}/{kind}_decision.json") for kind in ("critic", "generator"))
    found = read_json(runs / f"{ROUND}/critic_candidate_agreement.json")
    candidate, base = prompt_totals(runs / ROUND), prompt_totals(runs / BASE)
    unchanged = digest(runs / f"{ROUND}/generator").md5 == digest(runs / f"{BASE}/generator").md5
    return Arm(
        base=base,
        candidate=candidate,
        in_use=candidate if generator.promoted else base,
        critic_promoted=critic.promoted,
        generator_promoted=generator.promoted,
        agreement=found["agreement"]["mean"],
        ratings=statistics.fmean(share for share in found["rating_agreement"].values() if share is not None),
        survived=unchanged or _mean(candidate) >= _mean(base),
        reasons=(*critic.reasons, *generator.reasons),
    )


def judge(arms: dict[str, list[Arm]], gains: dict[str, dict[str, float]]) -> list[str]:
    """A sentence for each requirement that is not met."""
    faults = []
    if gains["off"]["high"] >= 0:
        faults.append("without gates the poisoned round does not make the generator worse")
    for number, arm in enumerate(arms["on"]):
        if arm.critic_promoted:
            faults.append(f"with the gates on the poisoned critic of run {number} was promoted")
        if not arm.survived:
            faults.append(f"with the gates on a worse generator was promoted in run {number}")
    return faults


def show(seeds: Sequence[int], arms: dict[str, list[Arm]], gains: dict[str, dict[str, float]]) -> list[str]:
    rows = [
        [
            name,
            seed,
            f"{100 * arm.agreement:.1f}, {_verdict(arm.critic_promoted)}",
            f"{100 * arm.ratings:.1f}",
            f"{_mean(arm.base):.1f}",
            f"{_mean(arm.candidate):.1f}, {_verdict(arm.generator_promoted)}",
            f"{_mean(arm.in_use):.1f}",
        ]
        for name, found in arms.items()
        for seed, arm in zip(seeds, found, strict=True)
    ]
    header = ["gates", "seed", "critic candidate: pairs", "ratings", "base", "candidate", "in use after the round"]
    changes = [[name, between(gain, signed=True)] for name, gain in gains.items()]
    reasons = [reason for arm in arms["on"] for reason in arm.reasons][:4]
    return [
        CAVEAT,
        "Agreement with people in percent, generators in points of 100:\n\n" + table(header, rows),
        "The generator in use less the base, paired by prompt, all seeds:\n\n" + table(["gates", "points"], changes),
        "What the gates said:\n\n" + "\n".join(f"- {reason}" for reason in reasons),
    ]


def _verdict(promoted: bool) -> str:
    return "promoted" if promoted else "refused"


def _mean(totals: dict[str, float]) -> float:
    return statistics.fmean(totals.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data")
    parser.add_argument("--params", type=Path, action="append", default=[], help="a preset laid over params.yaml")
    parser.add_argument("--lender", type=Path, action="append", default=[], help="a finished experiment's folder")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/out/ablation")
    parser.add_argument("--result", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    params = [REPOSITORY / "params.yaml", *arguments.params]
    arms: dict[str, list[Arm]] = {name: [] for name in ARMS}
    for seed in arguments.seeds:
        for name, gates in ARMS.items():
            print(f"seed {seed}, gates {name}", file=sys.stderr)
            folder = arguments.out / f"seed-{seed}" / name
            overrides = {"experiment.seed": seed, **TRAINING, **gates}
            beside = [path for path in folder.parent.glob("*") if path.name != name]
            config = load_config(*params, overrides=overrides)
            poisoned(config, folder, arguments.data.absolute(), [*arguments.lender, *beside])
            arms[name].append(read_arm(folder))
    resamples = load_config(*params).evaluate.bootstrap
    gains = {
        name: pooled_difference([(arm.base, arm.in_use) for arm in found], resamples) for name, found in arms.items()
    }
    content = {
        "about": CAVEAT,
        "seeds": arguments.seeds,
        "gains": gains,
        "arms": {name: [asdict(arm) for arm in found] for name, found in arms.items()},
        "data_md5": digest(arguments.data).md5,
    }
    finish("ablation", show(arguments.seeds, arms, gains), content, judge(arms, gains), arguments.result)


if __name__ == "__main__":
    main()
