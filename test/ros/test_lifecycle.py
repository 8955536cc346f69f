"""The states of the node: driven from outside, over and over, and when a step fails."""

from __future__ import annotations

from statistics import median
import sys

from hobot_vlm.ros.node import VlmNode
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
import numpy as np
from PIL import Image as Pillow
import pytest
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from .conftest import ENDLESS_NODE, MODELS, SAMPLE
from .robot import image

QUESTION = 'Describe the picture.'
PLAIN = str(MODELS / 'plain' / 'decoder.gguf')

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


def change(robot, transition):
    """Ask for a transition; whether it was made."""
    return robot.call(
        'change_state', ChangeState.Request(transition=Transition(id=transition))
    ).success


def state(robot):
    return robot.call('get_state').current_state.id


def test_states_over_and_over(robot, start):
    """Twenty rounds; memory does not grow after the first few, and the last round answers."""
    node = start(ready=False, feed_type=1, autostart=False)
    assert state(robot) == State.PRIMARY_STATE_UNCONFIGURED
    memory = []
    for _ in range(20):
        for transition in (CONFIGURE, ACTIVATE, DEACTIVATE, CLEANUP):
            assert change(robot, transition), node.log
        memory.append(node.memory())
    # three models of this size would not fit into the difference
    growth = median(memory[-5:]) - median(memory[4:9])
    assert growth < 20e6, [size // 1000000 for size in memory]
    assert change(robot, CONFIGURE) and state(robot) == State.PRIMARY_STATE_INACTIVE
    assert change(robot, ACTIVATE) and state(robot) == State.PRIMARY_STATE_ACTIVE
    robot.camera()
    rgb = np.asarray(Pillow.open(SAMPLE).convert('RGB'))
    assert robot.ask_about(image(rgb), QUESTION)['error'] == ''
    assert not change(robot, CONFIGURE)
    assert node.stop()[0] == 0


def test_prompts_outlive_a_pause(robot, start):
    """What came before deactivate and had no turn is answered after the next activate."""
    node = start(program=ENDLESS_NODE, feed_type=2, llm_model_name=PLAIN, n_predict=100000)
    robot.clear()
    for prompt in ('one', 'two', 'three'):
        robot.say(prompt)
    robot.wait(
        'they are there', lambda: robot.status() and int(robot.values()['prompts waiting']) == 2
    )
    assert change(robot, DEACTIVATE)
    assert robot.set('n_predict', 8).successful
    assert change(robot, ACTIVATE), node.log
    robot.wait('all replies', lambda: len(robot.replies()) == 3)
    assert [(reply['prompt'], reply['finish_reason']) for reply in robot.replies()] == [
        ('one', 'cancelled'),
        ('two', 'length'),
        ('three', 'length'),
    ]


@pytest.mark.parametrize(
    'parameters, says',
    [
        ({'image': '/no/such/picture.png'}, '/no/such/picture.png'),
        ({'image': __file__}, 'test_lifecycle.py'),
        ({'llm_model_name': '/no/such/model.gguf'}, '/no/such/model.gguf'),
        ({'model': 'dmeo'}, 'dmeo'),
        ({'feed_type': 1, 'llm_model_name': PLAIN}, 'has no vision encoder'),
        ({'feed_type': 1, 'is_shared_mem_sub': 1}, 'hbm_img_msgs'),
    ],
)
def test_a_configure_that_fails_says_why(parameters, says, capfd, monkeypatch):
    """In the log, on /diagnostics, and the node can be configured again."""
    import rclpy

    monkeypatch.setitem(sys.modules, 'hbm_img_msgs', None)  # as where it is not installed
    context = Context()
    rclpy.init(context=context)
    node = VlmNode(
        context=context,
        parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()],
    )
    try:
        for _ in range(2):
            assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert says in node.statistics.error
        assert node.vlm is None
    finally:
        node.destroy_node()
        context.try_shutdown()
    log = capfd.readouterr().err
    assert f'cannot configure: {node.statistics.error}' in log
    assert 'Traceback' not in log
