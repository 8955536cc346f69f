"""
The KV cache: which slot holds what, and who gives way when it is full.

A slot is one sequence of llama.cpp. It remembers what its cells hold, so that a prompt that starts
like an earlier one is not decoded again; cells of a prefix that several slots share are held once.
For the models served here positions and cells are the same numbers: no family uses M-RoPE.
"""

from __future__ import annotations

from collections.abc import Sequence
import ctypes
from dataclasses import dataclass
import weakref

from llama_cpp import llama_cpp as lib

from .context import Context, Entries, MAX_SEQUENCES, Outcome, Run
from ..errors import InferenceError


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the first ids that are the same."""
    low, high = 0, min(len(one), len(other))
    # whole lists compare much faster than id by id: halve towards the first difference
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Slot:
    """
    One sequence of the KV cache; made by ``KvCache``.

    ``ids`` is what its cells hold, as in ``Prompt.ids``; ``in_use`` says whether a request runs in
    it, which keeps its cells; ``private`` that they come from a file, which may hold anything:
    only its own conversation goes on with them.
    """

    def __init__(self, seq: int):
        self.seq = seq
        self.ids: list[int] = []
        self.in_use = self.private = False
        self.conversation: weakref.ref[object] | None = None

    @property
    def claimed(self) -> bool:
        """Whether it belongs to a conversation that still exists."""
        return self.conversation is not None and self.conversation() is not None


class _Bottom:
    """
    What the lowest cells hold, in order and without a hole.

    It grows as long as one slot alone is written.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._writer: Slot | None = None

    def start(self, ids: Sequence[int], writer: Slot | None) -> None:
        """Begin with what is left there; ``writer`` goes on behind it."""
        self.ids, self._writer = list(ids), writer

    def note(self, slot: Slot, ids: Sequence[int]) -> None:
        """Take note of what was written."""
        if slot is self._writer:
            self.ids += ids
        else:
            self._writer = None


@dataclass
class SlotRun:
    """
    What a slot is to read next.

    :param ids: of the entries
    :param entries: token ids and embeddings in turn
    :param logits: whether those of the last entry are wanted
    :param entry: place of the last entry in the batch, once it has run
    """

    slot: Slot
    ids: Sequence[int]
    entries: Sequence[Entries]
    logits: bool = False
    entry: int = -1


