"""A camera without ROS; OpenCV reads a video file in its place."""

from __future__ import annotations

import json
import os

import cv2
from hobot_vlm import PictureError
from hobot_vlm.vlm import Camera
import numpy as np
import pytest
from shell import complaint

QUESTION = 'What colour is the background?'


@pytest.fixture
def camera_file(tmp_path):
    """Give a video: red, then green, then blue, eight frames each."""
    path = tmp_path / 'camera.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10, (96, 64))
    for bgr in ((30, 30, 220), (40, 180, 40), (220, 60, 30)):
        for _ in range(8):
            writer.write(np.full((64, 96, 3), bgr, np.uint8))
    writer.release()
    return path


def test_each_frame_is_newer_than_what_was_buffered(camera_file):
    with Camera(str(camera_file)) as camera:
        colours = []
        for _ in range(4):
            frame = camera.frame()
            assert frame.shape == (64, 96, 3) and frame.dtype == np.uint8
            colours.append('rgb'[int(frame.mean(axis=(0, 1)).argmax())])
        assert colours == ['r', 'g', 'g', 'b']  # frames 5, 10, 15, 20
        with pytest.raises(PictureError, match='gives no more pictures'):
            camera.frame()
    camera.close()


@pytest.mark.parametrize('source', ['77', '/dev/video77', 'absent.mp4'])
def test_a_camera_that_is_not_there(run, source):
    said = complaint(run('ask', 'hi', '--camera', source))
    assert source in said and 'camera' in said


def test_a_file_that_is_no_camera(run, tmp_path):
    path = tmp_path / 'text.txt'
    path.write_text('no video')
    assert 'cannot be opened' in complaint(run('ask', 'hi', '--camera', path))


def test_ask(run, camera_file, demo):
    with Camera(str(camera_file)) as camera:
        expected = demo.ask(QUESTION, camera.frame()).text
    assert run('ask', QUESTION, '--camera', camera_file) == (0, f'{expected}\n', '')


def test_chat_shows_a_fresh_frame_for_each_question(run, camera_file, demo):
    with Camera(str(camera_file)) as camera, demo.conversation() as talk:
        expected = [talk.ask(QUESTION, camera.frame()) for _ in range(4)]
    status, out, err = run('chat', '--json', '--camera', camera_file, stdin=f'{QUESTION}\n' * 4)
    replies = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, '')
    assert [reply['text'] for reply in replies] == [reply.text for reply in expected]
    assert [reply['image_tokens'] for reply in replies] == [
        number * replies[0]['image_tokens'] for number in (1, 2, 3, 4)
    ]


def test_camera_and_files(run, camera_file, sample, demo):
    said = complaint(run('ask', QUESTION, sample, '--camera', camera_file))
    assert '--camera and files are given: choose one' in said
    with Camera(str(camera_file)) as camera, demo.conversation() as talk:
        expected = [talk.ask(QUESTION, image).text for image in (sample, camera.frame())]
    lines = f'/image {sample}\n{QUESTION}\n{QUESTION}\n'
    status, out, err = run('chat', '--camera', camera_file, stdin=lines)
    assert (status, out.splitlines(), err) == (0, expected, '')


def test_a_camera_that_ends_does_not_end_a_chat(run, camera_file):
    status, out, err = run('chat', '--camera', camera_file, stdin=f'{QUESTION}\n' * 5)
    assert status == 2 and out.count('\n') == 4
    assert err.count('\n') == 1 and 'gives no more pictures' in err


@pytest.mark.skipif(not os.path.exists('/dev/video0'), reason='no camera is connected')
def test_a_real_camera(run):
    assert run('ask', QUESTION, '--camera', '0')[0] == 0
