"""
A picture, cut into the pieces that an encoder takes one after the other.

Most encoders are given tiles that the family cuts; libmtmd cuts pictures itself. Knows both;
nothing of queues, memory or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
import hashlib

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..encoders import Encoder, PictureEncoder, VisionEncoder
from ..encoders.selection import kept
from ..errors import InferenceError
from ..families import Family, TileFamily
from ..values import ImageEmbedding, ImageTiles, Pixels, Placing, Tile, Tokens


@dataclass(frozen=True, eq=False)
class Piece:
    """
    One tile to be.

    :param key: hash of what its embeddings depend on
    :param tokens: embeddings that are kept; 0: only running the encoder tells
    :param encode: gives all embeddings, float32 (tokens, n_embd)
    """

    key: bytes
    tokens: int
    placing: Placing | None
    encode: Callable[[], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Cut:
    """A picture in pieces; the rest as in :class:`hobot_vlm.values.ImageEmbedding`."""

    pieces: list[Piece]
    rows: int
    columns: int
    overview: bool
    layout: tuple[Tokens | int, ...] = ()

    def image(self, tiles: Sequence[Tile], key: bytes, size: tuple[int, int]) -> ImageEmbedding:
        """Give the picture that its tiles make."""
        return ImageEmbedding(
            tuple(tiles), self.rows, self.columns, self.overview, key, size, layout=self.layout
        )


def cut(rgb: Pixels, key: bytes, encoder: Encoder, family: Family, config: Config) -> Cut:
    """
    Cut a picture.

    :param key: of the whole picture and how it is cut
    """
    if isinstance(encoder, PictureEncoder):
        return _by_encoder(rgb, key, encoder)
    assert isinstance(encoder, VisionEncoder) and isinstance(family, TileFamily)
    share = config.keep_image_tokens
    tiles = family.tiles(rgb, encoder.tile_size, config.max_tiles, config.fit)
    if encoder.routed:
        together = _Together(encoder, tiles)
        pieces = [
            Piece(_name(key, i), 0, None, partial(together.tile, i))
            for i in range(len(tiles.pixels))
        ]
        return Cut(pieces, tiles.rows, tiles.columns, tiles.overview)
    pieces = [
        Piece(
            hash_pixels(f'{share}'.encode(), pixels),
            kept(encoder.tokens, share),
            None,
            partial(_encode, encoder, replace(tiles, pixels=tiles.pixels[i : i + 1])),
        )
        for i, pixels in enumerate(tiles.pixels)
    ]
    return Cut(pieces, tiles.rows, tiles.columns, tiles.overview)


def _by_encoder(rgb: Pixels, key: bytes, encoder: PictureEncoder) -> Cut:
    pieces: list[Piece] = []
    layout: list[Tokens | int] = []
    for part in encoder.cut(rgb):
        if isinstance(part, Tokens):
            layout.append(part)
            continue
        layout.append(len(pieces))
        pieces.append(Piece(_name(key, len(pieces)), part.tokens, part.placing, part.encode))
    return Cut(pieces, 0, 0, False, tuple(layout))


class _Together:
    """The tiles of a picture that are encoded at once, when the first of them is wanted."""

    def __init__(self, encoder: VisionEncoder, tiles: ImageTiles) -> None:
        self._encoder, self._tiles = encoder, tiles
        self._made: list[npt.NDArray[np.float32]] | BaseException | None = None

    def tile(self, index: int) -> npt.NDArray[np.float32]:
        """
        Give the embeddings of a tile, float32 (tokens, n_embd).

        :raises InferenceError: encoding failed, now or when another tile was wanted
        """
        if self._made is None:
            try:
                self._made = self._encoder.encode_each(self._tiles)
            except BaseException as exc:
                self._made = exc
        if isinstance(self._made, BaseException):
            raise self._made
        return self._made[index]


def _name(picture: bytes, index: int) -> bytes:
    """Give the key of a tile that depends on the whole picture."""
    return hashlib.sha256(b'%d ' % index + picture).digest()[:16]


def _encode(encoder: VisionEncoder, tile: ImageTiles) -> npt.NDArray[np.float32]:
    data = np.ascontiguousarray(encoder.encode(tile)[0], np.float32)
    if encoder.tokens not in (0, len(data)):
        raise InferenceError(
            f'the vision encoder gave {len(data)} embeddings for a tile, and promised '
            f'{encoder.tokens}: export it again'
        )
    return data


def hash_pixels(start: bytes, pixels: Pixels) -> bytes:
    """Hash pixels; 16 bytes are too many for two pictures to meet by chance or on purpose."""
    digest = hashlib.sha256(start)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()[:16]
