"""
One request on its way to an answer: its prompt, its tokens, its text, its times.

Made by a caller's thread, and given to the scheduler's thread, which alone touches it from then
on, but for ``cancelled``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import auto, Enum
import itertools
from time import perf_counter

from .detokenizer import Detokenizer
from .request import Request
from .stream import Mailbox
from ..config import Config
from ..errors import AnswerCut
from ..llama.context import Context, Entries
from ..llama.kv_cache import Slot, SlotRun
from ..llama.sampler import Sampler
from ..llama.scorer import Scorer
from ..prompt.tokens import Prompt
from ..values import Reply, TextChunk, Timings, TokenLogprob

_numbers = itertools.count()


def _ignore(tokens: list[int]) -> None:
    """Remember nothing."""


def _same(reply: Reply) -> Reply:
    return reply


def _no_time() -> float:
    return 0.0


class Status(Enum):
    """Where a sequence stands."""

    WAITING = auto()  # for its prompt, its turn, or room in the KV cache
    PREFILL = auto()
    DECODE = auto()
    FINISHED = auto()


@dataclass(eq=False)
class Sequence:
    """
    A request, from its submission to its reply.

    :param conversation: whose slot of the KV cache it uses; None: any
    :param prefill_only: it ends when its prompt is in the KV cache
    """

    request: Request
    config: Config
    conversation: object | None = None
    prefill_only: bool = False
    mailbox: Mailbox = field(default_factory=Mailbox)
    #: called once the sequence has ended, before its reply is given; and the same as a future
    remember: Callable[[list[int]], object] = _ignore
    conclude: Callable[[Reply], Reply] = _same
    finished: Future[None] = field(default_factory=Future)
    #: seconds of the picture work, once it is known
    preprocess: float = 0.0
    encode: Callable[[], float] = _no_time

    number: int = field(default_factory=lambda: next(_numbers))
    status: Status = Status.WAITING
    cancelled: bool = False
    finish_reason: str = ''
    error: BaseException | None = None
    prompt: Prompt | None = None
    ids: list[int] = field(default_factory=list)  # of the prompt, then of the answer
    positions: list[int] = field(default_factory=list)  # of the ids, and of what follows
    tokens: list[int] = field(default_factory=list)  # of the answer
    slot: Slot | None = None
    passed: int = 0  # tokens of other prompts that were prefilled while this one was ready
    interrupted: bool = False  # a large step of it was stopped for a shorter prompt
    preempted: bool = False  # it gave its place to others, and wants room for its whole answer

    def __post_init__(self) -> None:
        self.submitted = perf_counter()
        self.deadline = self.submitted + self.request.timeout if self.request.timeout else None
        self._ready = self._started = self._first = self._last = 0.0
        self._prefill = 0.0
        self.decoded = self._reused = 0  # entries that were prefilled for it, and that were not
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._reported = 0
        self._sampler: Sampler | Scorer | None = None

    # -- prefill -----------------------------------------------------------------------------

    def set_prompt(self, prompt: Prompt, thinking: bool, sampler: Sampler | Scorer | None) -> None:
        """
        Take the prompt; from here on the sequence can run.

        :param thinking: it ends in the model's reasoning
        :param sampler: None for a prefill alone
        """
        if self.status is Status.FINISHED:
            if sampler is not None:
                sampler.close()
            return
        self.prompt, self.ids, self._sampler = prompt, list(prompt.ids), sampler
        self.positions = list(prompt.positions)
        self._detokenizer = Detokenizer(self.request.stop, thinking)
        self._ready = perf_counter()
        if not self.ids:
            self.finish('stop')

    def begin(self, slot: Slot) -> None:
        """Use a slot, which holds the first of the ids."""
        self._started = self._started or perf_counter()
        self.slot, self.status = slot, Status.PREFILL
        if not self.unread:
            self.finish('stop')  # a prefill of what is there

    @property
    def prefix(self) -> list[int]:
        """Ids that may be in the KV cache already; the last one is decoded for its logits."""
        return self.ids if self.prefill_only else self.ids[:-1]

    @property
    def unread(self) -> int:
        """Ids that are not in the KV cache yet."""
        return len(self.ids) - (len(self.slot.ids) if self.slot else 0)

    def next_run(self, most: int, mixes: bool) -> SlotRun | None:
        """
        Give what to decode next; None while an embedding is missing.

        :param most: entries at most, but for a picture that must be decoded at once
        :param mixes: whether tokens and embeddings may be together
        :raises VlmError: a picture could not be encoded
        """
        assert self.slot is not None and self.prompt is not None
        start = len(self.slot.ids)
        if start >= len(self.prompt.ids):
            end = min(len(self.ids), start + most)
            entries: list[Entries] = [self.ids[start:end]]
        else:
            end = self.prompt.reach(start, most)
            if end == start:
                return None
            entries = list(self.prompt.entries(start, end))
            if not mixes:
                del entries[1:]
                end = start + len(entries[0])
        whole = end == len(self.ids) and not self.prefill_only
        return SlotRun(
            self.slot, self.ids[start:end], entries, whole, self.positions[start : end + 1]
        )

    def note_step(self, entries: int, seconds: float) -> None:
        """Take note of a step in which so many of the sequence's ids were prefilled."""
        self._prefill += seconds
        self.decoded += entries

    # -- decode ------------------------------------------------------------------------------

    def sample(self, entry: int, context: Context) -> None:
        """
        Choose the next tokens by the logits of an entry, and give their text to the caller.

        :raises VlmError: the logits cannot be used
        """
        assert self._sampler is not None and self.slot is not None and self.prompt is not None
        tokens = [self._sampler.sample(entry), *self._sampler.forced()]
        self._last = perf_counter()
        if not self._first:
            self._first = self._last
            self._reused = max(0, len(self.prompt.ids) - self.decoded)
        self.status = Status.DECODE
        ends = context.model.is_end(tokens[-1])
        for left in range(len(tokens), 0, -1):  # with the chosen one come those without a choice
            if self.status is Status.DECODE:
                self._append(tokens[-left], context, last=left == 1 + ends)

    def _append(self, token: int, context: Context, last: bool) -> None:
        """
        Add a token to the answer.

        :param last: no more are known, but for an end token
        """
        if context.model.is_end(token):
            return self.finish('stop')
        self.tokens.append(token)
        self.ids.append(token)
        self.positions.append(self.positions[-1] + 1)
        self._emit(self._detokenizer.feed(context.model.piece(token)))
        if self._detokenizer.stopped:
            self.finish('stop')
        elif len(self.tokens) >= self.config.n_predict or len(self.ids) > context.n_ctx:
            assert self._sampler is not None
            self.finish('stop' if last and self._sampler.at_end else 'length')

    def _emit(self, chunks: list[TextChunk]) -> None:
        for chunk in chunks:
            if self._sampler is not None and self.request.logprobs:
                fresh = tuple(self._sampler.reported[self._reported :])
                self._reported += len(fresh)
                chunk = TextChunk(chunk.text, chunk.thinking, fresh)
            (self._thoughts if chunk.thinking else self._texts).append(chunk.text)
            self.mailbox.put(chunk)

    # -- the end -----------------------------------------------------------------------------

    def finish(self, reason: str) -> None:
        """Note why the answer ends; ``release`` follows."""
        if self.status is Status.FINISHED:
            return
        self.status, self.finish_reason = Status.FINISHED, reason
        if self._first and reason in ('stop', 'length'):
            self._emit(self._detokenizer.finish())

    def fail(self, error: BaseException) -> None:
        """Note an error that ends the request; ``release`` follows."""
        self.status, self.error = Status.FINISHED, error

    def release(self) -> None:
        """Keep the answer in the conversation, free the sampler, and tell the caller."""
        reported = self._sampler.reported if self._sampler else []
        reply = self._reply(tuple(reported))
        form = self._sampler.form if self._sampler else ''
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        try:
            if self._first:
                self.remember(self.tokens)
            last: Reply | BaseException = self.error or self._checked(self.conclude(reply), form)
        except Exception as exc:  # of whoever asked; others are not to suffer for it
            last = exc
        # what leads from here back to the request would keep it in memory until Python tidies up
        self.slot, self.prompt, self.conversation, self.ids = None, None, None, []
        self.positions = []
        self.remember, self.conclude, self.encode = _ignore, _same, _no_time
        self.finished.set_result(None)
        self.mailbox.put(last)

    def _checked(self, reply: Reply, form: str) -> Reply | AnswerCut:
        """Give an answer; a part of one that was to have a form is an error."""
        if reply.finish_reason != 'length' or not form:
            return reply
        at_length = reply.completion_tokens >= self.config.n_predict
        return AnswerCut(reply, form, 'n_predict' if at_length else 'n_ctx')

    def _reply(self, logprobs: tuple[TokenLogprob, ...]) -> Reply:
        decode = self._last - self._first
        prompt = self.prompt

        def ms(seconds: float) -> float:
            return round(1000 * seconds, 3)

        return Reply(
            ''.join(self._texts),
            self.finish_reason,
            len(prompt.ids) if prompt else 0,
            prompt.image_tokens if prompt else 0,
            len(self.tokens),
            self._reused,
            Timings(
                ms(max(0.0, (self._started or perf_counter()) - self._ready)) if prompt else 0.0,
                ms(self.preprocess),
                ms(self.encode()),
                ms(self._prefill),
                ms(self._first - self.submitted) if self._first else 0.0,
                ms(decode),
                round((len(self.tokens) - 1) / decode, 2) if decode > 0 else 0.0,
            ),
            ''.join(self._thoughts),
            logprobs=logprobs,
        )
