"""
Which pictures look the same: compared as thumbnails.

Knows pixels alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..encoded import EncodedImage
from ..values import Pixels

#: side of the thumbnails, the mean difference, of 255, up to which two look the same, and the
#: greatest in any one place: a cat at the far end of a room is a twentieth of the picture's width
#: and changes one place by more, where the noise of a camera changes all by less
THUMBNAIL = 16
SIMILAR = 3.0
SIMILAR_PLACE = 12.0
#: by number: the Pillow of Ubuntu 22.04 has no Image.Resampling
BOX = 4

Thumbnails = npt.NDArray[np.float32]  # (pictures, THUMBNAIL, THUMBNAIL, 3)


def thumbnails(pictures: Sequence[Pixels | EncodedImage]) -> Thumbnails:
    """Give very small pictures, to compare by."""
    return np.stack([_thumbnail(picture) for picture in pictures])


def _thumbnail(picture: Pixels | EncodedImage) -> npt.NDArray[np.float32]:
    """
    Give a very small picture.

    Of an encoded one that is noise of its own, unlike that of any other: whether pictures look the
    same, their encoder has seen.
    """
    if isinstance(picture, EncodedImage):
        noise = np.frombuffer(picture.digest, np.uint8).astype(np.float32)
        return np.resize(noise, (THUMBNAIL, THUMBNAIL, 3))
    small = Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL), BOX)
    return np.asarray(small, np.float32)


def similar(one: Thumbnails, other: Thumbnails | None) -> bool:
    """Whether pictures look the same as others; nothing looks like none."""
    if other is None or one.shape != other.shape:
        return False
    difference = np.abs(one - other)
    return float(difference.mean()) <= SIMILAR and float(difference.max()) <= SIMILAR_PLACE
