"""How often a critic agrees with the human majority on the fixed test set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from dualipo.config import Config
from dualipo.critic.asking import Asking, ask, pooled
from dualipo.critic.base import load_critic
from dualipo.critic.data import see_files
from dualipo.critic.questions import human_answers
from dualipo.critic.videoreward.settings import is_videoreward
from dualipo.critic.voting import INVALID, majority
from dualipo.errors import UserError
from dualipo.evaluation.bootstrap import interval
from dualipo.evaluation.calibration import agreement_of_scores
from dualipo.evaluation.people import agreement_of_people, by_category, by_question, read_categories
from dualipo.records import CHOICES, DIMENSIONS, joined, read_labels
from dualipo.steps import derive_seed


def measure_agreement(config: Config, critic: Path, test_labels: Path) -> dict[str, Any]:
    """Agreement on pairs, asked in both orders with all their paths voting together, and on ratings.

    `agreement` counts three classes: A, B and tie, where a pair whose votes are tied is a tie. `ties_excluded` counts
    the pairs on which people chose, by which clip got more votes; equal votes count half. Intervals resample prompts.
    `by_question` and, where the test set's folder says categories (`people.PROMPTS`), `by_category` tell the parts, the
    latter of pairs; `people` how far the annotators agree with each other. Every critic of an experiment is asked with
    the same random stream. A VideoReward gives scores, which thresholds from the seed labels turn into verdicts. Raises
    UserError where the test set has no pairs.
    """
    seed = derive_seed(config.experiment.seed, "agreement")
    if is_videoreward(critic):
        return _reward_agreement(critic, test_labels, config.check_critic.batch_size, seed)
    model = load_critic(critic)
    rated_by_people, chosen_by_people = read_labels(test_labels)
    rows = joined(rated_by_people, chosen_by_people)
    answered = human_answers(rows)
    features = see_files(model, test_labels, [clip for item in answered for clip in item.question.clips])
    how = Asking(
        config.check_critic.paths, config.label.temperature, config.label.max_new_tokens, config.check_critic.batch_size
    )
    pairs = [item for item in answered if item.question.kind == "choice"]
    ratings = [item for item in answered if item.question.kind == "rating"]
    if not pairs:
        raise UserError(f"{test_labels}: the human test set has no pairs; the critic's gate needs some")
    questions = [item.question for item in pairs]
    votes = ask(model, [*questions, *(q.swapped() for q in questions)], features, how, seed)
    prompts = [question.prompt for question in questions]
    agrees: list[float] = []
    chosen: list[tuple[str, float]] = []
    confusion: dict[str, Counter[str]] = {word: Counter() for word in CHOICES}
    consistent = 0
    for item, forward, backward in zip(pairs, votes[: len(pairs)], votes[len(pairs) :], strict=True):
        together = pooled(forward, backward)
        verdict = majority(_words(together), "choice") or INVALID
        agrees.append(float(verdict == item.verdict))
        confusion[item.verdict][verdict] += 1
        consistent += forward.verdict is not None and forward.verdict == majority(_words(backward.turned), "choice")
        if item.verdict != "tie":
            lead = together[item.verdict] - together["b" if item.verdict == "a" else "a"]
            chosen.append((item.question.prompt, 1.0 if lead > 0 else 0.5 if lead == 0 else 0.0))
    rated = ask(model, [item.question for item in ratings], features, how, seed)
    alike = [float(vote.verdict == item.verdict) for item, vote in zip(ratings, rated, strict=True)]
    by_dimension = {
        dimension: [hit for item, hit in zip(ratings, alike, strict=True) if item.question.dimension == dimension]
        for dimension in DIMENSIONS
    }
    return {
        "agreement": interval(agrees, prompts, seed),
        "ties_excluded": interval([hit for _, hit in chosen], [prompt for prompt, _ in chosen], seed)
        if chosen
        else None,
        "pairs": len(pairs),
        "ties": sum(item.verdict == "tie" for item in pairs) / len(pairs),
        "order_consistency": consistent / len(pairs),
        "rating_agreement": {d: sum(hits) / len(hits) if hits else None for d, hits in by_dimension.items()},
        "confusion": {word: dict(counts) for word, counts in confusion.items()},
        "by_question": by_question([*pairs, *ratings], [*agrees, *alike], seed),
        "by_category": by_category(pairs, agrees, read_categories(test_labels), seed),
        "people": agreement_of_people(rows, seed),
    }


def _reward_agreement(critic: Path, test_labels: Path, batch_size: int, seed: int) -> dict[str, Any]:
    from dualipo.critic.videoreward.data import ClipFiles
    from dualipo.critic.videoreward.model import load_videoreward

    model = load_videoreward(critic)
    if model.settings.calibration is None:
        raise UserError(f"{critic}: this VideoReward has no thresholds; calibrate it with `dualipo reward train`")
    rated, chosen = read_labels(test_labels)
    answered = human_answers(joined(rated, chosen))
    asked = list(dict.fromkeys((i.question.prompt, clip) for i in answered for clip in i.question.clips))
    scores = model.scores(asked, model.see(ClipFiles(test_labels, [clip for _, clip in asked])), batch_size)
    found = agreement_of_scores(answered, scores, model.settings.calibration, seed, read_categories(test_labels))
    return {**found, "people": agreement_of_people(joined(rated, chosen), seed)}


def _words(votes: dict[str, int]) -> list[str]:
    return [word for word in CHOICES for _ in range(votes[word])]
