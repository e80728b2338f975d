"""Samples candidates from the incumbent generator."""

from __future__ import annotations

from pathlib import Path

from dualipo.config import Config
from dualipo.records import Prompt, read_rows
from dualipo.steps import Job, Summary, derive_seed


def generate(config: Config, job: Job, *, prompts: Path, generator: Path, candidates: Path) -> Summary:
    """Writes `generate.candidates` clips a prompt as a clip folder; each clip has a seed of its own.

    Raises UserError where the prompts or the checkpoint cannot be read.
    """
    from dualipo.generator.sampling import sample_clips
    from dualipo.media.sheets import contact_sheet
    from dualipo.media.store import ClipStore

    section = config.generate
    rows = read_rows(prompts, Prompt)
    seeds = [[derive_seed(job.seed, row.id, k) for k in range(section.candidates)] for row in rows]
    sample_clips(generator, rows, seeds, section, job.work, candidates)
    store = ClipStore(candidates)
    shown = [clip for group in list(store.by_prompt().values())[:6] for clip in group[:2]]
    sheet = job.work / "candidates.png"
    sheet.write_bytes(contact_sheet([store[clip.id] for clip in shown], [clip.prompt for clip in shown], columns=2))
    return Summary(metrics={"clips": float(len(store))}, pictures={"candidates": sheet})
