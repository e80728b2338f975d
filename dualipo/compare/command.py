"""`dualipo compare`: gathers, writes the page, and tells in a line a version what is on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dualipo.artifacts import atomic
from dualipo.compare import collect, render
from dualipo.config import Config
from dualipo.report.page import size
from dualipo.runtime import disk_trouble


def compare(
    root: Path,
    config: Config,
    references: Sequence[str],
    benchmark: Path,
    out: Path,
    anew: int | None = None,
    max_clips: int | None = None,
) -> Iterator[str]:
    """Writes `out`; yields what to print. Raises UserError as `collect`."""
    with disk_trouble("compare", out.parent):
        comparison = collect(root, config, references, benchmark, anew, max_clips)
        with atomic(out) as temporary:
            temporary.write_text(render(comparison), encoding="utf-8")
    first, *others = comparison["versions"]
    for version in others:
        difference = version["difference"]["total"]
        told = "not measured"
        if difference:
            told = f"{difference['mean']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}] points"
        yield f"{version['provenance']['label']} ({version['name']}) against {first['name']}: {told}"
    count = comparison["count"]
    yield f"{out}: {len(others) + 1} versions, {count['prompts']} prompts, {size(out.stat().st_size)}"
