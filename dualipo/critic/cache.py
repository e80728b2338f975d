"""The cache of a question's words: read once, handed to all its paths, with room for what they write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

SHARED_FROM = 128
"""Tokens of a question from which its paths share one copy of its keys and values; shorter ones are copied."""
_NAME = "dualipo_shared"


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, `count` rows for each row given, in buffers with room: a step writes its token in
    place.

    DynamicLayer copies all that is cached at every token, which on a CPU takes longer than the tokens' products. The
    views handed to attention hold the very same numbers.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, count: int, room: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keys, self._values = (_spread(held, count, room) for held in (keys, values))
        self._show(keys.shape[-2])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        self._keys[:, :, begin:end] = key_states
        self._values[:, :, begin:end] = value_states
        self._show(end)
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]


class SharedLayer(RoomyLayer):
    """One copy of what was read, (questions, heads, length, width), and what each path has written itself."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, count: int, room: int):
        super().__init__(keys[:, :, :0], values[:, :, :0], count, room)
        self.read_keys, self.read_values, self.count = keys, values, count

    def get_seq_length(self) -> int:
        return self.read_keys.shape[-2] + self.keys.shape[-2]


@contextmanager
def spread(language_model: Any, cache: Cache, count: int, room: int) -> Iterator[dict[str, Cache]]:
    """Gives each row of a filled cache `count` rows next to each other, with room for `room` more tokens, in place.

    Yields what the language model must be given besides, for one token a row at a time. Layers that keep a window of
    tokens alone are spread as they are.
    """
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    shared = plain and cache.get_seq_length() >= SHARED_FROM
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = (SharedLayer if shared else RoomyLayer)(layer.keys, layer.values, count, room)
        else:
            layer.batch_repeat_interleave(count)
    if not shared:
        yield {}
        return
    before = language_model.config._attn_implementation
    language_model.config._attn_implementation = _NAME
    try:
        yield {"shared_cache": cache}
    finally:
        language_model.config._attn_implementation = before


def shared_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    shared_cache: Cache,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one token a row, (rows, heads, 1, width), to what its question's rows read and to what it wrote.

    The paths of a question stand in for a longer query: what they share is read from memory once, not once a path.
    `key` and `value` are what the rows have written, (rows, key heads, length, width). Gives (rows, 1, heads, width).
    """
    layer: Any = shared_cache.layers[module.layer_idx]
    rows, heads, _one, width = query.shape
    groups, count = key.shape[1], layer.count
    query = query.reshape(rows, groups, heads // groups, width) * scaling

    def together(tensor: torch.Tensor) -> torch.Tensor:
        """(rows, groups, heads of a group, n) -> (questions, groups, all of a question's, n)."""
        return tensor.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3)

    def apart(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)

    read = apart(together(query) @ layer.read_keys.transpose(-1, -2))
    scores = torch.cat([read, query @ key.transpose(-1, -2)], dim=-1).float()
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    shares = scores.softmax(-1).to(value.dtype)
    of_read, of_own = shares.split([read.shape[-1], key.shape[-2]], dim=-1)
    output = apart(together(of_read) @ layer.read_values) + of_own @ value
    return output.reshape(rows, 1, heads, width), None


def _spread(held: torch.Tensor, count: int, room: int) -> torch.Tensor:
    rows, heads, filled, width = held.shape
    buffer = held.new_empty(rows * count, heads, filled + room, width)
    buffer.unflatten(0, (rows, count))[..., :filled, :] = held[:, None]
    return buffer


AttentionInterface.register(_NAME, shared_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
