"""The thread of the standing questions: one picture at a time, and after prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import threading
import time

from hobot_vlm import VLM
from hobot_vlm.node_config import NodeConfig
from hobot_vlm.ros.frames import FrameReader
from hobot_vlm.ros.inbox import Frame, Inbox
from hobot_vlm.ros.watch import PRIORITY, Watch
import numpy as np
import pytest
from rclpy.clock import Clock

from .robot import image

FILES = Path(__file__).parents[1] / 'models' / 'internvl'
QUESTIONS = ('a: Is it a?', 'b: Is it b?', 'c: Is it c? [here | there]')


class Heard:
    """Keeps what would be published."""

    def __init__(self):
        self.opened, self.events = [], []

    def open(self, name):
        self.opened.append(name)

    def close(self, name):
        self.opened.remove(name)

    def value(self, name, value):
        assert name in self.opened

    def event(self, text):
        self.events.append(text)


@pytest.fixture(scope='module')
def vlm():
    with VLM.load(
        model_file_name=str(FILES / 'vision.onnx'),
        llm_model_name=str(FILES / 'decoder.gguf'),
        llm_threads=1,
        max_tiles=1,
    ) as opened:
        yield opened


@pytest.fixture
def watch(vlm, monkeypatch):
    """Run the thread with an inbox; gives both, what it says, and each request that it makes."""
    config = NodeConfig(feed_type=1, watch=QUESTIONS, watch_rate=100.0, watch_hold=0.0)
    asked, stream = [], vlm.stream

    def noted(question, **more):
        asked.append((question, more))
        return stream(question, **more)

    monkeypatch.setattr(vlm, 'stream', noted)
    inbox, heard = Inbox(cameras=1), Heard()
    settings = [config]
    made = Watch(vlm, inbox, FrameReader(Clock()), heard, settings=lambda: settings[0], store=list)
    made.start()
    yield made, inbox, heard, asked, settings
    inbox.close()
    assert made.stop(30)


def show(inbox, number):
    """Put in a picture that looks like no other."""
    rgb = np.full((32, 32, 3), 40 * number % 256, np.uint8)
    inbox.put_frame(0, Frame('/image', b'', lambda _: image(rgb)))


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_one_picture_at_a_time_and_after_prompts(vlm, watch):
    made, inbox, heard, asked, _ = watch
    release = threading.Event()
    blocked = threading.Thread(target=lambda: vlm.engine.call(release.wait))
    blocked.start()
    show(inbox, 0)
    until(lambda: asked)
    for number in range(1, 150):  # many times faster than the model
        show(inbox, number)
        assert vlm.status().encoding <= 1
        time.sleep(0.002)
    release.set()
    blocked.join()
    until(lambda: len(asked) == 2 * len(QUESTIONS))
    until(lambda: all(item.belief.value is not None for item in made.watched))
    assert all(more['priority'] == PRIORITY < 0 for _, more in asked)
    pictures = {id(more['images']) for _, more in asked}  # the first and the last one
    assert len(pictures) == 2 and inbox.received == 150
    assert sorted(heard.opened) == ['a', 'b', 'c'] and heard.events


def test_a_picture_that_looks_the_same_is_not_asked_about_again(watch):
    made, inbox, _, asked, settings = watch
    show(inbox, 1)
    until(lambda: len(asked) == len(QUESTIONS))
    until(lambda: made.watched[0].belief.seen)
    for _ in range(3):
        seen = made.watched[0].belief.seen
        show(inbox, 1)
        until(lambda: made.watched[0].belief.seen > seen)  # noqa: B023, it bears the answer out
    assert len(asked) == len(QUESTIONS)
    settings[0] = replace(settings[0], watch=(*QUESTIONS, 'd: Is it d?'))
    until(lambda: len(made.watched) == 4)
    show(inbox, 1)
    until(lambda: made.watched[3].belief.seen)
    assert [question for question, _ in asked[3:]] == ['Is it d?']  # the others were answered


def test_what_cannot_be_read_or_asked_is_said(watch):
    made, inbox, _, asked, settings = watch
    inbox.put_frame(0, Frame('/image', b'', lambda _: image(np.zeros((0, 0, 3), np.uint8))))
    until(lambda: made.troubles())
    assert all(item.error for item in made.watched)
    settings[0] = replace(settings[0], watch=(QUESTIONS[0], 'e: Is it? ' + 'word ' * 9000))
    until(lambda: len(made.watched) == 2)
    show(inbox, 2)
    until(lambda: made.watched[0].belief.seen and 'n_ctx' in made.watched[1].error)
    assert not made.watched[0].error
    assert [text.split(':')[0] for text in made.troubles()] == ['watch e']


def test_pictures_that_nobody_asks_about_wake_nobody(watch, monkeypatch):
    made, inbox, _, _, settings = watch
    settings[0] = replace(settings[0], watch=())
    until(lambda: not made.watched)
    given, wait = [], inbox.next_frames
    monkeypatch.setattr(inbox, 'next_frames', lambda *a: given.append(wait(*a)) or given[-1])
    show(inbox, 4)
    until(lambda: len(given) >= 2)
    assert given == [()] * len(given)
    settings[0] = replace(settings[0], watch=QUESTIONS)  # now somebody does
    until(lambda: made.watched and made.watched[0].belief.seen)


def test_its_end_does_not_wait_for_the_answers(vlm, watch):
    made, inbox, _, asked, _ = watch
    release = threading.Event()
    blocked = threading.Thread(target=lambda: vlm.engine.call(release.wait))
    blocked.start()
    show(inbox, 3)
    until(lambda: asked)
    inbox.close()
    time.sleep(0.05)
    release.set()
    blocked.join()
    assert made.stop(10)
    assert not any(item.belief.value for item in made.watched)
