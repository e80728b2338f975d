"""What stands beside the critic's agreement with people: critics that look at nothing, a VideoReward, and external
reward models' scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualipo.config import Config
from dualipo.critic.adapter import external_agreement
from dualipo.critic.data import read_human
from dualipo.critic.questions import Answered
from dualipo.critic.videoreward.settings import is_videoreward
from dualipo.errors import UserError
from dualipo.evaluation.agreement import measure_agreement
from dualipo.evaluation.bootstrap import interval
from dualipo.evaluation.people import most_frequent
from dualipo.records import DIMENSIONS
from dualipo.steps import derive_seed

SCORES = "scores"
"""Folder beside the human labels: a CSV of its clips' scores for each external model, `scores/<model>.csv`."""


def measure_baselines(config: Config, reward: Path, seed_labels: Path, test_labels: Path) -> dict[str, Any]:
    """`trivial`, agreements as `measure_agreement` gives them of critics that look at nothing (`trivial_agreements`);
    `videoreward`, one where the folder `reward` holds a model; `external`, one by model, where the labels' folders hold
    scores.

    Raises UserError where a model's scores lie beside one of the two sets alone, or are malformed.
    """
    seed = derive_seed(config.experiment.seed, "agreement")
    found: dict[str, Any] = {"trivial": trivial_agreements(read_human(seed_labels), read_human(test_labels), seed)}
    if is_videoreward(reward):
        found["videoreward"] = measure_agreement(config, reward, test_labels)
    external = {}
    for name in sorted(
        {path.name for folder in (seed_labels, test_labels) for path in (folder / SCORES).glob("*.csv")}
    ):
        files = [folder / SCORES / name for folder in (seed_labels, test_labels)]
        if missing := [str(file) for file in files if not file.is_file()]:
            raise UserError(
                f"{missing[0]}: missing; score the seed clips and the test clips alike, or remove the other"
            )
        external[Path(name).stem] = external_agreement(seed_labels, files[0], test_labels, files[1], "logistic", seed)
    return {**found, "external": external} if external else found


def trivial_agreements(seed_answers: Sequence[Answered], test_answers: Sequence[Answered], seed: int) -> dict[str, Any]:
    """`most_frequent` always gives the verdict that people gave most often to that question of the seed labels; `coin`
    tosses one between `a` and `b`, and among the three ratings: what it reaches is computed, not drawn.

    Raises UserError where the test set has no pairs.
    """
    pairs = [item for item in test_answers if item.question.kind == "choice"]
    if not pairs:
        raise UserError("the human test set has no pairs; the critic's gate needs some")
    always = most_frequent(seed_answers)
    found = {
        "most_frequent": _without_looking(
            test_answers,
            lambda item: float(always.get(item.question.topic) == item.verdict),
            # of `tie`, which leads neither clip, half of what people chose, as of equal votes.
            lambda item: 0.5 if always.get(item.question.topic) in ("tie", None) else None,
            seed,
        ),
        "coin": _without_looking(
            test_answers,
            lambda item: 1 / 3 if item.question.kind == "rating" else 0.0 if item.verdict == "tie" else 0.5,
            lambda item: 0.5,
            seed,
        ),
    }
    found["most_frequent"]["says"] = always
    return found


def _without_looking(
    answered: Sequence[Answered],
    hit: Callable[[Answered], float],
    undecided: Callable[[Answered], float | None],
    seed: int,
) -> dict[str, Any]:
    """An agreement from what is expected of each item; `undecided` replaces it where ties are excluded."""
    pairs = [item for item in answered if item.question.kind == "choice"]
    prompts = [item.question.prompt for item in pairs]
    decided = [item for item in pairs if item.verdict != "tie"]
    chosen = [hit(item) if (half := undecided(item)) is None else half for item in decided]
    rated = {d: [hit(item) for item in answered if item.question.topic == f"rating/{d}"] for d in DIMENSIONS}
    return {
        "agreement": interval([hit(item) for item in pairs], prompts, seed),
        "ties_excluded": interval(chosen, [item.question.prompt for item in decided], seed) if decided else None,
        "pairs": len(pairs),
        "ties": 1 - len(decided) / len(pairs),
        "rating_agreement": {d: sum(own) / len(own) if own else None for d, own in rated.items()},
    }


def beside(baselines: Mapping[str, Any], incumbent: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Agreements to read a critic candidate's beside, by name: the incumbent critic's and those of baselines.json."""
    own = {
        "previous critic": incumbent,
        **{name.replace("_", " "): found for name, found in baselines.get("trivial", {}).items()},
        **({"VideoReward": baselines["videoreward"]} if "videoreward" in baselines else {}),
        **baselines.get("external", {}),
    }
    return [{"name": name, **found["agreement"]} for name, found in own.items()]
