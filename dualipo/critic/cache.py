"""A cache of keys and values that takes new tokens in place."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A DynamicCache's layer with room for `room` more tokens: transformers' own copies all there is for each one."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, room: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self._length = keys.shape[-2]
        self._keys, self._values = (
            torch.cat([old, old.new_empty(*old.shape[:-2], room, old.shape[-1])], -2) for old in (keys, values)
        )
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self._length + key_states.shape[-2]
        self._keys[..., self._length : end, :] = key_states
        self._values[..., self._length : end, :] = value_states
        self._length = end
        self._show()
        return self.keys, self.values

    def _show(self) -> None:
        self.keys, self.values = self._keys[..., : self._length, :], self._values[..., : self._length, :]


def make_room(cache: DynamicCache, rows: int, room: int) -> None:
    """Repeats each row of the cache `rows` times, and makes room for `room` more tokens, in place."""
    cache.layers = [
        RoomyLayer(layer.keys.repeat_interleave(rows, 0), layer.values.repeat_interleave(rows, 0), room)
        for layer in cache.layers
    ]
