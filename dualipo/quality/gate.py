"""Gates: suites run on tables, the verdict written as a file with Data Docs beside it.

A verdict is data: it never stops the run, `promote_*` reads it. Broken data raises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualipo.artifacts import atomic, write_json
from dualipo.config import CheckCritic, Prefer
from dualipo.errors import UserError
from dualipo.quality.evidence import (
    VERDICT,
    Agreement,
    ExpectationVerdict,
    SuiteVerdict,
    Verdict,
    parse,
    read_verdict,
)
from dualipo.records import Preference

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult

__all__ = ["critic_gate", "preference_gate", "read_verdict", "run_gate"]

EXAMPLES = 3
"""Offending values named in a verdict."""
_UNIQUE = "no duplicates"
_REQUIRED = {
    "expect_column_values_to_not_be_null": "no nulls",
    "expect_column_values_to_be_unique": _UNIQUE,
    "expect_compound_columns_to_be_unique": _UNIQUE,
    "expect_select_column_values_to_be_unique_within_record": "different values in a row",
    "expect_multicolumn_values_to_be_equal": "equal values in a row",
}


def run_gate(folder: str | Path, checks: Mapping[str, tuple[pd.DataFrame, ExpectationSuite]]) -> Verdict:
    """Validates each table with its suite and writes `folder`: verdict.json, and data_docs/ with a page a suite.

    The folder is whole or absent, and the same tables and suites give the same bytes. Raises UserError where an
    expectation can't be computed, ValueError where there is no suite or one without expectations.
    """
    if not checks or not all(suite.expectations for _, suite in checks.values()):
        raise ValueError("a gate without expectations would pass everything")
    results = _validate(checks)
    suites = {name: _suite_verdict(name, result) for name, result in results.items()}
    reasons = [_sentence(name, e) for name, suite in suites.items() for e in suite.expectations if not e.passed]
    verdict = Verdict(passed=not reasons, reasons=reasons, suites=suites)
    with atomic(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / VERDICT, verdict.model_dump())
        _write_pages(temporary / "data_docs", results, verdict)
    return verdict


def critic_gate(
    folder: str | Path, agreement: dict[str, Any], incumbent: dict[str, Any] | None, section: CheckCritic
) -> Verdict:
    """The critic candidate's gate, from the contents of agreement.json; `incumbent` None skips the comparison.

    Raises UserError where `agreement` or `incumbent` misses a field or holds a NaN.
    """
    from dualipo.quality.frames import agreement_frame
    from dualipo.quality.suites import agreement_suite

    before = None if incumbent is None else parse(Agreement, incumbent, "incumbent critic's agreement")
    frame = agreement_frame(parse(Agreement, agreement, "critic candidate's agreement"), before, section.bound)
    return run_gate(folder, {"agreement": (frame, agreement_suite(list(frame), section))})


def preference_gate(folder: str | Path, pairs: Sequence[Preference], section: Prefer) -> Verdict:
    """The preference pairs' gate; no pairs at all is a failed gate, not an error."""
    from dualipo.quality.frames import preferences_frame
    from dualipo.quality.suites import preferences_suite

    return run_gate(folder, {"preferences": (preferences_frame(pairs), preferences_suite(section))})


def _validate(
    checks: Mapping[str, tuple[pd.DataFrame, ExpectationSuite]],
) -> dict[str, ExpectationSuiteValidationResult]:
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("gate")
    results = {}
    for name, (frame, suite) in checks.items():
        definition = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        result = definition.get_batch({"dataframe": frame}).validate(suite)
        for each in result.results:
            if not each.result:
                raise UserError(f"{name}: {_name(each)} could not be computed: {_exception(each.exception_info)}")
            # Data Docs can't render numpy's own scalars.
            if hasattr(observed := each.result.get("observed_value"), "item"):
                each.result["observed_value"] = observed.item()
        # Wall-clock time would give equal verdicts different hashes.
        result.meta.get("batch_markers", {}).pop("ge_load_time", None)
        results[name] = result
    return results


