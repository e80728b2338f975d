"""A study's results as JSON and as a page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualipo import __version__
from dualipo.artifacts import atomic, write_json
from dualipo.errors import UserError
from dualipo.steps import BASE
from dualipo.studies.catalogue import Catalogue, Study
from dualipo.studies.comparing import Judged, Runs, judge_claim, summary_rows

CAVEATS = {
    "small_world": "Measured in the small world: tiny models trained from scratch, its own benchmark (0 to 100, scored"
    " by its oracle on held-out prompts), simulated annotators. It is not VBench, and the paper's figures stand beside"
    " these for the direction alone.",
    "vbench": "VBench's totals.",
}
RESAMPLES = 2000


def write_results(
    name: str, study: Study, catalogue: Catalogue, runs: Runs, folder: Path, resamples: int = RESAMPLES
) -> list[Judged]:
    """Writes results.json and table.md into `folder`; returns the judged claims.

    Raises UserError where the runs are of different suites.
    """
    suites = {one.suite for measured in runs.values() for one in measured.values()}
    if len(suites) != 1:
        raise UserError(f"study {name}: runs of different suites ({', '.join(sorted(suites))}); run it anew")
    rounds = {variant: catalogue.rounds(study, variant) for variant in runs}
    rows = summary_rows(runs, rounds)
    judged = [judge_claim(claim, runs, resamples) for claim in study.claims]
    seeds = sorted({seed for measured in runs.values() for seed in measured})
    suite = suites.pop()
    write_json(
        folder / "results.json",
        {
            "study": name,
            "about": study.about,
            "caveat": CAVEATS[suite],
            "suite": suite,
            "seeds": seeds,
            "version": __version__,
            "rows": rows,
            "claims": [one.packed() for one in judged],
        },
    )
    with atomic(folder / "table.md") as temporary:
        temporary.write_text(page(name, study, catalogue, rows, judged, seeds, suite), encoding="utf-8")
    return judged


def page(
    name: str,
    study: Study,
    catalogue: Catalogue,
    rows: Sequence[Mapping[str, Any]],
    judged: Sequence[Judged],
    seeds: Sequence[int],
    suite: str,
) -> str:
    """The study in Markdown: what the paper found, the claims judged, and every round's figures."""
    shown = ", ".join(map(str, seeds))
    claims = [
        [
            one.claim.says,
            one.claim.paper or "",
            f"{one.claim.better} against {one.claim.worse}",
            spoken(one.difference),
            ", ".join(f"{value['mean']:+.1f}" for value in one.by_seed.values()),
            f"**{one.outcome}**: {one.why}",
        ]
        for one in judged
    ]
    # every variant has the same base.
    distinct = [row for index, row in enumerate(rows) if row["round"] != BASE or index == 0]
    figures = [
        [
            "base" if row["round"] == BASE else row["variant"],
            "" if row["round"] == BASE else row["round"],
            f"{row['candidate']:.1f}",
            f"{row['in_use']:.1f}",
            ", ".join(f"{total:.1f}" for total in row["by_seed"]),
            "" if row["round"] == BASE else f"{row['promoted']} of {row['seeds']}",
            "" if row["agreement"] is None else f"{100 * row['agreement']:.1f}",
        ]
        for row in distinct
    ]
    names = [name for name in rows[0]["dimensions"] if all(name in row["dimensions"] for row in rows)]
    dimensions = [[name, *(f"{row['dimensions'][name]:.1f}" for row in distinct)] for name in names]
    columns = [BASE if row["round"] == BASE else f"{row['variant']}@{row['round']}" for row in distinct]
    variants = [[variant, catalogue.variants[variant].about] for variant in study.variants]
    parts = [
        f"# Study: {name}",
        f"{study.about}. The paper: {study.paper}.",
        f"{CAVEATS[suite]} Seeds: {shown}. Printed by `dualipo study {name}`.",
        "## Claims\n\nDifferences are in points of 100, paired by prompt; brackets are 95 percent bootstrap intervals"
        " over prompts, all seeds together. They say nothing about other seeds than these.",
        table(["claim", "paper", "compared", "difference", "by seed", "here"], claims),
        "## Figures\n\nMeans over the seeds. A candidate that lowers the benchmark is not promoted, and the generator"
        " in use stays; the gate looks at the same prompts, which flatters the one in use a little.",
        table(["variant", "round", "candidate", "in use", "in use, by seed", "promoted", "critic agrees, %"], figures),
        table(["variant", "what it is"], variants),
    ]
    if names:
        parts += ["## Dimensions\n\nThe candidates', means over the seeds.", table(["dimension", *columns], dimensions)]
    return "\n\n".join(parts) + "\n"


def spoken(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+.1f} [{value['low']:+.1f}, {value['high']:+.1f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
