"""
Cuts an answer into sentences, for speech.

Text in, pieces of it out; knows no ROS and no model.
"""

from __future__ import annotations

import re

#: Ends of sentences and the closing marks that may follow. An ASCII full stop, as in 3.5, ends
#: one only before a space; the full-width marks always do.
_SENTENCE_END = re.compile(r'(?:[。！？；…]+|[.!?;]+(?=[\s"\')\]”’])|\n)["\')\]”’」』）]*\s*')


class SentenceSplitter:
    """
    Cuts a stream of text into sentences, for speech, in every language.

    The pieces join to exactly the text that was fed.
    """

    def __init__(self) -> None:
        self._kept = ''

    def feed(self, text: str) -> list[str]:
        """Give the sentences that are finished now, with the space that follows them."""
        self._kept += text
        pieces: list[str] = []
        while True:
            # a mark at the very end may go on ("..", closing quote): wait for what follows
            end = next(
                (
                    m.end()
                    for m in _SENTENCE_END.finditer(self._kept)
                    if m.end() < len(self._kept) and self._kept[: m.end()].strip()
                ),
                0,
            )
            if not end:
                return pieces
            pieces.append(self._kept[:end])
            self._kept = self._kept[end:]

    def finish(self) -> list[str]:
        """Give the last piece, if there is one."""
        rest, self._kept = self._kept, ''
        return [rest] if rest else []
