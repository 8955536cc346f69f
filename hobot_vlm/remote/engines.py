"""
The servers of one model: which of them answers next, and which are away.

Lives on one event loop, whose thread alone calls it, but for ``troubles``. Knows no questions and
no answers; a server that failed is probed in the background, and used again when it is back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Hashable
from contextlib import asynccontextmanager, nullcontext
import logging
from typing import Any

import httpx

from .address import Address
from .dialect import Dialect, dialect_of
from .trouble import shortened, Trouble

log = logging.getLogger('hobot_vlm')

#: seconds until a server that failed is probed: doubled with each failure, up to what a
#: person still waits for
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
#: seconds that a probe may last
PROBE_SECONDS = 5.0
#: bytes of a list of models, or of an error
MOST_BYTES = 1 << 20
#: conversations whose server is remembered
CONVERSATIONS = 1024


class Engine:
    """
    One server.

    :param open: requests that it is answering
    :param failures: how often in a row it was found away
    """

    def __init__(self, url: str, address: Address) -> None:
        self.url = url
        self.open = 0
        self.served = 0
        self.failures = 0
        self.away = ''  # why, while it is
        self.busy_until = 0.0  # by the clock of the loop
        self.name = address.name
        self._kind = address.kind
        self.dialect: Dialect | None = None
        self._turns: asyncio.Semaphore | None = None

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until it may be sent a request; what is sent meanwhile counts as open."""
        self.open += 1
        try:
            async with self._turns or nullcontext():
                yield
        finally:
            self.open -= 1
            self.served += 1

    @property
    def known(self) -> bool:
        """Whether it was ever reached."""
        return self.dialect is not None

    async def probe(self, client: httpx.AsyncClient, seconds: float) -> None:
        """
        See whether it is there, and what it is.

        :raises Trouble: it is not, or it lets nobody in
        """
        try:
            found = await asyncio.wait_for(self._models(client), seconds)
        except asyncio.TimeoutError as exc:
            raise Trouble(f'says nothing for {seconds:g} s', away=True, again=True) from exc
        except httpx.HTTPError as exc:
            raise Trouble(reason(exc), away=True, again=True) from exc
        first = found[0] if found else {}
        if not self.name:
            self.name = str(first.get('id') or '')[:200]
            if not self.name:
                raise Trouble('lists no model: give its name in remote_model')
        if self.dialect is None:
            self.dialect = dialect_of(self._kind, first.get('owned_by'))
            if self.dialect.most_open:
                self._turns = asyncio.Semaphore(self.dialect.most_open)

    async def _models(self, client: httpx.AsyncClient) -> list[dict[str, Any]]:
        async with client.stream('GET', f'{self.url}/models') as response:
            await check(response)
            # some have no list
            data = b'' if response.status_code == 404 else await limited(response)
        try:
            found = httpx.Response(200, content=data).json()['data']
            return [model for model in found if isinstance(model, dict)]
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            if self.name:
                return []
            raise Trouble('gives no list of models: is the address that of /v1?') from exc


