"""
The routes: which path does what, and how an answer travels.

One model serves all requests at once; the engine puts them in order. What a request says is read
by ``openai.py``, the form of the answer is made by ``answers.py``. A client that goes away
ends its answer, whether it is streamed or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
import functools
from pathlib import Path
import threading
import time
from typing import Any, TYPE_CHECKING, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import guard
from .answers import CompletionWriter, Writer
from .fields import Fields, parse
from .flow import Answer, Streamed
from .guard import error, error_of, Guard, Settings
from .live import BOUNDARY, Live, pictures
from .metrics import Metrics
from .openai import Asked, read_chat, read_completion, read_response
from .pictures import Pictures
from .responses import ResponseWriter
from ..errors import VlmError

if TYPE_CHECKING:
    from ..vlm import VLM

T = TypeVar('T')

PAGE = Path(__file__).with_name('page')
#: path -> file of the page and its type
ASSETS = {
    '/': ('page.html', 'text/html'),
    '/page.js': ('page.js', 'text/javascript'),
    '/common.js': ('common.js', 'text/javascript'),
    '/eye.js': ('eye.js', 'text/javascript'),
    '/page.css': ('page.css', 'text/css'),
    '/icon.svg': ('icon.svg', 'image/svg+xml'),
}
#: the page needs nothing from elsewhere, so nothing from elsewhere may come in
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: pictures a second of the live picture, where the client names none, and the most
RATE, MOST_RATE = 5.0, 30.0
#: threads that read requests, fetch pictures and make JPEGs: most of them wait for something
THREADS = 16
#: answers at once, and bodies of the largest size: what waits beyond that costs memory alone
MOST_ANSWERS, MOST_BODIES = 256, 8


class Service:
    """
    The model behind the routes, and what they share.

    :param source: the model, or what loads it; it is then loaded in a thread of its own
    """

    def __init__(self, source: VLM | Callable[[], VLM], settings: Settings, live: Live) -> None:
        self.settings = settings
        self.live = live
        self.pictures = Pictures(settings.allow_urls, settings.media_path)
        self.created = int(time.time())
        self.vlm: VLM | None = None
        self.failure: Exception | None = None
        self.stopped = False
        self.loaded = threading.Event()
        self.metrics = Metrics(lambda: self.vlm.status() if self.vlm else None)
        self.answers: set[Answer] = set()
        self.weight = 0  # bytes of the requests that are being answered
        self._threads = ThreadPoolExecutor(THREADS, 'http')
        if callable(source):
            threading.Thread(target=self._load, args=(source,), daemon=True).start()
        else:
            self.vlm = source
            self.loaded.set()

    def stop(self) -> None:
        """End the answers that are being made, and the live pictures: the server is to end."""
        self.stopped = True
        for answer in tuple(self.answers):
            answer.cancel()

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run what may wait."""
        work = functools.partial(function, *args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _load(self, load: Callable[[], VLM]) -> None:
        try:
            self.vlm = load()
        except Exception as exc:
            self.failure = exc
        self.loaded.set()


def create_app(
    source: VLM | Callable[[], VLM], settings: Settings | None = None, live: Live | None = None
) -> tuple[guard.App, Service]:
    """
    Make the application.

    :param source: the model, or what loads it while the server already runs
    :param live: the picture of a robot, and its standing questions
    :return: the ASGI application, and what it shares with whoever runs it
    """
    service = Service(source, settings or Settings(), live or Live())
    routes = _Routes(service)
    chat = functools.partial(routes.answer, read_chat, Writer)
    completion = functools.partial(routes.answer, read_completion, CompletionWriter)
    response = functools.partial(routes.answer, read_response, ResponseWriter)
    table: list[tuple[str, str, Callable[[Request], Awaitable[Any]]]] = [
        ('GET', '/health', routes.health),
        ('GET', '/metrics', routes.metrics),
        ('GET', '/live', routes.live),
        ('POST', '/live/questions', routes.change_question),
        ('GET', '/live.mjpeg', routes.live_pictures),
        ('GET', '/v1/models', routes.models),
        ('GET', '/v1/models/{name:path}', routes.one_model),
        ('POST', '/v1/chat/completions', chat),
        ('POST', '/v1/completions', completion),
        ('POST', '/v1/responses', response),
        ('POST', '/tokenize', routes.tokenize),
    ]
    table += [('GET', path, routes.asset) for path in ASSETS]
    paths = {path for _, path, _ in table}
    inner = Starlette(
        routes=[Route(path, _plain(handler), methods=[verb]) for verb, path, handler in table],
        exception_handlers={HTTPException: _http_error},
    )

    def count(path: str, status: int) -> None:
        service.metrics.request(path if path in paths else 'other', status)

    return Guard(inner, service.settings, count), service


def _plain(handler: Callable[[Request], Awaitable[Any]]) -> Any:
    """Give a coroutine function, which old versions of Starlette do not see in a method."""

    async def endpoint(request: Request) -> Any:
        return await handler(request)

    return endpoint


async def _http_error(request: Request, exc: Any) -> Response:
    """Say what Starlette found wrong."""
    texts = {404: 'there is no such path', 405: 'this path has another method'}
    return error(exc.status_code, f'{texts.get(exc.status_code, exc.detail)}: see docs/serving.md')


class _Routes:
    """What the paths do."""

    def __init__(self, service: Service) -> None:
        self._service = service

    # -- small ones ----------------------------------------------------------------------------

    async def asset(self, request: Request) -> Response:
        """Give a file of the page."""
        name, kind = ASSETS[request.url.path]
        headers = {'Content-Security-Policy': POLICY, 'Cache-Control': 'no-cache'}
        return Response((PAGE / name).read_bytes(), 200, headers, kind)

    async def health(self, request: Request) -> Response:
        """Say whether requests are answered."""
        missing = self._missing()
        return missing or JSONResponse({'status': 'ok'})

    def _missing(self) -> Response | None:
        if self._service.stopped:
            return error(503, 'the server is being stopped', code='stopping')
        if self._service.vlm is not None:
            return None
        if self._service.failure is not None:
            return error(503, f'the model cannot be loaded: {self._service.failure}')
        return error(503, 'Loading model', code='loading')

    async def metrics(self, request: Request) -> Response:
        """Give the counters."""
        return Response(self._service.metrics.text(), media_type='text/plain; version=0.0.4')

    async def live(self, request: Request) -> Response:
        """Say whether there is a live picture, and what the standing questions came to."""
        return JSONResponse(await self._service.in_thread(self._service.live.state))

    async def change_question(self, request: Request) -> Response:
        """Add a standing question, change it or, where it is empty, remove it."""
        service = self._service
        if service.live.change is None:
            return error(404, 'there are no standing questions: the ROS node has them')
        try:
            body = await self._body(request)
            service.weight -= len(body)
            fields = Fields(parse(body))
            name, question = fields.needed_text('name'), fields.text('question', '')
            fields.end()
            await service.in_thread(service.live.change, name, question)
        except _NoBody as exc:
            return exc.response
        except VlmError as exc:
            return error_of(exc)
        return await self.live(request)

    async def live_pictures(self, request: Request) -> Any:
        """Stream the live picture."""
        service = self._service
        if service.live.picture is None:
            return error(404, 'there is no live picture: the ROS node has one')
        query = Fields({name: float(text) if text.replace('.', '', 1).isdigit() else text
                        for name, text in request.query_params.items()})  # fmt: skip
        try:
            rate = query.number('rate', 0.01, MOST_RATE) or RATE
        except VlmError as exc:
            return error_of(exc)

        def parts(gone: Callable[[], bool]) -> AsyncIterator[bytes]:
            return pictures(
                service.live, rate, service.in_thread, lambda: service.stopped or gone()
            )

        return Streamed(f'multipart/x-mixed-replace; boundary={BOUNDARY}', parts)

    async def models(self, request: Request) -> Response:
        """List the one model."""
        return self._missing() or JSONResponse({'object': 'list', 'data': [self._model()]})

    async def one_model(self, request: Request) -> Response:
        """Describe the model, if that is its name."""
        if request.path_params['name'] != self._model()['id']:
            return self._missing() or error(404, 'there is no such model; see /v1/models')
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        vlm = self._service.vlm
        return {
            'id': vlm.name if vlm else '',
            'object': 'model',
            'created': self._service.created,
            'owned_by': 'hobot_vlm',
        }

    async def tokenize(self, request: Request) -> Response:
        """Give the tokens of a text, which llama.cpp names content and vLLM prompt."""
        vlm = self._service.vlm
        if vlm is None:
            return self._missing() or error(503, 'Loading model')
        try:
            body = await self._body(request)
            self._service.weight -= len(body)
            fields = Fields(parse(body))
            text = fields.text('content')
            text = fields.needed_text('prompt') if text is None else text
            fields.neutral({'add_special': (False,), 'with_pieces': (False,)})
            fields.ignore('model', 'parse_special', 'add_special_tokens')
            fields.end()
            tokens = await self._service.in_thread(vlm.tokenize, text)
        except _NoBody as exc:
            return exc.response
        except VlmError as exc:
            return error_of(exc)
        return JSONResponse({'tokens': tokens, 'count': len(tokens)})

    # -- answers -------------------------------------------------------------------------------

    async def answer(
        self,
        read: Callable[[Any, Callable[[str, str], bytes | str]], Asked],
        write: Callable[[Asked, str], Writer],
        request: Request,
    ) -> Any:
        """Answer a request of one of the three kinds."""
        missing = self._missing()
        if missing is not None or self._service.vlm is None:
            return missing
        try:
            body = await self._body(request)
        except _NoBody as exc:
            return exc.response
        service, vlm = self._service, self._service.vlm

        def begin() -> Answer:  # all at once: each way to a thread and back takes its time
            asked = read(parse(body), service.pictures.get)
            answer = Answer(service, vlm, asked, write(asked, vlm.name), len(body))
            answer.ask()
            return answer

        try:
            if len(service.answers) >= MOST_ANSWERS:
                raise _NoBody(_overloaded())
            return await service.in_thread(begin)
        except Exception as exc:
            service.weight -= len(body)
            return exc.response if isinstance(exc, _NoBody) else error_of(exc)

    async def _body(self, request: Request) -> bytes:
        """
        Read the body, whose bytes count in ``weight`` until whoever gets them gives them back.

        :raises _NoBody: it breaks off, or has more bytes than allowed; then it is read to its end
            all the same, so that the client comes to read the answer
        """
        service = self._service
        most = service.settings.max_body
        parts: list[bytes] = []
        size, refused = 0, None
        try:
            async for part in request.stream():
                size += len(part)
                if size > most:
                    text = f'the body has more than {most} bytes: send less, or raise --max-body'
                    refused = error(413, text, code='body_too_large')
                elif service.weight + len(part) > MOST_BODIES * most:
                    refused = _overloaded()
                if refused:
                    service.weight -= sum(map(len, parts))
                    parts.clear()
                else:
                    parts.append(part)
                    service.weight += len(part)
        except ClientDisconnect:
            refused = refused or error(400, 'the request broke off')
        if refused:
            service.weight -= sum(map(len, parts))
            raise _NoBody(refused)
        return b''.join(parts)


def _overloaded() -> Response:
    return error(503, 'too many requests are waiting: try again later', code='overloaded')


class _NoBody(Exception):
    """A body that is not to be read."""

    def __init__(self, response: Response) -> None:
        self.response = response
