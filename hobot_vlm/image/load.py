"""
From whatever a picture comes as to RGB.

Files are read by Pillow, within bounds of bytes, pixels and seconds. Knows formats and sizes;
nothing of tiles, families or models.

How a picture that takes too long ends: Pillow asks for a JPEG's bytes in small blocks, and before
each block, and between bands of rows later on, it is looked whether the time is up or nobody
wants the picture any more. The other formats decode in one go, whose time is bounded by the
pixels that they may have.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
import os
import re
import threading
import time
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .fetch import fetch
from .notes import without_notes
from ..errors import PictureError
from ..values import ImageSource, Pixels

#: Only formats with an unmistakable beginning, and none that starts another program.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')
READABLE = 'JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000 or AVIF'

#: The side of the largest JPEG.
MAX_SIDE = 65535

#: What reading one picture may take, so that a board with 4 GB survives it beside a model of 1 GB.
MEMORY = 640 << 20

#: format -> bytes for each pixel at the worst moment, measured with Pillow 13: the picture as
#: Pillow keeps it (4), the array made of it (3), and what the decoder needs for itself.
COST = {'JPEG2000': 22, 'WEBP': 22, 'AVIF': 14, 'TIFF': 13}
USUAL_COST = 8
#: A JPEG in several passes keeps all coefficients, two bytes each, until the last.
PROGRESSIVE_COST = 13

#: The largest file. Pictures of cameras have up to 30 MB; an uncompressed one of 40 million
#: pixels fits.
MAX_BYTES = 128 << 20

#: Seconds for one picture. The largest that is let in takes 2 s on a PC and several times that on
#: a board.
SECONDS = 20.0

#: Bytes of a JPEG that are decoded between two looks at the clock. A scan without any content
#: takes 10 of them and may cost 10 ms.
BLOCK = 1024

#: Scans of a JPEG. Encoders make about ten; each costs as much as the whole picture, however
#: little it holds.
MOST_SCANS = 100
SCAN = b'\xff\xda'

#: Pixels that are brought to RGB between two looks at the clock.
BAND = 1 << 20

#: Modes of Pillow that it converts to RGB by itself.
COLOURS = ('1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBX', 'RGBA', 'RGBa', 'CMYK', 'YCbCr', 'HSV')

ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 258, 262

#: ``cancelled`` of ``load_rgb``: says whether nobody wants the picture any more
Cancelled = Callable[[], bool]

_rewound = threading.Lock()  # of the place in whichever open file is read


def load_rgb(source: ImageSource, *, cancelled: Cancelled | None = None) -> Pixels:
    """
    Read a picture and set it upright.

    A text is the caller's own, and may name any file or address. Whoever hands on what others
    send, as from a topic or over HTTP, is to give bytes, or only such texts as they may send.

    Transparent parts are put on white; of an animation the first frame is read. The result may
    share memory with an array that was given and must not be written to.

    :param source: path (``~`` is the home), ``http(s)://`` address, bytes of an image file, open
        binary file, PIL image, ``data:`` URL, or uint8 array: RGB (height, width, 3), grey
        (height, width) or RGBA (height, width, 4)
    :param cancelled: is asked now and then, from the thread that called or one beside it; true
        ends the reading with an error
    :return: RGB uint8 (height, width, 3), C order
    :raises PictureError: there is no such file, or it is not a whole picture of a sane size, or
        reading it took longer than ``SECONDS``
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        size = memoryview(source).nbytes
        return _from_bytes(source, f'picture of {size} bytes', cancelled)
    if isinstance(source, str) and source[:5].lower() == 'data:':
        return _from_bytes(_data_url(source), f'data: URL of {len(source)} characters', cancelled)
    if is_address(source):
        source, what = str(source), f'picture {short(str(source))}'
        return _from_bytes(fetch(source, what, MAX_BYTES, cancelled), what, cancelled)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fsdecode(source), cancelled)
    if isinstance(source, Image.Image):
        what = f'PIL image of mode {source.mode}, {source.width}x{source.height} pixels'
        return _guarded(lambda: _from_pil(source, what, _Clock(what, cancelled)), what)
    if hasattr(source, 'read'):
        return _from_open_file(source, cancelled)
    raise PictureError(
        f'picture of type {type(source).__name__}: expected a path, the bytes of an image file, '
        'an open file, a PIL image, a data: URL or a NumPy array; convert it to one of these'
    )


