"""
From files and arrays to RGB.

Files are read by Pillow. Knows formats and sizes; nothing of tiles, families or models.
"""

from __future__ import annotations

from io import BytesIO
import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ..errors import PictureError
from ..values import ImageSource, Pixels

#: Only formats with an unmistakable beginning, and none that starts another program.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')
READABLE = 'JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000 or AVIF'

# A small file may claim to be a huge picture. The limits are the side of the largest JPEG and
# the area above which Pillow warns.
MAX_SIDE = 65535
MAX_PIXELS = 89_478_485

ORIENTATION = 0x0112


def load_rgb(source: ImageSource) -> Pixels:
    """
    Read a picture and set it upright.

    Transparent parts are laid on white. The result may share memory with an array that was given
    and must not be written to.

    :param source: path, bytes of an image file, or uint8 array: RGB (height, width, 3), grey
        (height, width) or RGBA (height, width, 4)
    :return: RGB uint8 (height, width, 3), C order
    :raises PictureError: there is no such file, or it is not a whole picture of a sane size
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(BytesIO(source), f'picture of {memoryview(source).nbytes} bytes')
    if isinstance(source, (str, os.PathLike)):
        what = f'picture {os.fspath(source)!r}'
        if not os.path.isfile(source):
            raise PictureError(
                f'{what}: there is no such file; give the path of a {READABLE} file'
            )
        try:
            with open(source, 'rb') as file:
                return _from_file(file, what)
        except OSError as error:
            raise PictureError(
                f'{what} cannot be read: {error.strerror or error}; make it '
                'readable for this user, or give another file'
            ) from error
    raise PictureError(
        f'picture of type {type(source).__name__}: expected a path, the bytes of '
        'an image file, or a NumPy array; convert it to one of these'
    )


def _from_array(array: npt.NDArray[np.generic]) -> Pixels:
    what = f'picture array of shape {array.shape} and type {array.dtype}'
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        if array.dtype != np.uint8:
            cure = 'scale its values to 0..255 and give array.astype(numpy.uint8)'
        elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
            cure = 'move the channels to the end: array.transpose(1, 2, 0)'
        else:
            cure = 'give one picture at a time, with its channels last'
        raise PictureError(
            f'{what}: expected uint8 (height, width, 3) in RGB order, '
            f'(height, width, 4) RGBA or (height, width) grey; {cure}'
        )
    _check_size(array.shape[1], array.shape[0], what)
    pixels: Pixels = np.ascontiguousarray(array, np.uint8)
    if channels == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if channels == 4:
        return np.asarray(_on_white(Image.fromarray(pixels)))
    return pixels


def _from_file(file: BinaryIO, what: str) -> Pixels:
    Image.init()
    try:
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
            _check_size(picture.width, picture.height, what)
            picture.load()
            return _upright(_rgb(picture), _orientation(picture))
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(
            f'{what} is not a picture that can be read: expected {READABLE}; '
            'give another file, or convert it'
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f'{what} is too large: {error}; make it smaller') from error
    except Exception as error:  # on damaged data Pillow's readers raise whatever they run into
        raise PictureError(
            f'{what} is damaged: {error}; expected a whole {READABLE} file, copy or save it again'
        ) from error


def _check_size(width: int, height: int, what: str) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise PictureError(
            f'{what} is {width}x{height} pixels: expected 1 to {MAX_SIDE} a side '
            f'and at most {MAX_PIXELS // 1_000_000} million in all; give a picture '
            'within these sizes'
        )


def _rgb(picture: Image.Image) -> Pixels:
    if picture.mode.startswith('I'):  # 16-bit grey, which Pillow would cut off at 255
        deep = np.asarray(picture).astype(np.int64)
        return _from_array((deep >> 8).clip(0, 255).astype(np.uint8))
    if 'A' in picture.getbands() or picture.info.get('transparency') is not None:
        return np.asarray(_on_white(picture.convert('RGBA')))
    return np.asarray(picture if picture.mode == 'RGB' else picture.convert('RGB'))


def _on_white(picture: Image.Image) -> Image.Image:
    white = Image.new('RGBA', picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert('RGB')


def _orientation(picture: Image.Image) -> object:
    try:
        return picture.getexif().get(ORIENTATION)
    except Exception:  # a picture with broken notes on the camera is still a picture
        return None


def _upright(rgb: Pixels, orientation: object) -> Pixels:
    if orientation in (5, 6, 7, 8):
        rgb = rgb.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)
