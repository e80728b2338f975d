"""Clips of a version made anew from its checkpoint, in a scratch folder that later calls go on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import click

from dualipo.artifacts import atomic, digest, read_json, remove, replace, write_json
from dualipo.compare.measured import Measured, read_clip_scores
from dualipo.compare.versions import Compared
from dualipo.config import Config
from dualipo.errors import UserError
from dualipo.media.store import ClipStore
from dualipo.quality.evidence import parse
from dualipo.records import Prompt, write_rows
from dualipo.report.formats import Scores
from dualipo.runtime import lock, prepare_torch

SCRATCH = Path(".dualipo") / "compare"
_CLIPS, _SCORES, _PROMPTS, _MODEL, _DOWNLOAD = "clips", "scores.json", "prompts.jsonl", "model", "download"


def sample_anew(
    root: Path, config: Config, compared: Sequence[Compared], benchmark: Path, count: int
) -> list[Measured]:
    """Every version's clips of `count` held-out prompts, spread evenly over the benchmark, with `evaluate`'s settings
    and the benchmark's own seeds. The small world's are scored as well.

    A version's finished clips are kept in the scratch folder, and a sampling that was stopped goes on in the middle.
    Raises UserError where the benchmark is missing or a checkpoint is not what was registered.
    """
    from dualipo.evaluation.suites import open_suite

    if not benchmark.is_file():
        raise UserError(f"{benchmark}: no such file; name the folder of the held-out prompts with --data")
    every = open_suite(config, benchmark).prompts
    prompts = [every[index] for index in spread(len(every), count)]
    found = []
    for number, each in enumerate(compared, start=1):
        folder = root / SCRATCH / _key(config, each, prompts)
        if not (folder / _SCORES).is_file():
            click.echo(f"sampling {each.label}, {number} of {len(compared)}: {len(prompts)} prompts", err=True)
            with lock(folder / "lock", f"the sampling of {each.label}"):
                _make(root, config, each, prompts, folder)
        found.append(_read(config, folder, prompts))
    return found


def spread(length: int, count: int) -> list[int]:
    """At most `count` positions of `length`, at even distances, both ends among them."""
    if count >= length:
        return list(range(length))
    return [round(index * (length - 1) / max(count - 1, 1)) for index in range(count)]


def _key(config: Config, compared: Compared, prompts: Sequence[Prompt]) -> str:
    asked = {
        "generator": compared.version.md5,
        "prompts": [prompt.model_dump() for prompt in prompts],
        "seed": config.experiment.seed,
        "evaluate": config.identity("evaluate"),
        "flow_nrg": config.identity("flow_nrg"),
    }
    return hashlib.md5(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _make(root: Path, config: Config, compared: Compared, prompts: Sequence[Prompt], folder: Path) -> None:
    from dualipo.evaluation.suites import SmallWorld
    from dualipo.generator.guidance import Steering
    from dualipo.generator.sampling import pack_clips, sampling_chunks
    from dualipo.steps import derive_seed

    prepare_torch()
    write_rows(folder / _PROMPTS, prompts)
    checkpoint, work = _checkpoint(root, compared, folder), folder / "work"
    steering = Steering.of(config.flow_nrg, config.flow_nrg.evaluate)
    numbers = range(config.evaluate.samples_per_prompt)
    seeds = [[derive_seed(config.experiment.seed, "benchmark", p.id, k) for k in numbers] for p in prompts]
    with atomic(folder / _CLIPS) as temporary:
        pack_clips(sampling_chunks(checkpoint, prompts, seeds, config.evaluate, work, steering), temporary)
        scores = None
        if config.evaluate.suite == "small_world":
            scores = SmallWorld(config, folder / _PROMPTS).score(temporary, work)
    guided = steering.told(checkpoint)
    write_json(folder / _SCORES, {"scores": scores and {**scores, **({"guided": guided} if guided else {})}})
    for leftover in (work, folder / _MODEL):
        remove(leftover)


def _checkpoint(root: Path, compared: Compared, folder: Path) -> Path:
    """The version's folder: where it was made if it is still whole there, else as MLflow hands it out."""
    version = compared.version
    made = root / version.tags["path"]
    if made.exists() and digest(made).md5 == version.md5:
        return made
    target = folder / _MODEL
    if not target.exists():
        remove(folder / _DOWNLOAD)
        replace(compared.tracker.download(version, folder / _DOWNLOAD), target)
    if digest(target).md5 != version.md5:
        remove(target)
        raise UserError(
            f"{version.label}: MLflow hands out other bytes than were registered; `dualipo verify {version.label}` "
            "tells more"
        )
    return target


def _read(config: Config, folder: Path, prompts: Sequence[Prompt]) -> Measured:
    content = read_json(folder / _SCORES)["scores"]
    clips = folder / _CLIPS
    return Measured(
        store=ClipStore(clips),
        suite=config.evaluate.suite,
        scores=parse(Scores, content, folder / _SCORES) if content else None,
        file=None,
        rows=read_clip_scores(clips) if content else {},
        hashes={"clips": digest(clips).md5, "prompts": digest(folder / _PROMPTS).md5},
        prompts={prompt.id: prompt for prompt in prompts},
        settings={f"evaluate.{key}": getattr(config.evaluate, key) for key in ("steps", "guidance", "size")},
    )
