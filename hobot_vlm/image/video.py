"""
Video files -> a few frames with their times.

Frames are found by reading the video from its start: what headers and indexes say of numbers and
places is not trusted. Knows OpenCV and which frames to choose; nothing of models. OpenCV is
imported when a video is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import os
from pathlib import Path
import time
from typing import Any

import numpy as np

from .load import is_address, MEMORY, short
from ..errors import BackendMissing, PictureError
from ..values import Pixels

SUFFIXES = frozenset(
    {
        '.mp4',
        '.m4v',
        '.mov',
        '.avi',
        '.mkv',
        '.webm',
        '.mpg',
        '.mpeg',
        '.ts',
        '.flv',
        '.wmv',
        '.3gp',
    }
)

#: Containers that hold their own frames. FFmpeg would also follow playlists, which lead to other
#: files and to the network.
CONTAINERS = 'mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf'

#: Seconds for one video. A PC reads ten minutes of 1080p in that time, and a board two.
SECONDS = 120.0

#: Most frames that are kept, in bytes: as much as a single picture may take.
MOST_BYTES = MEMORY


@dataclass(frozen=True, eq=False)
class Frame:
    """
    One frame of a video.

    :param rgb: uint8 (height, width, 3)
    :param seconds: when it is shown, from the first frame of the video
    :param duration: of the whole video, in seconds
    """

    rgb: Pixels
    seconds: float
    duration: float


def is_video(source: object) -> bool:
    """Tell by its name whether a picture source is a video."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    return os.path.splitext(os.fsdecode(source))[1].lower() in SUFFIXES


def moments(total: int, frames: int) -> list[int]:
    """
    Choose which of ``total`` frames to show: the middle of each of ``frames`` equal parts.

    As InternVL's makers do, but none twice where there are fewer.
    """
    if frames >= total:
        return list(range(total))
    last = total - 1
    part = last / frames
    return [min(int(part / 2 + round(part * i)), last) for i in range(frames)]


def read_frames(
    path: str | Path,
    frames: int,
    start: float = 0.0,
    end: float | None = None,
    *,
    cancelled: Callable[[], bool] | None = None,
) -> list[Frame]:
    """
    Choose frames of a video, spread evenly over it or over a part of it.

    :param frames: how many; a short video gives fewer
    :param start: of the part, in seconds
    :param end: of the part, in seconds; None: to the end
    :param cancelled: is asked before each frame; true ends the reading with an error
    :raises PictureError: the file cannot be read as a video, has no frame in that part, or takes
        longer than ``SECONDS``
    :raises BackendMissing: OpenCV is not installed
    """
    numbers = (frames, start, 0 if end is None else end)
    if not isinstance(path, (str, os.PathLike)) or not all(
        isinstance(number, (int, float)) for number in numbers
    ):
        raise PictureError(
            f'a video is given as {repr((path, frames, start, end))[:200]}: expected its path, a '
            'number of frames, and a start and an end in seconds'
        )
    if is_address(path):
        raise PictureError(
            f'video {short(str(path))} lies on the network, and only pictures are fetched from '
            'there: download it, and give its path'
        )
    path = Path(os.path.expanduser(path))
    what = f'video {short(str(path))}'
    if frames < 1 or start < 0 or (end is not None and not end >= start):
        raise PictureError(
            f'{what}: {frames} frames from {start} s to {"the end" if end is None else end}: '
            'expected at least one, and a start before the end'
        )
    if not os.path.isfile(path):
        raise PictureError(f'{what}: there is no such file; give the path of a video')
    reader = _Reader(path, what, cancelled)
    times = reader.times()
    if not times:
        raise PictureError(
            f'{what}: OpenCV finds no frames in it; expected a video, as MP4 with H.264'
        )
    duration = _duration(times, reader.rate)
    chosen = [
        i for i, at in enumerate(times) if at >= start and (end is None or at <= end)
    ] or _shown_at(times, start, duration)
    if not chosen:
        raise PictureError(
            f'{what} lasts {duration:.2f} s and has no frame from {start} s on; give an '
            'earlier start'
        )
    wanted = [chosen[i] for i in moments(len(chosen), frames)]
    width, height = reader.size
    if len(wanted) * width * height * 3 > MOST_BYTES:
        raise PictureError(
            f'{what}: {len(wanted)} frames of {width}x{height} pixels take more than '
            f'{MOST_BYTES >> 20} MB; choose fewer frames, or make the video smaller'
        )
    found = [Frame(rgb, times[i], duration) for i, rgb in reader.pixels(wanted)]
    if not found:
        raise PictureError(f'{what}: its frames cannot be decoded; convert it to MP4 with H.264')
    return found


