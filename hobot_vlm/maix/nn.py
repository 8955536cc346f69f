"""
``nn.InternVL`` as MaixPy has it, over the VLM of this package.

Knows MaixPy's ways: codes in place of errors, a callback for each piece, ``.mud`` files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
import re
from typing import TYPE_CHECKING

from .err import Err
from .image import Fit, Format, Image, pixels_of
from ..errors import ConfigError, PictureError, PromptError, VlmError
from ..values import ImageSource, Pixels
from ..vlm import VLM

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..option_types import LoadOptions, RequestOptions

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

    :param model: name in the catalogue, or a ``.mud`` file of MaixPy, which stands for the model
        of that name
    :param options: any option of :class:`hobot_vlm.config.Config`
    """

    def __init__(self, model: str = 'demo', **options: Unpack[LoadOptions]):
        self.vlm = VLM.load(_catalogue_name(model), **options)
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
        return self.vlm.tile_size

    def input_height(self) -> int:
        """Give the height of the encoder's input, which is square."""
        return self.input_width()

    def input_format(self) -> Format:
        """Give the format of pictures given as arrays."""
        return Format.FMT_RGB888

    def set_image(self, img: Image | ImageSource, fit: Fit = Fit.FIT_CONTAIN) -> Err:
        """
        Show a picture of any size, and encode it; it stays until another one is set.

        :param img: of ``image.load``, a path, the bytes of an image file, or RGB uint8
            (height, width, 3)
        """
        self.clear_image()
        try:
            chosen = Fit(fit)
            rgb = pixels_of(img)
            self.vlm.encode(rgb, fit=FITS[chosen])
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
        options: RequestOptions = {'fit': FITS[self._fit]}
        if self._system_prompt:
            options['system_prompt'] = self._system_prompt
        try:
            stream = self.vlm.stream(msg, self._image, **options)
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
        self.vlm.cancel()

    def close(self) -> None:
        """Free the model; twice is harmless."""
        self.vlm.close()

    def __enter__(self) -> InternVL:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _code(exc: Exception) -> Err:
    given = isinstance(exc, (ConfigError, PictureError, PromptError, ValueError))
    return Err.ERR_ARGS if given else Err.ERR_RUNTIME


def _catalogue_name(model: str) -> str:
    """
    Give the catalogue's name of a model that a MaixPy program names by its ``.mud`` file.

    :raises ConfigError: there is none like it
    """
    if not model.endswith('.mud'):
        return model
    path = PurePosixPath(model)
    names = {_plain(name): name for name in VLM.models()}
    for word in (path.parent.name, path.stem):  # .../InternVL2.5-1B/model.mud
        alike = [plain for plain in names if _plain(word).startswith(plain)]
        if alike:
            return names[max(alike, key=len)]
    raise ConfigError(
        f'{model[:200]} is made for the chip of a MaixCAM, and no model here has its name: give '
        f'one of {", ".join(names.values())}',
        'model',
    )


def _plain(name: str) -> str:
    return re.sub('[^a-z0-9]', '', name.lower())  # InternVL2_5 is internvl2.5
