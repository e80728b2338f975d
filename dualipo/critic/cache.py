"""The cache of a question's words: read once, handed to all its paths, with room for what they write."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in buffers that have room: a step writes its token in place.

    DynamicLayer copies all that is cached at every token, which on a CPU takes longer than the tokens' products. The
    views handed to attention hold the very same numbers.
    """

    def __init__(self, layer: DynamicLayer, count: int, room: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        length = layer.keys.shape[-2]
        self._keys, self._values = (_spread(held, count, length + room) for held in (layer.keys, layer.values))
        self._show(length)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        self._keys[:, :, begin:end] = key_states
        self._values[:, :, begin:end] = value_states
        self._show(end)
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]


def spread(cache: Cache, count: int, room: int) -> None:
    """Gives each row of a filled cache `count` rows next to each other, with room for `room` more tokens, in place.

    Layers that keep a window of tokens alone are spread as they are.
    """
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = RoomyLayer(layer, count, room)
        else:
            layer.batch_repeat_interleave(count)


def _spread(held: torch.Tensor, count: int, length: int) -> torch.Tensor:
    rows, heads, filled, width = held.shape
    buffer = held.new_empty(rows * count, heads, length, width)
    buffer.unflatten(0, (rows, count))[..., :filled, :] = held[:, None]
    return buffer