class KvCache:
    """
    All slots of a context.

    A conversation's slot stays its own until room is needed. Those used longest ago give way
    first, those of conversations last, and those in use never.
    """

    def __init__(self, context: Context):
        self.context = context
        self._slots = [Slot(seq) for seq in range(MAX_SEQUENCES)]  # least recently used first
        self._bottom = _Bottom()

    # -- slots -------------------------------------------------------------------------------

    def acquire(self, conversation: object | None, ids: Sequence[int]) -> Slot:
        """
        Give a slot that holds the longest known part of some ids, and is in use from now on.

        :param conversation: whose slot to use, and to keep; None: any
        :raises InferenceError: all slots are in use
        """
        slot = self.slot_of(conversation)
        if slot is None and not any(other.in_use for other in self._slots):
            slot = self._start_over(ids)
        if slot is None:
            slot = self._choose(ids)
            if slot.private:
                self.rewind(slot, 0)
        slot.in_use = True
        slot.conversation = None if conversation is None else weakref.ref(conversation)
        self._touch(slot)
        self.rewind(slot, common(slot.ids, ids))
        self.share(slot, ids)
        return slot

    def slot_of(self, conversation: object | None) -> Slot | None:
        """Give the idle slot that holds a conversation."""
        if conversation is None:
            return None
        for slot in self._slots:
            if slot.conversation and slot.conversation() is conversation and not slot.in_use:
                return slot
        return None

    def _choose(self, ids: Sequence[int]) -> Slot:
        """Choose a slot while others run: an empty one, or the one whose cells serve best."""
        idle = [slot for slot in self._slots if not slot.in_use]
        if not idle:
            raise InferenceError(f'all {MAX_SEQUENCES} slots of the KV cache are in use')
        free = [slot for slot in idle if not slot.claimed]
        empty = next((slot for slot in free if not slot.ids), None)
        return empty or max(free or idle[:1], key=lambda slot: common(slot.ids, ids))

    def _start_over(self, ids: Sequence[int]) -> Slot | None:
        """
        Keep only what is known of some ids in the lowest cells, and the slots of conversations.

        Attention passes over all cells up to the last one in use, so those that nobody reads make
        every token slower. And whoever begins while nothing runs has its cells in order, without
        holes between them: its sums of attention are always added up alike.
        """
        bottom = self._bottom
        length = common(bottom.ids, ids)
        free = [slot for slot in self._slots if slot.ids and not slot.claimed]
        holding = [s for s in free if not s.private and common(s.ids, ids) >= length > 0]
        kept = holding[0] if holding else None
        for slot in free:
            self.rewind(slot, length if slot is kept else 0)
        kept = kept or next((slot for slot in self._slots if not slot.ids), None)
        bottom.start(ids[:length] if holding else (), kept)
        return kept

    def share(self, slot: Slot, ids: Sequence[int]) -> None:
        """Let a slot start with all that any slot holds of some ids; no cell is copied."""
        public = [other for other in self._slots if not other.private]
        if not public:
            return
        best = max(public, key=lambda other: common(other.ids, ids))
        length = common(best.ids, ids)
        if length <= len(slot.ids) or not (self.context.rewinds or length == len(best.ids)):
            return
        self.rewind(slot, 0)
        lib.llama_memory_seq_cp(self.context.memory, best.seq, slot.seq, 0, length)
        slot.ids = list(ids[:length])
        self._touch(best)
        self._touch(slot)

    def release(self, slot: Slot) -> None:
        """Let a slot be used by others; what it holds stays as long as there is room."""
        slot.in_use = False

    def rewind(self, slot: Slot, length: int) -> None:
        """Forget all but the first ids of a slot."""
        if not lib.llama_memory_seq_rm(self.context.memory, slot.seq, length, -1):
            # a recurrent model cannot forget a part: forget all
            lib.llama_memory_seq_rm(self.context.memory, slot.seq, -1, -1)
            length = 0
        del slot.ids[length:]
        slot.private = slot.private and length > 0

    def _touch(self, slot: Slot) -> None:
        self._slots.remove(slot)
        self._slots.append(slot)

    def evict(self) -> bool:
        """Empty the idle slot that is needed least; False where there is none."""
        idle = [slot for slot in self._slots if slot.ids and not slot.in_use]
        if not idle:
            return False
        self.rewind(next((slot for slot in idle if not slot.claimed), idle[0]), 0)
        return True

    # -- decoding ----------------------------------------------------------------------------

    def run(self, runs: Sequence[SlotRun]) -> Outcome:
        """
        Decode one batch, emptying idle slots where it needs their room.

        :param runs: at most ``n_batch`` entries, one run a slot. Where the context does not mix,
            each has either tokens or embeddings, and only tokens want logits
        :return: DONE; else no slot has changed
        :raises InferenceError: llama.cpp failed; no slot has changed
        """
        batches: list[list[Run]] = [[], []]  # embeddings first: the logits are of the last batch
        lengths = [0, 0]
        for run in runs:
            at = len(run.slot.ids)
            for entries in run.entries:
                flat = Run(run.slot.seq, at, entries)
                number = 0 if flat.embedded or self.context.mixes else 1
                batches[number].append(flat)
                lengths[number] += len(entries)
                at += len(entries)
            flat.logits, run.entry = run.logits, lengths[number] - 1
        outcome = Outcome.DONE
        try:
            for batch in filter(None, batches):
                outcome = self._run(batch)
                if outcome is not Outcome.DONE:
                    break
        except InferenceError:
            outcome = Outcome.STOPPED
            raise
        finally:
            for run in runs:
                if outcome is Outcome.DONE:
                    run.slot.ids += run.ids
                    self._bottom.note(run.slot, run.ids)
                else:
                    self.rewind(run.slot, len(run.slot.ids))
        return outcome

    def _run(self, batch: list[Run]) -> Outcome:
        while (outcome := self.context.run(batch)) is Outcome.NO_ROOM and self.evict():
            pass
        return outcome

    def works(self) -> bool:
        """Say whether llama.cpp can still decode anything."""
        slot = next((s for s in self._slots if not s.ids and not s.in_use), None)
        try:
            return slot is None or self.run([SlotRun(slot, [0], [[0]])]) is not Outcome.NO_ROOM
        except InferenceError:
            return False
        finally:
            if slot is not None:
                self.rewind(slot, 0)

    # -- keeping -----------------------------------------------------------------------------

    def state(self, slot: Slot) -> bytearray:
        """
        Give all cells of a slot as llama.cpp writes them.

        :raises InferenceError: llama.cpp cannot
        """
        context = self.context.handle
        size = lib.llama_state_seq_get_size(context, slot.seq)
        data = bytearray(size)
        raw = (ctypes.c_uint8 * size).from_buffer(data)
        if lib.llama_state_seq_get_data(context, raw, size, slot.seq) != size:
            raise InferenceError(f'llama.cpp cannot save a sequence of {len(slot.ids)} cells')
        return data

    def restore(self, conversation: object, ids: Sequence[int], state: bytes) -> bool:
        """
        Give a conversation the cells that ``state`` wrote.

        :return: False if llama.cpp does not take them: they are damaged or do not fit
        """
        slot = self.acquire(conversation, ())
        try:
            while not self._write(slot, ids, state):
                if not self.evict():
                    return False
        finally:
            self.release(slot)
        return True

    def _write(self, slot: Slot, ids: Sequence[int], state: bytes) -> bool:
        self.rewind(slot, 0)
        data = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        size = lib.llama_state_seq_set_data(self.context.handle, data, len(state), slot.seq)
        memory = self.context.memory
        first_and_last = (
            lib.llama_memory_seq_pos_min(memory, slot.seq),
            lib.llama_memory_seq_pos_max(memory, slot.seq),
        )
        first = 0 if self.context.rewinds else len(ids) - 1  # a recurrent model keeps the last
        if size != len(state) or first_and_last != (first, len(ids) - 1):
            self.rewind(slot, 0)
            return False
        slot.ids, slot.private = list(ids), True
        return True
