"""
Continuous batching: at every step requests come, run side by side, and go.

READ THIS FIRST. ``run`` is the main loop of the whole package. It is the only code that decodes,
on one thread, so nothing here needs a lock. It knows sequences, slots and token ids; nothing of
pictures, text, templates, conversations, or of who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import perf_counter

from .room import Room
from .sequence import Sequence, Status
from ..errors import InferenceError, VlmError
from ..llama.context import Outcome
from ..llama.kv_cache import KvCache, SlotRun

#: entries of a step while somebody waits for it: a tenth of a prompt of a thousand tokens. On a
#: CPU llama.cpp prefills steps of 64 to 512 at the same speed
STEP = 96
#: requests that run side by side; more would slow each other down without making more tokens
MAX_RUNNING = 16


class Scheduler:
    """Runs all requests of one KV cache."""

    def __init__(self, cache: KvCache):
        self.inbox: SimpleQueue[Callable[[], object]] = SimpleQueue()  # from other threads
        self.closing = False
        self.dead: VlmError | None = None  # why llama.cpp cannot go on
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        # ids left to those whose step is running, where a newcomer may stop it
        self.large_step = 0
        self._cache = cache
        self._context = cache.context
        self._room = Room(cache)
        self._idle = True
        self._blocked = False  # whoever waits does not fit, until something changes
        self._full = False  # there is not even room for those who run, until one of them leaves

    def run(self) -> None:
        """Serve until ``closing``."""
        while not self.closing:
            self._receive()
            self._retire()
            self._admit()
            self._step(self._plan())
        for sequence in (*self.running, *self.waiting):
            sequence.finish('cancelled')
        self._retire()

    # -- 1. what other threads want ------------------------------------------------------------

    def _receive(self) -> None:
        """Do what was put into the inbox; sleep while there is nothing to run."""
        self._context.allow()  # whoever is cancelled from here on stops the next step again
        try:
            while True:
                self.inbox.get(self._idle, self._patience())()
                self._idle = self._blocked = False
        except Empty:
            self._idle = False

    def _patience(self) -> float | None:
        """Give the seconds until the first time-out of those that run or wait."""
        ends = [s.deadline for s in (*self.running, *self.waiting) if s.deadline]
        return max(0.0, min(ends) - perf_counter()) if ends else None

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn; called by way of the inbox."""
        if self.dead:
            sequence.fail(self.dead)
        self.waiting.append(sequence)

    # -- 2. who leaves -------------------------------------------------------------------------

    def _retire(self) -> None:
        """Release what has finished, was cancelled or is out of time."""
        now = perf_counter()
        for sequence in (*self.running, *self.waiting):
            if sequence.cancelled:
                sequence.finish('cancelled')
            elif sequence.deadline and now >= sequence.deadline:
                sequence.finish('timeout')
            if sequence.status is Status.FINISHED:
                (self.running if sequence in self.running else self.waiting).remove(sequence)
                if sequence.slot is not None:
                    self._cache.release(sequence.slot)
                sequence.release()
                self._blocked = self._full = False

    # -- 3. who comes --------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let sequences run, by priority and age, while there is room for what they read."""
        if self._blocked or (self._full and self.running):
            return
        self.waiting.sort(key=lambda s: (-s.request.priority, s.number))
        for sequence in [s for s in self.waiting if s.prompt and s.status is Status.WAITING]:
            if len(self.running) >= MAX_RUNNING or not self._room.admits(sequence, self.running):
                self._blocked = True
                return
            sequence.begin(self._cache.acquire(sequence.conversation, sequence.prefix))
            self.waiting.remove(sequence)
            self.running.append(sequence)

    # -- 4. what the next step holds -----------------------------------------------------------

    def _plan(self) -> list[tuple[Sequence, SlotRun]]:
        """Take a token of every answer, and of the prompts as much as fits, the shortest first."""
        answers = [s for s in self.running if s.status is Status.DECODE]
        prompts = [s for s in self.running if s.status is Status.PREFILL]
        prompts.sort(key=lambda s: (-s.request.priority, s.unread - s.passed))
        small = answers or any(s.interrupted for s in prompts)
        most = self._context.n_batch
        budget = min(STEP, most) if small else most
        step: list[tuple[Sequence, SlotRun]] = []
        for sequence in answers + prompts:
            if sequence in prompts and self._room.follows(sequence, prompts):
                continue  # another one is about to decode what it begins with
            most = budget - sum(len(run.ids) for _, run in step)
            try:
                run = sequence.next_run(most, self._context.mixes) if most > 0 else None
            except Exception as exc:  # a picture of it could not be encoded
                sequence.fail(exc)
                continue
            if run is not None:
                step.append((sequence, run))
        self.large_step = 0 if small else sum(sequence.unread for sequence, _ in step)
        ended = any(s.status is Status.FINISHED for s in (*self.running, *self.waiting))
        self._idle = not step and not ended
        return step

    # -- 5. the step ---------------------------------------------------------------------------

    def _step(self, step: list[tuple[Sequence, SlotRun]]) -> None:
        """Decode a batch; give every sequence whose ids are all read its next token."""
        if not step:
            return
        began = perf_counter()
        try:
            outcome = self._cache.run([run for _, run in step])
        except InferenceError as exc:
            return self._isolate(step, exc)
        finally:
            large, self.large_step = self.large_step, 0
        if outcome is Outcome.NO_ROOM:
            self._full = True
            return self._room.preempt(self.running, self.waiting)
        if outcome is Outcome.STOPPED:  # for the sake of one; the others repeat the step
            for sequence, _ in step:
                sequence.interrupted |= bool(large)
            return
        self._account(step, perf_counter() - began)
        for sequence, run in step:
            try:
                if run.logits:
                    sequence.sample(run.entry, self._context)
                elif sequence.prefill_only and not sequence.unread:
                    sequence.finish('stop')
            except Exception as exc:  # of this request alone
                sequence.fail(exc)

    def _account(self, step: list[tuple[Sequence, SlotRun]], seconds: float) -> None:
        """Note what was prefilled, and whom it kept waiting."""
        prefilled = {s: len(run.ids) for s, run in step if s.status is Status.PREFILL}
        for sequence, entries in prefilled.items():
            sequence.note_step(entries, seconds)
        for sequence in self.running:
            if sequence.status is Status.PREFILL:
                sequence.passed += sum(n for s, n in prefilled.items() if s is not sequence)

    def _isolate(self, step: list[tuple[Sequence, SlotRun]], error: VlmError) -> None:
        """Find out whose part of a step llama.cpp fails on; if on all, it is beyond help."""
        failed = 0
        for sequence, run in step:
            try:
                self._cache.run([run])  # the logits come with the next step
                self._cache.rewind(run.slot, len(run.slot.ids) - 1)
            except InferenceError as exc:
                failed += 1
                sequence.fail(exc)
        if failed == len(step) and not self._cache.works():
            self.dead = error
            for sequence in (*self.running, *self.waiting):
                sequence.fail(error)
