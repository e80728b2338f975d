"""report: one self-contained page of the whole run."""

from __future__ import annotations

from pathlib import Path

from dualipo.artifacts import atomic
from dualipo.config import Config
from dualipo.steps import BASE, Job, Summary


def report(config: Config, job: Job, *, runs: Path, page: Path) -> Summary:
    """Writes `page` (HTML) from the folder `runs`; a run that stopped half-way is reported as such.

    Raises UserError where the base model was not measured yet, or a file of the run is malformed.
    """
    from dualipo.report import collect, render

    runs, page = Path(runs), Path(page)
    gathered = collect(config, runs)
    with atomic(page) as temporary:
        temporary.write_text(render(gathered), encoding="utf-8")
    scores = {entry["name"]: entry["scores"] for entry in gathered["rounds"]}
    metrics = {
        "total_base": scores[BASE]["total"]["mean"],
        "total_final": scores[gathered["final"]]["total"]["mean"],
    }
    if gathered["gain"]:
        metrics |= {f"gain_{key}": gathered["gain"][key] for key in ("mean", "low", "high")}
    metrics["rounds_finished"] = float(sum(entry["finished"] for entry in gathered["rounds"][1:]))
    return Summary(metrics=metrics, pictures=_pictures(runs, gathered["final_clips"], job.work))


def _pictures(runs: Path, final: str, work: Path) -> dict[str, Path]:
    """The page's pairs of clips as one PNG; none where no candidate was promoted."""
    from dualipo.media.sheets import side_by_side
    from dualipo.media.store import MANIFEST, ClipStore
    from dualipo.report.collect import pick_pairs

    folders = [runs / name / "benchmark_clips" for name in (BASE, final)]
    if final == BASE or not all((folder / MANIFEST).is_file() for folder in folders):
        return {}
    base, last = (ClipStore(folder) for folder in folders)
    pairs = pick_pairs(base, last, limit=8)
    if not pairs:
        return {}
    left, right = [base[clip.id] for clip, _ in pairs], [last[clip.id] for _, clip in pairs]
    sheet = side_by_side(left, right, [clip.prompt for clip, _ in pairs], scale=max(1, 96 // max(left[0].shape[1:3])))
    with atomic(work / "before_after.png") as temporary:
        temporary.write_bytes(sheet)
    return {"before_after": work / "before_after.png"}
