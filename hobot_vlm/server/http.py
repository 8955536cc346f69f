"""
Runs the application with uvicorn, in a thread: its own, whatever signals the program handles.

Knows neither the routes nor the model.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

from .app import create_app, Service
from .guard import App
from ..errors import ConfigError

__all__ = ['HttpServer', 'create_app']


class HttpServer:
    """
    A server that listens from its construction on.

    :param port: 0: one that is free
    :raises ConfigError: it cannot listen there
    """

    def __init__(self, app: App, service: Service, host: str, port: int) -> None:
        import uvicorn

        self._service = service
        self._socket = _listen(host, port)
        self.host, self.port = self._socket.getsockname()[:2]
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan='off', ws='none', interface='asgi3'
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name='http', daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Give the address that a browser takes."""
        host = '127.0.0.1' if self.host == '0.0.0.0' else '::1' if self.host == '::' else self.host
        return f'http://{f"[{host}]" if ":" in host else host}:{self.port}'

    @property
    def running(self) -> bool:
        """Whether it still listens."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End all answers, and then the server; twice is harmless."""
        self._service.stop()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        made = socket.create_server((host.strip('[]'), port), family=family, backlog=128)
    except (OSError, OverflowError) as exc:
        raise ConfigError(
            f'cannot listen on {host} port {port} ({exc}): choose others with --host and --port',
            'port',
        ) from exc
    # Those that are accepted inherit it. asyncio does not see that they are TCP, and without it
    # every answer of two packets waits 40 ms for the client to acknowledge the first.
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
