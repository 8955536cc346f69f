"""Frames of videos that the tests make themselves, with OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
from hobot_vlm.errors import PictureError
from hobot_vlm.image import video
from hobot_vlm.image.video import is_video, moments, read_frames
import numpy as np
import pytest

VIDEOS = Path(__file__).parents[1] / 'data' / 'video'


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
        (3, 8, [0, 1, 2]),
        (1, 3, [0]),
    ],
)
def test_which_frames_are_taken(total, frames, expected):
    assert moments(total, frames) == expected


@pytest.mark.parametrize('total', [1, 2, 7, 33, 1000])
@pytest.mark.parametrize('frames', [1, 2, 5, 32])
def test_frames_are_in_order_and_in_the_video(total, frames):
    taken = moments(total, frames)
    assert taken == sorted(set(taken)) and len(taken) == min(frames, total)
    assert 0 <= taken[0] and taken[-1] < total


@pytest.mark.parametrize('name', ['clip.mp4', 'clip.avi'])
@pytest.mark.parametrize('frames', [1, 4, 8])
def test_the_frames_are_the_right_ones(tmp_path, name, frames):
    path = make_video(tmp_path / name)
    found = read_frames(path, frames)
    assert np.allclose([f.seconds for f in found], np.array(moments(40, frames)) / 10, atol=1e-3)
    assert {round(f.duration, 3) for f in found} == {4.0}
    taken = [frame.rgb for frame in found]
    assert [frame.shape for frame in taken] == [(64, 96, 3)] * frames
    levels = [frame[:, 60:].mean() / 6 for frame in taken]
    assert np.allclose(levels, moments(40, frames), atol=0.7)
    red = taken[0][:, 4:40].mean(axis=(0, 1))
    assert red[0] > 200 and red[1] < 60 and red[2] < 60


@pytest.mark.parametrize('name', ['one.mp4', 'one.avi'])
@pytest.mark.parametrize('frames', [1, 8])
def test_a_video_of_one_frame(tmp_path, name, frames):
    (found,) = read_frames(make_video(tmp_path / name, frames=1), frames)
    assert found.rgb.shape == (64, 96, 3) and found.seconds == 0
    assert found.rgb[:, 4:40, 0].mean() > 200


def test_a_short_video_gives_each_frame_once(tmp_path):
    found = read_frames(make_video(tmp_path / 'clip.mp4', frames=2), 5)
    assert [round(f.seconds, 3) for f in found] == [0, 0.1]


@pytest.mark.parametrize('name', ['one.webm', 'one.mkv'])
def test_one_frame_in_other_containers(name):
    (found,) = read_frames(VIDEOS / name, 8)
    assert found.rgb.shape == (64, 96, 3) and found.seconds == 0


#: when the frames of these files are shown; frame i has the grey level 12 i
TIMES = [0, 0.1, 0.2, 0.3, 2, 2.1, 5, 5.5, 6, 9]


@pytest.mark.parametrize('name', ['uneven.mp4', 'uneven.webm', 'uneven.mkv'])
def test_frames_at_uneven_times(name):
    found = read_frames(VIDEOS / name, 10)
    assert np.allclose([f.seconds for f in found], TIMES, atol=2e-3)
    levels = [f.rgb[:, 60:].mean() / 12 for f in found]
    assert np.allclose(levels, range(10), atol=0.5)


@pytest.mark.parametrize(
    ('start', 'end', 'expected'),
    [
        (0, None, TIMES),
        (2, 5.2, [2, 2.1, 5]),
        (5.5, None, [5.5, 6, 9]),
        (0, 0, [0]),
        (7, 8, [6]),  # shown from 6 to 9
    ],
)
def test_a_part_of_a_video(start, end, expected):
    found = read_frames(VIDEOS / 'uneven.mp4', 10, start, end)
    assert np.allclose([f.seconds for f in found], expected, atol=2e-3)


@pytest.mark.parametrize(
    ('range_', 'told'),
    [
        ((4, 20.0), 'lasts 12.00 s and has no frame from 20.0 s on'),
        ((4, 5.0, 2.0), 'expected at least one, and a start before the end'),
        ((4, -1.0), 'expected at least one'),
        ((0,), 'expected at least one'),
    ],
)
def test_a_part_that_is_not_there(range_, told):
    with pytest.raises(PictureError, match=told):
        read_frames(VIDEOS / 'uneven.mp4', *range_)


def test_a_video_that_ends_before_its_header_says(tmp_path):
    path = make_video(tmp_path / 'clip.avi')
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])  # the index, at the end, is lost too
    found = read_frames(path, 4)
    assert len(found) == 4
    assert found[-1].rgb[:, 60:].mean() < 40 * 6 * 2 / 3


@pytest.mark.parametrize('claim', [1, 2**31 - 1])
def test_a_header_that_lies_about_its_frames(tmp_path, claim):
    path = make_video(tmp_path / 'clip.avi')
    content = bytearray(path.read_bytes())
    at = content.index(b'avih') + 8 + 16  # frames of the file
    content[at : at + 4] = claim.to_bytes(4, 'little')
    at = content.index(b'strh') + 8 + 32  # frames of the stream
    content[at : at + 4] = claim.to_bytes(4, 'little')
    path.write_bytes(content)
    levels = [f.rgb[:, 60:].mean() / 6 for f in read_frames(path, 4)]
    assert np.allclose(levels, moments(40, 4), atol=0.7)


@pytest.mark.parametrize(
    'content',
    [
        '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n',
        "ffconcat version 1.0\nfile 'clip.mp4'\n",
    ],
)
def test_a_playlist_leads_nowhere(tmp_path, content):
    make_video(tmp_path / 'clip.mp4')
    (tmp_path / 'list.mp4').write_text(content)
    with pytest.raises(PictureError, match='list.mp4.*no frames'):
        read_frames(tmp_path / 'list.mp4', 4)


def test_reading_ends(tmp_path, monkeypatch):
    path = make_video(tmp_path / 'clip.mp4')
    asked = []
    with pytest.raises(PictureError, match='was cancelled'):
        read_frames(path, 4, cancelled=lambda: bool(asked.append(1)) or len(asked) > 7)
    assert len(asked) == 8
    monkeypatch.setattr(video, 'SECONDS', 0.0)
    with pytest.raises(PictureError, match='takes longer than 0 s'):
        read_frames(path, 4)


def test_frames_that_take_too_much_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(video, 'MOST_BYTES', 3 * 96 * 64 * 3)
    path = make_video(tmp_path / 'clip.mp4')
    assert len(read_frames(path, 3)) == 3
    with pytest.raises(PictureError, match='4 frames of 96x64 pixels.*choose fewer'):
        read_frames(path, 4)


@pytest.mark.parametrize('name', ['a.mp4', 'a.MP4', 'dir.d/b.webm', 'c.mkv', 'd.mov', 'e.avi'])
def test_videos_are_known_by_their_names(name):
    assert is_video(name)


@pytest.mark.parametrize('name', ['a.png', 'mp4', 'a.mp4.jpg', 'a.gif', ''])
def test_pictures_are_no_videos(name):
    assert not is_video(name)


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(PictureError, match='absent.mp4.: there is no such file'):
        read_frames(tmp_path / 'absent.mp4', 4)
    (tmp_path / 'text.mp4').write_text('This is no video. ' * 100)
    with pytest.raises(PictureError, match='text.mp4.: OpenCV finds no frames'):
        read_frames(tmp_path / 'text.mp4', 4)
