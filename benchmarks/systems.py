"""Writes docs/systems.md: every system of the papers with its code, equation, tests, and what a study measured of it.

    python benchmarks/systems.py

Reads benchmarks/systems.yaml and benchmarks/results/study-NAME.json, each the results.json of `dualipo study NAME`;
what was not run stands as not measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from measuring import CAVEAT, REPOSITORY, RESULTS, between, table

from dualipo.artifacts import atomic, read_json

SYSTEMS = REPOSITORY / "benchmarks/systems.yaml"
PAGE = REPOSITORY / "docs/systems.md"


def claims(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Judged claims by study and sentence, of the studies whose results are kept."""
    studies = [read_json(file) for file in sorted(results.glob("study-*.json"))]
    return {(study["study"], claim["says"]): claim for study in studies for claim in study["claims"]}


def page(systems: list[dict[str, Any]], judged: dict[tuple[str, str], dict[str, Any]]) -> str:
    rows = []
    for entry in systems:
        study, says = entry["claim"]
        found = judged.get((study, says))
        rows.append(
            [
                entry["system"],
                entry["equation"],
                "<br>".join(_linked(place) for place in entry["code"]),
                "<br>".join(_linked(place) for place in entry["tests"]),
                *(_measured(study, found) if found else ("", f"not measured yet (`dualipo study {study}`)")),
            ]
        )
    header = ["system", "equation", "code", "tests", "points over the base (by seed)", "on the small world"]
    return (
        "\n\n".join(
            [
                "# The papers' systems",
                f"{CAVEAT} Each system is one round of alignment from the base, unless it says otherwise, over three"
                " seeds; brackets are 95 percent bootstrap intervals over prompts, all seeds together, of candidate"
                " less base. Written by `python benchmarks/systems.py` from the results of `dualipo study systems` and"
                " `scorers`, and of `flow` and `nrg` with `--params params/small-world-wan.yaml`.",
                table(header, rows),
                "The critic's own systems, SRPO and certainty (Dual-IPO, eq. 2 to 5: `dualipo/critic/srpo.py`,"
                " `certainty.py`), voting and the swap filter (`voting.py`), are compared with what they replace by"
                " `dualipo study critic_parts` ([studies.md](studies.md)); [math.md](math.md) names their tests.",
            ]
        )
        + "\n"
    )


def _measured(study: str, claim: dict[str, Any]) -> tuple[str, str]:
    seeds = ", ".join(f"{value['mean']:+.1f}" for value in claim["by_seed"].values())
    outcome = {"holds": "improves", "does not hold": "**gets worse**"}.get(claim["outcome"], claim["outcome"])
    return f"{between(claim['difference'], signed=True)} ({seeds})", f"{outcome} ([study](studies/{study}.md))"


def _linked(place: str) -> str:
    """`path` or `path: names` as a link."""
    path, _, names = place.partition(": ")
    return f"[`{names.replace(', ', '`, `') or path}`](../{path})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    text = page(yaml.safe_load(SYSTEMS.read_text(encoding="utf-8")), claims(arguments.results))
    with atomic(arguments.page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
