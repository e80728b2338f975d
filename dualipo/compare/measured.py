"""The benchmark clips and scores of a version: as the step that measured it left them, each file checked by its md5."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualipo.artifacts import digest
from dualipo.compare.versions import Compared
from dualipo.errors import UserError
from dualipo.evaluation.suites import CLIP_SCORES
from dualipo.media.store import ClipStore
from dualipo.quality.evidence import load
from dualipo.records import Prompt, read_rows
from dualipo.report.formats import ClipScores, Scores
from dualipo.tracking import Link, StepRun

CLIPS, SCORES, BENCHMARK = "benchmark_clips", "scores", "benchmark"
_SETTINGS = ("evaluate.steps", "evaluate.guidance", "evaluate.size")
ANEW = "add --prompts 24 to sample clips of so many prompts anew"


@dataclass(frozen=True)
class Measured:
    """Clips of one version, and what they scored."""

    store: ClipStore
    suite: str
    scores: Scores | None
    """None where the clips were not scored."""
    file: Path | None
    """The file of these scores."""
    rows: dict[str, ClipScores]
    """By clip."""
    hashes: dict[str, str]
    """md5 by what it is of."""
    prompts: dict[str, Prompt] = field(default_factory=dict)
    """The benchmark's, by id, where it is at hand: their categories."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the clips were sampled."""

    @property
    def asked(self) -> set[tuple[str, str, int | None]]:
        """Every clip's prompt, its text and the seed."""
        return {(clip.prompt_id, clip.prompt, clip.seed) for clip in self.store.clips}


def measured(root: Path, compared: Compared) -> Measured:
    """What the newest recorded measurement left whose files are still whole.

    Raises UserError where the version was never measured, or its files are gone or changed.
    """
    version = compared.version
    runs = [run for run in compared.tracker.step_runs() if _measures(run, version.md5)]
    if not runs:
        raise UserError(f"{version.label}: no step is recorded that measured it; {ANEW}")
    runs.sort(key=lambda run: (run.config_digest == version.config_digest, run.started), reverse=True)
    states = []
    for run in runs:
        state = _state(root, run.outputs[CLIPS]) or _state(root, run.outputs[SCORES])
        if not state:
            return _read(root, compared, run)
        states.append(state)
    raise UserError(f"{version.label}: its benchmark clips can't be shown, since {states[0]}; {ANEW}")


def _measures(run: StepRun, md5: str) -> bool:
    subject = run.inputs.get("candidate") or run.outputs.get("generator")
    return bool(subject and subject.md5 == md5 and {CLIPS, SCORES} <= run.outputs.keys())


def _state(root: Path, link: Link) -> str:
    """What is wrong with a file or folder; nothing where it is what was recorded."""
    path = root / link.path
    if not path.exists():
        return f"{path} is not there any more"
    return "" if digest(path).md5 == link.md5 else f"{path} holds other bytes than were recorded"


def _read(root: Path, compared: Compared, run: StepRun) -> Measured:
    folder, scores = root / run.outputs[CLIPS].path, load(Scores, root / run.outputs[SCORES].path)
    asked = run.inputs.get(BENCHMARK)
    hashes = {"clips": run.outputs[CLIPS].md5, "scores": run.outputs[SCORES].md5}
    params = compared.tracker.step_params(run.run_id)
    return Measured(
        store=ClipStore(folder),
        suite=scores.suite,
        scores=scores,
        file=root / run.outputs[SCORES].path,
        rows=read_clip_scores(folder),
        hashes=hashes | ({"prompts": asked.md5} if asked else {}),
        prompts=read_prompts(root / asked.path) if asked and not _state(root, asked) else {},
        settings={key: json.loads(params[key]) for key in _SETTINGS if key in params},
    )


def read_clip_scores(folder: Path) -> dict[str, ClipScores]:
    return {row.clip: row for row in read_rows(folder / CLIP_SCORES, ClipScores)}


def read_prompts(benchmark: Path) -> dict[str, Prompt]:
    return {prompt.id: prompt for prompt in read_rows(benchmark, Prompt)}


def require_same(compared: Sequence[Compared], found: Sequence[Measured]) -> None:
    """Raises UserError where two versions were measured by different suites, or on other prompts or seeds."""
    first, own = compared[0].label, found[0]
    for other, each in zip(compared[1:], found[1:], strict=True):
        if each.suite != own.suite:
            raise UserError(
                f"{first} was measured by suite {own.suite}, {other.label} by {each.suite}; measure both with one suite"
            )
        if each.asked != own.asked:
            shared = len(each.asked & own.asked)
            raise UserError(
                f"{first} and {other.label} were measured on other prompts or seeds ({shared} clips of "
                f"{len(own.asked)} and {len(each.asked)} in common); {ANEW}, the same for all"
            )
