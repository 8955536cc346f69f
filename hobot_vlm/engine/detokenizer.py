"""
From the bytes of tokens to what people read and hear.

Nothing here knows of models; text comes in pieces and leaves in pieces that join to the same text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
import re

from ..values import TextChunk

THINK_OPEN, THINK_CLOSE = '<think>', '</think>'

#: Ends of sentences and the closing marks that may follow. An ASCII full stop, as in 3.5, ends
#: one only before a space; the full-width marks always do.
_SENTENCE_END = re.compile(r'(?:[。！？；…]+|[.!?;]+(?=[\s"\')\]”’])|\n)["\')\]”’」』）]*\s*')


class Utf8Stream:
    """
    Joins the bytes of tokens into whole characters.

    A character may be spread over several tokens; bytes that can never become one turn into
    U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')

    def feed(self, data: bytes) -> str:
        """Give the characters that are whole now; may be empty."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Give what is left when no more bytes come."""
        return self._decoder.decode(b'', final=True)


class AnswerText:
    """
    Tells a model's reasoning from its answer, and leaves out the white space around both.

    Reasoning stands at the start of the text, between ``<think>`` and ``</think>``.
    """

    def __init__(self, thinking: bool = False) -> None:
        """:param thinking: the prompt ended with ``<think>``, so the text starts inside."""
        self._state = 'thinking' if thinking else 'start'
        self._held = ''
        self._begun = False  # whether the present part has given a character

    def feed(self, text: str) -> list[TextChunk]:
        """Give the chunks that are certain now."""
        self._held += text
        chunks: list[TextChunk] = []
        if self._state == 'start':
            head = self._held.lstrip()
            if head.startswith(THINK_OPEN):
                self._state, self._held = 'thinking', head[len(THINK_OPEN) :]
            elif not THINK_OPEN.startswith(head):
                self._state = 'answer'
        if self._state == 'thinking':
            inside, mark, after = self._held.partition(THINK_CLOSE)
            keep = 0
            if not mark:  # keep what may be the start of the closing mark
                keep = next(
                    (
                        n
                        for n in range(len(THINK_CLOSE) - 1, 0, -1)
                        if inside.endswith(THINK_CLOSE[:n])
                    ),
                    0,
                )
            self._held = inside[: len(inside) - keep]
            chunks += self._certain(thinking=True)
            self._held = after if mark else self._held + inside[len(inside) - keep :]
            if mark:
                self._state, self._begun = 'answer', False
        if self._state == 'answer':
            chunks += self._certain(thinking=False)
        return chunks

    def _certain(self, thinking: bool) -> list[TextChunk]:
        """Give what is held up to its last white space, which may turn out to be the end."""
        if not self._begun:
            self._held = self._held.lstrip()
        text = self._held.rstrip()
        self._held = self._held[len(text) :]
        self._begun = self._begun or bool(text)
        return [TextChunk(text, thinking)] if text else []

    def finish(self) -> list[TextChunk]:
        """Give what is left when no more text comes."""
        rest, self._held = self._held.rstrip(), ''
        if not self._begun:
            rest = rest.lstrip()
        return [TextChunk(rest, self._state == 'thinking')] if rest else []


class StopTexts:
    """Ends a text where one of some texts begins."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ''
        self.met = False

    def feed(self, text: str) -> str:
        """Give what is certain to stand before any of them."""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.met = True
            given, self._held = self._held[: min(found)], ''
            return given
        keep = max(
            (
                n
                for stop in self._stops
                for n in range(1, len(stop))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
        at = len(self._held) - keep
        given, self._held = self._held[:at], self._held[at:]
        return given

    def finish(self) -> str:
        """Give what is left when no more text comes."""
        rest, self._held = self._held, ''
        return rest


class SentenceSplitter:
    """
    Cuts a stream of text into sentences, for speech, in every language.

    The pieces join to exactly the text that was fed.
    """

    def __init__(self) -> None:
        self._held = ''

    def feed(self, text: str) -> list[str]:
        """Give the sentences that are finished now, with the space that follows them."""
        self._held += text
        pieces: list[str] = []
        while True:
            # a mark at the very end may go on ("..", closing quote): wait for what follows
            end = next(
                (
                    m.end()
                    for m in _SENTENCE_END.finditer(self._held)
                    if m.end() < len(self._held) and self._held[: m.end()].strip()
                ),
                0,
            )
            if not end:
                return pieces
            pieces.append(self._held[:end])
            self._held = self._held[end:]

    def finish(self) -> list[str]:
        """Give the last piece, if there is one."""
        rest, self._held = self._held, ''
        return [rest] if rest else []
