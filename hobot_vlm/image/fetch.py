"""
Pictures from the network, within bounds of bytes and seconds.

Knows addresses and sockets; nothing of pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
import socket
import threading
import time
from typing import Any
import urllib.error
import urllib.request

from ..errors import PictureError

#: Seconds for the whole of it, and for one answer of the network. A robot's link carries a picture
#: of 5 MB in that time at 1.5 Mbit/s.
SECONDS = 30.0
SILENCE = 10.0

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
        job.stop()
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
        self.stopped = False
        self.sockets: list[socket.socket] = []

    def run(self) -> None:
        job = self

        def noted(connection: type[HTTPConnection]) -> Any:
            class Noted(connection):  # type: ignore[valid-type, misc]
                def connect(self) -> None:
                    super().connect()
                    job.sockets.append(self.sock)
                    if job.stopped:
                        job.stop()

            return Noted

        class Http(urllib.request.HTTPHandler):
            def http_open(self, request: Any) -> Any:
                return self.do_open(noted(HTTPConnection), request)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, request: Any) -> Any:
                return self.do_open(noted(HTTPSConnection), request)

        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            Http(),
            Https(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        try:
            request = urllib.request.Request(self.url, headers={'User-Agent': 'hobot_vlm'})
            with opener.open(request, timeout=SILENCE) as response:
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
        except urllib.error.HTTPError as error:
            error.close()
            self.problem = f'the server answers {error.code} {str(error.reason)[:100]}'
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, 'reason', error)
            self.problem = (str(reason) or type(reason).__name__)[:200]

    def stop(self) -> None:
        """Close what is open; the thread then ends by itself."""
        self.stopped = True
        for each in self.sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
