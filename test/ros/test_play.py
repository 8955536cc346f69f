"""The publisher that takes a camera's place, as a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import numpy as np
from PIL import Image as Picture
import pytest
from sensor_msgs.msg import Image

from .robot import GONE

PLAY = 'from hobot_vlm.ros.main import play_images; play_images()'
RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.fixture
def pictures(tmp_path):
    """Give a folder with two pictures, one that is none, and a file of another kind."""
    Picture.new('RGB', (64, 48), RED).save(tmp_path / 'a.png')
    Picture.new('RGB', (31, 17), GREEN).save(tmp_path / 'b.PNG')
    (tmp_path / 'c.jpg').write_bytes(b'no picture')
    (tmp_path / 'd.txt').write_text('no picture either')
    return tmp_path


@pytest.fixture
def play():
    """Give a function that starts the player; it is stopped after the test."""
    started = []

    def play(**parameters):
        command = [sys.executable, '-c', PLAY, '--ros-args']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={value}']
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield play
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_is_played_once_in_order(robot, play, pictures):
    robot.listen('/once', Image)
    player = play(folder=pictures, topic='/once', loop='false', rate='20.0', frame_id='desk')
    _, log = player.communicate(timeout=30)
    assert player.returncode == 0
    assert log.count('c.jpg') == 1
    robot.wait('two pictures', lambda: len(robot.heard['/once']) == 2)
    first, second = robot.heard['/once']
    for message, (width, height), colour in ((first, (64, 48), RED), (second, (31, 17), GREEN)):
        assert (message.width, message.height, message.step) == (width, height, 3 * width)
        assert (message.encoding, message.header.frame_id) == ('rgb8', 'desk')
        pixels = np.frombuffer(message.data, np.uint8).reshape(height, width, 3)
        assert (pixels == colour).all()
        assert message.header.stamp.sec > 0


def test_it_goes_on_until_it_is_interrupted(robot, play, pictures):
    robot.listen('/loop', Image)
    player = play(folder=pictures, topic='/loop', rate='50.0')
    robot.wait('three rounds', lambda: len(robot.heard['/loop']) >= 6)
    player.send_signal(signal.SIGINT)
    assert player.wait(30) == 0
    robot.wait('no ghost', lambda: 'play_images' not in robot.node.get_node_names(), GONE)


def test_without_a_folder_it_plays_the_bundled_sample(robot, play):
    robot.listen('/sample', Image)
    play(topic='/sample', rate='10.0')
    robot.wait('the sample', lambda: robot.heard['/sample'])


@pytest.mark.parametrize(
    'parameters, message',
    [
        ({'folder': '/nowhere'}, 'cannot read /nowhere'),
        ({'folder': 'EMPTY'}, 'there is no picture in'),
        ({'folder': 'BROKEN', 'rate': '20.0'}, 'no picture in .* can be read'),
        ({'rate': '0.0'}, "rate is '0.0': expected a number from 0.01 to 1000"),
        ({'rate': 'often'}, "rate is 'often': expected a number"),
    ],
)
def test_what_cannot_be_played_is_said(play, tmp_path, parameters, message):
    (tmp_path / 'EMPTY').mkdir()
    (tmp_path / 'BROKEN').mkdir()
    (tmp_path / 'BROKEN' / 'c.jpg').write_bytes(b'no picture')
    if not parameters.get('folder', '/').startswith('/'):
        parameters = parameters | {'folder': tmp_path / parameters['folder']}
    player = play(**parameters)
    _, log = player.communicate(timeout=30)
    assert player.returncode == 1
    assert 'Traceback' not in log
    assert re.search(message, log)
