"""
Room in the KV cache: who may come in, who gives way, and who waits for a prefix of another.

Counts ids; decodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence as List

from .sequence import Sequence, Status
from ..errors import InferenceError
from ..llama.ids import common
from ..llama.kv_cache import KvCache

#: tokens of an answer that must fit before its request is admitted. Few answers are as long as
#: they may be, and one that grows beyond the room gives way and goes on later.
RESERVE = 64


class Room:
    """The cells of one KV cache, as far as requests share them."""

    def __init__(self, cache: KvCache):
        self._cache = cache
        self._n_ctx = cache.context.n_ctx
        self._own: dict[int, int] = {}  # number of a sequence -> cells that are its alone

    def admits(self, sequence: Sequence, running: List[Sequence]) -> bool:
        """Say whether a sequence may run beside others; what prompts share counts once."""
        shared = max((common(other.ids, sequence.ids) for other in running), default=0)
        own = len(sequence.ids) - shared
        left = sequence.config.n_predict - len(sequence.tokens)
        wanted = own + (left if sequence.preempted else min(left, RESERVE))
        self._own = {s.number: self._own[s.number] for s in running}
        taken = sum(
            self._own[s.number] + max(len(s.tokens), min(s.config.n_predict, RESERVE))
            for s in running
        )
        if running and taken + wanted > self._n_ctx:
            return False
        self._own[sequence.number] = own
        return True

    def follows(self, sequence: Sequence, prompts: List[Sequence]) -> bool:
        """
        Say whether another sequence is about to decode what this one begins with.

        What it has decoded already is shared here. Of two that could wait for each other, the one
        that has begun, or is further, or else is older, goes ahead.
        """
        if sequence.decoded or sequence.slot is None:
            return False
        self._cache.share(sequence.slot, sequence.prefix)

        def rank(one: Sequence) -> tuple[bool, int, int]:
            return bool(one.decoded), len(one.slot.ids) if one.slot else 0, -one.number

        return any(
            common(other.ids, sequence.prefix) > len(sequence.slot.ids)
            for other in prompts
            if other is not sequence
            and other.request.priority >= sequence.request.priority
            and rank(other) > rank(sequence)
        )

    def preempt(self, running: list[Sequence], waiting: list[Sequence]) -> None:
        """Let the youngest sequence of the lowest priority give way; it goes on later."""
        sequence = min(running, key=lambda s: (s.request.priority, -s.number))
        assert sequence.slot is not None
        if len(running) == 1:  # all the room is its own already
            if sequence.tokens:
                return sequence.finish('length')
            return sequence.fail(
                InferenceError(
                    f'the KV cache of {self._n_ctx} cells has no room for a prompt of '
                    f'{len(sequence.ids)}: raise n_ctx'
                )
            )
        self._cache.rewind(sequence.slot, 0)
        self._cache.release(sequence.slot)
        sequence.slot, sequence.status, sequence.preempted = None, Status.WAITING, True
        running.remove(sequence)
        waiting.append(sequence)
