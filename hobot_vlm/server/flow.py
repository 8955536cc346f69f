"""
How an answer travels to the client that asked for it: whole, or as server-sent events.

Plain ASGI, so that it is the same with every version of Starlette. A client that goes away ends
its answer; what the engine had made until then is counted all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TYPE_CHECKING

from starlette.responses import JSONResponse

from .answers import encoded, Writer
from .guard import error_of, Receive, Scope, Send
from .openai import Asked
from ..errors import AnswerCut
from ..values import Reply

if TYPE_CHECKING:
    from .app import Service
    from .. import Stream, VLM

#: while pieces follow each other faster than this, several are sent at once: nobody sees a
#: hundredth of a second, and a packet for each token would cost a small model much of its speed
FLUSH_SECONDS = 0.01

#: seconds between two words about pictures that are being encoded
PROGRESS_SECONDS = 0.25

#: the scope of an answer that is sent by hand: Starlette asks no more of it
PLAIN: dict[str, Any] = {'type': 'http'}


class Streamed:
    """
    Sends the parts of something without end, until the client goes.

    :param make: gives the parts; it is handed what tells whether the client has gone
    """

    def __init__(
        self, kind: str, make: Callable[[Callable[[], bool]], AsyncIterator[bytes]]
    ) -> None:
        self._kind = kind
        self._parts = make(lambda: self._gone)
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the client goes."""
        await unless_gone(receive, self._send(send), self._stop)

    def _stop(self) -> None:
        self._gone = True

    async def _send(self, send: Send) -> None:
        await send(_start(self._kind))
        async for part in self._parts:
            await send({'type': 'http.response.body', 'body': part, 'more_body': True})
        await send({'type': 'http.response.body', 'body': b''})


class Answer:
    """
    Asks the model, and sends what it answers: first ``ask``, then the call.

    :param asked: the request
    :param writer: gives the answer its form
    :param weight: bytes of the request, which are given back at the end
    """

    def __init__(
        self, service: Service, vlm: VLM, asked: Asked, writer: Writer, weight: int
    ) -> None:
        self._service = service
        self._vlm = vlm
        self._asked = asked
        self._writer = writer
        self._weight = weight
        self._streams: list[Stream] = []

    def cancel(self) -> None:
        """Stop the model; callable from any thread."""
        for stream in tuple(self._streams):
            stream.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        self._service.answers.add(self)
        try:
            await unless_gone(receive, self._answer(send), self.cancel)
        finally:
            self._service.answers.discard(self)
            self._service.weight -= self._weight

    async def _answer(self, send: Send) -> None:
        outlet = Outlet(send)
        try:
            if self._asked.stream:
                await self._streamed(outlet)
            else:
                replies = [await _reply(stream) for stream in self._streams]
                for reply in replies:
                    self._service.metrics.answer(reply)
                await JSONResponse(self._writer.whole(replies))(PLAIN, _nothing, send)
        except Exception as exc:
            self.cancel()
            await outlet.fail(exc)

    def ask(self) -> None:
        """
        Submit every question; which runs when is the engine's business.

        :raises VlmError: one of them cannot be asked; none is answered then
        """
        asked = self._asked
        try:
            for prompt in asked.prompts:
                for number in range(asked.n):
                    options = dict(asked.options)
                    if asked.low and self._vlm.family != 'mtmd':  # whose makers' cuts are fixed
                        options['max_tiles'] = 1
                    if number and options.get('seed', -1) >= 0:
                        options['seed'] += number  # else all answers were the same
                    self._streams.append(self._vlm.stream(prompt, **options))
        except BaseException:
            self.cancel()
            raise

    async def _streamed(self, outlet: Outlet) -> None:
        outlet.hold(b''.join(map(encoded, self._writer.begin())))
        work = [self._follow(i, stream, outlet) for i, stream in enumerate(self._streams)]
        found = await asyncio.gather(*work, return_exceptions=True)
        for item in found:
            if isinstance(item, BaseException):
                raise item
        replies = [item for item in found if isinstance(item, Reply)]
        rest = b''.join(map(encoded, self._writer.finish(replies))) + self._writer.done
        await outlet.end(rest)

    async def _follow(self, index: int, stream: Stream, outlet: Outlet) -> Reply:
        """Send one of the answers as it is made."""
        watch = asyncio.ensure_future(self._report(index, stream, outlet))
        try:
            with suppress(AnswerCut):  # OpenAI's clients read it from the reply
                async for chunk in stream:
                    watch.cancel()
                    events = self._writer.piece(index, chunk)
                    if events:
                        await outlet.put(b''.join(map(encoded, events)))
            reply = await _reply(stream)
        except Exception:
            self.cancel()  # the others as well: their client gets an error
            raise
        finally:
            watch.cancel()
        self._service.metrics.answer(reply)
        outlet.hold(b''.join(map(encoded, self._writer.end(index, reply))))
        return reply

    async def _report(self, index: int, stream: Stream, outlet: Outlet) -> None:
        """Say how far the pictures of one answer are, where the client wants to know."""
        while self._asked.progress:
            await asyncio.sleep(PROGRESS_SECONDS)
            now = stream.progress
            if now.done < now.total:
                events = self._writer.progress(index, now)
                await outlet.put(b''.join(map(encoded, events)))


