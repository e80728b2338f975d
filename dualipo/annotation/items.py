"""What people are asked, as a session keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from dualipo.critic.voting import Kind
from dualipo.records import DIMENSIONS, Dimension, Record, Text

KINDS: tuple[Kind, ...] = ("rating", "choice")
CHOICE_DIMENSIONS: tuple[Dimension, ...] = (*DIMENSIONS, "overall")


@dataclass(frozen=True)
class Place:
    """Where a clip lies: `file` in `folder`, as `media.store.locate` takes them."""

    folder: Path
    file: str


@dataclass(frozen=True)
class Ask:
    """One clip to rate or two to compare, as a source gives them."""

    prompt_id: str
    prompt: str
    clips: tuple[Place, ...]
    known: Mapping[str, str] = field(default_factory=dict)
    """Right answers by dimension, of golden items only."""

    @property
    def kind(self) -> Kind:
        return "rating" if len(self.clips) == 1 else "choice"


class KeptClip(Record):
    folder: Text
    """Relative to the session's folder."""
    file: Text
    md5: Text
    """Of the clip's bytes when the session was made."""

    def place(self, session: Path) -> Place:
        return Place(session / self.folder, self.file)


class AnnotationItem(Record):
    """One clip to rate or two to compare. Its id tells nothing of where it comes from."""

    id: Text
    kind: Literal["rating", "choice"]
    prompt_id: Text
    prompt: Text
    clips: tuple[KeptClip, ...] = Field(min_length=1, max_length=2)
    wave: int = Field(ge=0)
    """Items of an earlier wave are asked first; within one each annotator has an order of their own."""
    known: dict[str, str] = Field(default_factory=dict)
    """Right answers by dimension: a golden item. Never shown."""

    @property
    def golden(self) -> bool:
        return bool(self.known)


def item_id(prompt: str, md5s: tuple[str, ...]) -> str:
    """The same for both orders of a pair."""
    return hashlib.sha256("\n".join((prompt, *sorted(md5s))).encode()).hexdigest()[:12]
