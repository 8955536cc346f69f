"""
A camera without ROS: a device, or a video file in its place.

Knows OpenCV and what a driver buffers; nothing of models. OpenCV is imported when a camera is
opened.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import BackendMissing, PictureError
from ..values import Pixels

#: Pictures that wait in the driver from before the question: OpenCV asks V4L2 for four buffers.
BUFFERED = 4


class Camera:
    """Gives pictures when they are asked for, each newer than the question."""

    def __init__(self, source: int | str):
        """
        Open a camera.

        :param source: number of a device, as in ``/dev/video0``, its path, or a video file
        :raises PictureError: it cannot be opened
        :raises BackendMissing: OpenCV is not installed
        """
        text = os.path.expanduser(str(source))
        self._name = f'camera {text[:200]}'
        self._cv2 = _opencv()
        if text.isdecimal() and not os.path.exists(f'/dev/video{text}'):
            raise PictureError(f'{self._name}: there is no /dev/video{text}; {_devices()}')
        if not text.isdecimal() and not os.path.exists(text):
            raise PictureError(f'{self._name}: there is no such device or file; {_devices()}')
        if text.isdecimal() or text.startswith('/dev/'):
            self._video: Any = self._cv2.VideoCapture(
                int(text) if text.isdecimal() else text, self._cv2.CAP_V4L2
            )
        else:
            self._video = self._cv2.VideoCapture(text)
        if not self._video.isOpened():
            raise PictureError(
                f'{self._name} cannot be opened: another program may use it, or this user may '
                'not (`sudo usermod -aG video $USER`, then log in again)'
            )

    def frame(self) -> Pixels:
        """
        Give the newest picture: RGB uint8 (height, width, 3).

        :raises PictureError: none comes; a camera that was pulled out, or the end of a file
        """
        there, picture = False, None
        for _ in range(BUFFERED + 1):
            there, picture = self._video.read()
            if not there:
                break
        if not there:
            raise PictureError(
                f'{self._name} gives no more pictures: it was pulled out, or the file has ended'
            )
        rgb: Pixels = self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB)
        return rgb

    def close(self) -> None:
        """Give the camera back; twice is harmless."""
        self._video.release()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _devices() -> str:
    found = sorted(name for name in os.listdir('/dev') if name.startswith('video'))
    return f'there are {", ".join(found)}' if found else 'no camera is connected to this machine'


def _opencv() -> Any:
    # Read by OpenCV when it is imported; what it would print, the errors above say.
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
    try:
        import cv2
    except ImportError as exc:
        raise BackendMissing(
            'cameras need OpenCV, which is not installed',
            'run `pip install opencv-python-headless`',
        ) from exc
    return cv2
