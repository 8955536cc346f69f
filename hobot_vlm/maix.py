"""
What a MaixPy program for InternVL asks for, over the engine of this package.

Such a program runs here once ``from maix import ...`` reads ``from hobot_vlm.maix import ...``:
``nn``, ``image``, ``err`` and ``sys`` hold what its vision language example uses. Display, camera
and log are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from .errors import ConfigError, PictureError, PromptTooLong, VlmError
from .machine import resident_bytes
from .values import ImageSource, Pixels
from .vlm import read_image, VLM


class Err(IntEnum):
    """How a call ended."""

    ERR_NONE = 0
    ERR_ARGS = 1  # what was given cannot be used
    ERR_RUNTIME = 2  # it could, and the model failed


class Fit(IntEnum):
    """How a picture of another shape fills the input of the model."""

    FIT_NONE = -1  # as the model was trained
    FIT_FILL = 0
    FIT_CONTAIN = 1
    FIT_COVER = 2


class Format(IntEnum):
    """How pixels are stored."""

    FMT_RGB888 = 0


FITS = {Fit.FIT_NONE: '', Fit.FIT_FILL: 'fill', Fit.FIT_CONTAIN: 'contain', Fit.FIT_COVER: 'cover'}


@dataclass
class Response:
    """
    An answer as far as it goes.

    :param msg: all of it
    :param msg_new: what is new since the last call of the reply callback
    """

    msg: str = ''
    msg_new: str = ''
    err_code: Err = Err.ERR_NONE
    err_msg: str = ''


class InternVL:
    """
    A vision language model that is shown one picture; each ``send`` is a new conversation.

    Errors are reported as codes, as in MaixPy; only a model that cannot be loaded raises.

    :param model: name in the catalogue
    :param options: any option of :class:`hobot_vlm.config.Config`
    """

    def __init__(self, model: str = 'demo', **options: Any):
        self._vlm = VLM.load(model, **options)
        self._system_prompt = ''
        self._callback: Callable[[InternVL, Response], object] | None = None
        self._image: Pixels | None = None
        self._fit = Fit.FIT_NONE

    def set_system_prompt(self, prompt: str) -> None:
        """Set the system prompt of all that follows; empty: the model's own."""
        self._system_prompt = prompt

    def get_system_prompt(self) -> str:
        """Give the system prompt that was set."""
        return self._system_prompt

    def set_reply_callback(
        self, callback: Callable[[InternVL, Response], object] | None = None
    ) -> None:
        """Have ``callback(model, response)`` called for each piece of an answer; None: nobody."""
        self._callback = callback

    def input_width(self) -> int:
        """Give the width of the encoder's input; 0 without one."""
        return self._vlm.tile_size

    def input_height(self) -> int:
        """Give the height of the encoder's input, which is square."""
        return self.input_width()

    def input_format(self) -> Format:
        """Give the format of pictures given as arrays."""
        return Format.FMT_RGB888

    def set_image(self, img: ImageSource, fit: Fit = Fit.FIT_CONTAIN) -> Err:
        """
        Show a picture of any size, and encode it; it stays until another one is set.

        :param img: a path, the bytes of an image file, or RGB uint8 (height, width, 3)
        """
        self.clear_image()
        try:
            chosen = Fit(fit)
            rgb = np.array(read_image(img))  # the caller may go on drawing on the original
            self._vlm.encode(rgb, fit=FITS[chosen])
        except (VlmError, ValueError) as exc:
            return _code(exc)
        self._image, self._fit = rgb, chosen
        return Err.ERR_NONE

    def clear_image(self) -> None:
        """Show nothing from now on."""
        self._image = None

    def is_image_set(self) -> bool:
        """Say whether a picture is shown."""
        return self._image is not None

    def send(self, msg: str) -> Response:
        """Ask about the picture; earlier questions are not remembered."""
        response = Response()
        options = {'system_prompt': self._system_prompt} if self._system_prompt else {}
        try:
            stream = self._vlm.stream(msg, self._image, fit=FITS[self._fit], **options)
            try:
                for chunk in stream:
                    if chunk.thinking:
                        continue
                    response.msg, response.msg_new = response.msg + chunk.text, chunk.text
                    if self._callback is not None:
                        self._callback(self, response)
            finally:
                stream.close()  # also where the callback fails
        except VlmError as exc:
            response.err_code, response.err_msg = _code(exc), str(exc)
        return response

    def cancel(self) -> None:
        """Stop the running answer within one token; callable from the callback and any thread."""
        self._vlm.cancel()

    def close(self) -> None:
        """Free the model; twice is harmless."""
        self._vlm.close()

    def __enter__(self) -> InternVL:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _code(exc: Exception) -> Err:
    given = isinstance(exc, (ConfigError, PictureError, PromptTooLong, ValueError))
    return Err.ERR_ARGS if given else Err.ERR_RUNTIME


def check_raise(code: Err, msg: str = '') -> None:
    """
    Raise an error for a code that is one.

    :raises VlmError: it is not ``ERR_NONE``
    """
    if code != Err.ERR_NONE:
        raise VlmError(msg or Err(code).name)


def load(path: str, format: Format = Format.FMT_RGB888) -> Pixels:  # noqa: A002
    """
    Read an image file as RGB uint8 (height, width, 3).

    :raises PictureError: it cannot be read
    """
    return read_image(path)


def format_name(code: Format) -> str:
    """Give the name of a pixel format."""
    return Format(code).name


def memory_info() -> dict[str, int]:
    """Give bytes: ``total`` and ``used`` of the machine, ``process`` of this program."""
    with open('/proc/meminfo', encoding='ascii') as file:
        lines = dict(line.split(':') for line in file)
    total, free = (1024 * int(lines[name].split()[0]) for name in ('MemTotal', 'MemAvailable'))
    return {'total': total, 'used': total - free, 'process': resident_bytes()}


def bytes_to_human(size: float) -> str:
    """Give a number of bytes with a unit."""
    for unit in ('B', 'KB', 'MB', 'GB'):
        if size < 1024:
            return f'{size:.2f} {unit}'
        size /= 1024
    return f'{size:.2f} TB'


nn = SimpleNamespace(InternVL=InternVL)
image = SimpleNamespace(Fit=Fit, Format=Format, load=load, format_name=format_name)
err = SimpleNamespace(Err=Err, check_raise=check_raise)
sys = SimpleNamespace(memory_info=memory_info, bytes_to_human=bytes_to_human)
