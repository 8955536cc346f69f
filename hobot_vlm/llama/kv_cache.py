"""
The KV cache, and the only place that counts its cells.

A cell holds a token or one embedding of a picture. A ``Session`` is one sequence of cells and
remembers what each holds, so a prompt that starts like the last one is not decoded again. The
``Cache`` lends sessions to whoever asks. For the models served here positions and cells are the
same numbers: neither family uses M-RoPE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import ctypes
from dataclasses import dataclass, field
from functools import partial
import weakref

from llama_cpp import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from .model import Decoder, MAX_SEQUENCES, Outcome
from ..errors import InferenceError, PromptTooLong
from ..values import Control, Picture, Span, Text, Tokens


@dataclass
class Prompt:
    """
    Spans as cells.

    :param cells: what each cell is to hold: a token id, or for an embedding a negative number
        that names its picture, tile and row
    :param pictures: (first cell, float32 (tokens, n_embd)) of each tile
    """

    cells: list[int] = field(default_factory=list)
    pictures: list[tuple[int, npt.NDArray[np.float32]]] = field(default_factory=list)

    @property
    def image_tokens(self) -> int:
        """Count the cells of pictures."""
        return sum(len(data) for _, data in self.pictures)

    @property
    def end_of_pictures(self) -> int:
        """Give the first cell after all pictures."""
        return max((first + len(data) for first, data in self.pictures), default=0)


def flatten(decoder: Decoder, spans: list[Span]) -> Prompt:
    """Turn spans into cells. Neighbouring texts are tokenised as one."""
    prompt = Prompt()
    bos = decoder.bos()
    if bos is not None and not (
        spans and isinstance(spans[0], Control) and decoder.controls[spans[0].token] == bos
    ):
        prompt.cells.append(bos)
    text = ''
    for span in [*spans, None]:
        if isinstance(span, Text):
            text += span.text
            continue
        if text:
            prompt.cells += tokenize_plainly(decoder, text)
            text = ''
        if isinstance(span, Control):
            prompt.cells.append(decoder.controls[span.token])
        elif isinstance(span, Tokens):
            prompt.cells += span.ids
        elif isinstance(span, Picture):
            data = span.embedding.data[span.tile]
            prompt.pictures.append((len(prompt.cells), data))
            first = (int.from_bytes(span.embedding.key, 'big') << 32) + (span.tile << 20) + 1
            prompt.cells += [-(first + row) for row in range(len(data))]
    return prompt


def tokenize_plainly(decoder: Decoder, text: str) -> list[int]:
    """
    Tokenise text in which nothing is a control token.

    llama.cpp leaves control tokens alone in plain text, but not those that a file lists as
    user-defined, such as <img> in some conversions. They are cut in two before.
    """
    pieces = [text]
    for mark in decoder.marks:
        if mark in text:
            half = [mark[:1], mark[1:]]
            pieces = [part for piece in pieces for part in _cut(piece, mark, half)]
    return [token for piece in pieces for token in decoder.tokenize(piece)]


def _cut(piece: str, mark: str, half: list[str]) -> list[str]:
    parts = piece.split(mark)
    parts[:-1] = [part + half[0] for part in parts[:-1]]
    parts[1:] = [half[1] + part for part in parts[1:]]
    return parts


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the first cells that hold the same."""
    low, high = 0, min(len(one), len(other))
    # whole lists compare much faster than cell by cell: halve towards the first difference
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Session:
    """One sequence of the KV cache; made by ``Cache``."""

    def __init__(self, cache: Cache, seq: int):
        self._cache = cache
        self._decoder = cache.decoder
        self.seq = seq
        self.cells: list[int] = []  # what each holds, as in Prompt.cells
        self.row = -1  # of the last step that holds the logits of the last cell
        self.held = False  # by an answer that is being made: keeps its cells

    def reusable(self, prompt: Prompt) -> int:
        """
        Count the first cells that need not be decoded again.

        The last one of a prompt always is: its logits are wanted.
        """
        return common(self.cells, prompt.cells[:-1])

    def prefill(
        self, prompt: Prompt, cancelled: Callable[[], bool], until: int | None = None
    ) -> bool:
        """
        Make the cells hold exactly this prompt, or its first ``until`` cells if those are more.

        :return: False if it was cancelled; the cells decoded until then are kept
        :raises PromptTooLong: before anything is decoded
        """
        total = len(prompt.cells)
        if total > self._decoder.n_ctx:
            raise PromptTooLong(total, self._decoder.n_ctx)
        self.rewind(self.reusable(prompt))
        # runs of tokens and of embeddings, each cut into batches
        pictures = [(first, first + len(data), data) for first, data in prompt.pictures]
        total = total if until is None else until
        while (at := len(self.cells)) < total:
            if cancelled():
                return False
            first, end, data = next((p for p in pictures if p[1] > at), (total, total, None))
            end = min(first if at < first else end, total, at + self._decoder.n_batch)
            if at < first or data is None:
                tokens = np.array(prompt.cells[at:end], np.int32)
                run = partial(self._decoder.run_tokens, tokens, at, self.seq)
            else:
                rows = data[at - first : end - first]
                run = partial(self._decoder.run_embeddings, rows, at, self.seq)
            if not self._keep(prompt.cells[at:end], run):
                return False
        return True

    def _keep(self, cells: list[int], run: Callable[[], Outcome]) -> bool:
        """Run a batch and note its cells; False if it was stopped."""
        if not self._cache.run(run, {self}):
            self.rewind(len(self.cells))
            return False
        self.cells += cells
        return True

    @property
    def full(self) -> bool:
        """Say whether no further token fits."""
        return len(self.cells) >= self._decoder.n_ctx

    def rewind(self, cells: int) -> None:
        """Forget all but the first cells."""
        memory = self._decoder.memory
        if not lib.llama_memory_seq_rm(memory, self.seq, cells, -1):
            # a recurrent model cannot forget a part: forget all
            lib.llama_memory_seq_rm(memory, self.seq, -1, -1)
            cells = 0
        del self.cells[cells:]

    def state(self) -> memoryview:
        """Give all cells as llama.cpp writes them."""
        context = self._decoder.context
        size = lib.llama_state_seq_get_size(context, self.seq)
        data = (ctypes.c_uint8 * size)()
        if lib.llama_state_seq_get_data(context, data, size, self.seq) != size:
            raise InferenceError(f'llama.cpp cannot save a sequence of {len(self.cells)} cells')
        return memoryview(data)

    def take(self, cells: list[int], state: bytes) -> bool:
        """Hold the cells that ``state`` wrote; False if llama.cpp does not take them."""
        self.rewind(0)
        data = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        size = lib.llama_state_seq_set_data(self._decoder.context, data, len(state), self.seq)
        memory = self._decoder.memory
        first_and_last = (
            lib.llama_memory_seq_pos_min(memory, self.seq),
            lib.llama_memory_seq_pos_max(memory, self.seq),
        )
        if size != len(state) or first_and_last != (0, len(cells) - 1):
            self.rewind(0)
            return False
        self.cells = list(cells)
        return True


