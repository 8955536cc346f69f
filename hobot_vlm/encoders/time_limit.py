"""
A limit on the time of a run, which another thread watches.

Knows no runtime: a run ends when the ``terminate`` of its options is set.
"""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Any
import weakref

#: how often a run is looked at until its time is over: it may take a quarter longer
CHECKS = 4


class TimeLimit:
    """
    Ends runs that take too long, one at a time.

    One thread watches them all, and wakes up by itself. One that is started or woken for each run
    takes a core just when the runtime's own threads want it: a run of 4 ms on two cores took 7.

    :param seconds: that the shortest run may take
    """

    def __init__(self, seconds: float) -> None:
        self._options: Any = None  # of the run that is on its way
        self._end = 0.0
        self._closed = threading.Event()
        threading.Thread(
            target=_watch,
            args=(weakref.ref(self), self._closed, seconds / CHECKS),
            name='time limit',
            daemon=True,
        ).start()

    def begin(self, options: Any, seconds: float) -> None:
        """Give a run so many seconds."""
        self._end = perf_counter() + seconds
        self._options = options

    def over(self) -> None:
        """Note that the run has ended."""
        self._options = None

    def check(self) -> None:
        """End the run if its time is over."""
        options = self._options
        if options is not None and perf_counter() >= self._end:
            options.terminate = True

    def close(self) -> None:
        """End the thread; twice is harmless."""
        self._closed.set()


def _watch(limit: weakref.ref[TimeLimit], closed: threading.Event, seconds: float) -> None:
    """Look at the runs every few seconds, until nobody has the limit any more."""
    while not closed.wait(seconds):
        found = limit()
        if found is None:
            return
        found.check()
        del found
