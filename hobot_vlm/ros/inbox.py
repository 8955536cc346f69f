"""
What waits for the worker: every prompt in order, and of each camera the newest picture.

Subscriptions put in and return at once, one worker gets out. Knows no ROS and no model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
import math
import threading
from time import perf_counter
from typing import Any, NamedTuple

#: prompts that may wait; more are refused, with an error that the sender can see
CAPACITY = 1000
#: bytes of their texts: what a context of 32768 tokens holds, more than a hundred times over, and
#: little to a board of 4 GB
CAPACITY_BYTES = 16 * 2**20


class Stamp(NamedTuple):
    """A time as ROS messages carry it."""

    sec: int
    nanosec: int


@dataclass(frozen=True, eq=False)
class Frame:
    """
    A picture as it came, still serialised: most are never read.

    :param parse: gives the message
    :param earlier: pictures of the same camera before it, the oldest first
    """

    topic: str
    data: bytes
    parse: Callable[[bytes], Any]
    received: float = field(default_factory=perf_counter)
    earlier: tuple[Frame, ...] = ()


Frames = tuple[Frame, ...]  # one of each camera


@dataclass(eq=False)
class Prompt:
    """
    A question that waits for its answer, or is being answered.

    :param stamp: when it came, by the node's clock
    :param frames: the pictures it is about; empty: the newest when its turn comes
    :param id: what its sender calls it; None for a prompt in the queue
    :param stop: stops the model, once that was asked
    """

    text: str
    stamp: Stamp
    frames: Frames = ()
    id: str | None = None
    received: float = field(default_factory=perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)
    stop: Callable[[], None] = lambda: None

    @property
    def size(self) -> int:
        """Bytes of its text."""
        return len(self.text.encode('utf-8', 'surrogatepass'))

    def cancel(self) -> None:
        """Let its answer end."""
        self.cancelled.set()
        self.stop()


class Reset:
    """A wish to forget the conversation; it waits in the same queue as the prompts."""


Work = Prompt | Reset | Frames


class Inbox:
    """Holds what arrives until the worker gets it; all methods are safe from any thread."""

    def __init__(self, cameras: int = 0, frames: int = 1, period: float = 0.0) -> None:
        """
        Begin with nothing.

        :param cameras: number of cameras whose pictures belong to a question
        :param frames: pictures of each camera that are kept
        :param period: least seconds from one of these to the next
        """
        self._kept: list[deque[Frame]] = [deque(maxlen=frames) for _ in range(cameras)]
        self._period = period
        self.received = 0  # frames that came, and those that were never read
        self.dropped = 0
        #: cameras that a prompt waits for
        self.missing: tuple[int, ...] = ()
        self._frames: list[Frame | None] = [None] * cameras
        self._used: Frames = ()
        self._watched: Frames = ()  # of ``next_frames``
        self._first: Future[None] = Future()  # done once each camera has a picture
        self._waiting: deque[Prompt | Reset] = deque()
        self._bytes = 0
        self._running: Prompt | None = None
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def cameras(self) -> int:
        """Number of pictures that belong to a question."""
        return len(self._frames)

    @property
    def running(self) -> Prompt | None:
        """The prompt that the worker got last and has not finished."""
        return self._running

    @property
    def closed(self) -> bool:
        """Whether the worker is to end."""
        return self._closed

    # -- putting in --------------------------------------------------------------------------

    def put(self, item: Prompt | Reset) -> bool:
        """Add to the queue; False when it is full."""
        with self._changed:
            if isinstance(item, Prompt):
                if len(self._waiting) >= CAPACITY or self._bytes + item.size > CAPACITY_BYTES:
                    return False
                self._bytes += item.size
            self._waiting.append(item)
            self._changed.notify_all()
            return True

    def put_frame(self, camera: int, frame: Frame) -> None:
        """Replace the newest picture of a camera."""
        with self._changed:
            frame = self._with_earlier(self._kept[camera], frame)
            before = self._frames[camera]
            self.received += 1
            read = (None, *self._used, *self._watched)
            self.dropped += before not in read
            self._frames[camera] = frame
            if self.newest() and not self._first.done():
                self._first.set_result(None)
            self._changed.notify_all()

    def _with_earlier(self, kept: deque[Frame], frame: Frame) -> Frame:
        """Keep a picture, unless the one before is too near; give it with those before it."""
        most = kept.maxlen or 1
        if most == 1:
            return frame
        # the newest is shown in any case, and is to be no double of the one before it
        near = kept and frame.received - kept[-1].received < self._period / 2
        earlier = (list(kept)[:-1] if near else list(kept))[1 - most :]
        if not kept or frame.received - kept[-1].received >= self._period:
            kept.append(frame)
        return replace(frame, earlier=tuple(earlier))

    def wake(self) -> None:
        """Let the worker see whether it wants something else now."""
        with self._changed:
            self._changed.notify_all()

    def open(self) -> None:
        """Let the worker have what is there."""
        with self._changed:
            self._closed = False

    def close(self) -> None:
        """Let the worker end; what waits stays."""
        with self._changed:
            self._closed = True
            self._frames = [None] * len(self._frames)
            for kept in self._kept:
                kept.clear()
            if self._first.done():
                self._first = Future()
            self._changed.notify_all()

    def cancel(self) -> bool:
        """Stop the prompt that is being answered; False when there is none."""
        with self._changed:
            if self._running is None:
                return False
            self._running.cancel()  # here, where the worker cannot go on to the next one
            self._changed.notify_all()
            return True

    def drain(self) -> list[Prompt]:
        """Give the prompts that nobody will answer any more; none waits after that."""
        with self._changed:
            left = [item for item in self._waiting if isinstance(item, Prompt)]
            self._waiting.clear()
            self._bytes = 0
            return left

    # -- getting out -------------------------------------------------------------------------

    def get(self, due: Callable[[], float]) -> Work | None:
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
                        self._bytes -= item.size
                    return item
                wait = due()
                if wait <= 0:
                    frames = self.newest()
                    if frames and frames != self._used:
                        self._used = frames
                        return frames
                self._changed.wait(wait if 0 < wait < math.inf else None)
            return None

    def next_frames(self, last: Frames, due: float, seconds: float) -> Frames:
        """
        Wait for the newest picture of each camera, for those who look now and then.

        :param last: pictures that are not wanted again
        :param due: when others are wanted, as perf_counter has it
        :param seconds: to wait at most
        :return: empty where there is nothing new in time, or the inbox is closed
        """
        end = perf_counter() + seconds
        with self._changed:
            while not self._closed:
                now = perf_counter()
                frames = self.newest() if now >= due else ()
                if frames and frames != last:
                    self._watched = frames
                    return frames
                if now >= end:
                    break
                self._changed.wait((min(due, end) if due > now else end) - now)
            return ()

    def begin(self, prompt: Prompt) -> bool:
        """Make a prompt that did not wait the running one; False once the inbox is closed."""
        with self._changed:
            self._running = prompt
            return not self._closed

    def done(self) -> None:
        """Note that there is nothing left of the running prompt to cancel."""
        with self._changed:
            self._running = None

    def frames_for(self, prompt: Prompt) -> Frames:
        """
        Give the newest picture of each camera, waiting for the first of each.

        :return: empty once the prompt was cancelled or the inbox closed
        """
        with self._changed:
            try:
                while not (prompt.cancelled.is_set() or self._closed):
                    frames = self.newest()
                    if frames:
                        self._used = frames
                        return frames
                    self.missing = tuple(
                        i for i, frame in enumerate(self._frames) if frame is None
                    )
                    self._changed.wait()
            finally:
                self.missing = ()
            return ()

    def newest(self) -> Frames:
        """Give the newest picture of each camera; empty until each has shown one."""
        frames = tuple(frame for frame in self._frames if frame is not None)
        return frames if len(frames) == len(self._frames) else ()

    def arrival(self, camera: int) -> float | None:
        """Say when the newest picture of a camera came; None: it has shown none."""
        frame = self._frames[camera]
        return frame.received if frame is not None else None

    def first_frames(self) -> Future[None]:
        """Give what is done once each camera has shown a picture; of an open inbox."""
        return self._first
