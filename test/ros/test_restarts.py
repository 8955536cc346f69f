"""
The camera, the one who asks, or the node is killed and started again.

A prompt is acknowledged to the one who asks by the middleware once the node has it, and to
everybody by its reply. What was acknowledged is not lost.
"""

from __future__ import annotations

import re
import time

from hobot_vlm import VLM

from .conftest import ENDLESS_NODE, MODELS

PLAIN = str(MODELS / 'plain' / 'decoder.gguf')
LIMIT = 60.0  # a process that was killed is seen for 20 seconds


def test_the_camera_is_killed(robot, start, act):
    start(feed_type=1, n_predict=4)
    robot.clear()
    camera = act('camera', 20)
    first = robot.ask('Before')
    camera.kill()
    camera.wait()
    # its last picture is still there to talk about
    second = robot.ask('Meanwhile')
    assert second['error'] == '' and second['image_tokens'] == first['image_tokens']
    assert second['pictures'][0]['age'] < 30
    # and the new camera's pictures come
    act('camera', 20)
    old, asked = second['stamp'], ['Before', 'Meanwhile']
    end = time.monotonic() + LIMIT
    while robot.replies()[-1]['stamp'] == old:
        assert time.monotonic() < end, 'the new camera was not noticed'
        asked.append(f'After {len(asked)}')
        assert robot.ask(asked[-1])['error'] == ''
    last = robot.replies()[-1]
    assert (last['stamp']['sec'], last['stamp']['nanosec']) > (old['sec'], old['nanosec'])
    assert last['pictures'][0]['age'] < 5
    assert [reply['prompt'] for reply in robot.replies()] == asked


def lives(robot):
    """Give the numbers of the questions that were answered, for each life of the one who asks."""
    numbers = ' '.join(reply['prompt'].split()[1] for reply in robot.replies())
    return [[int(n) for n in life.split()] for life in re.split(r'\b(?=0\b)', numbers) if life]


def test_the_one_who_asks_is_killed(robot, start, act):
    """Three times, with prompts still waiting; each that the node has is answered, in order."""
    start(feed_type=2, llm_model_name=PLAIN, n_predict=50, n_ctx=4096)
    robot.clear()
    count = 20
    for _ in range(3):
        asker = act('asker', count)
        assert asker.stdout.readline() == 'True\n'
        asker.kill()
        asker.wait()
    robot.wait(
        'all replies', lambda: [len(life) >= count for life in lives(robot)] == [True] * 3, LIMIT
    )
    for life in lives(robot):
        assert life == list(range(len(life)))
    assert all(reply['error'] == '' for reply in robot.replies())


def test_the_node_is_killed(robot, start, tmp_path):
    """While it answers; what it had answered is remembered, and prompts find the new one."""
    options = {
        'feed_type': 2,
        'llm_model_name': PLAIN,
        'state_file': tmp_path / 'talk.state',
        'n_predict': 40,
    }
    node = start(program=ENDLESS_NODE, **options)
    robot.clear()
    for turn in ('one', 'two'):
        assert robot.ask(turn)['finish_reason'] == 'length'
    assert robot.set('n_predict', 100000).successful
    robot.say('Nobody will ever know.')
    robot.wait(
        'that it is answered', lambda: robot.status() and robot.status().message == 'answering'
    )
    node.kill()
    start(**options)
    last = robot.ask('And now?')
    assert [reply['prompt'] for reply in robot.replies()] == ['one', 'two', 'And now?']
    # as if nothing had happened
    with VLM.load(llm_model_name=PLAIN, n_predict=40, llm_threads=1) as vlm:
        chat = vlm.conversation()
        for turn in ('one', 'two'):
            chat.ask(turn)
        expected = chat.ask('And now?')
    assert (last['text'], last['prompt_tokens']) == (expected.text, expected.prompt_tokens)
