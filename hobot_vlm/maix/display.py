"""
A display that is not there: programs run without a screen.

Where the variable ``HOBOT_VLM_DISPLAY`` names a file, what is shown is written to it.
"""

from __future__ import annotations

import os

from .image import Fit, Image
from ..errors import PictureError

VARIABLE = 'HOBOT_VLM_DISPLAY'
#: of MaixCAM2's screen
WIDTH, HEIGHT = 640, 480


class Display:
    """Shows pictures nowhere, or in a file."""

    def __init__(self, width: int = -1, height: int = -1):
        """
        Open the display.

        :param width: in pixels; -1: MaixCAM2's
        :param height: likewise
        """
        self._size = (width if width > 0 else WIDTH, height if height > 0 else HEIGHT)

    def width(self) -> int:
        """Give the width in pixels."""
        return self._size[0]

    def height(self) -> int:
        """Give the height in pixels."""
        return self._size[1]

    def show(self, img: Image, fit: Fit = Fit.FIT_CONTAIN) -> None:
        """
        Show a picture: write it to the file of ``HOBOT_VLM_DISPLAY``, scaled to the display.

        :raises PictureError: the file cannot be written
        """
        path = os.environ.get(VARIABLE)
        if not path:
            return
        # whoever looks at the file never sees half of it
        folder, name = os.path.split(os.path.expanduser(path))
        part = os.path.join(folder, f'.{os.getpid()}.{name}')
        try:
            img.resize(*self._size, fit).write(part)
            os.replace(part, os.path.join(folder, name))
        except (OSError, PictureError) as exc:
            raise PictureError(
                f'{VARIABLE} is {path[:200]}: it cannot be written: {exc}; name a .png or .jpg '
                'file in a folder that exists'
            ) from exc

    def close(self) -> None:
        """Close the display; twice is harmless."""
