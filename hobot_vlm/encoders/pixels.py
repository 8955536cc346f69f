"""
What encoders that run on plain arrays share: pixels on the way in, embeddings on the way out.

This file knows layouts, number formats and quantisation; it knows no runtime and no family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InferenceError
from ..values import ImageTiles

#: no encoder has tiles beyond this; a file that claims so is damaged or worse
LARGEST_SIDE = 4096


@dataclass(frozen=True, eq=False)
class Quantisation:
    """
    Number = (stored - zero_point) * scale.

    :param scale: one number, or one per index of ``axis``
    :param zero_point: as many as ``scale``
    """

    scale: npt.NDArray[np.float64]
    zero_point: npt.NDArray[np.float64]
    axis: int

    def dequantise(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Give the numbers that an integer array stands for."""
        shape = [1] * stored.ndim
        shape[self.axis] = -1
        scale = self.scale.astype(np.float32).reshape(shape)
        number = stored.astype(np.float32)
        if self.zero_point.any():
            number -= self.zero_point.astype(np.float32).reshape(shape)
        number *= scale
        return number


@dataclass(frozen=True, eq=False)
class PixelFormat:
    """
    How an encoder wants a tile.

    :param tile_size: width and height in pixels
    :param channels_first: (3, side, side) instead of (side, side, 3)
    :param dtype: uint8 without quantisation means raw pixels, which the model normalises itself
    :param quantisation: of integer inputs, one scale or one per channel
    """

    tile_size: int
    channels_first: bool
    dtype: np.dtype[Any]
    quantisation: Quantisation | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one tile."""
        return (
            (3, self.tile_size, self.tile_size)
            if self.channels_first
            else (self.tile_size, self.tile_size, 3)
        )

    def tables(self, tiles: ImageTiles) -> npt.NDArray[Any] | None:
        """
        Give what each of the 256 pixel values becomes, per channel: (3, 256).

        With a table, every number format costs the same: 0.6 ms for a tile of 512 x 512.
        """
        if self.dtype == np.uint8 and self.quantisation is None:
            return None
        mean, std = np.array(tiles.mean)[:, None], np.array(tiles.std)[:, None]
        numbers = (np.arange(256)[None] / 255.0 - mean) / std
        if self.quantisation is not None:
            scale, zero = self.quantisation.scale[:, None], self.quantisation.zero_point[:, None]
            limits = np.iinfo(self.dtype)
            numbers = np.clip(np.rint(numbers / scale + zero), limits.min, limits.max)
        tables: npt.NDArray[Any] = numbers.astype(self.dtype)
        return tables

    def batch(self, tiles: ImageTiles, start: int, stop: int, size: int = 0) -> npt.NDArray[Any]:
        """
        Give tiles ``start`` to ``stop`` as the encoder wants them: (tiles, ...), C order.

        :param size: tiles that the encoder insists on; the last one is repeated to fill up
        """
        tables = self.tables(tiles)
        size = size or stop - start
        fed: npt.NDArray[Any] = np.empty((size, *self.shape), self.dtype)
        for slot in range(size):
            tile = tiles.pixels[min(start + slot, stop - 1)]
            for channel in range(3):
                target = fed[slot, channel] if self.channels_first else fed[slot, ..., channel]
                if tables is None:
                    target[...] = tile[..., channel]
                else:
                    # mode: without it numpy copies target to check every index first
                    np.take(tables[channel], tile[..., channel], out=target, mode='clip')
        return fed


def image_layout(shape: Sequence[Any]) -> tuple[bool, Any, Any] | None:
    """
    Tell (channels first, height, width) of the shape of an image, or None where it is none.

    Sizes that are not numbers stay as they are. Where the channel axis is not fixed either, it is
    taken to be the first, as PyTorch exports it.
    """
    channels, height, width = shape
    if channels == 3:
        return True, height, width
    if width == 3:
        return False, channels, height
    if not isinstance(channels, int):
        return True, height, width
    return None


def check_tiles(tiles: ImageTiles, side: int) -> None:
    """
    Refuse tiles that the encoder was not made for.

    :raises InferenceError: another size, or none at all
    """
    shape = tiles.pixels.shape
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != (side, side, 3):
        raise InferenceError(
            f'the vision encoder reads tiles of {side} x {side} pixels, RGB, and '
            f'was given an array of shape {shape}: cut pictures for its side'
        )


def check_embeddings(embeddings: npt.NDArray[np.float32], name: str, cure: str) -> None:
    """
    Refuse embeddings that are no numbers: the decoder would answer nonsense without a word.

    :raises InferenceError: NaN or infinity
    """
    if not np.isfinite(embeddings).all():
        bad = int(embeddings.size - np.isfinite(embeddings).sum())
        raise InferenceError(
            f'{name} gave {bad} of {embeddings.size} numbers that are not finite '
            f'(NaN or infinity); {cure}'
        )
