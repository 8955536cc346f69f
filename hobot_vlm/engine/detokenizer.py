"""
From the bytes of tokens to what people read: whole characters, stop texts, reasoning.

Nothing here knows of models; text comes in pieces and leaves in pieces that join to the same text.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ..values import TextChunk

THINK_OPEN, THINK_CLOSE = '<think>', '</think>'


class Detokenizer:
    """
    Turns the tokens of one answer into chunks.

    ``stopped`` says whether a stop text was met.

    :param stops: texts that end the answer
    :param thinking: the prompt ended with ``<think>``, so the answer starts in its reasoning
    """

    def __init__(self, stops: Sequence[str] = (), thinking: bool = False):
        self._characters = Utf8Stream()
        self._stops = StopTexts(stops)
        self._answer = AnswerText(thinking)

    @property
    def stopped(self) -> bool:
        """Whether a stop text was met."""
        return self._stops.met

    def feed(self, data: bytes) -> list[TextChunk]:
        """Give the chunks that are certain now."""
        return self._answer.feed(self._stops.feed(self._characters.feed(data)))

    def finish(self) -> list[TextChunk]:
        """Give what is left when no more tokens come."""
        rest = '' if self.stopped else self._stops.feed(self._characters.finish())
        if not self.stopped:
            rest += self._stops.finish()
        return [*self._answer.feed(rest), *self._answer.finish()]


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
        self._kept = ''
        self._begun = False  # whether the present part has given a character

    def feed(self, text: str) -> list[TextChunk]:
        """Give the chunks that are certain now."""
        self._kept += text
        chunks: list[TextChunk] = []
        if self._state == 'start':
            head = self._kept.lstrip()
            if head.startswith(THINK_OPEN):
                self._state, self._kept = 'thinking', head[len(THINK_OPEN) :]
            elif not THINK_OPEN.startswith(head):
                self._state = 'answer'
        if self._state == 'thinking':
            inside, mark, after = self._kept.partition(THINK_CLOSE)
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
            self._kept = inside[: len(inside) - keep]
            chunks += self._certain(thinking=True)
            self._kept = after if mark else self._kept + inside[len(inside) - keep :]
            if mark:
                self._state, self._begun = 'answer', False
        if self._state == 'answer':
            chunks += self._certain(thinking=False)
        return chunks

    def _certain(self, thinking: bool) -> list[TextChunk]:
        """Give what is kept up to its last white space, which may turn out to be the end."""
        if not self._begun:
            self._kept = self._kept.lstrip()
        text = self._kept.rstrip()
        self._kept = self._kept[len(text) :]
        self._begun = self._begun or bool(text)
        return [TextChunk(text, thinking)] if text else []

    def finish(self) -> list[TextChunk]:
        """Give what is left when no more text comes."""
        rest, self._kept = self._kept.rstrip(), ''
        if not self._begun:
            rest = rest.lstrip()
        return [TextChunk(rest, self._state == 'thinking')] if rest else []


class StopTexts:
    """Ends a text where one of some texts begins."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._kept = ''
        self.met = False

    def feed(self, text: str) -> str:
        """Give what is certain to stand before any of them."""
        self._kept += text
        found = [at for at in (self._kept.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.met = True
            given, self._kept = self._kept[: min(found)], ''
            return given
        keep = max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), len(self._kept) + 1))
                if self._kept.endswith(stop[:n])
            ),
            default=0,
        )
        at = len(self._kept) - keep
        given, self._kept = self._kept[:at], self._kept[at:]
        return given

    def finish(self) -> str:
        """Give what is left when no more text comes."""
        rest, self._kept = self._kept, ''
        return rest
