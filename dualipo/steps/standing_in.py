"""What stands in for a step of a round that does not happen, since the round before said that the rounds end.

What a round hands on is what the one before handed on; everything else is a note that says so, under the output's own
name, so that DVC and pipelines find every output of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dualipo.artifacts import copy, write_json
from dualipo.quality.evidence import Course
from dualipo.steps import Step, Summary

NOTE = "not_run.json"
"""In a folder that stands for an output."""
SKIPPED = "skipped"
"""Tag of a step that did not run, with the reason."""


def stand_in(step: Step, course: Course, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> Summary:
    """Writes every output of `step`; calls nothing of it."""
    for name, port in step.outputs.items():
        path = outputs[name]
        if port.stays:
            copy(inputs[port.stays], path)
        elif port.kind == "curves":
            path.write_text("step,loss\n", encoding="utf-8")
        else:
            note = {"happened": False, "stopped_after": course.round, "reasons": course.reasons}
            write_json(path if path.suffix else path / NOTE, note)
    return Summary(tags={SKIPPED: f"stopped after round {course.round}: {' '.join(course.reasons)}"})
