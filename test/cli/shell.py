"""The ``vlm`` command in a process of its own, on pipes or at a terminal."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

from hobot_vlm.values import Reply

ROOT = Path(__file__).parents[2]
VLM = [sys.executable, '-m', 'hobot_vlm']
#: lets an answer never end by itself
ENDLESS = ['--grammar', 'root ::= "x" root', '--n-predict', '100000']
REPLY = set(Reply('').as_dict())


def start(*args, program=VLM, **streams):
    """Start the command, or another program; give the process."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    return subprocess.Popen([*program, *map(str, args)], cwd=ROOT, **(streams or pipes))


def complaint(result, status=2):
    """Give the one line in which a command says why it failed."""
    assert result[0] == status and result[1] == ''
    assert result[2].startswith('vlm: ') and result[2].count('\n') == 1
    return result[2]


class Screen:
    """A process at a terminal of its own."""

    def __init__(self, *args, columns=120, **more):
        self._main, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack('4H', 24, columns, 0, 0))
        self.process = start(
            *args,
            **{'stdin': child, 'stdout': child, 'stderr': child, **more},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child)
        self.text = ''

    def type(self, text):
        os.write(self._main, text.encode())

    def until(self, words, seconds=60):
        """Read until the words appear; give what came before and forget it all."""
        end = time.monotonic() + seconds
        while words not in self.text:
            ready, _, _ = select.select([self._main], [], [], max(0, end - time.monotonic()))
            assert ready, f'{words!r} never came; the screen shows {self.text!r}'
            try:
                self.text += os.read(self._main, 4096).decode(errors='replace')
            except OSError as exc:  # the process has ended
                raise AssertionError(
                    f'{words!r} never came; the screen shows {self.text!r}'
                ) from exc
        before, _, self.text = self.text.partition(words)
        return before

    def rest(self):
        """Read until the process ends; give all of it."""
        while True:
            try:
                part = os.read(self._main, 4096)
            except OSError:
                break
            if not part:
                break
            self.text += part.decode(errors='replace')
        text, self.text = self.text, ''
        return text

    def interrupt(self):
        """Send what the terminal sends at Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        os.close(self._main)
        return self.process.wait()
