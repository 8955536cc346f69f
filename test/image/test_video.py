"""Frames of videos that the tests make themselves, with OpenCV."""

from __future__ import annotations

import cv2
from hobot_vlm.errors import PictureError
from hobot_vlm.video import is_video, moments, read_frames
import numpy as np
import pytest


def make_video(path, frames=40, size=(96, 64)):
    """Write frames whose grey level is their number times six, and whose left half is red."""
    codec = 'mp4v' if path.suffix == '.mp4' else 'MJPG'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, size)
    assert writer.isOpened()
    for number in range(frames):
        frame = np.full((size[1], size[0], 3), number * 6, np.uint8)
        frame[:, : size[0] // 2] = (0, 0, 255)  # red, in OpenCV's order
        writer.write(frame)
    writer.release()
    return path


@pytest.mark.parametrize(
    ('total', 'frames', 'expected'),
    [
        # as the get_index of InternVL's example gives them
        (41, 8, [2, 7, 12, 17, 22, 27, 32, 37]),
        (300, 4, [37, 112, 187, 261]),
        (100, 1, [49]),
        (3, 8, [0, 0, 0, 1, 1, 1, 2, 2]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_which_frames_are_taken(total, frames, expected):
    assert moments(total, frames) == expected


@pytest.mark.parametrize('total', [1, 2, 7, 33, 1000])
@pytest.mark.parametrize('frames', [1, 2, 5, 32])
def test_frames_are_in_order_and_in_the_video(total, frames):
    taken = moments(total, frames)
    assert taken == sorted(taken) and len(taken) == frames
    assert 0 <= taken[0] and taken[-1] < total


@pytest.mark.parametrize('name', ['clip.mp4', 'clip.avi'])
@pytest.mark.parametrize('frames', [1, 4, 8])
def test_the_frames_are_the_right_ones(tmp_path, name, frames):
    path = make_video(tmp_path / name)
    taken = read_frames(path, frames)
    assert [frame.shape for frame in taken] == [(64, 96, 3)] * frames
    levels = [frame[:, 60:].mean() / 6 for frame in taken]
    assert np.allclose(levels, moments(40, frames), atol=0.7)
    red = taken[0][:, 4:40].mean(axis=(0, 1))
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


def test_a_short_video_gives_frames_twice(tmp_path):
    taken = read_frames(make_video(tmp_path / 'clip.mp4', frames=2), 5)
    assert len(taken) == 5


def test_a_video_that_ends_before_its_header_says(tmp_path):
    path = make_video(tmp_path / 'clip.avi')
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])  # the index, at the end, is lost too
    taken = read_frames(path, 4)
    assert len(taken) == 4
    assert taken[-1][:, 60:].mean() < 40 * 6 * 2 / 3


@pytest.mark.parametrize('name', ['a.mp4', 'a.MP4', 'dir.d/b.webm', 'c.mkv', 'd.mov', 'e.avi'])
def test_videos_are_known_by_their_names(name):
    assert is_video(name)


@pytest.mark.parametrize('name', ['a.png', 'mp4', 'a.mp4.jpg', 'a.gif', ''])
def test_pictures_are_no_videos(name):
    assert not is_video(name)


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(PictureError, match='absent.mp4: there is no such file'):
        read_frames(tmp_path / 'absent.mp4', 4)
    (tmp_path / 'text.mp4').write_text('This is no video. ' * 100)
    with pytest.raises(PictureError, match='text.mp4: OpenCV finds no frames'):
        read_frames(tmp_path / 'text.mp4', 4)
