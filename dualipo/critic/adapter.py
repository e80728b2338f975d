"""A learned adapter over an external reward model's scores: the baseline row beside a critic of one's own.

The external model stays what it is; what is learnt is how its scores add up to what people prefer.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualipo.critic.data import read_human
from dualipo.critic.questions import Answered
from dualipo.critic.videoreward.data import Pair, chosen_pairs, implied_pairs, rated_clips
from dualipo.critic.videoreward.losses import TIE
from dualipo.errors import UserError
from dualipo.evaluation.calibration import Calibration, Scores, agreement_of_scores, calibrate
from dualipo.records import DIMENSIONS

Method = Literal["logistic", "linear"]
External = Mapping[tuple[str, str], np.ndarray]
"""An external model's scores, (features,), of each (prompt, clip)."""


@dataclass(frozen=True)
class Adapter:
    """Weights over standardised external scores, for each dimension and `overall`."""

    mean: np.ndarray
    deviation: np.ndarray
    weights: Mapping[str, np.ndarray]

    def scores(self, external: External) -> dict[tuple[str, str], dict[str, float]]:
        return {
            key: {
                name: float(weight @ ((values - self.mean) / self.deviation)) for name, weight in self.weights.items()
            }
            for key, values in external.items()
        }


def read_external(
    path: str | Path, answered: Sequence[Answered]
) -> tuple[list[str], dict[tuple[str, str], np.ndarray]]:
    """(names of the score columns, scores of every clip that `answered` shows) from a CSV.

    Its header holds `clip`, optionally `prompt`, and one column a score. Without `prompt` a clip's scores serve every
    prompt it was made for. Raises UserError that names file, line and column where a score is missing, no finite
    number or given twice, and where a labelled clip has none.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; a CSV with clip and one column per score is needed")
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = [name for name in reader.fieldnames or [] if name not in ("clip", "prompt")]
        if "clip" not in (reader.fieldnames or []) or not names:
            raise UserError(f"{path}: the header needs clip and at least one score; it holds {reader.fieldnames}")
        found: dict[tuple[str | None, str], np.ndarray] = {}
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            key = (row.get("prompt"), row["clip"])
            if key in found:
                raise UserError(f"{where}: clip {row['clip']!r} is scored twice; keep one row")
            found[key] = np.array([_number(row[name], where, name) for name in names])
    scores = {}
    for prompt, clip in dict.fromkeys((i.question.prompt, c) for i in answered for c in i.question.clips):
        values = found.get((prompt, clip), found.get((None, clip)))
        if values is None:
            raise UserError(f"{path}: no scores of clip {clip!r} for prompt {prompt!r}; score every labelled clip")
        scores[prompt, clip] = values
    return names, scores


def _number(text: str | None, where: str, name: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {name}: a finite number is needed (found {text!r})")
    return value


def fit_adapter(answered: Sequence[Answered], external: External, method: Method = "logistic") -> Adapter:
    """`logistic`: Bradley-Terry on differences of the external scores, by logistic regression without intercept, so
    that swapping a pair's clips swaps the verdict; people's ties are left out. `linear`: ridge regression of the rating
    (good 1, normal 0.5, bad 0), the clip's mean over the dimensions for `overall`.

    Pairs of a dimension are those people chose on it and those their ratings imply. Raises UserError where scikit-learn
    is missing, an external score never varies, or a dimension has nothing to learn from.
    """
    try:
        from sklearn.linear_model import LogisticRegression, Ridge
    except ImportError:
        raise UserError("the learned adapter needs scikit-learn; pip install scikit-learn") from None
    table = np.stack([external[key] for key in sorted(external)])
    mean, deviation = table.mean(0), table.std(0)
    if not (deviation > 1e-12 * np.maximum(1, np.abs(table).max(0))).all():
        raise UserError("an external score is the same for every clip; drop its column")

    def scaled(prompt: str, clip: str) -> np.ndarray:
        return (external[prompt, clip] - mean) / deviation

    weights = {}
    for dimension in (*DIMENSIONS, "overall"):
        if method == "linear":
            x, y = _rating_table(answered, dimension, scaled)
            model: Any = Ridge(alpha=1.0)
        else:
            x, y = _pair_table(answered, dimension, scaled)
            model = LogisticRegression(fit_intercept=False)
        if not len(y):
            kind = "ratings" if method == "linear" else "preferences"
            raise UserError(f"the seed labels hold no {kind} on {dimension!r} for the adapter to learn from; add some")
        weights[dimension] = np.ravel(model.fit(x, y).coef_)
    return Adapter(mean, deviation, weights)


def _pair_table(answered: Sequence[Answered], dimension: str, scaled: Any) -> tuple[np.ndarray, np.ndarray]:
    pairs: list[Pair] = [*chosen_pairs(answered), *implied_pairs(answered)]
    pairs = [pair for pair in pairs if pair.dimension == dimension and pair.verdict != TIE]
    gaps = [scaled(pair.prompt, pair.clip_a) - scaled(pair.prompt, pair.clip_b) for pair in pairs]
    wins = [1 if pair.verdict == 0 else 0 for pair in pairs]
    # Each pair in both orders: one class alone cannot be fitted, and without an intercept the optimum is the same.
    return np.array([*gaps, *(-gap for gap in gaps)]), np.array([*wins, *(1 - win for win in wins)])


def _rating_table(answered: Sequence[Answered], dimension: str, scaled: Any) -> tuple[np.ndarray, np.ndarray]:
    values: dict[tuple[str, str], list[float]] = {}
    for item in rated_clips(answered):
        if dimension in ("overall", item.dimension):
            values.setdefault((item.prompt, item.clip), []).append(item.value)
    return np.array([scaled(*key) for key in values]), np.array([float(np.mean(own)) for own in values.values()])


def external_agreement(
    seed_labels: Path, seed_scores: Path, test_labels: Path, test_scores: Path, method: Method, seed: int
) -> dict[str, Any]:
    """`adapter_agreement` of two folders of human labels and the CSV of scores of each.

    Raises UserError as `read_external` and `fit_adapter` do, and where the files hold different scores.
    """
    learnt, tested = read_human(seed_labels), read_human(test_labels)
    names, own = read_external(seed_scores, learnt)
    test_names, held = read_external(test_scores, tested)
    if names != test_names:
        raise UserError(f"{test_scores}: holds {', '.join(test_names)} where {seed_scores} holds {', '.join(names)}")
    return adapter_agreement(learnt, own, tested, held, method, seed)


def adapter_agreement(
    seed_labels: Sequence[Answered],
    seed_scores: External,
    test_labels: Sequence[Answered],
    test_scores: External,
    method: Method,
    seed: int,
) -> dict[str, Any]:
    """Agreement of an adapter fitted and calibrated on the seed labels with the test labels, as for any critic."""
    adapter = fit_adapter(seed_labels, seed_scores, method)
    thresholds: Calibration = calibrate(seed_labels, adapter.scores(seed_scores))
    found: Scores = adapter.scores(test_scores)
    return agreement_of_scores(test_labels, found, thresholds, seed)
