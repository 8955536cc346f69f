"""
Futures: the one thing that the standard library lacks.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
import threading
from typing import Any


def when_all(futures: Sequence[Future[Any]], then: Callable[[], None]) -> None:
    """Call something once all futures are done, however they ended."""
    if not futures:
        return then()
    left, call = len(futures), [then]
    lock = threading.Lock()

    def done(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            call.pop()()  # the futures keep this function, and are not to keep ``then`` as well

    for future in futures:
        future.add_done_callback(done)
