"""Expectation suites as functions of the configuration.

Great Expectations ignores nulls in set, mean and range expectations, and an empty table passes most of them: so every
suite also holds not-null and row-count expectations. Each expectation carries its reason in `meta`, which verdicts and
Data Docs show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dualipo.config import CheckCritic, CheckLabels, Label, Prefer
from dualipo.quality.frames import Targets, indicator
from dualipo.records import CHOICES, DIMENSIONS, RATINGS

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite

ROUNDING = 1e-9
"""Room for the last bits of a mean."""
Check = tuple[Any, str, dict[str, Any]]
"""An expectation before it is built: its class, why it is asked, and its arguments."""


def prompts_suite(count: int, targets: Targets, section: CheckLabels) -> ExpectationSuite:
    """The round's prompts: as many as asked for, all different, in the target's shares.

    `targets` are shares that sum to 1 in each category. A share may always be off by one prompt: fewer than
    1 / max_prompt_share_error prompts can't come nearer.
    """
    gxe = _expectations()
    checks = [
        (gxe.ExpectTableRowCountToEqual, "a round works on exactly `prompts.count` prompts", {"value": count}),
        *_filled("a prompt without it can't be shown or audited", "id", "text", *targets),
        *_unique("a repeated prompt counts twice in every later share", "id", "text"),
    ]
    error = max(section.max_prompt_share_error, 1 / count) + ROUNDING
    for category, shares in targets.items():
        why = f"{category} has no other value in the prompt space"
        checks.append((gxe.ExpectColumnValuesToBeInSet, why, {"column": category, "value_set": sorted(shares)}))
        for value, target in shares.items():
            why = f"the target share of {value} is {target:.4g}, and drifting prompts skew every label"
            bounds = {"min_value": target - error, "max_value": target + error}
            column = indicator(category, value)
            checks.append((gxe.ExpectColumnMeanToBeBetween, why, {"column": column, **bounds}))
    return _suite("prompts", checks)


def ratings_suite(section: Label) -> ExpectationSuite:
    """Pseudo-ratings: whole, of known verdicts, one for each clip and dimension, each what its paths voted for and its
    text says, and kept only where the filter of `section` lets it through."""
    gxe = _expectations()
    once = {"column_list": ["clip", "dimension"]}
    return _suite(
        "ratings",
        [
            *_labels(RATINGS, DIMENSIONS, section, "clip"),
            _equal("a rating is its paths' majority", "verdict", "voted"),
            (gxe.ExpectCompoundColumnsToBeUnique, "a clip rated twice counts twice in training", once),
        ],
    )


def choices_suite(section: Label) -> ExpectationSuite:
    """Pseudo-choices: whole, of known verdicts, one for each pair, each what its text says, and kept only where the
    swap changed nothing and the filter of `section` lets it through."""
    gxe = _expectations()
    kept = _where_kept()
    swap = "only a verdict that survives swapping the two clips may be kept"
    orders = ("forward", "backward")
    return _suite(
        "choices",
        [
            *_labels(CHOICES, (*DIMENSIONS, "overall"), section, "clip_a", "clip_b", "consistent"),
            *((gxe.ExpectColumnValuesToBeInSet, "no other answer exists", _in(order, CHOICES)) for order in orders),
            (gxe.ExpectColumnValuesToBeInSet, swap, {**_in("consistent", [True]), **kept}),
            _equal(swap, "verdict", *orders, **kept),
            (
                gxe.ExpectSelectColumnValuesToBeUniqueWithinRecord,
                "a clip can't be compared with itself",
                {"column_list": ["clip_a", "clip_b"]},
            ),
            *_unique("a pair judged twice counts twice in training", "pair"),
        ],
    )


def balance_suite(columns: Sequence[str], section: CheckLabels) -> ExpectationSuite:
    """The pseudo-labels as a whole, on `balance_frame`'s one row with these columns."""
    few = "fewer kept pseudo-labels can't refine the critic"
    drift = "verdict shares far from the human seed labels' mean that the critic drifts or collapses"
    checks = [
        *_one_row(columns),
        _at_least("ratings_kept", section.min_kept, few),
        _at_least("choices_kept", section.min_kept, few),
        _at_most("tie_share", section.max_tie_share, "ties give the generator nothing to prefer"),
        _at_most("position_bias", section.max_position_bias, "answering by position is not looking at clips"),
        *(_at_most(name, section.max_verdict_kl, drift) for name in columns if name.startswith("kl_")),
    ]
    return _suite("balance", checks)


