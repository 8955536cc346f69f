"""
Standing questions through the node: a scene that changes, and a camera that stops.

A change lasts until it was heard, or for a few pictures in quick succession.
WATCH_CHANGES=50 makes it long.
"""

from __future__ import annotations

from itertools import pairwise
import json
import os
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image as Pillow
import pytest
from std_msgs.msg import Bool, String

from .conftest import SAMPLE
from .robot import image, LATCHED, NodeProcess
from .test_serving import free_port

CHANGES = int(os.environ.get('WATCH_CHANGES', '8'))
HOLD = 0.5
#: pictures of a change that does not last: a tenth of a second
BRIEF = 3
#: that a prompt sees, and seconds between them
FRAMES, PERIOD = 4, 0.2
TOKENS = 36  # of a picture, to the demo model
CAT = 'cat: Describe the picture. [There is a cat | There is a dog]'
#: each is another answer for each of the two scenes
QUESTIONS = {
    'dog': 'Describe the picture. [There is a dog | There is nothing]',
    'empty': 'Describe the picture. [There is nothing | There is a dog]',
    'none': 'How many objects are there? [There are no objects. | There is one object.]',
    'one': 'How many objects are there? [There is one object. | There are no objects.]',
}
EVENTS = '/hobot_vlm/watch_events'


def topic(name):
    return f'/hobot_vlm/watch/{name}'


@pytest.fixture(scope='module')
def scenes():
    """Give a dog on blue, and nothing on red."""
    sample = np.asarray(Pillow.open(SAMPLE).convert('RGB').resize((320, 180)))
    dog = np.broadcast_to(sample[1, 1], sample.shape).copy()
    dog[:, :106] = sample[:, :106]
    return {True: dog, False: np.full_like(dog, (210, 40, 40))}


class Scene:
    """What a camera sees, thirty times a second, as long as it runs."""

    def __init__(self, robot, scenes):
        self.shown = True
        self._robot, self._scenes = robot, scenes
        self._publisher = robot.camera()
        self._count = 0
        self._stopped = threading.Event()
        self._published = threading.Condition()
        self._thread = None

    def start(self):
        self._stopped.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self):
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self):
        while not self._stopped.wait(1 / 30):
            rgb = self._scenes[self.shown].copy()
            rgb[-1, -1] = self._count % 256  # no two pictures are the same
            now = self._robot.node.get_clock().now().seconds_nanoseconds()
            self._publisher.publish(image(rgb, frame_id='front', stamp=now))
            with self._published:
                self._count += 1
                self._published.notify_all()

    def flicker(self):
        """Show the other scene in a few pictures."""
        with self._published:
            end = self._count + BRIEF
            self.shown = not self.shown
            self._published.wait_for(lambda: self._count >= end)
            self.shown = not self.shown
            end = self._count + BRIEF
            self._published.wait_for(lambda: self._count >= end)


@pytest.fixture(scope='module')
def watching(robot, scenes, tmp_path_factory):
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
        'frames': FRAMES,
        'frame_period': PERIOD,
        'serve': free_port(),
    }
    node = NodeProcess(tmp_path_factory.mktemp('watching') / 'log', options)
    robot.wait_until_ready(node)
    robot.wait('events', lambda: robot.node.count_publishers(EVENTS))
    scene = Scene(robot, scenes)
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
    assert 'There is ' in robot.wait('its state', lambda: robot.values().get('watch dog'))

    # the camera stops
    assert robot.set('max_image_age', 1.0).successful
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


def test_a_prompt_sees_the_last_pictures_as_a_video(robot, watching):
    """And so does a request; messages see the newest."""
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
    robot.wait('an answer', lambda: questions().get('dog', {}).get('answer') == 'There is a dog')
    found = questions()['dog']
    assert found['question'] == 'Describe the picture.' and found['probability'] > 0.9
    assert not found['stale'] and not found['error']
    for wrong in ({'name': 'a b', 'question': 'Is it?'}, {'name': 'none', 'question': ''}):
        with pytest.raises(HTTPError) as caught:
            questions(**wrong)
        assert caught.value.code == 400 and 'question' in caught.value.read().decode()
    questions(name='dog', question='')
    robot.wait('it is gone', lambda: list(questions()) == ['cat'])