def is_address(source: object) -> bool:
    """Tell whether a picture source is to be fetched from the network."""
    return isinstance(source, str) and bool(re.match('https?://', source, re.IGNORECASE))


def short(text: str) -> str:
    """Quote the beginning of a text that came from outside, for messages."""
    return repr(text) if len(text) <= 100 else f'{text[:97]!r}...'


# -- where it comes from ----------------------------------------------------------------------


class _Clock:
    """Ends the reading of a picture: by time, or because nobody wants it any more."""

    def __init__(self, what: str, cancelled: Cancelled | None) -> None:
        self.what = what
        self.cancelled = cancelled
        self.end = time.monotonic() + SECONDS

    def check(self) -> None:
        """
        Look whether to go on.

        :raises PictureError: no
        """
        if self.cancelled is not None and self.cancelled():
            raise PictureError(f'{self.what}: reading it was cancelled')
        if time.monotonic() > self.end:
            raise PictureError(
                f'{self.what} takes longer than {SECONDS:.0f} s to read: save it again as a plain '
                'JPEG or PNG, or make it smaller'
            )


class _File(BytesIO):
    """A file in memory that looks at the clock whenever it is read."""

    def __init__(self, data: bytes, clock: _Clock) -> None:
        super().__init__(data)
        self.clock = clock

    def read(self, size: int | None = -1) -> bytes:
        self.clock.check()
        return super().read(size)


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
    _check_size(array.shape[1], array.shape[0], what, USUAL_COST)
    pixels: Pixels = np.ascontiguousarray(array, np.uint8)
    if channels == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if channels == 4:
        return np.asarray(_on_white(Image.fromarray(pixels)))
    return pixels


def _from_path(name: str, cancelled: Cancelled | None) -> Pixels:
    what = f'picture {short(name)}'
    path = os.path.expanduser(name)
    if not os.path.isfile(path):  # False for a folder, a pipe or a device
        if '\0' not in path and os.path.exists(path):
            raise PictureError(f'{what} is no file; give the path of a {READABLE} file')
        raise PictureError(f'{what}: there is no such file; give the path of a {READABLE} file')
    try:
        with open(path, 'rb') as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PictureError(
            f'{what} cannot be read: {error.strerror or error}; make it readable for this user, '
            'or give another file'
        ) from error
    return _from_bytes(data, what, cancelled)


def _from_open_file(file: Any, cancelled: Cancelled | None) -> Pixels:
    what = f'picture in an open file ({type(file).__name__})'
    clock, data = _Clock(what, cancelled), bytearray()
    try:
        whole = hasattr(file, 'seek') and getattr(file, 'seekable', lambda: True)()
        with _rewound if whole else nullcontext():  # other requests may be about the same file
            if whole:
                file.seek(0)  # as Pillow does; it may have been written or read until its end
            while len(data) <= MAX_BYTES and (block := file.read(MAX_BYTES + 1 - len(data))):
                clock.check()
                if not isinstance(block, (bytes, bytearray)):
                    what += f' gives {type(block).__name__} instead of bytes'
                    raise PictureError(f"{what}; open it with mode 'rb'")
                data += block  # a pipe or a socket gives as much as there is
    except PictureError:
        raise
    except Exception as error:  # whatever the caller's object raises
        raise PictureError(f'{what} cannot be read: {short(str(error))}') from error
    return _from_bytes(data, what, cancelled)


