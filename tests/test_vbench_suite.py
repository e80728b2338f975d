"""VBench's aggregation against the tables of Dual-IPO."""

import itertools
import re
from collections import Counter

import pytest

from dualipo.artifacts import digest
from dualipo.errors import UserError
from dualipo.evaluation.vbench.aggregate import DIMENSIONS, QUALITY, SEMANTIC, aggregate
from dualipo.evaluation.vbench.prompts import (
    FLICKERING,
    clip_name,
    official,
    official_texts,
    select,
)
from dualipo.records import Prompt

# Dual-IPO (001), Table A1, in VBench's order of quality and semantic dimensions.
ROWS = {
    "base": "96.78 96.63 98.89 97.73 59.86 60.82 61.68 83.37 62.63 98.00 79.41 69.90 51.14 24.8 24.36 26.66",
    "first": "96.77 97.01 99.01 97.84 64.33 61.55 62 85.41 63.25 98.54 81.67 67.83 54.15 25.13 24.86 27.03",
    "second": "96.81 97.23 99.21 98.03 68.76 62.35 61.77 85.63 63.44 98.97 83.24 70.16 54.35 25.47 26.44 27.37",
    "third": "96.79 97.48 99.35 98.17 69.46 62.28 62.87 85.77 63.51 99.03 82.33 70.23 54.41 25.48 25.39 27.66",
}
# The same paper, Table 2: quality, semantic, total.
TOTALS = {
    "base": (82.18, 75.83, 80.91),
    "first": (82.87, 77.01, 81.69),
    "second": (83.53, 77.97, 82.42),
    "third": (83.92, 78.00, 82.74),
}


def row(name: str) -> dict[str, float]:
    return dict(zip(DIMENSIONS, map(float, ROWS[name].split()), strict=True))


def rounding(constants) -> float:
    """How far a score may be off where each dimension was rounded to two decimals."""
    weights = sum(weight for *_, weight in constants.values())
    return sum(0.005 * weight / (high - low) for low, high, weight in constants.values()) / weights


def test_the_papers_base_row_gives_the_papers_totals():
    found = aggregate(row("base"))
    assert [round(found[name], 2) for name in ("quality", "semantic", "total")] == list(TOTALS["base"])


@pytest.mark.parametrize("name", ["base", "first", "third"])
def test_the_papers_rows_give_the_papers_totals_within_002(name):
    found = aggregate(row(name))
    assert [found[key] for key in ("quality", "semantic", "total")] == pytest.approx(TOTALS[name], abs=0.02)


def test_the_second_row_does_not_and_temporal_style_is_most_likely_misprinted():
    found = aggregate(row("second"))
    quality, semantic, total = TOTALS["second"]
    assert found["quality"] == pytest.approx(quality, abs=0.02)
    assert found["semantic"] - semantic > 0.3
    # the printed totals agree with each other: the misprint is among the dimensions.
    assert (4 * quality + semantic) / 5 == pytest.approx(total, abs=0.01)
    bound = rounding(SEMANTIC) + 0.005
    fitting = []
    for name in SEMANTIC:
        text = f"{row('second')[name]:.2f}"
        for place, digit in itertools.product(range(len(text)), "0123456789"):
            changed = text[:place] + digit + text[place + 1 :]
            if re.fullmatch(r"\d+\.\d\d", changed) and changed != text:
                other = aggregate(row("second") | {name: float(changed)})["semantic"]
                if abs(other - semantic) <= bound:
                    fitting.append((name, changed))
    assert fitting == [("temporal_style", "25.44"), ("overall_consistency", "26.37")]
    # 26.37 would lie below the base's, between rounds of 27.03 and 27.66, where 27.37 fits as it is printed.
    assert row("first")["overall_consistency"] < 27.37 < row("third")["overall_consistency"]
    assert row("base")["overall_consistency"] > 26.37
    # 26.44 lies a point above both its neighbours, 25.44 within a tenth of the third's.
    assert 26.44 - row("third")["temporal_style"] > 1 > 10 * (25.44 - row("third")["temporal_style"])


@pytest.mark.parametrize(("missing", "undefined"), [("color", "semantic"), ("dynamic_degree", "quality")])
def test_a_missing_dimension_makes_totals_null_never_zero(missing, undefined):
    for values in (row("base") | {missing: None}, {k: v for k, v in row("base").items() if k != missing}):
        found = aggregate(values)
        assert found[undefined] is None and found["total"] is None
        other = ({"quality", "semantic"} - {undefined}).pop()
        assert found[other] == aggregate(row("base"))[other]