class Outlet:
    """
    Sends server-sent events, those that come close together at once.

    The answer begins with the first event: an error before it can still be said in the status.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._data = bytearray()
        self._begun = False
        self._last = 0.0
        self._sending = asyncio.Lock()  # of several answers, which would overtake each other
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Future[None] | None = None

    def hold(self, data: bytes) -> None:
        """Keep something that goes out with the next event."""
        self._data += data

    async def put(self, data: bytes) -> None:
        """Send something: at once, or soon where something has just been sent."""
        self._data += data
        loop = asyncio.get_running_loop()
        left = self._last + FLUSH_SECONDS - loop.time()
        if left <= 0:
            await self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(left, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._task = asyncio.ensure_future(self._flush())

    async def _flush(self) -> None:
        async with self._sending:
            data, self._data = bytes(self._data), bytearray()
            if not data:
                return
            self._last = asyncio.get_running_loop().time()
            if not self._begun:
                self._begun = True
                await self._send(_start('text/event-stream; charset=utf-8'))
            await self._send({'type': 'http.response.body', 'body': data, 'more_body': True})

    async def end(self, rest: bytes) -> None:
        """Send what is left, and the last words."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await self._task
        self._data += rest
        await self._flush()
        await self._send({'type': 'http.response.body', 'body': b''})

    async def fail(self, exc: Exception) -> None:
        """Say an error: by the status, or as the last event where the answer has begun."""
        response = error_of(exc)
        if not self._begun:
            await response(PLAIN, _nothing, self._send)
            return
        await self.end(b'data: ' + response.body + b'\n\n')


async def unless_gone(
    receive: Receive, work: Coroutine[Any, Any, None], stop: Callable[[], None]
) -> None:
    """Do something for a client; where it goes away, have it stopped, and wait for its end."""

    async def gone() -> None:
        while (await receive())['type'] != 'http.disconnect':
            pass

    watch = asyncio.ensure_future(gone())
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({watch, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            stop()
        with suppress(OSError):  # some servers let a send to nobody fail
            await task
    except asyncio.CancelledError:
        stop()
        raise
    finally:
        watch.cancel()


async def _reply(stream: Stream) -> Reply:
    """Give a whole answer; of one without the form that was asked for, what there is of it."""
    try:
        return await stream
    except AnswerCut as exc:
        return exc.reply


async def _nothing() -> Any:
    return {'type': 'http.disconnect'}


def _start(kind: str) -> dict[str, Any]:
    headers = [(b'content-type', kind.encode()), (b'cache-control', b'no-store')]
    headers.append((b'x-accel-buffering', b'no'))  # nginx would keep pieces back
    return {'type': 'http.response.start', 'status': 200, 'headers': headers}
