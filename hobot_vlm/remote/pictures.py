"""
Pictures and frames of videos -> JPEG of a size that a network carries.

Every picture is read and written anew: what a file says beside its pixels, such as where it was
taken, stays here. Knows no server.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
import os
from typing import Any

from PIL import Image

from ..config import Config
from ..image.load import load_rgb
from ..image.resize import BICUBIC, resize
from ..image.video import is_video, read_frames
from ..values import ImageSource, Pixels, Video


@dataclass(frozen=True, eq=False)
class Picture:
    """
    A picture as it is sent.

    :param jpeg: its file
    :param size: (width, height) in pixels before it was made smaller
    :param seconds: when it is shown, for a frame of a video
    """

    jpeg: bytes
    size: tuple[int, int]
    seconds: float | None = None

    @property
    def url(self) -> str:
        """Give it as a data URL."""
        return 'data:image/jpeg;base64,' + base64.b64encode(self.jpeg).decode()


def prepare(
    sources: Sequence[ImageSource], config: Config, cancelled: Callable[[], bool]
) -> list[list[Picture]]:
    """
    Read sources, and make them as small as ``remote_image_side`` says.

    :return: for each source its picture, or the frames of a video
    :raises PictureError: one cannot be read
    """
    return [_of(source, config, cancelled) for source in sources]


def _of(source: Any, config: Config, cancelled: Callable[[], bool]) -> list[Picture]:
    if isinstance(source, Video) or is_video(source):
        video = source if isinstance(source, Video) else Video(os.fsdecode(source))
        frames = read_frames(video.path, video.frames, video.start, video.end, cancelled=cancelled)
        return [_picture(frame.rgb, config, frame.seconds) for frame in frames]
    return [_picture(load_rgb(source, cancelled=cancelled), config, None)]


def _picture(rgb: Pixels, config: Config, seconds: float | None) -> Picture:
    height, width = rgb.shape[:2]
    scale = min(1.0, config.remote_image_side / max(width, height))
    small = resize(rgb, max(1, round(width * scale)), max(1, round(height * scale)), BICUBIC)
    file = BytesIO()
    Image.fromarray(small).save(file, 'JPEG', quality=config.remote_jpeg_quality)
    return Picture(file.getvalue(), (width, height), seconds)
