"""A scene in front of a camera, which a test changes."""

from __future__ import annotations

import threading

import numpy as np
from PIL import Image as Pillow

from .conftest import SAMPLE
from .robot import image

#: pictures of a change that does not last: a tenth of a second
BRIEF = 3


def dog_and_nothing():
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

    @property
    def count(self):
        """Number of pictures until now."""
        return self._count

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
