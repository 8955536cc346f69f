"""
Video files -> a few frames, as arrays.

Knows OpenCV and which frames to take; nothing of models. OpenCV is imported when a video is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendMissing, PictureError

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


def is_video(path: str | Path) -> bool:
    """Tell by its name whether a file is a video."""
    return Path(path).suffix.lower() in SUFFIXES


def moments(total: int, frames: int) -> list[int]:
    """Choose which of ``total`` frames to take: the middle of each of ``frames`` equal parts."""
    last = total - 1
    part = last / frames
    return [min(int(part / 2 + round(part * i)), last) for i in range(frames)]


def read_frames(path: str | Path, frames: int) -> list[npt.NDArray[np.uint8]]:
    """
    Take frames from a video, spread evenly.

    :return: RGB uint8 (height, width, 3), in order; a short video gives some twice
    :raises PictureError: the file cannot be read as a video
    :raises BackendMissing: OpenCV is not installed
    """
    if not Path(path).is_file():
        raise PictureError(f'{path}: there is no such file; give the path of a video')
    cv2 = _opencv()
    # The header's count is an estimate in some containers; where it misleads, frames are counted.
    for count in (_estimate, _count):
        total = count(cv2, str(path))
        taken = _take(cv2, str(path), moments(total, frames)) if total > 0 else []
        if len(taken) == frames:
            return taken
    raise PictureError(
        f'{path}: OpenCV finds no frames in it; expected a video, as MP4 with H.264'
    )


def _opencv() -> Any:
    # FFmpeg would write on the terminal what the error says better; it reads this once
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    try:
        import cv2
    except ImportError as exc:
        raise BackendMissing(
            'videos need OpenCV, which is not installed',
            'run `pip install opencv-python-headless`',
        ) from exc
    return cv2


def _estimate(cv2: Any, path: str) -> int:
    video = cv2.VideoCapture(path)
    try:
        return int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    finally:
        video.release()


def _count(cv2: Any, path: str) -> int:
    video = cv2.VideoCapture(path)
    total = 0
    try:
        while video.grab():
            total += 1
    finally:
        video.release()
    return total


def _take(cv2: Any, path: str, wanted: list[int]) -> list[npt.NDArray[np.uint8]]:
    """Read the frames with these numbers; fewer where the video ends before."""
    video = cv2.VideoCapture(path)
    taken: list[npt.NDArray[np.uint8]] = []
    try:
        for number in wanted:
            video.set(cv2.CAP_PROP_POS_FRAMES, number)
            there, frame = video.read()
            if not there:
                break
            taken.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    finally:
        video.release()
    return taken
