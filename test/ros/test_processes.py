"""The life of the process: what it prints, how it ends, and what it says when it cannot start."""

from __future__ import annotations

from contextlib import suppress
import signal

from hobot_vlm import VLM
from hobot_vlm.ros import topics
import numpy as np
from PIL import Image as Pillow
import pytest
from rclpy.node import NodeNameNonExistentError

from .conftest import ENDLESS_NODE, MODELS, SAMPLE
from .robot import image, RELIABLE

QUESTION = 'Describe the picture.'
PLAIN = str(MODELS / 'plain' / 'decoder.gguf')

#: an answer of short sentences that lasts until it is cancelled
ENDLESS = {
    'program': ENDLESS_NODE,
    'feed_type': 2,
    'llm_model_name': PLAIN,
    'n_predict': 100000,
    'grammar': 'root ::= "x. " root',
}


@pytest.fixture(scope='module')
def sample_answer():
    with VLM.load('demo') as vlm:
        return vlm.ask(QUESTION, SAMPLE).text


# -- feed_type 0 ---------------------------------------------------------------------------------


def test_a_local_picture(robot, start, sample_answer):
    """The bundled picture: printed, published, exit 0."""
    for _ in range(5):  # on a busy machine it may be over before the robot is found
        robot.clear()
        node = start(ready=False)
        assert node.wait() == 0, node.log
        assert node.out == sample_answer + '\n'
        if robot.listen_for(2, lambda: robot.heard['/tts_text'] and robot.replies()):
            break
    robot.wait('the result', lambda: robot.heard['/hobot_vlm/result'] == [sample_answer])
    robot.wait('speech', lambda: ''.join(robot.heard['/tts_text']) == sample_answer)


def test_a_local_picture_that_stays(robot, start, sample_answer, tmp_path):
    path = tmp_path / 'picture.png'
    Pillow.open(SAMPLE).save(path)
    node = start(image=path, stay_alive=1, user_prompt=QUESTION)
    robot.wait('an answer to user_prompt', lambda: node.out == sample_answer + '\n')
    robot.say('背景是什么颜色？')
    robot.wait('the next result', lambda: '背景是蓝色。' in robot.heard['/hobot_vlm/result'])
    status, seconds = node.stop(signal.SIGTERM)
    assert (status, seconds < 10) == (0, True), node.log


# -- the graph -----------------------------------------------------------------------------------


def graph_of(node, name):
    """Give (name, type) of a node's topics and services, but for those that each node has."""
    found = set()
    for ask, package in (
        (node.get_subscriber_names_and_types_by_node, '/msg/'),
        (node.get_publisher_names_and_types_by_node, '/msg/'),
        (node.get_service_names_and_types_by_node, '/srv/'),
    ):
        with suppress(NodeNameNonExistentError):  # not known yet
            for topic, kinds in ask(name, '/'):
                found |= {(topic, kind.replace(package, '/')) for kind in kinds}
    every = ('rcl_interfaces', 'lifecycle_msgs', 'type_description_interfaces')
    return {(topic, kind) for topic, kind in found if kind.split('/')[0] not in every}


def test_the_topics_and_services_are_those_of_the_table(robot, start):
    """As another node sees them, with their types."""
    # under a name that no test before had: by name, ROS may still find a node that has ended
    renamed = ('-m', 'hobot_vlm.ros.main', '--ros-args', '-r', '__node:=seen')
    start(ready=False, program=renamed, feed_type=1, watch='["dog: Is there a dog?"]')
    table = {
        topic: (topic.name.replace('~', '/seen').replace('<name>', 'dog'), topic.kind)
        for topic in topics.ALL
    }
    optional = {topics.COMPRESSED_IMAGE, topics.HBM_IMAGE, topics.EMBEDDINGS}
    optional |= {topics.TARGETS, topics.DETECTIONS}
    optional |= {topic for topic in topics.ALL if topic.kind.startswith('llama_msgs/')}
    always = {table[topic] for topic in topics.ALL if topic not in optional}
    robot.wait('the whole graph', lambda: graph_of(robot.node, 'seen') >= always)
    assert graph_of(robot.node, 'seen') <= set(table.values())


# -- signals, cancel, reset ----------------------------------------------------------------------


def begun(robot):
    """Wait until an answer is being spoken and counted as running."""
    robot.clear()
    robot.say('Hello')
    robot.wait('speech', lambda: robot.heard['/tts_text'])
    robot.wait('generation', lambda: robot.status() and robot.status().message == 'answering')


def test_cancel_and_reset(robot, start):
    start(**ENDLESS)
    begun(robot)
    robot.say('And then?')
    assert robot.call('cancel').success
    robot.wait('the cancelled reply', lambda: robot.replies())
    first = robot.replies()[0]
    assert (first['prompt'], first['finish_reason'], first['error']) == ('Hello', 'cancelled', '')
    assert first['completion_tokens'] > 0
    robot.wait('the result so far', lambda: robot.heard['/hobot_vlm/result'] == [first['text']])
    # the next prompt has its turn, and remembers the first
    spoken = len(robot.heard['/tts_text'])
    robot.wait('the second answer to begin', lambda: len(robot.heard['/tts_text']) > spoken)
    robot.wait('the second answer', lambda: robot.call('cancel').success)
    robot.wait('its reply', lambda: len(robot.replies()) == 2)
    second = robot.replies()[1]
    assert second['prompt'] == 'And then?'
    assert second['prompt_tokens'] > first['prompt_tokens'] + first['completion_tokens']
    # and after a reset nothing is remembered
    assert not robot.call('cancel').success
    assert robot.call('reset').success
    spoken = len(robot.heard['/tts_text'])
    robot.say('Hello')
    robot.wait('the third answer to begin', lambda: len(robot.heard['/tts_text']) > spoken)
    robot.wait('the third answer', lambda: robot.call('cancel').success)
    robot.wait('its reply', lambda: len(robot.replies()) == 3)
    assert robot.replies()[2]['prompt_tokens'] == first['prompt_tokens']


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_generation(robot, start, number):
    node = start(**ENDLESS)
    begun(robot)
    assert node.stop(number)[0] == 0, node.log
    assert 'Traceback' not in node.log
    robot.wait(
        'what there is of the answer',
        lambda: robot.replies() and robot.replies()[0]['finish_reason'] == 'cancelled',
    )


def test_prompts_that_wait_at_the_end_are_refused(robot, start):
    node = start(**ENDLESS)
    begun(robot)
    robot.say('And then?')
    robot.wait(
        'it waits',
        lambda: any(v.key == 'prompts waiting' and v.value == '1' for v in robot.status().values),
    )
    assert node.stop()[0] == 0
    robot.wait('both replies', lambda: len(robot.replies()) == 2)
    assert 'before this prompt had its turn' in robot.replies()[1]['error']


# -- turns without pictures ----------------------------------------------------------------------


def test_turns_without_pictures(robot, start):
    """A model without picture markers; what was said before is not decoded again."""
    start(feed_type=2, llm_model_name=PLAIN, n_predict=8)
    before = 0
    for turn in range(3):
        reply = robot.ask(f'Question {turn}')
        assert reply['finish_reason'] == 'length' and reply['completion_tokens'] == 8
        assert reply['prompt_tokens'] > before
        if turn:
            assert reply['reused_tokens'] >= before
        before = reply['prompt_tokens'] + 7
    reply = robot.ask('你好！')
    robot.wait('speech', lambda: ''.join(robot.heard['/tts_text']).endswith(reply['text']))


# -- pictures with the transports of a default installation --------------------------------------


def test_default_transports_and_a_prompt_before_the_picture(robot, start, sample_answer, ros):
    """A prompt waits for the first picture; and that comes, although the middleware is as is."""
    node = start(feed_type=1, env={'FASTDDS_BUILTIN_TRANSPORTS': 'DEFAULT'})
    robot.clear()
    robot.say(QUESTION)
    robot.wait('it says that it waits', lambda: 'waits for the first picture' in node.log)
    assert '/image (0 publishers)' in node.log
    assert robot.call('cancel').success
    robot.wait('cancelled', lambda: [r['finish_reason'] for r in robot.replies()] == ['cancelled'])
    robot.say(QUESTION)
    rgb = np.asarray(Pillow.open(SAMPLE).convert('RGB').resize((1920, 1080)))
    camera = robot.camera(RELIABLE)
    end = lambda: len(robot.replies()) == 2  # noqa: E731
    while not end():
        camera.publish(image(rgb))
        try:
            robot.wait('a reply', end, limit=1)
        except TimeoutError:
            continue
    reply = robot.replies()[1]
    assert reply['error'] == ''
    (picture,) = reply['pictures']
    assert (picture['width'], picture['height']) == (1920, 1080)


# -- errors at the start -------------------------------------------------------------------------


@pytest.mark.parametrize(
    'parameters, says',
    [
        ({'llm_model_name': '/no/such/model.gguf'}, '/no/such/model.gguf'),
        ({'temperature': 11}, 'temperature is 11.0: expected 0.0 to 10.0'),
    ],
)
def test_a_start_that_fails_says_why(robot, start, parameters, says):
    node = start(ready=False, **parameters)
    assert node.wait() == 1
    assert says in node.log
    assert 'Traceback' not in node.log
