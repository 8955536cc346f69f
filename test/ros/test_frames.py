"""Several pictures of a camera, which a prompt sees as a video."""

from __future__ import annotations

from itertools import pairwise

from hobot_vlm.config import NodeConfig
from hobot_vlm.errors import ConfigError
from hobot_vlm.ros.parameters import valid
import pytest

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


@pytest.mark.parametrize('more', [{'feed_type': 0}, {'feed_type': 1, 'parser_mode': 1}])
def test_where_there_are_no_videos(more):
    with pytest.raises(ConfigError, match='frames is 2'):
        valid(NodeConfig(frames=2, **more))
