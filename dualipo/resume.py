"""Long loops that go on where they were stopped: each chunk's result is a file in the step's scratch folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from dualipo.artifacts import write_json_lines

Item = TypeVar("Item")
CLIPS_A_CHUNK = 128
Share = Callable[[Sequence[int], Callable[[int], None], Callable[[], Any]], None]
"""`share(indices, make, tell)`: each of the chunks gets made, by `make` or elsewhere, and is told of."""
sharing: ContextVar[Share | None] = ContextVar("sharing", default=None)
"""How the step under way shares its loop with other processes (dualipo/beside.py); None where it is alone."""


@dataclass(frozen=True)
class Chunks(Generic[Item]):
    """A loop over `items`, cut into chunks of `size`; rows of chunk 3 lie in `work`/`name`-00003.jsonl.

    `compute(index, items of the chunk)` must depend on its arguments alone: chunks made after a kill, or in another
    process (dualipo/beside.py, dualipo/steps/sharding.py), are then what an unbroken loop makes. Files beside the rows
    go into `work` too.
    """

    work: Path
    name: str
    items: Sequence[Item]
    size: int
    compute: Callable[[int, Sequence[Item]], list[dict[str, Any]]]
    before: Callable[[], None] | None = None
    """What a shard does before it makes any of its chunks; not what a process does that makes them all."""
    after: Callable[[list[dict[str, Any]]], None] | None = None
    """What it does with their rows then; knows nothing of `compute`, whose models are gone."""

    def __len__(self) -> int:
        """How many chunks there are."""
        return -(-len(self.items) // self.size)

    def make(self, indices: Iterable[int]) -> None:
        """Computes those of the chunks that are not there yet, with the processes that help this one."""
        self.work.mkdir(parents=True, exist_ok=True)
        missing = [index for index in indices if not self._file(index).exists()]
        share = sharing.get() if len(missing) > 1 else None
        with tqdm(total=len(missing), desc=self.name, leave=False) as bar:
            (share or _alone)(missing, self.make_one, bar.update)

    def make_one(self, index: int) -> None:
        """Computes one chunk, unless it is there."""
        if self._file(index).exists():
            return
        made = self.compute(index, self.items[index * self.size : (index + 1) * self.size])
        write_json_lines(self._file(index), made)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of every chunk in order; computes what is missing."""
        return list(self.stream())

    def stream(self) -> Iterator[dict[str, Any]]:
        """The same one by one, holding one chunk's."""
        yield from self.stream_of(range(len(self)))

    def stream_of(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Rows of those of the chunks; computes what is missing of them."""
        self.make(indices)
        for index in indices:
            yield from map(json.loads, self._file(index).read_text(encoding="utf-8").splitlines())

    def _file(self, index: int) -> Path:
        return self.work / f"{self.name}-{index:05d}.jsonl"


def chunk_size(groups: Sequence[Sequence[Any]], most: int) -> int:
    """How many prompts' clips make a chunk: `most`, or fewer where each has so many that it would hold over 128."""
    return max(min(most, CLIPS_A_CHUNK // max(map(len, groups), default=1)), 1)


def _alone(indices: Sequence[int], make: Callable[[int], None], tell: Callable[[], Any]) -> None:
    for index in indices:
        make(index)
        tell()