def health_suite(columns: Sequence[str], section: CheckLabels, label: Label) -> ExpectationSuite:
    """Votes, certainties, what is kept, drift and repeated clips, on `health_frame`'s one row with these columns."""
    guess = "paths that vote as if at random have seen nothing"
    alike = "a critic whose paths never part has collapsed, and leaves no pair of paths to learn from"
    flat = "certainties that are all the same order nothing: the filter then drops or keeps by accident"
    checks = _one_row(columns)
    for name in columns:
        if name.startswith("vote_entropy_"):
            checks.append(_at_most(name, section.max_vote_entropy, guess))
            checks.append(_at_least(name, section.min_vote_entropy, alike))
        elif name.startswith("certainty_spread_"):
            checks.append(_at_least(name, section.min_certainty_spread, flat))
        elif name.startswith("kept_share_"):
            checks.append(_at_least(name, section.min_kept_share, "what is left of so few speaks for few clips"))
            if label.filter_by_certainty:
                checks.append(_at_most(name, section.max_kept_share, "a filter that keeps nearly all filters nothing"))
        elif name == "choices_follow_ratings":
            turned = "a critic that prefers the clip it rates lower contradicts itself, or labels were turned round"
            checks.append(_at_least(name, section.min_choices_follow_ratings, turned))
        elif name.startswith("drift_"):
            moved = "labels far from the last accepted set's mean that critic or clips changed abruptly"
            checks.append(_at_most(name, section.max_drift, moved))
    same = "clips that are copies of each other count twice, and can't be compared"
    return _suite("health", [*checks, _at_most("duplicate_clips", section.max_duplicate_clips, same)])


def coverage_suite(columns: Sequence[str], section: CheckLabels) -> ExpectationSuite:
    """Kept labels speak of every kind of prompt, on `coverage_frame`'s one row with these columns."""
    why = "a kind of prompt that few kept labels speak of is forgotten by the critic, then by the generator"
    return _suite("coverage", [*_one_row(columns), *(_at_least(name, section.min_coverage, why) for name in columns)])


def preferences_suite(section: Prefer) -> ExpectationSuite:
    """Preference pairs for the generator, on `preferences_frame`."""
    gxe = _expectations()
    why = "a pair without it can't be trained on"
    different = {"column_list": ["winner", "loser"], "mostly": 1 - section.max_winner_is_loser}
    return _suite(
        "preferences",
        [
            _rows(section.min_pairs, "fewer preference pairs can't align the generator"),
            *_filled(why, "prompt_id", "prompt", "winner", "loser", "winner_score", "loser_score", "margin"),
            (gxe.ExpectSelectColumnValuesToBeUniqueWithinRecord, "a clip can't be preferred to itself", different),
            _at_least("margin", section.min_margin, "a smaller margin is noise, a negative one a swapped pair"),
            *_unique("a repeated pair counts twice, and a pair in both orders contradicts itself", "pair"),
        ],
    )


def agreement_suite(columns: Sequence[str], section: CheckCritic) -> ExpectationSuite:
    """The critic candidate on the human test set, on `agreement_frame`'s one row with these columns."""
    weak = "a critic that agrees less often with people must not judge for them"
    checks = [
        *_one_row(columns),
        _at_least("pairs", 1, "agreement over no pairs says nothing"),
        _at_least("agreement_low" if section.bound == "low" else "agreement", section.min_agreement, weak),
    ]
    if "drop" in columns:
        why = "the candidate must not agree with people much less than the incumbent critic does"
        checks.append(_at_most("drop", section.max_drop + ROUNDING, why))
    lost = "preferences follow the critic's ratings, and a critic whose ratings people no longer share misleads them"
    dropped = [name for name in columns if name.startswith("rating_drop_")]
    checks += [_at_most(name, section.max_rating_drop + ROUNDING, lost) for name in dropped]
    return _suite("agreement", checks)