def _duration(times: list[float], rate: float) -> float:
    """Give the length of a video; the last frame is shown as long as the one before it."""
    if len(times) > 1:
        return times[-1] + (times[-1] - times[-2])
    return times[-1] + (1 / rate if rate > 0 else 0.0)


def _shown_at(times: list[float], start: float, duration: float) -> list[int]:
    """Give the frame that is still shown at a moment between two."""
    before = [i for i, seconds in enumerate(times) if seconds <= start]
    return before[-1:] if start <= duration else []


class _Reader:
    """
    Reads a video from its start, as often as it is asked.

    ``rate`` (frames per second, for videos without times) and ``size`` (width, height) are known
    once ``times`` has run.
    """

    def __init__(self, path: Path, what: str, cancelled: Callable[[], bool] | None) -> None:
        self.path = path
        self.what = what
        self.cancelled = cancelled
        self.end = time.monotonic() + SECONDS
        self.cv2 = _opencv()
        self.rate = 0.0
        self.size = (0, 0)

    def times(self) -> list[float]:
        """Give the time of each frame in seconds, in order and from 0."""
        video = self._open()
        found: list[float] = []
        try:
            self.rate = float(video.get(self.cv2.CAP_PROP_FPS))
            self.size = (
                int(video.get(self.cv2.CAP_PROP_FRAME_WIDTH)),
                int(video.get(self.cv2.CAP_PROP_FRAME_HEIGHT)),
            )
            if not 0 < self.rate <= 1000:  # also where it is no number
                self.rate = 0.0
            step = 1 / self.rate if self.rate else 0.0
            while self._next(video):
                seconds = float(video.get(self.cv2.CAP_PROP_POS_MSEC)) / 1000
                last = found[-1] if found else 0.0
                # a frame without a time, or with one from before, comes one step later
                found.append(seconds if seconds > last or not found else last + step)
        finally:
            video.release()
        return [seconds - found[0] for seconds in found]

    def pixels(self, wanted: list[int]) -> list[tuple[int, Pixels]]:
        """Give number and RGB of the frames with these numbers."""
        video = self._open()
        found: list[tuple[int, Pixels]] = []
        number = 0
        try:
            while len(found) < len(wanted) and self._next(video):
                if number == wanted[len(found)]:
                    there, frame = video.retrieve()
                    if not there:
                        break
                    rgb = self.cv2.cvtColor(frame, self.cv2.COLOR_BGR2RGB)
                    found.append((number, np.ascontiguousarray(rgb)))
                number += 1
        except self.cv2.error as error:
            raise PictureError(f'{self.what} is damaged: {str(error)[:200]}') from error
        finally:
            video.release()
        return found

    def _open(self) -> Any:
        return self.cv2.VideoCapture(str(self.path), self.cv2.CAP_FFMPEG)

    def _next(self, video: Any) -> bool:
        """Go on by one frame; say whether there was one."""
        if self.cancelled is not None and self.cancelled():
            raise PictureError(f'{self.what}: reading it was cancelled')
        if time.monotonic() > self.end:
            raise PictureError(
                f'{self.what} takes longer than {SECONDS:.0f} s to read; cut out the part that '
                'is asked about, or make it smaller'
            )
        return bool(video.grab())


def _opencv() -> Any:
    # read by OpenCV when it opens a video. FFmpeg would write on the terminal what the error says
    # better
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
    os.environ.setdefault('OPENCV_FFMPEG_CAPTURE_OPTIONS', f'format_whitelist;{CONTAINERS}')
    try:
        import cv2
    except ImportError as exc:
        raise BackendMissing(
            'videos need OpenCV, which is not installed',
            'run `pip install opencv-python-headless`',
        ) from exc
    return cv2
