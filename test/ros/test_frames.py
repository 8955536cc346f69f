"""Several pictures of a camera, which a prompt sees as a video."""

from __future__ import annotations

from itertools import pairwise
import re
from time import perf_counter

from hobot_vlm.errors import ConfigError, PictureError
from hobot_vlm.node_config import NodeConfig
from hobot_vlm.ros.frames import FrameReader, Pictures
from hobot_vlm.ros.inbox import Frame
from hobot_vlm.ros.parameters import valid
import numpy as np
import pytest
from rclpy.clock import Clock, ClockType, ROSClock
from rclpy.time import Time

from .robot import image
from .scene import dog_and_nothing, Scene

#: that a prompt sees, and seconds between them
FRAMES, PERIOD = 4, 0.1
TOKENS = 36  # of a picture, to the demo model


def test_a_prompt_sees_the_last_pictures_as_a_video(robot, start):
    """And so does a request; messages see the newest."""
    start(feed_type=1, frames=FRAMES, frame_period=PERIOD)
    scene = Scene(robot, dog_and_nothing())
    scene.start()
    robot.wait('pictures', lambda: scene.count > 60 * FRAMES * PERIOD)
    robot.request({'id': 'a', 'prompt': 'Describe the picture.'})
    messages = [{'role': 'user', 'content': 'Describe the picture.'}]
    robot.request({'id': 'b', 'messages': messages, 'images': 'newest'})
    asked = robot.reply_to('a'), robot.reply_to('b')
    assert asked[1]['image_tokens'] == TOKENS
    for reply in (asked[0], robot.ask('Describe the picture.')):
        assert reply['error'] == '' and reply['image_tokens'] == FRAMES * TOKENS
        (picture,) = reply['pictures']
        frames = picture['frames']
        assert len(frames) == FRAMES and frames[-1]['stamp'] == picture['stamp']
        ages = [frame['age'] for frame in frames]
        assert all(one - other >= PERIOD / 4 for one, other in pairwise(ages))
        assert reply['stamp'] == picture['stamp'] and ages[-1] == picture['age']
    scene.stop()


@pytest.mark.parametrize(
    ('ahead', 'came', 'says'),
    [
        (-1e9, 0.0, 'by its stamp; it came 0.0 s ago: set the clock of its camera'),
        (-60.0, 0.0, 'by its stamp; it came 0.0 s ago: set the clock of its camera'),
        (60.0, 30.0, ' s old, and max_image_age is 1: see whether its camera runs'),
        (-60.0, 30.0, ' s old, and max_image_age is 1: see whether its camera runs'),
        (None, 30.0, ' s old, and max_image_age is 1: see whether its camera runs'),
        (None, 0.0, ''),
        (0.0, 0.0, ''),
        (1e6, 0.0, ''),
    ],
)
@pytest.mark.parametrize('clock', [ClockType.SYSTEM_TIME, ClockType.ROS_TIME])
def test_a_picture_is_as_old_as_two_clocks_say(clock, ahead, came, says):
    """A camera that counts from its start, one that is behind or ahead, one without a stamp."""
    clock = Clock(clock_type=clock)
    now = clock.now().nanoseconds / 1e9
    second, rest = (0, 0) if ahead is None else divmod(now + ahead, 1)
    message = image(np.zeros((4, 4, 3), np.uint8), stamp=(int(second), int(rest * 1e9)))
    frame = Frame('/image', b'', lambda _: message, perf_counter() - came)
    pictures = Pictures()
    FrameReader(clock).read((frame,), pictures)
    assert all(0 <= info.age for info in pictures.info)
    settings = NodeConfig(feed_type=1, max_image_age=1.0, old_images='refuse')
    if not says:
        return pictures.check_age(settings)
    with pytest.raises(PictureError, match=re.escape(says)):
        pictures.check_age(settings)


def test_a_clock_that_stands_or_jumps_back():
    """As /clock does when a bag begins again: the arrival tells."""
    clock = ROSClock()
    clock._set_ros_time_is_active(True)
    message = image(np.zeros((4, 4, 3), np.uint8), stamp=(1000, 0))
    frame = Frame('/image', b'', lambda _: message, perf_counter() - 5)
    for now, age in ((0, 5), (1002, 5), (1010, 10), (1, 5)):
        clock.set_ros_time_override(Time(seconds=now, clock_type=ClockType.ROS_TIME))
        pictures = Pictures()
        FrameReader(clock).read((frame,), pictures)
        assert pictures.info[0].age == pytest.approx(age, abs=1)


@pytest.mark.parametrize('more', [{'feed_type': 0}, {'feed_type': 1, 'parser_mode': 1}])
def test_where_there_are_no_videos(more):
    with pytest.raises(ConfigError, match='frames is 2'):
        valid(NodeConfig(frames=2, **more))
