"""What this machine has to give, and what this process takes of it."""

from __future__ import annotations

import os
from pathlib import Path


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