class Engines:
    """All servers of one model."""

    def __init__(self, address: Address, client: httpx.AsyncClient) -> None:
        self.all = [Engine(url, address) for url in address.urls]
        self._client = client
        self._places: OrderedDict[Hashable, Engine] = OrderedDict()
        self._probes: dict[Engine, asyncio.Task[None]] = {}

    def choose(
        self, key: Hashable | None, tried: Collection[Engine], desperate: bool
    ) -> Engine | None:
        """
        Give the server that is to answer next: of those that are there, the least busy.

        None where all failed, or asked for patience.

        :param key: of the conversation, which stays where it was
        :param tried: those that failed this request
        :param desperate: whether one that is away is better than none
        """
        now = asyncio.get_running_loop().time()
        left = [engine for engine in self.all if engine not in tried]
        there = [engine for engine in left if not engine.away]
        free = [engine for engine in there if engine.busy_until <= now]
        before = self._places.get(key) if key is not None else None
        if before in free:
            return before
        if free:
            return min(free, key=lambda engine: (engine.open, engine.served))
        if there or not desperate:
            return None
        return min(left, key=lambda engine: engine.failures, default=None)

    def busy_for(self) -> float:
        """Give the seconds until one that is there may be asked again; 0 where none is busy."""
        now = asyncio.get_running_loop().time()
        waits = [engine.busy_until - now for engine in self.all if not engine.away]
        return max(0.0, min(waits, default=0.0))

    def place(self, key: Hashable | None, engine: Engine) -> None:
        """Note where a conversation is."""
        if key is not None:
            self._places[key] = engine
            self._places.move_to_end(key)
            while len(self._places) > CONVERSATIONS:
                self._places.popitem(last=False)

    def failed(self, engine: Engine, why: str) -> None:
        """Note that a server is away, and probe it in the background."""
        engine.failures += 1
        if not engine.away:
            log.warning('%s is away: %s', engine.url, why)
        engine.away = why
        if engine not in self._probes:
            self._probes[engine] = asyncio.ensure_future(self._await(engine))

    def answered(self, engine: Engine) -> None:
        """Note that a server is there."""
        engine.failures = 0
        self._back(engine)

    def _back(self, engine: Engine) -> None:
        if engine.away:
            log.warning('%s is back', engine.url)
            engine.away = ''

    async def _await(self, engine: Engine) -> None:
        """Probe a server until it is back."""
        try:
            while engine.away:
                pause = min(FIRST_PAUSE * 2 ** (engine.failures - 1), LONGEST_PAUSE)
                await asyncio.sleep(pause)
                try:
                    await engine.probe(self._client, PROBE_SECONDS)
                except Trouble as exc:
                    engine.failures = min(engine.failures + 1, 10)
                    engine.away = engine.away and str(exc)
                else:
                    self._back(engine)  # its failures count on until it has answered
        finally:
            del self._probes[engine]

    async def close(self) -> None:
        """End the probes."""
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    def troubles(self) -> list[str]:
        """Say which are away, and why; callable from any thread."""
        return [f'{e.url} is away: {e.away}' for e in self.all if e.away]


# -- what every request needs ------------------------------------------------------------------


def reason(exc: Exception) -> str:
    """Say why a connection failed."""
    words = shortened(exc)
    if isinstance(exc, httpx.ConnectTimeout):
        return 'does not take the connection in time'
    if isinstance(exc, httpx.ConnectError):
        return f'cannot be reached ({words})'
    return f'breaks off ({words or type(exc).__name__})'


async def limited(response: httpx.Response) -> bytes:
    """
    Read a small body.

    :raises Trouble: it is not small
    """
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > MOST_BYTES:
            raise Trouble(f'sends more than {MOST_BYTES >> 20} MB where little belongs')
    return bytes(data)


async def check(response: httpx.Response) -> None:
    """
    See whether a response is an answer; reads it where it is not.

    :raises Trouble: says what the server says
    """
    status = response.status_code
    if response.headers.get('content-encoding', 'identity') != 'identity':
        raise Trouble('compresses its answers, and was asked not to')
    if status == 200:
        return
    if 300 <= status < 400:
        there = shortened(response.headers.get('location', 'nowhere'))
        raise Trouble(f'sends on to {there} (status {status}): give that address in model')
    what = f'answers {status} ({_said(await limited(response))})'
    if status == 429 or (status == 503 and 'retry-after' in response.headers):
        wait = _seconds(response.headers.get('retry-after', ''))
        raise Trouble(what, again=True, wait=wait)
    if status == 404 and response.request.method == 'GET':
        return
    if status in (401, 403):
        what += ': give the key in HOBOT_VLM_REMOTE_KEY'
    full = status in (400, 413, 422) and any(word in what.lower() for word in FULL)
    raise Trouble(what, away=status in (502, 503, 504), again=status >= 500, full=full)


#: what servers say of a prompt that is too long, or of more pictures than they read at once
FULL = ('context', 'n_ctx', 'session_len', 'image(s)', 'may be provided', 'the body has more')


def _said(data: bytes) -> str:
    """Give the message of an error, in the form that OpenAI or another has it."""
    text = data[:MOST_BYTES].decode('utf-8', 'replace')
    try:
        found = httpx.Response(200, content=data).json()
    except (ValueError, RecursionError):
        return shortened(text) or 'and says nothing'
    for name in ('error', 'message', 'detail'):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    return shortened(found) or 'and says nothing'


def _seconds(text: str) -> float:
    """Read Retry-After; a date, or nothing, is one second."""
    try:
        seconds = float(text)
    except ValueError:
        return 1.0
    return seconds if 0 < seconds < 1e6 else 1.0
