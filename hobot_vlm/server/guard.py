"""
What stands before every request: who may ask, from which page, and how an error is said.

Plain ASGI around the application, so that it is the same with every version of Starlette.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
import hmac
import ipaddress
import logging
import os
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response

from ..errors import BackendMissing, ConfigError, InferenceError, ModelFileError, VlmError

logger = logging.getLogger('hobot_vlm')

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: names under which a browser on this machine reaches a server that listens to nobody else
LOCAL_NAMES = ('localhost', '127.0.0.1', '::1')
#: what may be read without the key: the page, which then asks for it, and the health
OPEN_PATHS = ('/', '/health', '/page.js', '/common.js', '/eye.js', '/page.css', '/icon.svg')

#: where the key may stand, so that it is in no list of processes
KEY_VARIABLE = 'HOBOT_VLM_API_KEY'

#: status -> OpenAI's type of the error
TYPES = {
    400: 'invalid_request_error',
    401: 'authentication_error',
    403: 'permission_error',
    404: 'not_found_error',
    405: 'invalid_request_error',
    413: 'invalid_request_error',
    503: 'unavailable_error',
}


@dataclass(frozen=True)
class Settings:
    """
    How the server is reached.

    :param api_key: what clients must send; empty: nothing
    :param local: whether only this machine reaches the server; other names are then refused, so
        that no page of the web reaches it under a name of its own
    :param origins: pages that may call it from a browser; ``*``: all
    :param max_body: bytes of a request
    :param allow_urls: whether pictures of the web are fetched
    :param media_path: folder below which pictures may be named as files; empty: none
    """

    api_key: str = ''
    local: bool = True
    origins: tuple[str, ...] = ()
    max_body: int = 32 << 20  # a 4K picture as PNG in base64, and room
    allow_urls: bool = False
    media_path: str = ''

    @classmethod
    def of(cls, host: str, key: str = '', everybody: bool = False, **more: Any) -> Settings:
        """
        Choose what fits an address.

        :param key: what clients must send; empty: whatever ``KEY_VARIABLE`` says
        :param everybody: let in without a key whoever reaches the address
        :raises ConfigError: other machines would be let in by mistake, or a key cannot be sent
        """
        key = '' if everybody else key or os.environ.get(KEY_VARIABLE, '')
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError(
                'the API key: expected printable ASCII, as a header has to be', 'key'
            )
        local = is_local(host)
        if not (key or local or everybody):
            raise ConfigError(
                f'{host} lets other machines in: give an API key in {KEY_VARIABLE} or with '
                '--api-key, or --no-api-key to let in everybody who reaches it',
                'api_key',
            )
        return cls(key, local and not key, **more)


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip('[]')).is_loopback
    except ValueError:
        return host.lower() == 'localhost'


def error(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> Response:
    """Make an answer that says what is wrong, in OpenAI's form."""
    body = {
        'error': {
            'message': message,
            'type': TYPES.get(status, 'server_error'),
            'param': param,
            'code': code,
        }
    }
    headers = {'WWW-Authenticate': 'Bearer'} if status == 401 else {}
    if status == 503:
        headers['Retry-After'] = '1'
    return JSONResponse(body, status, headers)


def error_of(exc: Exception) -> Response:
    """Say an exception: what the client did wrong is 400, what failed here is 500."""
    if not isinstance(exc, VlmError):
        logger.error('a request failed', exc_info=exc)
        return error(500, 'the server failed; its log says how')
    if isinstance(exc, (InferenceError, ModelFileError, BackendMissing)):
        logger.error('a request failed: %s', exc)
        return error(500, str(exc), code=type(exc).__name__)
    param = exc.name or None if isinstance(exc, ConfigError) else None
    return error(400, str(exc), param, type(exc).__name__)


class Guard:
    """
    Lets a request pass, or refuses it.

    :param app: the application behind it
    :param count: called with path and status of every answer
    """

    def __init__(self, app: App, settings: Settings, count: Callable[[str, int], None]) -> None:
        self._app = app
        self._settings = settings
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        headers = {name.decode('latin-1'): value.decode('latin-1')
                   for name, value in scope['headers']}  # fmt: skip
        origin = headers.get('origin', '')
        allowed = origin and ('*' in self._settings.origins or origin in self._settings.origins)
        begun = False

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message['type'] == 'http.response.start':
                begun = True
                self._count(scope['path'], message['status'])
                if allowed:
                    extra = [(b'access-control-allow-origin', origin.encode('latin-1'))]
                    extra.append((b'vary', b'Origin'))
                    message = {**message, 'headers': [*message['headers'], *extra]}
            await send(message)

        refused = self._refused(scope, headers, bool(allowed))
        try:
            await (refused or self._app)(scope, receive, counted)
        except Exception as exc:
            if begun:
                raise
            await error_of(exc)(scope, receive, counted)

    def _refused(
        self, scope: Scope, headers: MutableMapping[str, str], allowed: bool
    ) -> Response | None:
        """Give the answer to a request that may not pass."""
        host = headers.get('host', '')
        name = urlsplit(f'//{host}').hostname if '@' not in host else None
        if self._settings.local and name not in LOCAL_NAMES:
            return error(403, 'this server answers to localhost alone; see --host', 'Host')
        origin = headers.get('origin')
        if origin and not allowed and urlsplit(origin).netloc != host:
            return error(
                403, 'pages of other origins may not call this server; see --cors', 'Origin'
            )
        if allowed and scope['method'] == 'OPTIONS':
            return Response(
                status_code=204,
                headers={
                    'Access-Control-Allow-Methods': 'GET, POST',
                    'Access-Control-Allow-Headers': headers.get(
                        'access-control-request-headers', 'Authorization, Content-Type'
                    ),
                    'Access-Control-Max-Age': '600',
                },
            )
        if not self._settings.api_key or scope['path'] in OPEN_PATHS:
            return None
        sent = headers.get('authorization', '').encode('latin-1')
        wanted = f'Bearer {self._settings.api_key}'.encode()
        if hmac.compare_digest(sent, wanted):
            return None
        return error(401, 'wrong or missing API key: send Authorization: Bearer KEY',
                     code='invalid_api_key')  # fmt: skip
