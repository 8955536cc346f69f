"""
The KV cache of one sequence, and the only place that counts its cells.

A cell holds a token or one embedding of a picture. ``Session`` remembers what each cell holds,
so a prompt that starts like the last one is not decoded again. For the models served here
positions and cells are the same numbers: neither family uses M-RoPE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llama_cpp import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ..errors import PromptTooLong
from ..values import Control, Picture, Span, Text, Tokens
from .model import Decoder


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


def flatten(decoder: Decoder, spans: list[Span]) -> Prompt:
    """Turn spans into cells. Neighbouring texts are tokenised as one."""
    prompt = Prompt()
    bos = decoder.bos()
    if bos is not None and not (
            spans and isinstance(spans[0], Control) and decoder.controls[spans[0].token] == bos):
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


class Session:
    """One sequence of the decoder's KV cache."""

    def __init__(self, decoder: Decoder, seq: int = 0):
        self._decoder = decoder
        self._seq = seq
        self._cells: list[int] = []

    def __len__(self) -> int:
        return len(self._cells)

    def reusable(self, prompt: Prompt) -> int:
        """
        Count the first cells that need not be decoded again.

        The last one always is: its logits are wanted.
        """
        most = min(len(self._cells), len(prompt.cells) - 1)
        # whole lists compare much faster than cell by cell: halve towards the first difference
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self._cells[low:middle] == prompt.cells[low:middle]:
                low = middle
            else:
                high = middle - 1
        return low

    def prefill(self, prompt: Prompt, cancelled: Callable[[], bool]) -> bool:
        """
        Make the cells hold exactly this prompt, and have the logits of its last cell.

        :return: False if it was cancelled; the cells decoded until then are kept
        :raises PromptTooLong: before anything is decoded
        """
        total = len(prompt.cells)
        if total > self._decoder.n_ctx:
            raise PromptTooLong(total, self._decoder.n_ctx)
        at = self.reusable(prompt)
        self.rewind(at)
        # runs of tokens and of embeddings, each cut into batches
        ends = [(first, first + len(data), data) for first, data in prompt.pictures]
        while at < total:
            if cancelled():
                return False
            inside = next((p for p in ends if p[0] <= at < p[1]), None)
            if inside:
                first, end, data = inside
            else:
                first, data = at, None
                end = min((p[0] for p in ends if p[0] > at), default=total)
            end = min(end, at + self._decoder.n_batch)
            last = end == total
            if data is not None:
                done = self._decoder.run_embeddings(data[at - first:end - first], at, self._seq,
                                                    last)
            else:
                tokens = np.array(prompt.cells[at:end], np.int32)
                done = self._decoder.run_tokens(tokens, at, self._seq, last)
            if not done:
                self.rewind(at)
                return False
            self._cells += prompt.cells[at:end]
            at = end
        return True

    def append(self, token: int) -> bool:
        """
        Decode one token after the others.

        :return: False if it was stopped
        """
        at = len(self._cells)
        self._decoder.one_token[0] = token
        if not self._decoder.run_tokens(self._decoder.one_token, at, self._seq, True):
            self.rewind(at)
            return False
        self._cells.append(token)
        return True

    @property
    def full(self) -> bool:
        """Say whether no further token fits."""
        return len(self._cells) >= self._decoder.n_ctx

    def rewind(self, cells: int) -> None:
        """Forget all but the first cells."""
        if not lib.llama_memory_seq_rm(self._decoder.memory, self._seq, cells, -1):
            # a recurrent model cannot forget a part: forget all
            lib.llama_memory_seq_rm(self._decoder.memory, self._seq, -1, -1)
            cells = 0
        del self._cells[cells:]
