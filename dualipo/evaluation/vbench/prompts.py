"""VBench's official prompts: what is sampled for which dimension, and how VBench wants the clips named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from dualipo.errors import UserError
from dualipo.evaluation.vbench.aggregate import DIMENSIONS
from dualipo.records import Clip, Prompt

SAMPLES = 5
"""Clips of each prompt that VBench looks at."""
FLICKERING = "temporal_flickering"
FLICKERING_SAMPLES = 25
"""Clips of each of its prompts, of which VBench's static filter leaves at most `SAMPLES`."""
ORIGINAL = "vbench"
"""Attribute of a row of benchmark.jsonl that names the official prompt which the row's text stands in for."""
_INFO = Path(__file__).parent / "official" / "VBench_full_info.json"


@dataclass(frozen=True)
class Entry:
    """One entry of VBench_full_info.json: a prompt and the dimensions that it is asked for."""

    prompt: str
    prompt_id: str
    dimensions: tuple[str, ...]
    content: Mapping[str, Any]
    """As VBench has it."""


@cache
def official() -> tuple[Entry, ...]:
    """All 946 entries, in VBench's order; 944 prompts, numbered from `vbench-0001` in order of appearance."""
    entries = json.loads(_INFO.read_text(encoding="utf-8"))
    numbers: dict[str, int] = {}
    for entry in entries:
        numbers.setdefault(entry["prompt_en"], len(numbers) + 1)
    return tuple(
        Entry(e["prompt_en"], f"vbench-{numbers[e['prompt_en']]:04d}", tuple(e["dimension"]), e) for e in entries
    )


def official_texts() -> frozenset[str]:
    """Every prompt of the suite: no generator may be trained on one."""
    return frozenset(entry.prompt for entry in official())


@dataclass(frozen=True)
class Selection:
    """The entries that are measured, and what is sampled for them."""

    entries: tuple[Entry, ...]
    dimensions: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    """One row a distinct prompt; `text` is what is sampled from."""
    enhanced: bool
    """Clips are sampled from other texts than the official prompts."""
    static_filter: bool
    whole: bool
    """Every entry of these dimensions is there."""

    @property
    def name(self) -> str:
        """Names the metrics: `vbench` alone means VBench as its leaderboard has it, enhanced prompts apart."""
        parts = ["vbench"]
        parts += ["enhanced"] if self.enhanced else []
        parts += ["unfiltered"] if FLICKERING in self.dimensions and not self.static_filter else []
        parts += [] if self.whole else [f"subset_{len(self.prompts)}"]
        return "_".join(parts)

    @cached_property
    def originals(self) -> dict[str, str]:
        """Official prompt of each prompt id."""
        return {entry.prompt_id: entry.prompt for entry in self.entries}

    @cached_property
    def filtered(self) -> frozenset[str]:
        """Ids of prompts whose clips go through the static filter first."""
        if not self.static_filter:
            return frozenset()
        return frozenset(entry.prompt_id for entry in self.entries if FLICKERING in entry.dimensions)

    def samples(self, prompt_id: str) -> int:
        return FLICKERING_SAMPLES if prompt_id in self.filtered else SAMPLES

    @property
    def clips(self) -> int:
        """How many are sampled."""
        return sum(self.samples(prompt.id) for prompt in self.prompts)

    def of_clips(self, clips: Iterable[Clip]) -> Selection:
        """What is measured of these clips alone."""
        ids = {clip.prompt_id for clip in clips}
        entries = tuple(entry for entry in self.entries if entry.prompt_id in ids)
        asked = {name for entry in entries for name in entry.dimensions}
        dimensions = tuple(name for name in self.dimensions if name in asked)
        prompts = tuple(prompt for prompt in self.prompts if prompt.id in ids)
        return replace(self, entries=entries, dimensions=dimensions, prompts=prompts)

    def of(self, dimension: str) -> list[Entry]:
        return [entry for entry in self.entries if dimension in entry.dimensions]


def select(
    dimensions: Sequence[str] | None = None,
    per_kind: int | None = None,
    static_filter: bool = True,
    benchmark: Iterable[Prompt] = (),
) -> Selection:
    """What to sample and score.

    `per_kind` keeps that many entries of each of the suite's eleven kinds (entries asked for the same dimensions),
    evenly spread over VBench's order. Rows of `benchmark` with the attribute `vbench` give the texts to sample from in
    the place of the official prompts that it names. Raises UserError where only some prompts have one, or twice.
    """
    wanted = tuple(name for name in DIMENSIONS if dimensions is None or name in dimensions)
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index, entry in enumerate(official()):
        if set(entry.dimensions) & set(wanted):
            kinds.setdefault(entry.dimensions, []).append(index)
    kept = sorted(index for kind in kinds.values() for index in _spread(kind, per_kind))
    entries = tuple(official()[index] for index in kept)
    originals = {entry.prompt: entry.prompt_id for entry in entries}
    texts = _enhanced(benchmark, originals)
    prompts = tuple(
        Prompt(id=prompt_id, text=texts.get(prompt, prompt), attributes={ORIGINAL: prompt})
        for prompt, prompt_id in originals.items()
    )
    whole = len(kept) == sum(len(kind) for kind in kinds.values())
    return Selection(entries, wanted, prompts, bool(texts), static_filter, whole)


def clip_name(prompt: str, number: int) -> str:
    """As VBench looks for it: the official prompt, whatever was sampled from."""
    return f"{prompt}-{number}.mp4"


def _spread(kind: list[int], count: int | None) -> list[int]:
    if count is None or count >= len(kind):
        return kind
    return [kind[position * len(kind) // count] for position in range(count)]


def _enhanced(benchmark: Iterable[Prompt], originals: Mapping[str, str]) -> dict[str, str]:
    rows = [row for row in benchmark if ORIGINAL in row.attributes]
    texts = {row.attributes[ORIGINAL]: row.text for row in rows}
    if len(texts) != len(rows):
        raise UserError(f"benchmark.jsonl: two rows stand in for one VBench prompt; leave one ({len(rows)} rows)")
    if unknown := sorted(texts.keys() - official_texts()):
        raise UserError(f"benchmark.jsonl: {unknown[0]!r} is no prompt of VBench; attribute `{ORIGINAL}` names one")
    if texts and (missing := sorted(originals.keys() - texts.keys())):
        raise UserError(
            f"benchmark.jsonl: {len(missing)} of VBench's prompts have no row with attribute `{ORIGINAL}`, "
            f"{missing[0]!r} among them; give every prompt one, or none"
        )
    return {prompt: text for prompt, text in texts.items() if prompt in originals}
