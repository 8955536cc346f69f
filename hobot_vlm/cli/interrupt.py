"""
Ctrl-C: quietly out, at any moment.

Imports next to nothing, because it is to be in force before everything else is imported.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would be an import
    from typing import Any

EXIT_INTERRUPTED = 130  # as shells have it: 128 + SIGINT


def leave(*_: object) -> None:
    """
    End the process at once, without a word.

    A handler that raises would not do: an import may swallow KeyboardInterrupt, and a library
    that is loaded may print it.
    """
    if sys.stderr.isatty():
        os.write(2, b'\n')  # below the ^C that the terminal shows
    os._exit(EXIT_INTERRUPTED)


class OnCtrlC:
    """
    Has something called at Ctrl-C; it may run between any two steps of the main thread.

    In another thread than the main one it does nothing: signals are not ours there.
    """

    def __init__(self, handler: Any, for_good: bool = False):
        """
        Choose what is called.

        :param for_good: leave it so afterwards
        """
        self._handler = handler
        self._for_good = for_good
        self._before: Any = None

    def __enter__(self) -> OnCtrlC:
        try:
            self._before = signal.signal(signal.SIGINT, self._handler)
        except ValueError:  # not the main thread
            self._for_good = True
        return self

    def __exit__(self, *_exc: object) -> None:
        if not self._for_good:
            signal.signal(signal.SIGINT, self._before)
