"""
Pictures that were encoded elsewhere: whether they are for this model, and as what it reads.

Knows families and embeddings; nothing of how they came, or of who asks.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ..encoded import EncodedImage
from ..encoders.selection import kept, select
from ..errors import ModelMismatch
from ..families import Family
from ..values import ImageEmbedding, Tile

#: what to say of a picture where there is nothing that encodes it
NOT_ENCODED = (
    'the vision encoder of this model is elsewhere, and this picture is not encoded: expected '
    'what `ros2 run hobot_vlm encode` or VLM.encode_image gives'
)
CURE = 'use the encoder and the decoder of one model'


def check_fits(given: EncodedImage, family: Family, n_embd: int) -> None:
    """
    Check that a picture was encoded for this model, as far as it tells.

    :param n_embd: width of the embeddings that the model reads
    :raises ModelMismatch: it was not
    """
    if given.family != family.name:
        raise ModelMismatch(
            f'the picture was encoded by {given.encoder} for a model of the family '
            f'{given.family}, and this language model is of the family {family.name}: {CURE}'
        )
    if given.n_embd != n_embd:
        raise ModelMismatch(
            f'the picture was encoded by {given.encoder} in embeddings of width {given.n_embd}, '
            f'and this language model reads width {n_embd}: {CURE}'
        )


def to_embedding(given: EncodedImage, key: bytes, share: float) -> ImageEmbedding:
    """
    Make what a prompt is made of.

    :param key: hash of the picture and of the share
    :param share: of its embeddings that are kept
    """
    made = []
    for whole in given.tiles:
        data = np.ascontiguousarray(select(whole, kept(len(whole), share)), np.float32)
        # by what came, and not by what its sender calls it: nobody can stand in for another
        tile = Tile(hashlib.sha256(b'encoded' + data.tobytes()).digest()[:16], len(data))
        tile.encoded.set_result(data)
        made.append(tile)
    return ImageEmbedding(
        *(tuple(made), given.rows, given.columns, given.overview, key, given.size),
        made_by=(given.tile_size, given.fit),
    )