def test_scores_are_not_clipped_and_dynamic_degree_counts_half():
    low = {name: 100 * bounds[0] for name, bounds in (QUALITY | SEMANTIC).items()}
    assert aggregate(low)["total"] == pytest.approx(0)
    assert aggregate(low | {"subject_consistency": 0.0})["quality"] < 0
    assert aggregate(low | {"dynamic_degree": 100.0})["quality"] == pytest.approx(50 / 6.5)
    assert aggregate(low | {"scene": 82.22})["semantic"] == pytest.approx(100 / 9)


# ---- the prompt suite


COUNTS = {
    "subject_consistency": 72,
    "background_consistency": 86,
    "temporal_flickering": 75,
    "motion_smoothness": 72,
    "dynamic_degree": 72,
    "aesthetic_quality": 93,
    "imaging_quality": 93,
    "object_class": 79,
    "multiple_objects": 82,
    "human_action": 100,
    "color": 85,
    "spatial_relationship": 84,
    "scene": 86,
    "appearance_style": 90,
    "temporal_style": 100,
    "overall_consistency": 93,
}


def test_the_official_suite_is_whole(repository):
    file = repository / "dualipo/evaluation/vbench/official/VBench_full_info.json"
    # of the file in the wheel vbench 0.1.5.
    assert digest(file).md5 == "893fde62c4472b74d8da0adcb3281307"
    assert (len(official()), len(official_texts())) == (946, 944)
    assert Counter(name for entry in official() for name in entry.dimensions) == COUNTS
    assert set(COUNTS) == set(DIMENSIONS)
    assert len({entry.dimensions for entry in official()}) == 11
    assert len({entry.prompt_id for entry in official()}) == 944


def test_what_is_sampled_of_the_official_suite():
    found = select()
    assert found.name == "vbench" and found.whole and len(found.prompts) == 944
    assert found.clips == 944 * 5 + 75 * 20
    assert all(prompt.text == found.originals[prompt.id] for prompt in found.prompts)
    names = {clip_name(found.originals[p.id], k) for p in found.prompts for k in range(5)}
    assert len(names) == 944 * 5
    assert "In a still frame, a stop sign-4.mp4" in names
    assert not any("/" in name for name in names) and max(len(name.encode()) for name in names) < 255


def test_a_subset_is_spread_over_every_kind_and_says_so():
    found = select(per_kind=3)
    assert Counter(name for entry in found.entries for name in entry.dimensions) == dict.fromkeys(COUNTS, 3)
    assert found.name == "vbench_subset_33" and not found.whole
    # numbers are those of the whole suite, so that prompts of both can be compared.
    assert {p.id: p.text for p in found.prompts}.items() <= {p.id: p.text for p in select().prompts}.items()
    assert select(per_kind=1000).name == "vbench"
    assert select(per_kind=2, static_filter=False).name == "vbench_unfiltered_subset_22"


def test_some_dimensions_need_only_their_prompts():
    found = select(dimensions=["imaging_quality", "color"])
    assert found.dimensions == ("imaging_quality", "color") and found.name == "vbench"
    assert len(found.prompts) == 93 + 85 and not found.filtered
    assert select(dimensions=[FLICKERING]).samples(select(dimensions=[FLICKERING]).prompts[0].id) == 25
    assert select(dimensions=["color"], static_filter=False).name == "vbench"


def test_enhanced_prompts_are_sampled_from_under_the_official_names():
    prompts = [prompt.text for prompt in select(per_kind=1).prompts]
    rows = [Prompt(id=f"e{n}", text=f"long {p}", attributes={"vbench": p}) for n, p in enumerate(prompts)]
    found = select(per_kind=1, benchmark=rows)
    assert found.name == "vbench_enhanced_subset_11"
    assert {p.text for p in found.prompts} == {row.text for row in rows}
    assert set(found.originals.values()) == set(prompts)
    assert not select(per_kind=1, benchmark=[Prompt(id="x", text="a red circle")]).enhanced
    with pytest.raises(UserError, match="1 of VBench's prompts have no row"):
        select(per_kind=1, benchmark=rows[1:])
    with pytest.raises(UserError, match="two rows stand in for one"):
        select(per_kind=1, benchmark=[*rows, rows[0]])
    with pytest.raises(UserError, match="'a poem' is no prompt of VBench"):
        select(per_kind=1, benchmark=[*rows, Prompt(id="x", text="y", attributes={"vbench": "a poem"})])
