"""
``VLM`` where ``model`` is an address: the same face, over servers, and a model here as fallback.

Owns the thread that talks to servers; how one question goes, ``call.py`` knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as List
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
import logging
import os
from pathlib import Path
import threading
from typing import Any, NoReturn, TypeVar

import httpx

from .address import read_address
from .call import Call
from .conversation import read, RemoteConversation
from .engines import Engine, Engines
from .pictures import prepare
from .tokens import tokenize
from .trouble import Trouble
from .. import many
from ..config import Config
from ..conversation import Conversation
from ..conversation_file import as_path
from ..engine.engine import closed
from ..engine.request import make_request, Request
from ..engine.stream import Stream
from ..errors import ConfigError, RemoteError, VlmError
from ..prompt.tokens import check_text
from ..prompt_maker import config_of
from ..values import Images, Reply, Status
from ..vlm import VLM

log = logging.getLogger('hobot_vlm')
T = TypeVar('T')

#: where the key for servers stands; not the one that clients of this machine send
KEY_VARIABLE = 'HOBOT_VLM_REMOTE_KEY'
#: threads that read pictures and write requests
THREADS = 2
#: connections at once: as many answers as `vlm serve` makes
MOST_OPEN = 256
#: seconds that an idle connection is kept: uvicorn, which most servers run on, ends it after 5
IDLE_SECONDS = 4.0
#: seconds that a server has to be found while this is loaded; it may come later
START_SECONDS = 3.0


class RemoteVLM(VLM):
    """
    A vision language model on another machine.

    The fallback is loaded at the start: a file that is missing shows then, and not when the
    network is gone; and its first answer does not wait for it.
    """

    def __init__(self, config: Config) -> None:
        """
        Find the servers, and load the fallback.

        A server that is away is no error, unless it is there and lets nobody in.

        :raises ConfigError: ``model`` cannot be understood
        :raises RemoteError: a server refuses, and there is no fallback
        """
        address = read_address(config)
        self._config = config
        self._address = address
        self.local = VLM(_local_config(config)) if config.fallback else None
        self._closed = False
        self._lock = threading.Lock()  # guards the next
        self._open: dict[int, Call] = {}
        self._threads = ThreadPoolExecutor(THREADS, 'remote')
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name='servers', daemon=True)
        self._thread.start()
        try:
            self._on_loop(self._begin())
        except BaseException:
            self.close()
            raise

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _begin(self) -> None:
        """Look at every server."""
        self.client = _client(self._config, self._address.urls)
        self.engines = Engines(self._address, self.client)
        seconds = min(START_SECONDS, self._config.remote_timeout)
        probes = [engine.probe(self.client, seconds) for engine in self.engines.all]
        found = await asyncio.gather(*probes, return_exceptions=True)
        refused = []
        for engine, trouble in zip(self.engines.all, found, strict=True):
            if isinstance(trouble, Trouble) and trouble.away:
                self.engines.failed(engine, str(trouble))
            elif isinstance(trouble, Trouble):
                refused.append(f'{engine.url} {trouble}')
            elif isinstance(trouble, BaseException):
                raise trouble
        if refused and self.local is None:
            raise RemoteError('; '.join(refused))
        for text in refused:
            log.warning('%s', text)

    # -- what it is ----------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """Give the options."""
        return self._config

    @property
    def family(self) -> str:
        """Give nothing: only a server knows."""
        return ''

    @property
    def tile_size(self) -> int:
        """Give the longest side of a picture that is sent."""
        return self._config.remote_image_side

    @property
    def runtime(self) -> str:
        """Give the addresses of the servers."""
        return ', '.join(self._address.urls)

    @property
    def name(self) -> str:
        """Give the name of the model, or its addresses until a server has said it."""
        names = [engine.name for engine in self.engines.all if engine.name]
        return names[0] if names else self._config.model

    def troubles(self) -> list[str]:
        """Say which servers are away."""
        return self.engines.troubles()

    def status(self) -> Status:
        """Say how many questions are with servers, and how many wait here."""
        with self._lock:
            sent = [call.sent for call in self._open.values()]
        images = self.local.status() if self.local else Status(0, 0, 0, 0, 0)
        return replace(images, waiting=sent.count(False), running=sent.count(True))

    def tokenize(self, text: str) -> list[int]:
        """
        Give the tokens of plain text, as a server says.

        :raises PromptError: it is no text
        :raises RemoteError: it does not say
        """
        check_text(text)
        found: list[int] = self._ask_one(lambda engine: tokenize(self.client, engine, text))
        return found

    def _ask_one(self, ask: Callable[[Engine], Any]) -> Any:
        """Ask a server something small."""

        async def work() -> Any:
            engine = self.engines.choose(None, (), desperate=True)
            assert engine is not None
            try:
                if not engine.known:
                    await engine.probe(self.client, self._config.remote_timeout)
                return await ask(engine)
            except Trouble as trouble:
                raise RemoteError(f'{engine.url} {trouble}') from trouble

        self._check_open()
        return self._on_loop(work())

    # -- asking --------------------------------------------------------------------------------

    def submit(
        self, request: Request, conversation: Conversation | None = None, job: object = None
    ) -> Stream:
        """
        Have a request answered; returns at once.

        :raises ConfigError: an option that a request cannot have
        :raises InferenceError: the model is closed
        """
        assert conversation is None or isinstance(conversation, RemoteConversation)
        system = conversation.system_prompt if conversation else ''
        config = config_of(self._config, request, system)
        with self._lock:
            self._check_open()
            call = Call(self, request, config, conversation)
            self._open[call.number] = call
        self.soon(call.start)
        return Stream(call.mailbox, call.cancel, call.progress)

    def ask_many(
        self, questions: List[tuple[Any, Images] | Request], parallel: int = 8, **more: Any
    ) -> list[Reply | VlmError]:
        """Answer several questions, up to ``parallel`` of them side by side."""
        many.check(questions, parallel)

        def ask(question: tuple[Any, Images] | Request) -> Reply | VlmError:
            try:
                request = many.as_request(question, more)
                return request if isinstance(request, VlmError) else self.submit(request).wait()
            except VlmError as exc:
                return exc

        with ThreadPoolExecutor(parallel, 'ask') as pool:
            return list(pool.map(ask, questions))

    def encode(self, images: Images, **options: Any) -> None:
        """See whether pictures can be read; a server encodes them when it is asked."""
        request = make_request('.', images, **options)
        prepare(request.sources, config_of(self._config, request), lambda: False)

    def conversation(
        self, system_prompt: str = '', overflow: str = 'drop_oldest'
    ) -> RemoteConversation:
        """Begin a conversation; as of :class:`VLM`."""
        return RemoteConversation(self, system_prompt, overflow)

    def restore(self, path: str | Path) -> RemoteConversation:
        """
        Go on with a conversation that was saved.

        :raises StateError: the file cannot be read, or is of a model on a machine
        """
        system, overflow, turns = read(as_path(path))
        return RemoteConversation(self, system, overflow, turns)

    def cancel(self) -> None:
        """Stop the answer that was asked for first."""
        with self._lock:
            oldest = next(iter(self._open.values()), None)
        if oldest is not None:
            oldest.cancel()

    # -- for ``Call`` --------------------------------------------------------------------------

    def soon(self, function: Callable[..., object], *args: object) -> None:
        """Run something on the loop; nothing where it has ended."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run what takes long beside the loop."""
        return await self._loop.run_in_executor(self._threads, function, *args)

    def forget(self, call: Call) -> None:
        """Note the end of a call."""
        with self._lock:
            self._open.pop(call.number, None)

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop what runs; twice is harmless."""
        with self._lock:
            before, self._closed = self._closed, True
            calls = list(self._open.values())
        if before:
            return
        for call in calls:
            call.cancel()
        for call in calls:
            call.finished.result()
        self._on_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._threads.shutdown(cancel_futures=True)
        if self.local is not None:
            self.local.close()

    async def _end(self) -> None:
        if hasattr(self, 'engines'):
            await self.engines.close()
        if hasattr(self, 'client'):
            await self.client.aclose()
        await self._loop.shutdown_asyncgens()

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    # -- what only a model here has ------------------------------------------------------------

    def _no(self, *_: object, **__: object) -> NoReturn:
        raise RemoteError(
            'that is for a model on this machine, and model is an address: '
            f'{self._config.model[:200]}'
        )

    start_images = prefill = begin = cells_of = encode_image = _no
    identity = property(_no)


def _local_config(config: Config) -> Config:
    """
    Give the configuration of the fallback: the same options, and its model.

    :raises ConfigError: that would be elsewhere too
    """
    local = replace(config, model=config.fallback, fallback='', remote_model='')
    if local.is_remote:
        raise ConfigError(
            f'fallback is {config.fallback[:80]!r}: expected a model of the catalogue, which is '
            'on this machine',
            'fallback',
        )
    return local


def _client(config: Config, urls: List[str]) -> httpx.AsyncClient:
    headers = {'Accept-Encoding': 'identity', 'User-Agent': 'hobot_vlm'}
    headers |= {'Content-Type': 'application/json'}
    key = os.environ.get(KEY_VARIABLE, '').strip()
    if key:
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f'{KEY_VARIABLE} holds characters that no header can: set it anew')
        headers['Authorization'] = f'Bearer {key}'
    # how long a server may be silent, each call knows; one that waits for a connection waits here
    return httpx.AsyncClient(
        headers=headers,
        # reading the certificates takes 30 ms, and http alone needs none
        verify=any(url.startswith('https') for url in urls),
        timeout=httpx.Timeout(None, connect=config.remote_timeout),
        limits=httpx.Limits(
            max_connections=MOST_OPEN,
            max_keepalive_connections=MOST_OPEN,
            keepalive_expiry=IDLE_SECONDS,
        ),
    )
