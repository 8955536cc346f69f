"""What this machine has to give, and what this process takes of it."""

from __future__ import annotations

from contextlib import suppress
import ctypes
import os
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar('T')

M_ARENA_MAX = -8  # of glibc's malloc.h

#: seconds that the main thread sleeps at most where a signal must reach it: the kernel may hand it
#: to any thread, Python calls its handler in the main one alone, and nothing wakes that one
SIGNAL_SECONDS = 0.2


def take(things: SimpleQueue[T]) -> T:
    """Wait for the next of a queue, and let signals be met meanwhile."""
    while True:
        with suppress(Empty):
            return things.get(timeout=SIGNAL_SECONDS)


def usable_cores() -> int:
    """Count the cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def resident_bytes() -> int:
    """Give the memory that this process occupies."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def memory_bytes() -> tuple[int, int]:
    """Give the memory of this machine: all of it, and what is free or could be."""
    with open('/proc/meminfo', encoding='ascii') as file:
        lines = dict(line.split(':') for line in file)
    whole, free = (1024 * int(lines[name].split()[0]) for name in ('MemTotal', 'MemAvailable'))
    return whole, free


def return_free_memory() -> None:
    """
    Give memory that was freed back to the system.

    glibc keeps it for the next request, and after a run of a large model that is a lot. Takes
    some milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:  # only glibc has it
        trim(0)


def share_one_heap() -> None:
    """
    Let all threads allocate from one heap; best called before there are any.

    glibc gives each a heap of its own. Pictures go from thread to thread, and would leave holes of
    their size in every one.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:  # only glibc has it
        mallopt(M_ARENA_MAX, 1)