def _exception(info: Mapping[str, Any]) -> str:
    """The first message; Great Expectations nests them by metric where several metrics failed."""
    if "exception_message" in info:
        return str(info["exception_message"])
    return next((str(entry["exception_message"]) for entry in info.values()), "no reason given")


def _name(result: Any) -> str:
    return result.expectation_config.type


def _suite_verdict(name: str, result: ExpectationSuiteValidationResult) -> SuiteVerdict:
    verdicts = [_expectation_verdict(each) for each in result.results]
    verdicts.sort(key=lambda verdict: (verdict.column or "", verdict.name))
    return SuiteVerdict(passed=all(verdict.passed for verdict in verdicts), expectations=verdicts)


def _expectation_verdict(result: Any) -> ExpectationVerdict:
    arguments = result.expectation_config.kwargs
    columns = [arguments["column"]] if "column" in arguments else arguments.get("column_list", [])
    return ExpectationVerdict(
        name=_name(result),
        column=", ".join(columns) or None,
        passed=bool(result.success),
        observed=_observed(result.result),
        required=_required(_name(result), arguments),
        why=result.expectation_config.meta["why"],
    )


def _observed(result: Mapping[str, Any]) -> float | int | str | None:
    if "observed_value" in result:
        value = result["observed_value"]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    broken, total = result["unexpected_count"], result["element_count"]
    # Of a null, "such as None" would say nothing.
    found = [value for value in result["partial_unexpected_list"] if value is not None and value == value]
    examples = [_example(value) for value in found]
    examples = list(dict.fromkeys(examples))[:EXAMPLES]
    return f"{broken} of {total} rows break it" + (f", such as {'; '.join(examples)}" if examples else "")


def _example(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_example(each)}" for key, each in value.items())
    value = value.item() if hasattr(value, "item") else value
    return f"{value!r:.60}"


def _required(name: str, arguments: Mapping[str, Any]) -> str:
    """The requirement in words."""
    if name in _REQUIRED:
        words = _REQUIRED[name]
    elif "value_set" in arguments:
        words = "one of " + ", ".join(str(value) for value in arguments["value_set"])
    elif "value" in arguments:
        words = f"exactly {arguments['value']}"
    else:
        low = "above" if arguments.get("strict_min") else "at least"
        high = "below" if arguments.get("strict_max") else "at most"
        bounds = ((low, arguments.get("min_value")), (high, arguments.get("max_value")))
        words = " and ".join(f"{word} {bound:.6g}" for word, bound in bounds if bound is not None)
    if arguments.get("mostly", 1) < 1:
        words += f" in at least {arguments['mostly']:.6g} of the rows"
    return words + (" where kept" if "row_condition" in arguments else "")


def _sentence(suite: str, failed: ExpectationVerdict) -> str:
    what = failed.column or "number of rows"
    if isinstance(failed.observed, str):
        return f"{suite}: {what}: {failed.observed}; required is {failed.required}: {failed.why}."
    observed = "undefined" if failed.observed is None else f"{failed.observed:.6g}"
    return f"{suite}: {what} is {observed}, required is {failed.required}: {failed.why}."


def _write_pages(folder: Path, results: Mapping[str, ExpectationSuiteValidationResult], verdict: Verdict) -> None:
    """Data Docs: Great Expectations' own rendering in a page that needs no network, and an index of the suites."""
    from html import escape
    from itertools import count

    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    folder.mkdir()
    view = DefaultJinjaPageView(custom_views_directory=str(Path(__file__).parent / "templates"))
    for name, result in results.items():
        # Random element ids would give equal verdicts different hashes.
        numbers = count()
        # Pages of results leave notes out; a description they show.
        for each in result.results:
            read = _expectation_verdict(each)
            each.expectation_config.description = escape(f"{read.required}: {read.why}", quote=False)
        view.env.filters["generate_html_element_uuid"] = lambda prefix="", numbers=numbers: f"{prefix}{next(numbers)}"
        page = view.render(ValidationResultsPageRenderer().render(result), template="gate_page.j2")
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    index = view.env.get_template("gate_index.j2").render(verdict=verdict)
    (folder / "index.html").write_text(index, encoding="utf-8")
