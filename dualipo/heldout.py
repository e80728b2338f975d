"""Prompts that nothing may be trained on: those of the human test set and of the benchmark, known by their hashes.

`start` writes the hashes once; the steps that train hold their data against them when they load it, and the step that
measures a critic holds its test set against them, so that what measures is what training was kept away from. Trainers
see hashes, never the held-out texts themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dualipo.artifacts import write_json
from dualipo.errors import UserError
from dualipo.prompts.sampler import normal
from dualipo.quality.evidence import load

NAMED = 3
"""Offending prompts named in a message."""
WHERE = {"test": "the human test set", "benchmark": "the benchmark"}


class HeldOut(BaseModel):
    """held_out.json: hashes of prompts (`prompt_hash`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test: frozenset[str]
    """Of the human test set, which measures the critic."""
    benchmark: frozenset[str]
    """Of the benchmark, which measures the generator."""


def prompt_hash(text: str) -> str:
    """sha256 of the normalised text: case, white space and a closing full stop do not count."""
    return hashlib.sha256(normal(text).encode()).hexdigest()


def hold_out(test: Iterable[str], benchmark: Iterable[str]) -> HeldOut:
    """Of prompt texts."""
    return HeldOut(test=frozenset(map(prompt_hash, test)), benchmark=frozenset(map(prompt_hash, benchmark)))


def write_held_out(path: str | Path, held_out: HeldOut) -> None:
    write_json(path, {name: sorted(hashes) for name, hashes in held_out})


def read_held_out(path: str | Path) -> HeldOut:
    """Raises UserError where the file is missing or malformed."""
    return load(HeldOut, path)


def require_apart(held_out: HeldOut, sources: Mapping[str, Iterable[str]], against: Iterable[str] = WHERE) -> None:
    """Raises UserError that names the first prompts of `sources` (texts by where they stand) that are held out."""
    for place, texts in sources.items():
        hashes = {text: prompt_hash(text) for text in dict.fromkeys(texts)}
        for name in against:
            held: frozenset[str] = getattr(held_out, name)
            if shared := [text for text, found in hashes.items() if found in held]:
                raise UserError(
                    f"{place}: {_named(shared)} also stand{'s' * (len(shared) == 1)} in {WHERE[name]}, which must be "
                    "apart from everything that is trained on; take the rows out"
                )


def require_known_test(held_out: HeldOut, place: str | Path, texts: Iterable[str]) -> None:
    """Raises UserError where a prompt of the human test set was not held out from training."""
    if unknown := [text for text in dict.fromkeys(texts) if prompt_hash(text) not in held_out.test]:
        raise UserError(
            f"{place}: {_named(unknown)} of this human test set {'was' if len(unknown) == 1 else 'were'} not held out "
            "from training, the set has changed since `start`; run `dualipo start`, and the rounds, again"
        )


def _named(texts: list[str]) -> str:
    shown = ", ".join(repr(text) for text in texts[:NAMED])
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return f"prompt{'s' * (len(texts) > 1)} {shown}{more}"
