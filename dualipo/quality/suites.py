"""Expectation suites as functions of the configuration.

Great Expectations ignores nulls in set, mean and range expectations, and an empty table passes most of them: so every
suite also holds not-null and row-count expectations. Each expectation carries its reason in `meta`, which verdicts and
Data Docs show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dualipo.config import CheckCritic, CheckLabels, Prefer
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


def ratings_suite() -> ExpectationSuite:
    """Pseudo-ratings: whole, of known verdicts, one for each clip and dimension."""
    gxe = _expectations()
    once = {"column_list": ["clip", "dimension"]}
    return _suite(
        "ratings",
        [
            *_labels(RATINGS, DIMENSIONS, "clip"),
            (gxe.ExpectCompoundColumnsToBeUnique, "a clip rated twice counts twice in training", once),
        ],
    )


def choices_suite() -> ExpectationSuite:
    """Pseudo-choices: whole, of known verdicts, one for each pair, and kept only where the swap changed nothing."""
    gxe = _expectations()
    from great_expectations.expectations.row_conditions import Column

    kept = {"row_condition": Column("kept") == True}  # noqa: E712 (builds a condition)
    swap = "only a verdict that survives swapping the two clips may be kept"
    orders = ("forward", "backward")
    same = {"column_list": ["verdict", *orders], "ignore_row_if": "never"}
    return _suite(
        "choices",
        [
            *_labels(CHOICES, (*DIMENSIONS, "overall"), "clip_a", "clip_b", "consistent"),
            *((gxe.ExpectColumnValuesToBeInSet, "no other answer exists", _in(order, CHOICES)) for order in orders),
            (gxe.ExpectColumnValuesToBeInSet, swap, {**_in("consistent", [True]), **kept}),
            (gxe.ExpectMulticolumnValuesToBeEqual, swap, {**same, **kept}),
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
        _at_least("agreement", section.min_agreement, weak),
    ]
    if "drop" in columns:
        why = "the candidate must not agree with people much less than the incumbent critic does"
        checks.append(_at_most("drop", section.max_drop + ROUNDING, why))
    return _suite("agreement", checks)


def _labels(words: Sequence[str], dimensions: Sequence[str], *others: str) -> list[Check]:
    """What pseudo-ratings and pseudo-choices have in common."""
    gxe = _expectations()
    certainty = "certainty is a sigmoid: 0 or 1 is a saturated estimate that filters nothing"
    bounds = {"min_value": 0, "max_value": 1, "strict_min": True, "strict_max": True}
    columns = (*others, "prompt_id", "dimension", "verdict", "certainty", "kept")
    return [
        _rows(1, "no labels at all can't be trained on"),
        *_filled("a label without it can't be used or traced", *columns),
        (gxe.ExpectColumnValuesToBeInSet, "no other verdict exists", _in("verdict", words)),
        (gxe.ExpectColumnValuesToBeInSet, "no other dimension is judged", _in("dimension", dimensions)),
        (gxe.ExpectColumnValuesToBeBetween, certainty, {"column": "certainty", **bounds}),
    ]


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
