"""
The KV cache: which slot holds what, and who gives way when it is full.

A slot is one sequence of llama.cpp. It remembers what its cells hold, so that a prompt that starts
like an earlier one is not decoded again; cells of a prefix that several slots share are held once.
A position is not the number of a cell: with M-RoPE all cells of a picture begin at one position,
and what follows stands as many positions later as the picture is high or wide.
"""

from __future__ import annotations

from collections.abc import Sequence
import ctypes
from dataclasses import dataclass
import weakref

from llama_cpp import llama_cpp as lib

from .context import alone, Context, Entries, is_embedded, MAX_SEQUENCES, Outcome, Run
from .ids import common, without_part
from ..errors import InferenceError


class Slot:
    """
    One sequence of the KV cache; made by ``KvCache``.

    ``ids`` is what its cells hold, as in ``Prompt.ids``, ``positions`` where each of them stands,
    and where the next one will; ``in_use`` says whether a request runs in it, which keeps its
    cells; ``private`` that they come from a file, which may hold anything: only its own
    conversation goes on with them; ``cut`` that layers with a sliding window lack their first
    cells, as llama.cpp saves no more than the window: such a slot grows, or is emptied.
    """

    def __init__(self, seq: int):
        self.seq = seq
        self.ids: list[int] = []
        self.positions = [0]
        self.in_use = self.private = self.cut = False
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
    :param positions: of each id and of what follows; empty: one after the other
    :param entry: place of the last entry in the batch, once it has run
    """

    slot: Slot
    ids: Sequence[int]
    entries: Sequence[Entries]
    logits: bool = False
    positions: Sequence[int] = ()
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
        positions = best.positions[: length + 1]
        lib.llama_memory_seq_cp(self.context.memory, best.seq, slot.seq, 0, positions[-1])
        slot.ids, slot.positions = list(ids[:length]), positions
        self._touch(best)
        self._touch(slot)

    def release(self, slot: Slot) -> None:
        """Let a slot be used by others; what it holds stays as long as there is room."""
        slot.in_use = False

    def rewind(self, slot: Slot, length: int) -> None:
        """Forget all but the first ids of a slot; a tile that must stay whole goes whole."""
        length = without_part(slot.ids, length)
        if slot.cut and length < len(slot.ids):
            length = 0
        first = slot.positions[length]
        if not lib.llama_memory_seq_rm(self.context.memory, slot.seq, first, -1):
            # a recurrent model cannot forget a part: forget all
            lib.llama_memory_seq_rm(self.context.memory, slot.seq, -1, -1)
            length = 0
        del slot.ids[length:], slot.positions[length + 1 :]
        slot.private, slot.cut = slot.private and length > 0, slot.cut and length > 0

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

        :param runs: one run a slot, and at most ``n_batch`` entries but for those that run alone.
            Where the context does not mix, each has either tokens or embeddings, and only tokens
            want logits
        :return: DONE; else no slot has changed, but that it may lack a tile that was not whole
        :raises InferenceError: llama.cpp failed; as above
        """
        outcome = Outcome.DONE
        try:
            for batch in self._batches(runs):
                outcome = self._run(batch)
                if outcome is not Outcome.DONE:
                    break
        except InferenceError:
            outcome = Outcome.STOPPED
            raise
        finally:
            for run in runs:
                if outcome is Outcome.DONE:
                    slot, last = run.slot, run.slot.positions[-1]
                    slot.ids += run.ids
                    slot.positions += run.positions[1:] or range(last + 1, last + 1 + len(run.ids))
                    self._bottom.note(slot, run.ids)
                else:
                    self.rewind(run.slot, len(run.slot.ids))
        return outcome

    def _batches(self, runs: Sequence[SlotRun]) -> list[list[Run]]:
        """Put entries together that may be; embeddings first: the logits are of the last batch."""
        embeddings: list[Run] = []
        tokens: list[Run] = []
        singles: list[list[Run]] = []
        for run in runs:
            at = run.slot.positions[-1]
            for entries in run.entries:
                flat = Run(run.slot.seq, at, entries)
                at += len(entries)
                mixed = is_embedded(entries) or self.context.mixes
                batch = [] if alone(entries) else embeddings if mixed else tokens
                batch.append(flat)
                if alone(entries):
                    singles.append(batch)
            flat.logits, run.entry = run.logits, sum(len(one.entries) for one in batch) - 1
        return [batch for batch in (embeddings, *singles, tokens) if batch]

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

    def state_of(self, conversation: object, ids: Sequence[int]) -> bytearray | None:
        """Give the cells of a conversation that begins with ids; None: others took its slot."""
        slot = self.slot_of(conversation)
        if slot is None or not ids or slot.ids[: len(ids)] != ids:
            return None
        self.rewind(slot, len(ids))
        return self.state(slot) if slot.ids == ids else None

    def restore(
        self, conversation: object, ids: Sequence[int], positions: Sequence[int], state: bytes
    ) -> bool:
        """
        Give a conversation the cells that ``state`` wrote.

        :param positions: of each id, and of what follows
        :return: False if llama.cpp does not take them: they are damaged or do not fit
        """
        slot = self.acquire(conversation, ())
        try:
            while not self._write(slot, ids, positions, state):
                if not self.evict():
                    return False
        finally:
            self.release(slot)
        return True

    def _write(
        self, slot: Slot, ids: Sequence[int], positions: Sequence[int], state: bytes
    ) -> bool:
        self.rewind(slot, 0)
        data = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        size = lib.llama_state_seq_set_data(self.context.handle, data, len(state), slot.seq)
        memory = self.context.memory
        first = lib.llama_memory_seq_pos_min(memory, slot.seq)
        last = positions[len(ids) - 1]
        kept = 0 if self.context.rewinds else last  # a recurrent model keeps the last
        cut = lib.llama_model_n_swa(self.context.model.handle) > 0 and first > kept
        if (
            size != len(state)
            or lib.llama_memory_seq_pos_max(memory, slot.seq) != last
            or (first != kept and not cut)
        ):
            self.rewind(slot, 0)
            return False
        slot.cut = cut
        slot.ids, slot.positions, slot.private = list(ids), list(positions), True
        return True
