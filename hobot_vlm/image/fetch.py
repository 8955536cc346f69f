"""
Pictures from the network, within bounds of bytes and seconds.

Knows when to give up; nothing of what is in a picture.
"""

from __future__ import annotations

from collections.abc import Callable
import threading
import time

from ..errors import PictureError
from ..net import Connection, ERRORS, reason

#: Seconds for the whole of it. A robot's link carries a picture of 5 MB in that time at
#: 1.5 Mbit/s.
SECONDS = 30.0

#: Seconds between two looks at whether anybody still wants it.
LOOK = 0.05


def fetch(url: str, what: str, most: int, cancelled: Callable[[], bool] | None = None) -> bytes:
    """
    Fetch an ``http`` or ``https`` address; a redirect leads to another one of these only.

    :param what: name of the thing, for messages
    :param most: bytes that are accepted
    :raises PictureError: it cannot be fetched, or takes too long or too much room
    """
    job = _Job(url, most)
    end = time.monotonic() + SECONDS
    job.start()
    try:
        while job.is_alive():
            job.join(LOOK)
            if cancelled is not None and cancelled():
                raise PictureError(f'{what}: fetching it was cancelled')
            if time.monotonic() > end:
                raise PictureError(
                    f'{what} takes longer than {SECONDS:.0f} s to fetch; give a nearer copy'
                )
    finally:
        job.connection.stop()
    if job.problem:
        raise PictureError(f'{what} cannot be fetched: {job.problem}; check address and network')
    return job.data


class _Job(threading.Thread):
    """
    One fetch, on a thread of its own.

    Looking up a name cannot be interrupted, so nobody waits for this thread; its sockets are
    closed when its time is up.
    """

    def __init__(self, url: str, most: int) -> None:
        super().__init__(name='fetch', daemon=True)
        self.url = url
        self.most = most
        self.data = b''
        self.problem = ''
        self.connection = Connection()

    def run(self) -> None:
        try:
            with self.connection.open(self.url) as response:
                parts: list[bytes] = []
                size = 0
                while part := response.read1(1 << 16):
                    size += len(part)
                    if size > self.most:
                        self.problem = f'it has more than {self.most >> 20} MB'
                        return
                    parts.append(part)
                promised = response.headers.get('Content-Length')
                if promised and promised.isdecimal() and size < int(promised):
                    self.problem = f'{size} of {promised} bytes came'
                    return
                self.data = b''.join(parts)
        except ERRORS as error:
            self.problem = reason(error)