def _labels(words: Sequence[str], dimensions: Sequence[str], section: Label, *others: str) -> list[Check]:
    """What pseudo-ratings and pseudo-choices have in common."""
    gxe = _expectations()
    learnt = "the path that the critic learns must end in the verdict that is counted"
    apart = {"column_list": ["chosen_says", "rejected_says"], "ignore_row_if": "any_value_is_missing"}
    certainty = "certainty is a sigmoid: 0 or 1 is a saturated estimate that filters nothing"
    bounds = {"min_value": 0, "max_value": 1, "strict_min": True, "strict_max": True}
    columns = (*others, "prompt_id", "dimension", "verdict", "certainty", "kept")
    return [
        _rows(1, "no labels at all can't be trained on"),
        *_filled("a label without it can't be used or traced", *columns),
        (gxe.ExpectColumnValuesToBeInSet, "no other verdict exists", _in("verdict", words)),
        (gxe.ExpectColumnValuesToBeInSet, "no other dimension is judged", _in("dimension", dimensions)),
        (gxe.ExpectColumnValuesToBeBetween, certainty, {"column": "certainty", **bounds}),
        _equal(learnt, "verdict", "chosen_says"),
        (gxe.ExpectSelectColumnValuesToBeUniqueWithinRecord, "two paths of one verdict are no preference", apart),
        *_filtered(section),
    ]


def _filtered(section: Label) -> list[Check]:
    if not section.filter_by_certainty:
        return []
    why = "a label is kept only where its certainty is above `label.certainty_threshold` (Dual-IPO eq. 3)"
    bounds = {"min_value": section.certainty_threshold, "strict_min": True, **_where_kept()}
    return [(_expectations().ExpectColumnMinToBeBetween, why, {"column": "certainty", **bounds})]


def _where_kept() -> dict[str, Any]:
    from great_expectations.expectations.row_conditions import Column

    return {"row_condition": Column("kept") == True}  # noqa: E712 (builds a condition)


def _equal(why: str, *columns: str, **more: Any) -> Check:
    arguments = {"column_list": list(columns), "ignore_row_if": "never", **more}
    return (_expectations().ExpectMulticolumnValuesToBeEqual, why, arguments)


def _one_row(columns: Sequence[str]) -> list[Check]:
    rows = (_expectations().ExpectTableRowCountToEqual, "the numbers are computed once", {"value": 1})
    return [rows, *_filled("it is undefined where there was nothing to compute it from", *columns)]


def _rows(least: int, why: str) -> Check:
    return (_expectations().ExpectTableRowCountToBeBetween, why, {"min_value": least})


def _filled(why: str, *columns: str) -> list[Check]:
    return [(_expectations().ExpectColumnValuesToNotBeNull, why, {"column": column}) for column in columns]


def _unique(why: str, *columns: str) -> list[Check]:
    return [(_expectations().ExpectColumnValuesToBeUnique, why, {"column": column}) for column in columns]


def _at_least(column: str, bound: float, why: str) -> Check:
    return (_expectations().ExpectColumnMinToBeBetween, why, {"column": column, "min_value": bound})


def _at_most(column: str, bound: float, why: str) -> Check:
    return (_expectations().ExpectColumnMaxToBeBetween, why, {"column": column, "max_value": bound})


def _in(column: str, values: Sequence[Any]) -> dict[str, Any]:
    return {"column": column, "value_set": list(values)}


def _suite(name: str, checks: Sequence[Check]) -> ExpectationSuite:
    from great_expectations.core import ExpectationSuite

    built = [kind(**arguments, meta={"why": why}) for kind, why, arguments in checks]
    return ExpectationSuite(name, expectations=built)


def _expectations() -> Any:
    import great_expectations.expectations as gxe

    return gxe
