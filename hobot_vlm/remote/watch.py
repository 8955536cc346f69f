"""
A limit on silence that can be put off, as ``asyncio.timeout`` of Python 3.11 is.

Knows tasks; nothing of servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Silent(Exception):
    """Nobody put the end off in time."""


@asynccontextmanager
async def watched(deadline: float) -> AsyncIterator[Callable[[float], None]]:
    """
    End what runs inside at a moment; what is given puts that off, to so many seconds from then.

    :param deadline: by the clock of the loop
    :raises Silent: nobody did
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    silent = False

    def end() -> None:
        nonlocal silent
        silent = True
        task.cancel()

    timer = loop.call_at(deadline, end)

    def alive(seconds: float) -> None:
        nonlocal timer
        timer.cancel()
        timer = loop.call_later(seconds, end)

    try:
        yield alive
    except asyncio.CancelledError:
        if not silent:
            raise
        if hasattr(task, 'uncancel'):  # Python 3.11
            task.uncancel()
        raise Silent from None
    finally:
        timer.cancel()