class Cache:
    """
    All sequences of a decoder's KV cache.

    Sessions belong to owners and stay theirs, cells and all, until another owner needs the room;
    those that were used longest ago give way first, and those that are held never. An owner that
    no longer exists gives way before all others.
    """

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        # least recently used first
        self._sessions = [Session(self, seq) for seq in range(MAX_SEQUENCES)]
        self._owners: dict[int, weakref.ref[object]] = {}

    def _owner(self, session: Session) -> object | None:
        return self._owners.get(session.seq, lambda: None)()

    def session(self, owner: object, prompt: Prompt) -> Session:
        """
        Give the owner's session, which then starts with all that any session knows of a prompt.

        Cells that two sessions share, such as a system prompt, are held once.
        """
        self._free_orphans()
        chosen = next((s for s in self._sessions if self._owner(s) is owner), None)
        if chosen is None:
            chosen = next((s for s in self._sessions if not s.cells), self._sessions[0])
            chosen.rewind(0)
            self._owners[chosen.seq] = weakref.ref(owner)
        self._sessions.remove(chosen)
        self._sessions.append(chosen)
        known = chosen.reusable(prompt)
        # of equals the one used last: sessions in use then share their cells with each other
        best = max(reversed(self._sessions), key=lambda s: s.reusable(prompt))
        shared = best.reusable(prompt)
        if shared > known:
            chosen.rewind(0)
            lib.llama_memory_seq_cp(self.decoder.memory, best.seq, chosen.seq, 0, shared)
            chosen.cells = prompt.cells[:shared]
        return chosen

    def restore(self, owner: object, cells: list[int], state: bytes) -> bool:
        """
        Give an owner the cells that ``Session.state`` wrote.

        :return: False if llama.cpp does not take them: they are damaged or do not fit
        """
        session = self.session(owner, Prompt())
        others = [s for s in self._sessions if s.cells and s is not session]
        while not session.take(cells, state):
            if not others:
                return False
            others.pop(0).rewind(0)  # the one that was used longest ago
        return True

    def run(self, run: Callable[[], Outcome], users: set[Session]) -> bool:
        """
        Run a batch, making room for it if need be.

        :param users: sessions of the batch, which keep their cells
        :return: False if it was stopped
        """
        while (outcome := run()) is Outcome.NO_ROOM:
            for session in self._sessions:
                if session.cells and not session.held and session not in users:
                    session.rewind(0)
                    break
            else:
                raise InferenceError(
                    f'the KV cache of {self.decoder.n_ctx} cells is full: raise n_ctx, or ask '
                    'fewer questions at once'
                )
        return outcome is Outcome.DONE

    def step(self, runs: Sequence[tuple[Session, Sequence[int]]]) -> bool:
        """
        Decode some tokens after the cells of each session; have the logits of the last of each.

        :param runs: at most ``n_batch`` tokens in all
        :return: False if it was stopped
        """
        if not runs:
            return True
        rows = [
            (token, len(session.cells) + i, session.seq, i == len(tokens) - 1)
            for session, tokens in runs
            for i, token in enumerate(tokens)
        ]
        done = self.run(lambda: self.decoder.run_rows(rows), {session for session, _ in runs})
        row = -1
        for session, tokens in runs:
            row += len(tokens)
            if done:
                session.cells += tokens
                session.row = row
            else:
                session.rewind(len(session.cells))
        return done

    def _free_orphans(self) -> None:
        for session in self._sessions:
            if session.cells and self._owner(session) is None:
                session.rewind(0)
