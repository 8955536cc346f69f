"""What may go wrong with a server, in the words of whoever decides what to do next."""

from __future__ import annotations

#: characters of what a server says that an error repeats
ECHO = 200


class Trouble(Exception):
    """
    A server did not answer.

    :param why: for people
    :param away: nobody else is to try it for a while
    :param again: another try may have an answer
    :param wait: seconds that it asks for before that
    :param full: the conversation is too long for it
    """

    def __init__(
        self,
        why: str,
        *,
        away: bool = False,
        again: bool = False,
        wait: float = 0.0,
        full: bool = False,
    ) -> None:
        super().__init__(why)
        self.away = away
        self.again = again
        self.wait = wait
        self.full = full


def shortened(text: object) -> str:
    """Give the beginning of what a server says, in one line and fit to print."""
    words = ' '.join(str(text)[: 2 * ECHO].split())
    words = ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in words)
    return words if len(words) <= ECHO else words[:ECHO] + '…'
