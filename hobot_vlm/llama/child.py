"""
A child process that may compute for so long, however busy the machine is.

What is measured is the processor time of its busiest thread: on a machine that does nothing else,
that is about the time that passes. A clock on the wall would end a good child where others compute
or an SD card is slow. Knows nothing of what the child does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import subprocess
import tempfile
from time import monotonic

#: Seconds in which a child uses no processor time at all until it counts as stuck. One that waits
#: for a slow disk uses a hundredth of a second, which is what Linux counts in, at every megabyte.
STILL = 60.0

#: A child that computes a little, and sleeps, ends after so many times of what it may compute: a
#: machine that gives it less than a tenth of one core will not run the model either.
PATIENCE = 10

#: Seconds between two looks; a child that ends is noticed sooner.
LOOK = 0.05


def run(
    command: Sequence[str], environment: Mapping[str, str], seconds: float
) -> tuple[int | None, bytes]:
    """
    Run a program until it ends, or has computed for too long.

    :param seconds: of processor time that each of its threads may take
    :return: how it ended, as ``subprocess`` says it, or None where it had to be ended; and what it
        wrote to stderr
    :raises OSError: it cannot be started
    """
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=words,
            env=environment,
        )
        try:
            status = _wait(child, seconds)
        finally:
            child.kill()
            child.wait()
        words.seek(0)
        return status, words.read()


def _wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    began = moved = monotonic()
    used = 0.0
    while True:
        try:
            return child.wait(LOOK)
        except subprocess.TimeoutExpired:
            pass
        now, before = monotonic(), used
        used = busiest(child.pid, now - began)
        if used != before:
            moved = now
        if used > seconds or now - moved > STILL or now - began > PATIENCE * seconds:
            return None


def busiest(pid: int, otherwise: float) -> float:
    """
    Give the processor time of the busiest thread of a process, in seconds.

    :param otherwise: what to give where the system does not tell
    """
    found = []
    try:
        for thread in Path(f'/proc/{pid}/task').iterdir():
            fields = (thread / 'stat').read_text(errors='replace').rpartition(')')[2].split()
            found.append(int(fields[11]) + int(fields[12]))  # utime and stime of proc(5)
    except (OSError, ValueError, IndexError):
        pass  # a thread that ended meanwhile, or no Linux
    return max(found) / os.sysconf('SC_CLK_TCK') if found else otherwise
