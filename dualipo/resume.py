"""Long loops that go on where they were stopped: each chunk's result is a file in the step's scratch folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from dualipo.artifacts import atomic

Item = TypeVar("Item")


def in_chunks(
    work: Path,
    name: str,
    items: Sequence[Item],
    size: int,
    compute: Callable[[int, Sequence[Item]], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Rows of `compute(index, chunk)` over all chunks of `size` items, in order.

    `compute` must depend on its arguments alone, so that a resumed loop gives what an unbroken one does.
    """
    rows: list[dict[str, Any]] = []
    work.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range((len(items) + size - 1) // size), desc=name, leave=False):
        path = work / f"{name}-{index:05d}.jsonl"
        if not path.exists():
            made = compute(index, items[index * size : (index + 1) * size])
            with atomic(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows
