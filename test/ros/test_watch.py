"""
Standing questions through the node: a scene that changes, and a camera that stops.

A change lasts until it was heard, or for a few pictures in quick succession.
WATCH_CHANGES=50 makes it long.
"""

from __future__ import annotations

from importlib.util import find_spec
import json
import os
from pathlib import Path
import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from geometry_msgs.msg import Twist
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
import pytest
from std_msgs.msg import Bool, String

from .robot import LATCHED, NodeProcess
from .scene import dog_and_nothing, Scene
from .test_serving import free_port

CHANGES = int(os.environ.get('WATCH_CHANGES', '6'))
#: seconds; many times as long as a change that does not last, on a busy machine too
HOLD = 1.0
CAT = 'cat: Describe the picture. [There is a cat | There is a dog]'
#: each is another answer for each of the two scenes
QUESTIONS = {
    'dog': 'Is there a dog?',
    'empty': 'Describe the picture. [There is nothing | There is a dog]',
    'none': 'How many objects are there? [There are no objects. | There is one object.]',
    'one': 'How many objects are there? [There is one object. | There are no objects.]',
}
EXAMPLES = Path(__file__).parents[2] / 'examples'
EVENTS = '/hobot_vlm/watch_events'


def topic(name):
    return f'/hobot_vlm/watch/{name}'


@pytest.fixture(scope='module')
def watching(request, robot, tmp_path_factory):
    """Run a node with all questions, a camera, and ears on every topic."""
    robot.wait_until_alone()
    for name in QUESTIONS:
        robot.listen(topic(name), Bool, LATCHED)
    robot.listen(EVENTS, String)
    options = {
        'feed_type': 1,
        'watch': json.dumps([f'{name}: {text}' for name, text in QUESTIONS.items()]),
        'watch_rate': 30,
        'watch_hold': HOLD,
        'serve': free_port(),
    }
    node = NodeProcess(tmp_path_factory.mktemp('watching') / 'log', options)
    request.addfinalizer(node.end)
    robot.wait_until_ready(node)
    robot.wait('events', lambda: robot.node.count_publishers(EVENTS))
    scene = Scene(robot, dog_and_nothing())
    scene.start()
    yield node, scene, f'http://127.0.0.1:{options["serve"]}'
    scene.stop()
    assert node.stop()[0] == 0, node.log
    assert 'Traceback' not in node.log


def events(robot, name):
    return [e for e in map(json.loads, robot.heard[EVENTS]) if e['name'] == name]


def values(robot, name):
    return [message.data for message in robot.heard[topic(name)]]


def expected(name, shown):
    return shown if name in ('dog', 'one') else not shown


def heard(robot, count):
    """Wait until each question has had as many answers, on both topics."""
    robot.wait(
        f'{count} answers to each question',
        lambda: all(
            len(events(robot, name)) >= count and len(values(robot, name)) >= count
            for name in QUESTIONS
        ),
    )


def test_every_change_that_lasts_is_published_once(robot, watching):
    """Beside prompts; then the camera stops, and a late joiner hears nothing old."""
    _, scene, _ = watching
    scene.shown = True
    heard(robot, 1)
    shown = [True]
    for number in range(CHANGES):
        scene.flicker()
        robot.say(f'Is there a cat? {number}')
        scene.shown = not scene.shown
        shown.append(scene.shown)
        heard(robot, len(shown))
    robot.wait('the prompts', lambda: len(robot.replies()) == CHANGES)
    assert not [reply for reply in robot.replies() if reply['error']]
    scene.flicker()
    robot.wait('a status', robot.status)
    for name in QUESTIONS:
        wanted = [expected(name, one) for one in shown]
        assert values(robot, name) == wanted
        said = events(robot, name)
        assert [event['value'] for event in said] == wanted
        for event in said:
            assert set(event) == {'name', 'value', 'probability', 'stamp', 'frame_id'}
            assert event['value'] == (event['probability'] > 0.5)
            assert event['frame_id'] == 'front'
        stamps = [tuple(event['stamp'].values()) for event in said]
        assert stamps == sorted(set(stamps))
    word = 'yes' if scene.shown else 'no ('
    robot.wait('its state', lambda: robot.values().get('watch dog', '').startswith(word))

    # the camera stops
    assert robot.set('max_image_age', 1.5).successful
    scene.stop()
    robot.wait('stale', lambda: all(events(robot, n)[-1]['value'] is None for n in QUESTIONS))
    assert events(robot, 'dog')[-1]['probability'] is None
    robot.wait('a warning', lambda: 'watch dog: the answer is stale' in robot.status().message)
    assert robot.values()['watch none'] == 'stale'
    late = []
    robot.node.create_subscription(Bool, topic('dog'), lambda m: late.append(m.data), LATCHED)
    # and goes on
    count = len(shown) + 1
    scene.shown = not scene.shown
    scene.start()
    robot.wait('an answer', lambda: len(events(robot, 'dog')) > count)
    robot.wait('heard by the late one too', lambda: late)
    assert robot.set('max_image_age', 0.0).successful
    assert late == [scene.shown] and events(robot, 'dog')[-1]['value'] is scene.shown


def test_questions_come_and_go(robot, watching):
    _, scene, _ = watching
    robot.wait('answers', lambda: all(values(robot, name) for name in QUESTIONS))
    robot.clear()
    result = robot.set('watch', ['door open?'])
    assert not result.successful and 'name: question' in result.reason
    dog = f'dog: {QUESTIONS["dog"]}'
    robot.listen(topic('cat'), Bool, LATCHED)
    assert robot.set('watch', [dog, CAT]).successful
    robot.wait('an answer', lambda: events(robot, 'cat') and values(robot, 'cat'))
    assert values(robot, 'cat') == [False]
    robot.wait('one is gone', lambda: not robot.node.count_publishers(topic('none')))
    assert not events(robot, 'dog')  # it stood on
    assert robot.set('watch', []).successful
    robot.wait('all are gone', lambda: not robot.node.count_publishers(topic('cat')))
    assert robot.set('watch', [CAT]).successful
    robot.wait('again', lambda: len(events(robot, 'cat')) == 2)


def test_questions_over_http(robot, watching):
    """As the page shows and changes them."""
    _, scene, url = watching
    scene.shown = True

    def questions(**change):
        body = json.dumps(change).encode() if change else None
        path = '/live/questions' if change else '/live'
        with urlopen(Request(f'{url}{path}', body), timeout=30) as answer:
            state = json.load(answer)
        assert state['changeable']
        return {question.pop('name'): question for question in state['questions']}

    robot.wait('the one that stands', lambda: questions()['cat']['answer'] == 'There is a dog')
    questions(name='dog', question=QUESTIONS['dog'])
    robot.wait('an answer', lambda: questions().get('dog', {}).get('answer') == 'yes')
    found = questions()['dog']
    assert found['question'] == QUESTIONS['dog'] and found['probability'] > 0.9
    assert not found['stale'] and not found['error']
    for wrong in ({'name': 'a b', 'question': 'Is it?'}, {'name': 'none', 'question': ''}):
        with pytest.raises(HTTPError) as caught:
            questions(**wrong)
        assert caught.value.code == 400 and 'question' in caught.value.read().decode()
    questions(name='dog', question='')
    robot.wait('it is gone', lambda: list(questions()) == ['cat'])


def test_a_node_that_is_inactive_knows_nothing(robot, watching):
    """It says so, and whoever comes late hears nothing old."""
    robot.wait('the one that stands', lambda: values(robot, 'cat'))
    robot.clear()
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        change = ChangeState.Request(transition=Transition(id=transition))
        assert robot.call('change_state', change).success
    robot.wait('an answer', lambda: len(events(robot, 'cat')) == 2)
    assert [event['value'] for event in events(robot, 'cat')] == [None, False]


# -- the examples, each as a process of its own ---------------------------------------------------


@pytest.fixture
def example():
    """Give a function that starts an example; what runs on is ended after the test."""
    running = []

    def example(name, *arguments):
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield example
    for process in running:
        process.kill()
        process.communicate()


def test_client_and_tree(robot, watching, example):
    """Side by side, and the tree in both of its branches."""
    _, scene, _ = watching
    scene.shown = True
    client = example('ask.py', 'Describe the picture.')
    trees = [example('tree.py')] if find_spec('py_trees') else []
    assert 'There is a dog' in client.communicate(timeout=60)[0]
    for tree in trees:
        said = tree.communicate(timeout=60)[0]
        assert said.startswith('There is a dog: say hello') and 'what to do' in said
    if not trees:
        pytest.skip('py_trees is not installed: pip install py_trees')
    scene.shown = False
    said = example('tree.py').communicate(timeout=60)[0]
    assert said.startswith('There is no dog: go on')


def test_a_watch_stops_a_velocity(robot, watching, example):
    """While there is a dog, and while nobody knows."""
    _, scene, _ = watching
    scene.shown = True
    assert robot.set('watch', []).successful
    robot.wait('it is gone', lambda: not robot.node.count_publishers(topic('dog')))
    robot.clear()
    assert robot.set('watch', [f'dog: {QUESTIONS["dog"]}']).successful
    robot.wait('seen', lambda: values(robot, 'dog')[-1:] == [True])
    robot.listen('/cmd_vel', Twist)
    drive = robot.node.create_publisher(Twist, '/cmd_vel_in', 10)
    example('stop_on_watch.py', '--ros-args', '-p', 'watch:=dog')
    command = Twist()
    command.linear.x = 0.5

    def speeds():
        drive.publish(command)
        return [message.linear.x for message in robot.heard['/cmd_vel']]

    robot.wait('a stop', lambda: len(speeds()) > 3)
    assert set(speeds()) == {0.0}
    scene.shown = False
    robot.wait('it drives', lambda: speeds()[-1] == 0.5)
    scene.shown = True
    robot.wait('it stops', lambda: speeds()[-1] == 0.0)
    scene.shown = False
    robot.wait('it drives', lambda: speeds()[-1] == 0.5)
    assert robot.set('max_image_age', 1.5).successful
    scene.stop()
    robot.wait('it stops without a picture', lambda: speeds()[-1] == 0.0)
