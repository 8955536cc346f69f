"""
From files and arrays to RGB, and from RGB to the pixels of tiles.

Arrays in, arrays out: what a model family wants cut is for ``families`` to say. Files are read and
pixels resampled by Pillow, with which the makers trained; here it only runs on several cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
import os
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .errors import PictureError
from .values import ImageSource

#: Only formats with an unmistakable beginning, and none that starts another program.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')
READABLE = 'JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000 or AVIF'

# A small file may claim to be a huge picture. The limits are the side of the largest JPEG and
# the area above which Pillow warns.
MAX_SIDE = 65535
MAX_PIXELS = 89_478_485

# By number: the Pillow of Ubuntu 22.04 has no Image.Resampling.
LANCZOS = 1
BICUBIC = 3

ORIENTATION = 0x0112
MAX_CORES = 4
BANDS = 8
BAND_WORK = 500_000  # values of a picture that are worth a core

Pixels = npt.NDArray[np.uint8]


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


def place(rgb: Pixels, width: int, height: int, resample: int, fit: str) -> Pixels:
    """
    Bring a picture to a size.

    :param fit: ``fill`` stretches; ``contain`` keeps the aspect, centred on black; ``cover`` keeps
        the aspect and crops what sticks out; ``topleft`` is ``contain`` in the upper left corner,
        never enlarged
    """
    old_height, old_width = rgb.shape[:2]
    if fit == 'fill':
        return resize(rgb, width, height, resample)
    if fit == 'cover':
        seen_width = min(old_width, old_height * width / height)
        seen_height = min(old_height, old_width * height / width)
        return resize(
            rgb,
            width,
            height,
            resample,
            (
                (old_width - seen_width) / 2,
                (old_height - seen_height) / 2,
                (old_width + seen_width) / 2,
                (old_height + seen_height) / 2,
            ),
        )
    left, top, new_width, new_height = map(int, placed(old_width, old_height, width, height, fit))
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + new_height, left : left + new_width] = resize(
        rgb, new_width, new_height, resample
    )
    return canvas


def placed(
    old_width: int, old_height: int, width: int, height: int, fit: str
) -> tuple[float, float, float, float]:
    """
    Say where on a canvas ``place`` puts a picture; what ``cover`` crops lies beyond its edges.

    :return: left, top, width and height of the whole picture, in pixels of the canvas
    """
    if fit == 'fill':
        return 0, 0, width, height
    if fit == 'cover':
        scale = max(width / old_width, height / old_height)
        new_width, new_height = scale * old_width, scale * old_height
        return (width - new_width) / 2, (height - new_height) / 2, new_width, new_height
    if fit == 'topleft' and old_width <= width and old_height <= height:
        return 0, 0, old_width, old_height
    new_width = max(1, min(width, old_width * height // old_height))
    new_height = max(1, min(height, old_height * width // old_width))
    if fit == 'topleft':
        return 0, 0, new_width, new_height
    return (width - new_width) // 2, (height - new_height) // 2, new_width, new_height


def resize(
    rgb: Pixels,
    width: int,
    height: int,
    resample: int,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """
    Resize as ``Image.resize`` of Pillow 13 does, pixel for pixel.

    Between the two passes pixels are rounded and cut off at 0 and 255, so their order shows in
    the result. Older versions of Pillow always go across first; here the order is the same with
    every version.

    :param box: left, top, right and bottom of the part to resize
    """
    old_height, old_width = rgb.shape[:2]
    left, top, right, bottom = box or (0, 0, old_width, old_height)
    if max(0, 2 * (old_width - width)) < old_height - height:
        return _across(_down(rgb, height, resample, top, bottom), width, resample, left, right)
    return _down(_across(rgb, width, resample, left, right), height, resample, top, bottom)


def _across(rgb: Pixels, width: int, resample: int, left: float, right: float) -> Pixels:
    height, old_width = rgb.shape[:2]
    if (left, right, width) == (0, old_width, old_width):
        return rgb
    made = np.empty((height, width, 3), np.uint8)

    def band(start: int, stop: int) -> None:
        made[start:stop] = np.asarray(
            Image.fromarray(rgb[start:stop]).resize(
                (width, stop - start), resample, (left, 0, right, stop - start)
            )
        )

    _on_all_cores(band, height, max(rgb.size, made.size))
    return made


def _down(rgb: Pixels, height: int, resample: int, top: float, bottom: float) -> Pixels:
    old_height, width = rgb.shape[:2]
    if (top, bottom, height) == (0, old_height, old_height):
        return rgb
    made = np.empty((height, width, 3), np.uint8)

    def band(start: int, stop: int) -> None:
        made[:, start:stop] = np.asarray(
            Image.fromarray(rgb[:, start:stop]).resize(
                (stop - start, height), resample, (0, top, stop - start, bottom)
            )
        )

    _on_all_cores(band, width, max(rgb.size, made.size))
    return made


def _on_all_cores(band: Callable[[int, int], None], length: int, work: int) -> None:
    """
    Make bands on all cores; Pillow computes without the lock of Python.

    There are more bands than cores, and each core takes the next one that nobody has: one that is
    slow to wake up keeps the others from nothing.
    """
    count = max(1, min(MAX_CORES, os.cpu_count() or 1, work // BAND_WORK))
    if count == 1 or length < BANDS:
        return band(0, length)
    edges = [length * index // BANDS for index in range(BANDS + 1)]
    bands = iter(list(zip(edges[:-1], edges[1:], strict=True)))

    def make() -> None:
        for start, stop in bands:
            band(start, stop)

    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(make) for _ in range(count - 1)]
        make()
    for other in others:
        other.result()


def cut(canvas: Pixels, side: int, overview: Pixels) -> Pixels:
    """
    Cut a canvas into tiles, row by row, and add the overview as the last.

    :param canvas: RGB uint8, whole multiples of ``side`` wide and high
    :return: RGB uint8 (tiles + 1, side, side, 3)
    """
    rows, columns = canvas.shape[0] // side, canvas.shape[1] // side
    tiles = np.empty((rows * columns + 1, side, side, 3), np.uint8)
    tiles[:-1].reshape(rows, columns, side, side, 3)[:] = canvas.reshape(
        rows, side, columns, side, 3
    ).swapaxes(1, 2)
    tiles[-1] = overview
    return tiles