def _data_url(url: str) -> bytes:
    what = f'data: URL of {len(url)} characters'
    if len(url) > MAX_BYTES:
        raise PictureError(f'{what} is too long: expected at most {MAX_BYTES}; give a file')
    head, comma, body = url[5:].partition(',')
    if not comma:
        raise PictureError(f'{what}: expected data:image/...;base64,... and found no comma')
    data = unquote_to_bytes(body) if '%' in body else body.encode('utf-8', 'replace')
    if 'base64' not in head.lower().split(';'):
        return data
    data = b''.join(data.split()).rstrip(b'=').translate(bytes.maketrans(b'-_', b'+/'))
    try:
        return base64.b64decode(data + b'=' * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise PictureError(f'{what}: what follows the comma is no base64: {error}') from error


# -- reading it -------------------------------------------------------------------------------


def _from_bytes(
    data: bytes | bytearray | memoryview, what: str, cancelled: Cancelled | None
) -> Pixels:
    if memoryview(data).nbytes > MAX_BYTES:
        raise PictureError(
            f'{what} is larger than {MAX_BYTES >> 20} MB; give a smaller file, as a JPEG'
        )
    file = _File(without_notes(bytes(data)), _Clock(what, cancelled))
    return _guarded(lambda: _from_file(file, what), what)


def _from_file(file: _File, what: str) -> Pixels:
    Image.init()
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
        if picture.format in ('JPEG', 'MPO'):
            scans = file.getvalue().count(SCAN)
            if scans > MOST_SCANS:
                raise PictureError(
                    f'{what} is a JPEG of {scans} scans: expected at most {MOST_SCANS}; save it '
                    'again without them'
                )
            picture.decodermaxblock = BLOCK
        return _from_pil(picture, what, file.clock)


def _from_pil(picture: Image.Image, what: str, clock: _Clock) -> Pixels:
    cost = COST.get(picture.format or '', USUAL_COST)
    if picture.info.get('progressive') or picture.info.get('progression'):
        cost = PROGRESSIVE_COST
    _check_size(picture.width, picture.height, what, cost)
    picture.load()
    to_rgb = _converter(picture, what)
    width, height = picture.size
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):  # in bands, so that there is never a second copy of it all
        clock.check()
        bottom = min(top + rows, height)
        rgb[top:bottom] = to_rgb(picture.crop((0, top, width, bottom)))
    return _upright(rgb, _orientation(picture))


def _guarded(read: Callable[[], Pixels], what: str) -> Pixels:
    """Turn whatever Pillow raises into our own error."""
    try:
        return read()
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
            f'{what} is damaged: {str(error)[:200]}; expected a whole {READABLE} file, copy or '
            'save it again'
        ) from error


def _check_size(width: int, height: int, what: str, cost: int) -> None:
    most = MEMORY // cost
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= most):
        raise PictureError(
            f'{what} is {width}x{height} pixels: expected 1 to {MAX_SIDE} a side and at most '
            f'{most // 1_000_000} million in all, which its kind takes {MEMORY >> 20} MB of '
            'memory for; give a picture within these sizes'
        )


# -- colours ----------------------------------------------------------------------------------


def _converter(picture: Image.Image, what: str) -> Callable[[Image.Image], npt.NDArray[Any]]:
    """
    Say how a band of this picture becomes RGB.

    :raises PictureError: its numbers have no known black and white
    """
    mode = picture.mode
    if mode == 'F':
        lowest, highest = _extremes(picture)
        if not 0 <= lowest <= highest <= 1:  # also where one is no number
            raise PictureError(
                f'{what} holds fractions from {lowest:g} to {highest:g}: expected 0 (black) to 1 '
                '(white); scale it, or save it with 8 bits'
            )
        return lambda band: _grey(np.rint(np.asarray(band) * np.float32(255)))
    if mode.startswith('I;16') or (mode == 'I' and picture.format in ('PNG', 'PPM')):
        tags = getattr(picture, 'tag_v2', {})
        shift = 4 if tags.get(BITS, (16,)) == (12,) else 8
        most = int(np.asarray(picture).max())
        if 0 < most < 1 << shift:
            raise PictureError(
                f'{what} has no number above {most}, where {256 << shift} is white: it would be '
                'all black; scale it, or save it with 8 bits'
            )
        flip = 255 if tags.get(PHOTOMETRIC) == 0 else 0  # zero is white
        return lambda band: _grey((np.asarray(band) >> shift).clip(0, 255).astype(np.uint8) ^ flip)
    if mode not in COLOURS:
        kind = 'whole numbers without a known white' if mode == 'I' else f'colours as {mode}'
        raise PictureError(f'{what} has {kind}: expected grey or RGB of 8 or 16 bits; convert it')
    if 'A' in picture.getbands() or 'a' in picture.getbands() or _sees_through(picture):
        step = 'LA' if mode == 'La' else mode  # Pillow converts La to nothing else
        return lambda band: np.asarray(_on_white(band.convert(step).convert('RGBA')))
    return lambda band: np.asarray(band if mode == 'RGB' else band.convert('RGB'))


def _extremes(picture: Image.Image) -> tuple[float, float]:
    """Give the least and the greatest number of a picture of fractions; NaN where there is one."""
    values = np.asarray(picture)
    return float(values.min()), float(values.max())


def _sees_through(picture: Image.Image) -> bool:
    return picture.info.get('transparency') is not None


def _grey(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.repeat(values[..., None], 3, axis=2)


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
