"""
HTTP within bounds: only ``http`` and ``https``, silence ends, and any thread can end the rest.

Knows addresses and sockets; nothing of pictures and models.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
import socket
from typing import Any
import urllib.error
import urllib.parse
import urllib.request

#: Seconds that a server may say nothing.
SILENCE = 10.0

#: What opening and reading may raise.
ERRORS = (OSError, HTTPException, ValueError)


class Connection:
    """One request, with its redirects; ``stop`` ends it from any thread."""

    def __init__(self) -> None:
        self.stopped = False
        self._sockets: list[socket.socket] = []

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        """
        Send a request; a redirect leads to another ``http(s)`` address only.

        :param headers: another host than the first is not given ``Authorization``
        :return: the response of ``http.client``
        :raises OSError, HTTPException, ValueError: it could not be had (``ERRORS``)
        """
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            _handler(urllib.request.HTTPHandler, HTTPConnection, 'http', self),
            _handler(urllib.request.HTTPSHandler, HTTPSConnection, 'https', self),
            urllib.request.HTTPDefaultErrorHandler(),
            _Redirects(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        request = urllib.request.Request(url, headers={'User-Agent': 'hobot_vlm'})
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        return opener.open(request, timeout=SILENCE)

    def note(self, opened: socket.socket) -> None:
        """Remember a socket, to close it when this is stopped."""
        self._sockets.append(opened)
        if self.stopped:
            self.stop()

    def stop(self) -> None:
        """Close what is open; whoever reads gets an error or the end."""
        self.stopped = True
        for each in self._sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps secrets from other hosts."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and request.host != req.host:
            request.remove_header('Authorization')
        return request


def _handler(base: Any, kind: type[HTTPConnection], scheme: str, owner: Connection) -> Any:
    """Make a handler of a scheme whose connections note their sockets."""

    class Noted(kind):  # type: ignore[valid-type, misc]
        def connect(self) -> None:
            super().connect()
            owner.note(self.sock)

    def send(self: Any, request: Any) -> Any:
        return self.do_open(Noted, request)

    return type('Handler', (base,), {f'{scheme}_open': send})()


def reason(error: Exception) -> str:
    """Say in a few words why a request failed."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f'the server answers {error.code} {str(error.reason)[:100]}'
    cause = getattr(error, 'reason', error)
    return (str(cause) or type(cause).__name__)[:200]
