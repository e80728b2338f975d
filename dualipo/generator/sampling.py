"""Prompts to clip folders: batched, sharded, resumable shard by shard."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dualipo.artifacts import PARTIAL, atomic, copy_folder, remove
from dualipo.generator.base import Generator, Guide, Size, load_generator
from dualipo.generator.guidance import UNGUIDED, Steering
from dualipo.media.store import ClipStore, pack_shard
from dualipo.records import Clip, Prompt
from dualipo.resume import Chunks

SHARD_PROMPTS = 16
SHARDS = "shards"
"""Folder of the tars in the scratch folder."""


class Sampling(Protocol):
    """Settings that `generate` and `evaluate` share."""

    @property
    def steps(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def size(self) -> Size | None: ...


SamplingChunks = Chunks[tuple[Prompt, Sequence[int]]]
"""Over prompts, each with its clips' seeds."""


def sample_clips(
    checkpoint: Path, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], how: Sampling, work: Path, out: Path
) -> None:
    """One clip per prompt and seed, ids `<prompt>-<number>`, as a clip folder at `out`.

    Finished shards survive a crash in `work`.
    """
    pack_clips(sampling_chunks(checkpoint, prompts, seeds, how, work), out)


def sampling_chunks(
    checkpoint: Path,
    prompts: Sequence[Prompt],
    seeds: Sequence[Sequence[int]],
    how: Sampling,
    work: Path,
    steering: Steering = UNGUIDED,
) -> SamplingChunks:
    """The sampling, a tar shard in `work`/shards for each chunk; loads the generator for the first chunk missing."""
    shards = work / SHARDS

    @functools.cache
    def load() -> tuple[Generator, Guide | None]:
        generator = load_generator(checkpoint)
        return generator, steering.guide(generator, checkpoint)

    def shard(index: int, part: Sequence[tuple[Prompt, Sequence[int]]]) -> list[dict[str, Any]]:
        generator, guide = load()
        shards.mkdir(exist_ok=True)
        name = f"clips-{index:05d}.tar"
        rows = [(prompt, k, seed) for prompt, own in part for k, seed in enumerate(own)]
        batches = generator.batches(
            [prompt.text for prompt, _, _ in rows],
            [seed for *_, seed in rows],
            how.steps,
            how.guidance,
            how.batch_size,
            how.size,
            guide,
        )
        ids = [f"{prompt.id}-{k}" for prompt, k, _ in rows]
        # One batch at a time is held: 16 prompts' clips of 49 frames of 480x720 are gigabytes.
        clips = (clip for batch in batches for clip in batch)
        with atomic(shards / name) as temporary:
            pack_shard(temporary, zip((f"{i}.mp4" for i in ids), clips, strict=True), generator.fps)
        return [
            Clip(id=i, prompt_id=p.id, prompt=p.text, file=f"{name}/{i}.mp4", seed=seed).model_dump()
            for i, (p, _, seed) in zip(ids, rows, strict=True)
        ]

    return Chunks(work, "sampling", list(zip(prompts, seeds, strict=True)), SHARD_PROMPTS, shard)


def pack_clips(chunks: SamplingChunks, out: Path) -> None:
    """The clip folder of a sampling; samples what is missing."""
    chunks.make(range(len(chunks)))
    shards = chunks.work / SHARDS
    # A process killed while it wrote a shard leaves its temporary file behind.
    for leftover in shards.glob(f".*{PARTIAL}"):
        remove(leftover)
    copy_folder(shards, out)
    ClipStore.write_manifest(out, map(Clip.model_validate, chunks.stream()))
