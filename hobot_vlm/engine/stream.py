"""
The caller's end of an answer: a queue of chunks, which the engine fills.

Knows no model. A stream that nobody reads holds up nobody; one that nobody has any more is
cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from ..machine import take
from ..values import Progress, Reply, TextChunk

Item = TextChunk | Reply | BaseException


class Mailbox:
    """Takes items from one thread to another, or to a coroutine; nobody waits to put one in."""

    def __init__(self) -> None:
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._wake: Callable[[], object] = lambda: None

    def put(self, item: Item) -> None:
        """Add an item; callable from any thread."""
        self._items.put(item)
        self._wake()

    def get(self) -> Item:
        """Wait for the next item."""
        return take(self._items)

    async def get_soon(self) -> Item:
        """Wait for the next item without holding up the event loop."""
        try:
            return self._items.get_nowait()
        except Empty:
            pass
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(arrived.set)
            except RuntimeError:  # the loop has ended, and nobody waits
                pass

        self._wake = wake
        try:
            while True:
                arrived.clear()
                try:
                    return self._items.get_nowait()
                except Empty:
                    await arrived.wait()
        finally:
            self._wake = lambda: None


class Stream:
    """
    An answer as it is made.

    Iterate over it, with ``for`` or ``async for``; ``result`` sums it up. Leaving the loop or a
    ``with`` block, and losing the last reference, stop the model. One reader at a time.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        cancel: Callable[[], object],
        progress: Callable[[], Progress] = Progress,
    ):
        self._mailbox = mailbox
        self._cancel = cancel
        self._progress = progress
        self._end: Reply | BaseException | None = None

    def __next__(self) -> TextChunk:
        if self._end is None:
            chunk = self._chunk(self._mailbox.get())
            if chunk is not None:
                return chunk
        raise StopIteration

    async def __anext__(self) -> TextChunk:
        if self._end is None:
            chunk = self._chunk(await self._mailbox.get_soon())
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    def __iter__(self) -> Iterator[TextChunk]:
        try:
            while (chunk := next(self, None)) is not None:
                yield chunk
        except GeneratorExit:
            self.cancel()
            raise

    async def __aiter__(self) -> AsyncIterator[TextChunk]:
        try:
            while (chunk := await anext(self, None)) is not None:
                yield chunk
        except GeneratorExit:
            self.cancel()
            raise

    def _chunk(self, item: Item) -> TextChunk | None:
        """Give a chunk; note the end, and raise what ended it."""
        if isinstance(item, TextChunk):
            return item
        self._end = item
        if isinstance(item, BaseException):
            raise item
        return None

    def result(self) -> Any:
        """
        Wait for the end, and give the :class:`Reply`.

        Where an event loop runs in this thread, waiting would stop it: there this gives an
        awaitable of the reply, as in ``await stream.result()``.

        :raises VlmError: there is no whole answer
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self.wait()
        return self._finish()

    def wait(self) -> Reply:
        """Wait for the end even where an event loop runs; as ``result``."""
        for _ in self:
            pass
        return self._reply()

    def __await__(self) -> Generator[Any, None, Reply]:
        return self._finish().__await__()

    async def _finish(self) -> Reply:
        async for _ in self:
            pass
        return self._reply()

    def _reply(self) -> Reply:
        if isinstance(self._end, BaseException):
            raise self._end
        assert self._end is not None
        return self._end

    @property
    def progress(self) -> Progress:
        """Say how far the encoding of the pictures is; callable from any thread."""
        return self._progress()

    def cancel(self) -> None:
        """Stop the model within one step; returns at once, callable from any thread."""
        self._cancel()

    def close(self) -> None:
        """Stop the model, and wait until it has; twice is harmless."""
        self.cancel()
        while self._end is None:
            item = self._mailbox.get()
            if not isinstance(item, TextChunk):
                self._end = item

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._end is None:
            self._cancel()
