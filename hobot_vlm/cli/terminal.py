"""
What the terminal wants: a line that says what takes so long, lines that break at words.

Knows no models.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
import os
import sys
import threading
import time
from typing import TypeVar
import unicodedata

from ..machine import SIGNAL_SECONDS

T = TypeVar('T')

EXIT_ERROR = 2
EXIT_PIPE = 141  # 128 + SIGPIPE

#: columns where nobody says how many there are
FALLBACK = 80

#: Chinese and Japanese marks that may not begin a line
CLOSING = frozenset('，。！？；：、）》〉」』】〕”’…·％')


def beside(work: Callable[[], T]) -> T:
    """
    Run something in another thread, and wait for it.

    Python runs a signal's handler between two of its own steps, and loading a model is one long
    step of C: so that goes elsewhere while the main thread waits for Ctrl-C too.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    over = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as exc:
            errors.append(exc)
        over.set()

    threading.Thread(target=run, name='load', daemon=True).start()
    while not over.wait(SIGNAL_SECONDS):  # a signal that another thread has met wakes nobody
        pass
    if errors:
        raise errors[0]
    return results[0]


# -- stderr -----------------------------------------------------------------------------------


def say(text: str) -> None:
    """Say something to the user that is no part of the output."""
    for one in list(_waiting):
        one.wipe()
    if sys.stderr.isatty():
        lines = Lines()
        text = lines.feed(text) + lines.end()
    print(text, file=sys.stderr, flush=True)


def complain(exc: Exception | str) -> None:
    """Say in one line what went wrong."""
    say(f'vlm: {" ".join(str(exc).split())}')


#: lines that are on the terminal now
_waiting: list[Waiting] = []


class Waiting:
    """
    A line on the terminal that says what takes so long; none where stderr is no terminal.

    :param news: what to say instead of the first text and its seconds, asked whenever the line is
        drawn; empty: nothing
    """

    def __init__(self, text: str = '', news: Callable[[], str] = str) -> None:
        self._text = text
        self._news = news
        self._since = time.monotonic()
        self._width = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Waiting:
        if sys.stderr.isatty():
            _waiting.append(self)
            self._tick_once()
            self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.hide()
        self._over.set()
        if self in _waiting:
            _waiting.remove(self)

    def show(self, text: str) -> None:
        """Say what is waited for from now on."""
        with self._lock:
            if text != self._text:
                self._text, self._since, self._news = text, time.monotonic(), str

    def hide(self) -> None:
        """Take the line away."""
        with self._lock:
            self._text = ''
            self._draw('')

    def wipe(self) -> None:
        """Take the line away until it is drawn again."""
        with self._lock:
            self._draw('')

    def _tick(self) -> None:
        while not self._over.wait(0.2):
            self._tick_once()

    def _tick_once(self) -> None:
        with self._lock:
            if self._text:
                waited = f'{self._text} … {time.monotonic() - self._since:.1f} s'
                self._draw(self._news() or waited)

    def _draw(self, line: str) -> None:
        line = cut(line, columns() - 1)
        if line or self._width:
            # spaces instead of an escape sequence: right on every terminal
            gap = ' ' * (self._width - width_of(line))
            sys.stderr.write('\r' + line + gap + ('' if line else '\r'))
            sys.stderr.flush()
        self._width = width_of(line)


# -- columns ----------------------------------------------------------------------------------


def columns() -> int:
    """Give the width of the terminal as it is now; COLUMNS may be from before."""
    for number in (1, 2):
        with suppress(OSError):
            return os.get_terminal_size(number).columns or FALLBACK
    return FALLBACK


def width_of(text: str) -> int:
    """Give the columns that a text takes."""
    return sum(map(_width, text))


def _width(char: str) -> int:
    if char.isascii():
        return 1
    if unicodedata.category(char) in ('Mn', 'Me', 'Cf'):  # drawn on the character before
        return 0
    return 2 if unicodedata.east_asian_width(char) in 'WF' else 1


def cut(text: str, width: int) -> str:
    """Give as much of a text as fits, and … where it does not."""
    if width_of(text) <= width:
        return text
    kept, used = '', 1
    for char in text:
        used += _width(char)
        if used > width:
            break
        kept += char
    return kept.rstrip() + '…'


class Lines:
    """
    Breaks text between words at the terminal's edge, while it comes.

    A word is held back until the next one begins. Chinese may break behind any character, but for
    closing marks; a word wider than the terminal is left to it. Control characters, with which a
    model could rewrite the screen, are dropped.
    """

    def __init__(self, width: Callable[[], int] = columns):
        self._width = width
        self._column = 0
        self._space = ''
        self._word = ''

    def feed(self, text: str) -> str:
        """Take a piece of text; give what can be printed now."""
        out = ''
        for char in text:
            if char == '\n':
                out += self._flush() + '\n'
                self._column, self._space = 0, ''
            elif char in ' \t':
                out += self._flush()
                self._space += ' '
            elif unicodedata.category(char) == 'Cc':
                continue
            else:
                if self._breaks_before(char):
                    out += self._flush()
                self._word += char
                if width_of(self._word) >= self._width():
                    out += self._flush()
        return out

    def end(self) -> str:
        """Give what is left."""
        out = self._flush()
        self._column, self._space = 0, ''
        return out

    def _breaks_before(self, char: str) -> bool:
        if not self._word or char in CLOSING or not _width(char):
            return False
        if self._word[-1] == '\u200d':  # joins two emoji into one
            return False
        return _width(char) == 2 or _width(self._word[-1]) == 2 or self._word[-1] in CLOSING

    def _flush(self) -> str:
        if not self._word:
            return ''
        wide = width_of(self._word)
        out = self._space
        if self._column and self._column + len(self._space) + wide > self._width():
            out, self._column = '\n', 0
        else:
            self._column += len(self._space)
        out += self._word
        self._column = (self._column + wide - 1) % self._width() + 1
        self._word = self._space = ''
        return out
