"""Time and memory of drawing a large prompt pool, against a textbook sampler that draws one prompt at a time.

    python benchmarks/prompts.py [--count 1000000] [--space open_world] [--seed 0]

Each sampler runs in a process of its own and writes the same kind of file. Prints one JSON object: seconds, peak
resident memory (MiB), prompts that repeat an earlier one, and the largest |share - target| over the audited categories.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from dualipo.prompts import load_space, write_pool
from dualipo.prompts.space import Cell, PromptSpace, Remap, Value
from dualipo.records import Prompt, write_rows


def textbook(space: PromptSpace, count: int, seed: int) -> Iterator[Prompt]:
    """Independent categories, then one choice per factor; rejected prompts are drawn anew, repeats included."""
    rng = random.Random(seed)
    seen: set[str] = set()
    cells = {tuple(cell.categories.values()): cell for cell in space.cells()}
    while len(seen) < count:
        drawn = tuple(rng.choices(list(shares), list(shares.values()))[0] for shares in space.categories.values())
        if (cell := cells.get(drawn)) is None:
            continue
        words = {name: rng.choice(values) for name, values in zip(cell.factors, cell.vocabularies, strict=True)}
        if not allowed(space, cell, words, rng):
            continue
        text = "".join(
            literal + ("" if name is None else words[name].with_article if article else words[name].text)
            for literal, name, article in cell.template.parts()
        )
        if text not in seen:
            seen.add(text)
            attributes = {name: word.name for name, word in words.items()}
            yield Prompt(id=f"p-{len(seen):07d}", text=text, categories=cell.categories, attributes=attributes)


def allowed(space: PromptSpace, cell: Cell, words: dict[str, Value], rng: random.Random) -> bool:
    """Applies every rule to one tuple, remapping it in place."""

    def holds(condition: Mapping[str, tuple[str, ...]]) -> bool:
        for key, wanted in condition.items():
            if key in cell.categories:
                if cell.categories[key] not in wanted:
                    return False
            elif key not in words or words[key].name not in expanded(key, wanted):
                return False
        return True

    def expanded(key: str, wanted: tuple[str, ...]) -> frozenset[str]:
        if (key, wanted) not in _EXPANDED:
            _EXPANDED[key, wanted] = space.factors[key].expand(wanted)
        return _EXPANDED[key, wanted]

    for rule in space.rules:
        if not holds(rule.when) or (rule.unless and holds(rule.unless)):
            continue
        if rule.equal and len({words[name].name if name in words else id(name) for name in rule.equal}) > 1:
            continue
        if not isinstance(rule, Remap):
            return False
        for key, wanted in rule.to.items():
            if key in cell.categories:
                if cell.categories[key] not in wanted:
                    return False
                continue
            choices = [
                word for word in cell.vocabularies[cell.factors.index(key)] if word.name in expanded(key, wanted)
            ]
            if not choices:
                return False
            if words[key] not in choices:
                words[key] = rng.choice(choices)
    return True


_EXPANDED: dict[tuple[str, tuple[str, ...]], frozenset[str]] = {}


def measure(
    sampler: str, space_name: str, count: int, seed: int, path: str, results: Queue[tuple[float, float]]
) -> None:
    space, start = load_space(space_name), time.perf_counter()
    if sampler == "dualipo":
        write_pool(space, count, seed, path)
    else:
        write_rows(path, textbook(space, count, seed))
    seconds = time.perf_counter() - start
    results.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def audit(path: Path, space: PromptSpace) -> tuple[int, float]:
    counts = {category: dict.fromkeys(shares, 0) for category, shares in space.categories.items()}
    texts, total = set(), 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            texts.add(hash(row["text"]))
            total += 1
            for category, value in row["categories"].items():
                counts[category][value] += 1
    errors = [abs(n / total - space.categories[c][v]) for c, values in counts.items() for v, n in values.items()]
    return total - len(texts), max(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--space", default="open_world")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    context = get_context("spawn")
    report: dict[str, Any] = {"space": options.space, "count": options.count}
    with tempfile.TemporaryDirectory() as folder:
        for sampler in ("dualipo", "textbook"):
            path, results = Path(folder) / f"{sampler}.jsonl", context.Queue()
            arguments = (sampler, options.space, options.count, options.seed, str(path), results)
            process = context.Process(target=measure, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"the {sampler} sampler failed")
            seconds, memory = results.get()
            repeated, error = audit(path, load_space(options.space))
            report[sampler] = {
                "seconds": round(seconds, 2),
                "peak_mib": round(memory),
                "repeated": repeated,
                "max_share_error": error,
            }
    report["times_faster"] = round(report["textbook"]["seconds"] / report["dualipo"]["seconds"], 1)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
