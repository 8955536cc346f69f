"""
What waits for the worker: every prompt in order, and of each camera the newest picture.

Subscriptions put in and return at once, one worker takes out. Knows no ROS and no model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
import math
import threading
from time import perf_counter
from typing import NamedTuple

#: prompts that may wait; more are refused, with an error that the sender can see
CAPACITY = 1000


class Stamp(NamedTuple):
    """A time as ROS messages carry it."""

    sec: int
    nanosec: int


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture as it came, still serialised: most are never looked at."""

    topic: str
    data: bytes
    received: float = field(default_factory=perf_counter)


Frames = tuple[Frame, ...]  # one of each camera


@dataclass(eq=False)
class Prompt:
    """
    A question that waits for its answer, or is being answered.

    :param stamp: when it came, by the node's clock
    :param frames: the pictures it is about; empty: the newest when its turn comes
    """

    text: str
    stamp: Stamp
    frames: Frames = ()
    received: float = field(default_factory=perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Reset:
    """A wish to forget the conversation; it waits in the same queue as the prompts."""


Work = Prompt | Reset | Frames


class Inbox:
    """Holds what arrives until the worker takes it; all methods are safe from any thread."""

    def __init__(self, cameras: int = 0) -> None:
        """:param cameras: number of pictures that belong to a question"""
        self.seen = 0  # frames that came, and those that were never looked at
        self.skipped = 0
        self._frames: list[Frame | None] = [None] * cameras
        self._looked_at: Frames = ()
        self._waiting: deque[Prompt | Reset] = deque()
        self._running: Prompt | None = None
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> Prompt | None:
        """The prompt that the worker took last and has not finished."""
        return self._running

    # -- putting in --------------------------------------------------------------------------

    def put(self, item: Prompt | Reset) -> bool:
        """Add to the queue; False when it is full."""
        with self._changed:
            if len(self._waiting) >= CAPACITY and isinstance(item, Prompt):
                return False
            self._waiting.append(item)
            self._changed.notify_all()
            return True

    def show(self, camera: int, frame: Frame) -> None:
        """Replace the newest picture of a camera."""
        with self._changed:
            before = self._frames[camera]
            self.seen += 1
            self.skipped += before is not None and before not in self._looked_at
            self._frames[camera] = frame
            self._changed.notify_all()

    def wake(self) -> None:
        """Let the worker look again at what it wants to watch."""
        with self._changed:
            self._changed.notify_all()

    def open(self) -> None:
        """Let the worker take what is there."""
        with self._changed:
            self._closed = False

    def close(self) -> None:
        """Let the worker end; what waits stays."""
        with self._changed:
            self._closed = True
            self._frames = [None] * len(self._frames)
            self._changed.notify_all()

    def cancel(self, stop_model: Callable[[], None]) -> bool:
        """
        Stop the prompt that is being answered; False when there is none.

        :param stop_model: called while the worker cannot go on to the next prompt
        """
        with self._changed:
            if self._running is None:
                return False
            self._running.cancelled.set()
            stop_model()
            self._changed.notify_all()
            return True

    def drain(self) -> list[Prompt]:
        """Take out the prompts that nobody will answer any more."""
        with self._changed:
            left = [item for item in self._waiting if isinstance(item, Prompt)]
            self._waiting.clear()
            return left

    # -- taking out --------------------------------------------------------------------------

    def take(self, due: Callable[[], float]) -> Work | None:
        """
        Wait for the next prompt, or for fresh pictures while no prompt waits.

        :param due: seconds until fresh pictures are wanted; infinite: never
        :return: None once the inbox is closed
        """
        with self._changed:
            self._running = None
            while not self._closed:
                if self._waiting:
                    item = self._waiting.popleft()
                    if isinstance(item, Prompt):
                        self._running = item
                    return item
                wait = due()
                if wait <= 0:
                    frames = self._newest()
                    if frames and frames != self._looked_at:
                        self._looked_at = frames
                        return frames
                self._changed.wait(wait if 0 < wait < math.inf else None)
            return None

    def begin(self, prompt: Prompt) -> bool:
        """Make a prompt that did not wait the running one; False once the inbox is closed."""
        with self._changed:
            self._running = prompt
            return not self._closed

    def done(self) -> None:
        """Note that there is nothing left of the running prompt to cancel."""
        with self._changed:
            self._running = None

    def pictures(self, prompt: Prompt, on_wait: Callable[[list[int]], None]) -> Frames:
        """
        Give the newest picture of each camera, waiting for the first of each.

        :param on_wait: called once with the cameras that have shown nothing yet
        :return: empty once the prompt was cancelled or the inbox closed
        """
        with self._changed:
            told = False
            while not (prompt.cancelled.is_set() or self._closed):
                frames = self._newest()
                if frames:
                    self._looked_at = frames
                    return frames
                if told:
                    self._changed.wait()
                else:
                    told = True
                    on_wait([i for i, frame in enumerate(self._frames) if frame is None])
            return ()

    def _newest(self) -> Frames:
        frames = tuple(frame for frame in self._frames if frame is not None)
        return frames if len(frames) == len(self._frames) else ()
