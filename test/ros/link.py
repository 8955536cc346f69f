"""
Two machines on one: network namespaces, and between them a link as slow as a busy Wi-Fi.

The link is two network devices and this process, which hands frames from one to the other, each
after its time. So it needs no scheduler of the kernel, but root, and ``ip``.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
import fcntl
import os
from pathlib import Path
import select
import shutil
import struct
import subprocess
import sys
import threading
import time

TUN = '/dev/net/tun'
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
FRAME = 1 << 16
#: bytes that may wait for the link; more are lost, as in a router
QUEUE = 1 << 20


def forbidden() -> str:
    """Say why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return 'network namespaces need root'
    if not shutil.which('ip') or not Path(TUN).exists():
        return f'there is no `ip` or no {TUN} here'
    name = f'hobot-try-{os.getpid()}'
    done = subprocess.run(['ip', 'netns', 'add', name], capture_output=True, text=True)
    subprocess.run(['ip', 'netns', 'del', name], capture_output=True)
    return f'no network namespace can be made: {done.stderr.strip()}' if done.returncode else ''


class Link:
    """
    Two namespaces, ``left`` and ``right``, from the beginning of a ``with`` to its end.

    :param delay: seconds from one end to the other
    :param rate: bits per second, each way
    """

    def __init__(self, delay: float, rate: float):
        self.names = [f'hobot-{word}-{os.getpid()}' for word in ('left', 'right')]
        self.delay, self.rate = delay, rate
        self.frames = [0, 0]  # from each
        self._ends: list[int] = []
        self._stopping = threading.Event()

    def __enter__(self):
        try:
            for number, name in enumerate(self.names):
                device = f'tap{os.getpid() % 10**6}{number}'
                self._ip('netns', 'add', name)
                self._ends.append(os.open(TUN, os.O_RDWR | os.O_NONBLOCK))
                flags = struct.pack('16sH', device.encode(), IFF_TAP | IFF_NO_PI)
                fcntl.ioctl(self._ends[-1], TUNSETIFF, flags)
                self._ip('link', 'set', device, 'netns', name)
                self._ip('-n', name, 'addr', 'add', f'10.77.0.{number + 1}/24', 'dev', device)
                self._ip('-n', name, 'link', 'set', device, 'up')
                self._ip('-n', name, 'link', 'set', 'lo', 'up')
        except BaseException:
            self.__exit__()
            raise
        self._threads = [
            threading.Thread(target=self._carry, args=(number,), daemon=True) for number in (0, 1)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self._stopping.set()
        for thread in getattr(self, '_threads', ()):
            thread.join()
        for end in self._ends:
            os.close(end)
        for name in self.names:
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True)

    @staticmethod
    def _ip(*arguments):
        subprocess.run(['ip', *arguments], check=True, capture_output=True)

    def _carry(self, number):
        """Hand on frames from one end, each when it has passed the link."""
        source, target = self._ends[number], self._ends[1 - number]
        waiting: deque[tuple[float, bytes]] = deque()
        size, free = 0, 0.0  # bytes that wait; when the link can begin with the next frame
        while not self._stopping.is_set():
            pause = min(max(waiting[0][0] - time.monotonic(), 0), 0.1) if waiting else 0.1
            if select.select([source], [], [], pause)[0]:
                with suppress(BlockingIOError):
                    frame = os.read(source, FRAME)
                    if size + len(frame) <= QUEUE:
                        free = max(free, time.monotonic()) + 8 * len(frame) / self.rate
                        waiting.append((free + self.delay, frame))
                        size += len(frame)
                        self.frames[number] += 1
            while waiting and waiting[0][0] <= time.monotonic():
                frame = waiting.popleft()[1]
                size -= len(frame)
                with suppress(OSError):  # the other end is going down
                    os.write(target, frame)

    def run(self, number, *arguments, **more):
        """Start Python in a namespace."""
        command = ['ip', 'netns', 'exec', self.names[number], sys.executable, *arguments]
        return subprocess.Popen(command, **more)
