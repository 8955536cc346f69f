"""
Pictures as MaixPy has them: loaded, drawn on, saved.

Knows Pillow and RGB arrays; nothing of models.
"""

from __future__ import annotations

from enum import IntEnum
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont

from .err import Err
from ..errors import PictureError
from ..values import ImageSource, Pixels
from ..vlm import read_image

logger = logging.getLogger('hobot_vlm')

#: where a MaixCAM keeps its sample pictures; programs of its documentation name files there
BOARD_PICTURES = '/maixapp/share/picture/'
SAMPLE = Path(__file__).parents[1] / 'demo' / 'sample.png'
#: height of letters at scale 1, as MaixPy's own font has it
LETTER = 16


class Fit(IntEnum):
    """How a picture of another shape fills a place."""

    FIT_NONE = -1  # as the model was trained
    FIT_FILL = 0
    FIT_CONTAIN = 1
    FIT_COVER = 2


class Format(IntEnum):
    """How pixels are stored."""

    FMT_RGB888 = 0


class Color:
    """A colour: red, green and blue from 0 to 255."""

    def __init__(self, red: int, green: int, blue: int):
        self.rgb = (red, green, blue)

    @staticmethod
    def from_rgb(red: int, green: int, blue: int) -> Color:
        """Make a colour."""
        return Color(red, green, blue)


COLOR_BLACK = Color(0, 0, 0)
COLOR_WHITE = Color(255, 255, 255)
COLOR_RED = Color(255, 0, 0)
COLOR_GREEN = Color(0, 255, 0)
COLOR_BLUE = Color(0, 0, 255)
COLOR_YELLOW = Color(255, 255, 0)


class Image:
    """A picture that can be drawn on; ``numpy.asarray`` gives its pixels."""

    def __init__(self, pixels: Pixels):
        """
        Make a picture.

        :param pixels: RGB uint8 (height, width, 3), which are copied
        """
        self.pixels: Pixels = np.array(pixels)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.pixels if dtype is None else self.pixels.astype(dtype)

    def width(self) -> int:
        """Give the width in pixels."""
        return int(self.pixels.shape[1])

    def height(self) -> int:
        """Give the height in pixels."""
        return int(self.pixels.shape[0])

    def format(self) -> Format:
        """Give the format of the pixels."""
        return Format.FMT_RGB888

    def copy(self) -> Image:
        """Give another picture with these pixels."""
        return Image(self.pixels)

    def resize(self, width: int, height: int, fit: Fit = Fit.FIT_FILL) -> Image:
        """Give the picture in another size; what ``FIT_CONTAIN`` leaves empty is black."""
        x, y = width / self.width(), height / self.height()
        if fit in (Fit.FIT_CONTAIN, Fit.FIT_COVER):
            x = y = min(x, y) if fit == Fit.FIT_CONTAIN else max(x, y)
        size = (max(1, round(x * self.width())), max(1, round(y * self.height())))
        scaled = pillow.fromarray(self.pixels).resize(size, pillow.Resampling.BILINEAR)
        canvas = pillow.new('RGB', (width, height))
        canvas.paste(scaled, ((width - size[0]) // 2, (height - size[1]) // 2))
        return Image(np.asarray(canvas))

    def save(self, path: str, quality: int = 95) -> Err:
        """Write the picture to a file, in the format that its name ends with."""
        try:
            self.write(path, quality)
        except PictureError as exc:
            logger.error('%s', exc)
            return Err.ERR_RUNTIME
        return Err.ERR_NONE

    def write(self, path: str, quality: int = 95) -> None:
        """
        Write the picture to a file.

        :raises PictureError: it cannot be written
        """
        try:
            pillow.fromarray(self.pixels).save(os.path.expanduser(path), quality=quality)
        except (OSError, ValueError) as exc:  # ValueError: a format that Pillow does not know
            raise PictureError(
                f'{path[:200]} cannot be written: {exc}; name a .png or .jpg file in a folder '
                'that exists'
            ) from exc

    def draw_string(
        self,
        x: int,
        y: int,
        textstring: str,
        color: Color = COLOR_WHITE,
        scale: float = 1,
        thickness: int = 1,
        wrap: bool = True,
        wrap_space: int = 4,
        font: str = '',
    ) -> Image:
        """
        Write into the picture.

        :param x: of the upper left corner of the first letter, in pixels
        :param scale: letters are 16 pixels high at 1
        :param thickness: of their lines, in pixels
        :param wrap: go on in another line at the right edge
        :param wrap_space: pixels between two lines
        :param font: file of a font; the built-in one knows Latin letters, and writes ? for others
        :raises PictureError: the font cannot be read
        """
        letters = _font(font, max(1, round(LETTER * scale)))
        if not font:
            textstring = textstring.encode('latin-1', 'replace').decode('latin-1')
        canvas = pillow.fromarray(self.pixels)
        draw = ImageDraw.Draw(canvas)
        room = self.width() - x if wrap else 0
        text = '\n'.join(_wrapped(line, letters, room) for line in textstring.split('\n'))
        draw.multiline_text(
            (x, y),
            text,
            fill=color.rgb,
            font=letters,
            spacing=wrap_space,
            stroke_width=max(0, thickness - 1),
        )
        self.pixels = np.array(canvas)
        return self


def _font(path: str, size: int) -> Any:
    if not path:
        try:
            return ImageFont.load_default(size)
        except TypeError:  # Pillow before 10.1 has one of a single size
            return ImageFont.load_default()
    try:
        return ImageFont.truetype(os.path.expanduser(path), size)
    except OSError as exc:
        raise PictureError(
            f'font {path[:200]} cannot be read: {exc}; give the path of a .ttf, .ttc or .otf file'
        ) from exc


def _wrapped(line: str, letters: Any, room: int) -> str:
    """Break a line where it becomes wider than the room; 0: never."""
    out = start = ''
    for char in line:
        if room > 0 and start and letters.getlength(start + char) > room:
            out, start = f'{out}{start}\n', ''
        start += char
    return out + start


def load(path: str, format: Format = Format.FMT_RGB888) -> Image:  # noqa: A002
    """
    Read an image file.

    A sample picture of a MaixCAM that is not on this machine is the bundled one.

    :raises PictureError: it cannot be read
    """
    if path.startswith(BOARD_PICTURES) and not os.path.exists(path):
        logger.warning('%s is on no machine but a MaixCAM; this is %s', path, SAMPLE)
        path = str(SAMPLE)
    return Image(read_image(path))


def format_name(code: Format) -> str:
    """Give the name of a pixel format."""
    return Format(code).name


def pixels_of(source: Image | ImageSource) -> Pixels:
    """
    Give the pixels of whatever shows a picture, as a copy.

    :raises PictureError: it cannot be read
    """
    # the caller may go on drawing on the original
    return np.array(source.pixels if isinstance(source, Image) else read_image(source))
