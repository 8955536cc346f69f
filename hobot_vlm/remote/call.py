"""
READ FIRST: one question on its way through the servers, and to the model here where none answers.

1. Its pictures are made ready, and the turn before it is over.
2. The least busy server is asked. Where it fails before a word was given out, another is, or it
   again, within ``remote_timeout``. After a word there is no other try: nobody is answered twice.
3. Where no server answers, the model of ``fallback`` does.

Lives on the event loop of its ``RemoteVLM``; knows no threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
import itertools
import logging
from time import perf_counter
from typing import Any, TYPE_CHECKING

import httpx

from .answer import Answer
from .body import body_of, Content, Exchange, Question, question_of
from .choosing import as_asked, chosen
from .engines import check, Engine, LONGEST_PAUSE, reason
from .events import events
from .pictures import Picture, prepare
from .trouble import Trouble
from .watch import Silent, watched
from ..config import Config
from ..engine.request import make_request, Request
from ..engine.stream import Mailbox
from ..errors import PromptError, RemoteError, VlmError
from ..families import boxes, grounding
from ..values import Progress, Reply, TextChunk

if TYPE_CHECKING:
    from .conversation import RemoteConversation
    from .vlm import RemoteVLM

log = logging.getLogger('hobot_vlm')

#: tries of one question beyond one for each server
RETRIES = 2
#: seconds before the same server is tried again, where it names none
PAUSE = 0.3
#: seconds that a server has to end its stream after the end of the answer: for its counts
GRACE = 1.0

_numbers = itertools.count()


class Call:
    """One question, from its submission to its reply."""

    def __init__(
        self,
        vlm: RemoteVLM,
        request: Request,
        config: Config,
        conversation: RemoteConversation | None,
    ) -> None:
        self.number = next(_numbers)
        self.mailbox = Mailbox()
        self.finished: Future[None] = Future()
        self.sent = False
        self._vlm = vlm
        self._request = request
        self._config = config
        self._conversation = conversation
        self._era = conversation.era if conversation else 0
        self._before = conversation.queue(self.finished) if conversation else []
        self._submitted = perf_counter()
        self._answer = Answer(request, config.n_predict, self._submitted)
        self._local: Reply | None = None
        self._given = False  # whether a word went out
        self._answering_here = False
        self._engine: Engine | None = None  # that was asked last
        self._stopped = ''  # why it ends before its time
        self._queued = self._preprocess = 0.0
        self._deadline = 0.0  # of the first word, by the clock of the loop
        self._pictures: list[list[Picture]] = []
        self._question: Question | None = None
        self._task: asyncio.Task[Reply] | None = None

    # -- from any thread -----------------------------------------------------------------------

    def cancel(self) -> None:
        """Stop it; returns at once."""
        self._vlm.soon(self.stop, 'cancelled')

    def progress(self) -> Progress:
        """Say how far the server is with the pictures, where it does."""
        return self._answer.progress

    # -- on the loop ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()
        if self._request.timeout:
            timer = loop.call_later(self._request.timeout, self.stop, 'timeout')
            self.finished.add_done_callback(lambda _: timer.cancel())
        self._task = loop.create_task(self._run())
        self._task.add_done_callback(self._settle)

    def stop(self, why: str) -> None:
        """End it as it is."""
        if self._task is not None and not self._task.done() and not self._stopped:
            self._stopped = why
            self._task.cancel()

    def _settle(self, task: asyncio.Task[Reply]) -> None:
        """Give the end to whoever asked."""
        last: Reply | BaseException
        try:
            last = self._end(task)
        except Exception as exc:
            last = exc
        if not isinstance(last, (Reply, VlmError)):
            log.error('a question failed', exc_info=last)
            last = RemoteError(f'the question failed: {type(last).__name__}: {last}')
        self._vlm.forget(self)
        self.finished.set_result(None)
        self.mailbox.put(last)

    def _end(self, task: asyncio.Task[Reply]) -> Reply | BaseException:
        """Give the reply, or what there is of it, or the error; remember the turn."""
        last: Reply | BaseException
        if task.cancelled():
            for chunk in self._answer.finish():
                self._put(chunk)
            last = self._reply(self._stopped or 'cancelled')
        else:
            last = task.exception() or task.result()
        if self._conversation is not None and isinstance(last, Reply) and last.text:
            user = self._question.user if self._question else []
            kept = self._question.exchanges if self._question else []
            self._conversation.keep([*kept, Exchange(user, last.text)], self._era)
        return last

    def _put(self, chunk: TextChunk) -> None:
        if not self._request.choices or self._answering_here:  # else it is known at the end
            self._given = True
            self.mailbox.put(chunk)

    async def _run(self) -> Reply:
        # 1. pictures, and the turn before
        began = perf_counter()
        self._pictures = await self._vlm.in_thread(
            prepare, self._request.sources, self._config, lambda: bool(self._stopped)
        )
        self._preprocess = perf_counter() - began
        for future in self._before:
            await asyncio.shield(asyncio.wrap_future(future))
        earlier = self._conversation.exchanges if self._conversation else []
        self._question = question_of(
            self._request, self._config, self._pictures, earlier, self._conversation is not None
        )
        # 2. the servers
        try:
            return await self._ask_servers(self._question)
        except Trouble as trouble:
            if self._given or self._vlm.local is None:
                raise self._error(trouble) from trouble
            why = trouble
        # 3. the model here
        log.info('%s answers here: %s', self._vlm.local.name, why)
        return await self._ask_local(self._question)

    def _error(self, trouble: Trouble) -> VlmError:
        if trouble.full:
            return PromptError(f'{trouble}: shorten the prompt, or show fewer pictures')
        cut = ' after a part of the answer' if self._given else ''
        return RemoteError(f'{trouble}{cut}. See model, remote_timeout and fallback')

    # -- 2. the servers ------------------------------------------------------------------------

    async def _ask_servers(self, question: Question) -> Reply:
        """
        Ask one server after the other.

        :raises Trouble: none answers
        """
        loop = asyncio.get_running_loop()
        self._deadline = loop.time() + self._config.remote_timeout
        engines, desperate = self._vlm.engines, self._vlm.local is None
        key = self._conversation.number if self._conversation else _key(question)
        # a chat that begins goes anywhere, whoever else began with the same words
        before = key if question.goes_on else None
        tried: list[Engine] = []
        last = Trouble('; '.join(engines.troubles()) or 'every server is busy')
        tries = len(engines.all) + RETRIES
        while tries > 0:
            tries -= 1
            engine = engines.choose(before, tried, desperate)
            busy = engines.busy_for()
            if engine is None and not tried and 0 < busy < self._deadline - loop.time():
                await asyncio.sleep(busy)
                engine = engines.choose(before, tried, desperate)
            if engine is None and tried and last.again:
                # the others are away, or failed as well: the one that may yet answer, once more
                pause = max(PAUSE, last.wait)
                if (last.away and not desperate) or loop.time() + pause >= self._deadline:
                    break
                await asyncio.sleep(pause)
                engine, tried = tried[-1], []
            if engine is None:
                break
            try:
                reply = await self._ask(engine, question)
            except Trouble as trouble:
                last = Trouble(
                    f'{engine.url} {trouble}',
                    away=trouble.away, again=trouble.again, wait=trouble.wait, full=trouble.full,
                )  # fmt: skip
                if trouble.away:
                    engines.failed(engine, str(trouble))
                if trouble.wait <= LONGEST_PAUSE:  # for longer nobody waits, and may ask anew
                    engine.busy_until = loop.time() + trouble.wait
                if self._given or loop.time() >= self._deadline:
                    break
                if trouble.full and self._drops() and question.shorten():
                    tries += 1  # which ends when there is no turn left
                    continue
                if not trouble.again and len(engines.all) == 1:
                    break
                tried.append(engine)
                continue
            engines.answered(engine)
            engines.place(key, engine)
            return reply
        raise last

    def _drops(self) -> bool:
        return self._conversation is not None and self._conversation.overflow == 'drop_oldest'

    async def _ask(self, engine: Engine, question: Question) -> Reply:
        """
        Ask one server.

        :raises Trouble: it does not answer
        :raises VlmError: it cannot be asked this
        """
        loop = asyncio.get_running_loop()
        answer = self._answer = Answer(self._request, self._config.n_predict, self._submitted)
        self._engine = engine
        began = loop.time()
        try:
            async with engine.turn():
                self._deadline += loop.time() - began  # it was others that took this time
                async with watched(self._deadline) as alive:
                    await self._exchange(engine, question, answer, alive)
        except Silent as exc:
            if self._stopped:
                raise asyncio.CancelledError from exc
            if not answer.complete:  # else the answer is whole, and its connection still open
                seconds = self._config.remote_timeout
                raise Trouble(
                    f'says nothing more for {seconds:g} s (remote_timeout)', away=True, again=True
                ) from exc
        except httpx.HTTPError as exc:
            if not answer.complete:
                gone = isinstance(exc, (httpx.ConnectError, httpx.ConnectTimeout))
                raise Trouble(reason(exc), away=gone, again=True) from exc
        if not answer.complete:
            raise Trouble(
                'breaks off the answer' if self._given else 'gives no answer', again=True
            )
        for chunk in answer.finish():
            self._put(chunk)
        reply = self._reply('')
        if self._request.choices:
            reply = chosen(reply, self._request.choices, answer.shares)
            self.mailbox.put(TextChunk(reply.text))
        return reply

    async def _exchange(
        self, engine: Engine, question: Question, answer: Answer, alive: Callable[[float], None]
    ) -> None:
        """Send the question to a server, and hand on what it says."""
        client, seconds = self._vlm.client, self._config.remote_timeout
        if not engine.known:
            await engine.probe(client, seconds)
        assert engine.dialect is not None
        answer.request, config = as_asked(self._request, self._config, engine.dialect)
        body = await self._vlm.in_thread(
            body_of, engine.name, engine.dialect, question, answer.request, config
        )
        self._queued = perf_counter() - self._submitted - self._preprocess
        self.sent = True
        url = f'{engine.url}/chat/completions'
        async with client.stream('POST', url, content=body) as response:
            await check(response)
            kind = response.headers.get('content-type', '').partition(';')[0].strip()
            streamed = kind != 'application/json'
            async with aclosing(events(response.aiter_raw(), streamed)) as found:
                async for event in found:
                    before = answer.pieces, answer.done, answer.complete
                    for chunk in answer.feed(event):
                        self._put(chunk)
                    if (answer.pieces, answer.done, answer.complete) != before:
                        alive(GRACE if answer.complete else seconds)

    # -- 3. the model here ---------------------------------------------------------------------

    async def _ask_local(self, question: Question) -> Reply:
        """Have the model of ``fallback`` answer."""
        local = self._vlm.local
        assert local is not None
        self._answering_here = True
        self._answer = Answer(self._request, self._config.n_predict, self._submitted)
        lost = perf_counter() - self._submitted
        stream = local.submit(self._for_local(question))
        try:
            async for chunk in stream:
                self._put(chunk)
            reply = await stream
        except asyncio.CancelledError:
            stream.cancel()
            async for chunk in stream:
                self._put(chunk)
            self._local = replace(await stream, model=local.name)
            raise
        times = reply.timings
        waited = round(1000 * lost, 3)
        times = replace(
            times,
            queued_ms=times.queued_ms + waited,
            ttft_ms=times.ttft_ms + waited if times.ttft_ms else 0.0,
        )
        return replace(reply, model=local.name, timings=times)

    def _for_local(self, question: Question) -> Request:
        """Give the request to the model here, with the turns before it."""
        request = self._request
        if not question.exchanges or request.find:
            return request
        messages = [
            {'role': role, 'content': _local_parts(content)}
            for role, content in question.messages()
        ]
        more: dict[str, Any] = {
            name: getattr(request, name) for name in ('stop', 'logit_bias', 'logprobs', 'priority')
        }
        return make_request(messages, **more, **request.options)

    # -- the reply -----------------------------------------------------------------------------

    def _reply(self, why: str) -> Reply:
        if self._local is not None:  # it was stopped there
            return replace(self._local, finish_reason=why)
        reply = self._answer.reply(why, self._queued, self._preprocess)
        if self._engine is not None:
            reply = replace(
                reply, model=f'{self._answer.model or self._engine.name}@{self._engine.url}'
            )
        if self._pictures and self._pictures[0]:
            # thousandths of the whole picture, so any size of a tile will do
            thing = boxes.task(str(self._request.prompt))[1] if self._request.find else ''
            frame = grounding.Frame(*self._pictures[0][0].size, boxes.SCALE, 'fill')
            found, points = grounding.read(reply.text, thing, frame, self._request.find)
            reply = replace(reply, boxes=found, points=points)
        return reply


def _local_parts(content: Content) -> list[dict[str, Any]]:
    return [
        {'type': 'text', 'text': part}
        if isinstance(part, str)
        else {'type': 'image', 'image': part.jpeg}
        for part in content
    ]


def _key(question: Question) -> int | None:
    """Give what the messages of one chat have in common from turn to turn."""
    said: Sequence[tuple[str, Content]] = [m for m in question.said if m[0] == 'user'][:1]
    parts = [part if isinstance(part, str) else part.jpeg for _, each in said for part in each]
    return hash(tuple(parts)) if parts else None
