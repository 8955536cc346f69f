"""Prompts as turns of one conversation: pictures, reset, and from one run to the next."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pillow

from .conftest import SAMPLE
from .robot import image

QUESTION = 'Describe the picture.'


def test_turns_about_pictures(robot, start, tmp_path):
    path = tmp_path / 'talk.state'
    shown = np.asarray(Pillow.open(SAMPLE).convert('RGB'))
    node = start(feed_type=1, conversation=True, state_file=path)
    robot.camera()
    first = robot.ask_about(image(shown), QUESTION)
    # the same picture again is the one that is there
    second = robot.ask_about(image(shown), 'Where is the dog?')
    assert second['text'] == 'The dog is on the left.'
    assert second['image_tokens'] == first['image_tokens']
    assert second['reused_tokens'] >= first['prompt_tokens']
    # another picture is a new one in the same conversation
    third = robot.ask_about(image(np.ascontiguousarray(shown[:, ::-1])), QUESTION)
    assert third['image_tokens'] == 2 * first['image_tokens']
    assert third['text'].startswith('There is a sunflower on the left')
    assert third['reused_tokens'] > second['prompt_tokens']
    # the next run goes on, and decodes nothing of that again
    assert node.stop()[0] == 0, node.log
    start(feed_type=1, conversation=True, state_file=path)
    robot.camera()
    fourth = robot.ask_about(image(shown), 'What colour is the background?')
    assert fourth['text'] == 'The background is blue.'
    assert fourth['image_tokens'] == 3 * first['image_tokens']
    assert fourth['reused_tokens'] > third['prompt_tokens']
    # until it is told to forget
    assert robot.call('reset').success
    before = len(robot.replies())
    robot.ask_about(image(shown), QUESTION)
    fifth = robot.replies()[before]
    assert (fifth['text'], fifth['prompt_tokens']) == (first['text'], first['prompt_tokens'])


def test_a_state_file_that_is_none(robot, start, tmp_path):
    """It is said, and the conversation begins anew."""
    path = tmp_path / 'talk.state'
    path.write_text('no state')
    node = start(feed_type=2, state_file=path)
    assert 'the conversation begins anew' in node.log and str(path) in node.log
    assert robot.ask('Hello')['error'] == ''
    assert node.stop()[0] == 0
    assert path.read_bytes() != b'no state'
