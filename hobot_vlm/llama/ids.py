"""
Numbers for what the KV cache holds, so that prefixes can be compared.

A token is its own id. Each embedding of a tile has a negative one, made of the tile's key and of
its place there, so equal ids mean equal input. Some tiles are whole or useless: where a part of
one can be neither read nor forgotten alone, its ids say so. Knows numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence

#: bits of an embedding's place in its tile, and of the number of those in a tile that is whole
_PLACE = 32
_MASK = (1 << _PLACE) - 1


def embedding_ids(key: bytes, tokens: int, whole: bool = False) -> list[int]:
    """
    Name the embeddings of a tile.

    :param key: of the tile
    :param whole: no part of it stands without the rest
    """
    first = ((int.from_bytes(key, 'big') << _PLACE | (tokens if whole else 0)) << _PLACE) + 1
    return [-(first + i) for i in range(tokens)]


def without_part(ids: Sequence[int], length: int) -> int:
    """Give how many of the first ids end where no tile is cut that must stay whole."""
    last = ids[length - 1] if length else 0
    if last >= 0:
        return length
    place, tokens = (-last - 1) & _MASK, (-last - 1) >> _PLACE & _MASK
    return length - place - 1 if place + 1 < tokens else length


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the first ids that are the same; a tile that must stay whole counts whole or not."""
    low, high = 0, min(len(one), len(other))
    # whole lists compare much faster than id by id: halve towards the first difference
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return without_part(one, low)
