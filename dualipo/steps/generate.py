"""Samples candidates from the incumbent generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dualipo.config import Config
from dualipo.records import Prompt, read_rows
from dualipo.steps import Job, Summary, derive_seed

if TYPE_CHECKING:
    from dualipo.generator.sampling import SamplingChunks


def generate(config: Config, job: Job, *, prompts: Path, generator: Path, candidates: Path) -> Summary:
    """Writes `generate.candidates` clips a prompt as a clip folder; each clip has a seed of its own. With
    `flow_nrg.generate` a generator that has a reward is steered by it.

    Raises UserError where the prompts or the checkpoint cannot be read.
    """
    from dualipo.generator.sampling import pack_clips
    from dualipo.media.sheets import contact_sheet
    from dualipo.media.store import ClipStore

    pack_clips(chunks(config, job, prompts=prompts, generator=generator), candidates)
    store = ClipStore(candidates)
    shown = [clip for group in list(store.by_prompt().values())[:6] for clip in group[:2]]
    sheet = job.work / "candidates.png"
    sheet.write_bytes(contact_sheet([store[clip.id] for clip in shown], [clip.prompt for clip in shown], columns=2))
    return Summary(metrics={"clips": float(len(store))}, pictures={"candidates": sheet})


def chunks(config: Config, job: Job, *, prompts: Path, generator: Path) -> SamplingChunks:
    """The sampling of the candidates."""
    from dualipo.generator.guidance import Steering
    from dualipo.generator.sampling import sampling_chunks

    section = config.generate
    rows = read_rows(prompts, Prompt)
    seeds = [[derive_seed(job.seed, row.id, k) for k in range(section.candidates)] for row in rows]
    steering = Steering.of(config.flow_nrg, config.flow_nrg.generate)
    return sampling_chunks(generator, rows, seeds, section, job.work, steering)
