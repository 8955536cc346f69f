"""
Requests: questions as JSON, each with an id, answered side by side.

Asks the model, and hands on each piece and the reply. What a request may hold, ``request_json``
knows; this knows no executor and no queue of prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, wait
import logging
import threading
from time import perf_counter
from typing import Any, TYPE_CHECKING

from .diagnostics import Statistics
from .frames import FrameReader, Pictures
from .inbox import Inbox, Prompt
from .outcome import Outcome
from .publishers import Publishers
from .request_json import check, EVERY, Question, read
from ..config import LIVE
from ..errors import AnswerCut, PromptError, VlmError
from ..node_config import NodeConfig
from ..values import Pixels, Reply

if TYPE_CHECKING:
    from .. import VLM

log = logging.getLogger('hobot_vlm.node')

#: requests that may be open, and bytes of their texts, most of which are pictures: more than a
#: robot asks at once, and little to a board of 4 GB
CAPACITY = 1000
CAPACITY_BYTES = 64 * 2**20


class Requests:
    """
    Answers requests on an event loop of its own.

    :param settings: gives the configuration as it is now
    :param cancel_prompts: cancels every prompt too
    :param picture: the local picture; None: those of the cameras
    """

    def __init__(
        self,
        vlm: VLM,
        inbox: Inbox,
        reader: FrameReader,
        publishers: Publishers,
        statistics: Statistics,
        *,
        settings: Callable[[], NodeConfig],
        cancel_prompts: Callable[[], None],
        picture: Pixels | None = None,
    ):
        self._vlm = vlm
        self._inbox = inbox
        self._reader = reader
        self._publishers = publishers
        self._statistics = statistics
        self._settings = settings
        self._cancel_prompts = cancel_prompts
        self._picture = picture
        self._loaded = settings()
        self._lock = threading.Lock()  # of the next three
        self._open: dict[str, tuple[Prompt, int]] = {}  # by id, with the bytes of the request
        self._tasks: set[Future[None]] = set()
        self._active = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name='requests', daemon=True
        )
        self._thread.start()

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin to answer."""
        self._active = True

    def stop(self, seconds: float | None = None) -> bool:
        """End all answers; what comes from now on is refused. False when that takes longer."""
        with self._lock:
            self._active = False
            tasks = set(self._tasks)
        self.cancel_all()
        return not wait(tasks, seconds).not_done

    def close(self) -> None:
        """End the thread; nothing may come after that."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cancel_all(self) -> None:
        """Cancel every request that is open."""
        with self._lock:
            prompts = [prompt for prompt, _ in self._open.values()]
        for prompt in prompts:
            prompt.cancel()

    # -- one request -------------------------------------------------------------------------

    def receive(self, text: str) -> None:
        """Have a request answered; returns at once."""
        number = ''
        try:
            number, fields = read(text)
            if 'cancel' in fields:
                self._cancel(fields)
            else:
                question = check(fields, self._loaded)
                self._begin(question, len(text.encode('utf-8', 'surrogatepass')))
        except VlmError as exc:
            self._refuse(number, str(exc))
        except Exception as exc:  # whatever happens, the next one is answered
            log.exception('a request could not be read')
            self._refuse(number, f'{type(exc).__name__}: {exc}')

    def _cancel(self, fields: Mapping[str, Any]) -> None:
        """Cancel one request, or everything."""
        which = fields['cancel']
        if not isinstance(which, str) or set(fields) != {'cancel'}:
            raise PromptError('cancel: expected {"cancel": "ID"} or {"cancel": "all"}')
        if which == EVERY:
            self.cancel_all()
            self._cancel_prompts()
            return
        with self._lock:
            prompt, _ = self._open.get(which, (None, 0))
        if prompt is not None:
            prompt.cancel()
        else:  # its reply may be on its way, so there is to be no other
            log.info('no request %.60r is being answered', which)

    def _begin(self, question: Question, size: int) -> None:
        prompt = Prompt(question.text, self._reader.now(), id=question.id)
        with self._lock:
            if not self._active:
                raise PromptError('the node is not active: activate it, and send this again')
            if question.id in self._open:
                raise PromptError(f'id: a request {question.id!r} is being answered')
            sizes = sum(size for _, size in self._open.values())
            if len(self._open) >= CAPACITY or sizes + size > CAPACITY_BYTES:
                raise PromptError(
                    f'{len(self._open)} requests of {sizes} bytes are open, and at most '
                    f'{CAPACITY} of {CAPACITY_BYTES} bytes may be: send it again when some have '
                    'been answered'
                )
            self._open[question.id] = prompt, size
            task = asyncio.run_coroutine_threadsafe(self._answer(question, prompt), self._loop)
            self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: Future[None]) -> None:
        with self._lock:
            self._tasks.discard(task)

    async def _answer(self, question: Question, prompt: Prompt) -> None:
        """Answer one request: get its pictures, ask the model, hand out pieces and the whole."""
        pictures, error, started = Pictures(), '', self._reader.now()
        pieces: list[str] = []
        reply = Reply('', 'cancelled')
        settings = self._settings()
        try:
            more = dict(question.more)
            if question.images == 'newest':
                timeout = _seconds(more.get('timeout'))
                reading = self._read_pictures(pictures, settings)
                await self._until_cancelled(reading, prompt, timeout)
                if timeout:
                    more['timeout'] = max(0.001, timeout - (perf_counter() - prompt.received))
            started = self._reader.now()
            changed = {
                name: getattr(settings, name)
                for name in LIVE
                if getattr(settings, name) != getattr(self._loaded, name)
            }
            asked, images = question.with_pictures(pictures)
            stream = self._vlm.stream(asked, images, **{**changed, **more})
            prompt.stop = stream.cancel
            if prompt.cancelled.is_set():
                stream.cancel()
            async for chunk in stream:
                if not chunk.thinking and chunk.text:
                    pieces.append(chunk.text)
                    self._publishers.chunk(question.id, chunk.text)
            reply = await stream
        except asyncio.CancelledError:  # while it waited for a picture
            pass
        except asyncio.TimeoutError:
            reply = Reply('', 'timeout')
        except AnswerCut as exc:
            reply, error = exc.reply, str(exc)
            log.error('no whole answer to request %.60r: %s', question.id, exc)
        except VlmError as exc:
            error = str(exc)
            log.error('no answer to request %.60r: %s', question.id, exc)
        except Exception as exc:  # whatever happens, the others are answered
            error = f'{type(exc).__name__}: {exc}'
            log.exception('no answer to request %.60r', question.id)
        if error and reply.finish_reason != 'length':
            reply = Reply(''.join(pieces), 'error')
        picture = pictures.first
        outcome = Outcome(prompt, reply, tuple(pictures.info), error, started, picture)
        self._finish(outcome)
        if picture is not None:
            await asyncio.to_thread(self._annotate, outcome)

    def _annotate(self, outcome: Outcome) -> None:
        try:
            self._publishers.annotate(outcome)
        except Exception:  # of ROS, on the way out
            log.exception('an annotated picture was not handed out')

    async def _until_cancelled(
        self, work: Coroutine[Any, Any, None], prompt: Prompt, timeout: float
    ) -> None:
        """Await something that ends when the request is cancelled."""
        task = self._loop.create_task(work)
        prompt.stop = lambda: (self._loop.call_soon_threadsafe(task.cancel), None)[1]
        if prompt.cancelled.is_set():
            task.cancel()
        await asyncio.wait_for(task, timeout or None)

    async def _read_pictures(self, pictures: Pictures, settings: NodeConfig) -> None:
        """Fill in the newest picture of each camera, waiting for the first of each."""
        if self._picture is not None:
            pictures.rgb.append(self._picture)
            return
        while not (frames := self._inbox.newest()):
            await asyncio.shield(asyncio.wrap_future(self._inbox.first_frames()))
        await asyncio.to_thread(self._reader.read_clips, frames, pictures)
        pictures.check_age(settings)

    # -- the end of one ----------------------------------------------------------------------

    def _refuse(self, number: str, why: str) -> None:
        log.error('request refused: %s', why)
        prompt = Prompt('', self._reader.now(), id=number)
        self._publish(Outcome(prompt, Reply('', 'error'), error=why))

    def _finish(self, outcome: Outcome) -> None:
        with self._lock:
            del self._open[str(outcome.prompt.id)]
        self._publish(outcome)

    def _publish(self, outcome: Outcome) -> None:
        self._statistics.count(outcome)
        try:
            self._publishers.reply(outcome)
        except Exception:  # of ROS, on the way out
            log.exception('a reply was not handed out')


def _seconds(timeout: Any) -> float:
    """Give a time-out that can be waited for; what is none, the model refuses."""
    good = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout > 0
    return min(float(timeout), 1e9) if good else 0.0
