"""
The thread of the scheduler, and the only way to it.

All methods are safe from any thread. Knows sequences; nothing of what they are about.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
import logging
import threading
from typing import TypeVar
import weakref

from .scheduler import Scheduler
from .sequence import Sequence, Status
from ..errors import InferenceError, VlmError
from ..llama.kv_cache import KvCache
from ..llama.sampler import Sampler
from ..llama.scorer import Scorer
from ..prompt.tokens import Prompt

logger = logging.getLogger('hobot_vlm')

T = TypeVar('T')


class Engine:
    """Answers requests side by side."""

    def __init__(self, cache: KvCache):
        self._context = cache.context
        self._scheduler = Scheduler(cache)
        self._closed = False
        self._lock = threading.Lock()  # guards the next, and the order of the end
        self._open: dict[int, weakref.ref[Sequence]] = {}  # submitted and not ended, oldest first
        self._thread = threading.Thread(target=self._serve, name='engine', daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._scheduler.run()
        except BaseException as exc:  # a fault of this package: nobody is to wait for ever
            logger.exception('the engine has ended')
            self._scheduler.dead = InferenceError(f'the engine has failed: {exc}')
            with self._lock:
                self._closed = True
            for sequence in (*self._scheduler.running, *self._scheduler.waiting):
                sequence.fail(self._scheduler.dead)
                sequence.release()

    def submit(self, sequence: Sequence) -> None:
        """
        Have a request answered once its prompt is there.

        :raises InferenceError: the engine is closed
        """
        number = sequence.number
        with self._lock:
            if self._closed:
                raise self._scheduler.dead or closed()
            self._open[number] = weakref.ref(sequence)
            self._scheduler.inbox.put(lambda: self._scheduler.add(sequence))
        sequence.finished.add_done_callback(lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)

    def ready(
        self, sequence: Sequence, prompt: Prompt, thinking: bool, sampler: Sampler | Scorer | None
    ) -> None:
        """Give a sequence its prompt; a much shorter one stops a large step of others."""
        for _, tile in prompt.tiles:
            if not tile.encoded.done():
                tile.encoded.add_done_callback(lambda _: self._wake())
        self._scheduler.inbox.put(lambda: sequence.set_prompt(prompt, thinking, sampler))
        if 2 * len(prompt.ids) <= self._scheduler.large_step:
            self._context.stop()

    def fail(self, sequence: Sequence, error: BaseException) -> None:
        """End a request that cannot have a prompt."""
        self._scheduler.inbox.put(
            lambda: None if sequence.status is Status.FINISHED else sequence.fail(error)
        )

    def cancel(self, sequence: Sequence) -> None:
        """Stop a sequence within one step; returns at once."""
        sequence.cancelled = True
        if sequence.status in (Status.PREFILL, Status.DECODE):
            self._context.stop()
        self._wake()

    def cancel_oldest(self) -> None:
        """Stop what was submitted first and has not ended."""
        with self._lock:
            oldest = next(iter(self._open.values()), lambda: None)()
        if oldest is not None:
            self.cancel(oldest)

    def call(self, work: Callable[[], T]) -> T:
        """
        Run something on the engine's thread, between two steps.

        :raises InferenceError: the engine is closed
        """
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as exc:
                done.set_exception(exc)

        with self._lock:
            if self._closed:
                raise self._scheduler.dead or closed()
            self._scheduler.inbox.put(run)
        return done.result()

    @property
    def counts(self) -> tuple[int, int]:
        """Give how many sequences wait, and how many run."""
        running = len(self._scheduler.running)
        return max(0, len(self._open) - running), running

    def close(self) -> None:
        """Cancel what runs, and end the thread; twice is harmless."""
        with self._lock:
            self._closed = True
        self._scheduler.closing = True
        self._context.stop()
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _wake(self) -> None:
        self._scheduler.inbox.put(lambda: None)


def closed() -> VlmError:
    """Say that a model was closed."""
    return InferenceError('the model is closed: load it again to ask it')
