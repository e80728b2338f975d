"""What alignment trains on: preferences, over clips and texts that are encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dualipo.alignment.encoding import Shards, encode_clips, encode_texts
from dualipo.alignment.losses import standardised
from dualipo.alignment.trainer import Encoded
from dualipo.errors import UserError
from dualipo.generator.base import Generator
from dualipo.media.store import ClipStore, read_bytes, read_clip
from dualipo.records import Desirability, Preference, RealClip, find_table, read_rows


class Dataset:
    """Candidates, real clips and their texts as the denoiser takes them, in `folder`; each is encoded when it is first
    asked for."""

    def __init__(self, generator: Generator, candidates: Path, real_clips: Path, folder: Path):
        self._generator, self._candidates, self._folder = generator, candidates, folder
        self._store = ClipStore(candidates)
        self._captions = read_rows(find_table(real_clips, "captions"), RealClip)
        self._real = {f"real/{row.clip}": (real_clips, row.clip) for row in self._captions}
        self._clips, self._texts = Shards([], generator.device), Shards([], generator.device)
        self._row_of: dict[str, int] = {}
        self._text_of: dict[str, int] = {}

    def pairs(self, rows: Sequence[Preference]) -> Encoded:
        """Winners and losers. Raises UserError where the two of a pair differ in shape."""
        winners, losers = [row.winner for row in rows], [row.loser for row in rows]
        found = self._encoded(winners, [row.prompt for row in rows], losers)
        shapes = self._clips.shapes
        for winner, loser in zip(winners, losers, strict=True):
            if shapes[self._row_of[winner]] != shapes[self._row_of[loser]]:
                raise UserError(
                    f"{self._candidates}: clips {winner} and {loser} of one pair differ in frames or size; make them"
                    " alike"
                )
        return found

    def winners(self, rows: Sequence[Preference]) -> Encoded:
        return self._encoded([row.winner for row in rows], [row.prompt for row in rows])

    def scored(self, rows: Sequence[Desirability]) -> Encoded:
        """Every scored clip, desirable or not, with its score standardised."""
        desirable = torch.tensor([row.desirable for row in rows])
        rewards = standardised(torch.tensor([row.score for row in rows]))
        return self._encoded([row.clip for row in rows], [row.prompt for row in rows], None, desirable, rewards)

    def _encoded(
        self,
        clips: list[str],
        prompts: list[str],
        losers: list[str] | None = None,
        desirable: torch.Tensor | None = None,
        rewards: torch.Tensor | None = None,
    ) -> Encoded:
        captions = [row.prompt for row in self._captions]
        self._encode([*self._real, *clips, *(losers or [])], [*prompts, *captions])

        def rows(places: dict[str, int], wanted: list[str]) -> torch.Tensor:
            return torch.tensor([places[each] for each in wanted], dtype=torch.long)

        return Encoded(
            self._clips,
            self._texts,
            rows(self._row_of, clips),
            None if losers is None else rows(self._row_of, losers),
            rows(self._text_of, prompts),
            desirable,
            rows(self._row_of, [f"real/{row.clip}" for row in self._captions]),
            rows(self._text_of, captions),
            rewards,
        )

    def _encode(self, clips: list[str], texts: list[str]) -> None:
        """Encodes what was not encoded yet."""
        generator, folder = self._generator, self._folder
        if names := [name for name in dict.fromkeys(clips) if name not in self._row_of]:
            files = {name: self._real.get(name) or (self._candidates, self._store.file(name)) for name in names}
            self._clips += encode_clips(
                generator, names, lambda name: read_clip(*files[name]), lambda name: read_bytes(*files[name]), folder
            )
            self._row_of |= {name: row for row, name in enumerate(names, len(self._row_of))}
        if new := [text for text in dict.fromkeys(texts) if text not in self._text_of]:
            self._texts += encode_texts(generator, new, folder)
            self._text_of |= {text: row for row, text in enumerate(new, len(self._text_of))}
