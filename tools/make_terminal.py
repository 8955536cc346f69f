"""
Record the terminals that the documents show: a real shell, at a real pseudo-terminal.

``python tools/make_terminal.py`` writes terminal.svg and terminal_cn.svg into docs: what is typed
stands in ``SESSIONS``, all else is what the programs wrote. The pictures stand still, so that
nobody who comes to them late has missed something.
"""

from __future__ import annotations

import argparse
import fcntl
import os
from pathlib import Path
import pty
import re
import select
import struct
import sys
import tempfile
import termios
import time
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
SAMPLE = 'hobot_vlm/demo/sample.png'

#: file -> the lines that are typed, each with the prompt behind which it is typed
SESSIONS = {
    'terminal.svg': [
        ('$ ', f'vlm ask "Describe the picture." {SAMPLE}'),
        ('$ ', 'vlm chat config/image2.jpg'),
        ('> ', 'What is on the left?'),
        ('> ', 'What colour is the background?'),
        ('> ', '/bye'),
    ],
    'terminal_cn.svg': [
        ('$ ', f'vlm ask "描述一下这张图片。" {SAMPLE}'),
        ('$ ', 'vlm chat config/image2.jpg'),
        ('> ', '左边是什么？'),
        ('> ', '背景是什么颜色？'),
        ('> ', '/bye'),
    ],
}
COLUMNS = 84
LIMIT = 60.0  # seconds for any one line
CELL, LINE, EDGE = 8.4, 20, 16  # pixels: a character of 14 pixels, a line, the margin
COLOURS = ('#e0605a', '#dfa93f', '#59b55c')  # of the dots at the top

#: escape sequences; none that the programs write moves the cursor
ESCAPE = re.compile(r'\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])')


class Screen:
    """
    What a terminal shows of what was written to it: text, new lines and carriage returns.

    :ivar lines: from the first that was written
    """

    def __init__(self) -> None:
        self.lines = ['']
        self._column = 0

    def write(self, text: str) -> None:
        """Show more text."""
        for letter in ESCAPE.sub('', text):
            if letter == '\n':
                self.lines.append('')
                self._column = 0
            elif letter == '\r':
                self._column = 0
            elif letter == '\b':
                self._column = max(0, self._column - 1)
            elif letter >= ' ':
                line, column = self.lines[-1], self._column
                self.lines[-1] = line[:column] + letter + line[column + 1 :]
                self._column += 1


def record(typed: list[tuple[str, str]]) -> list[str]:
    """Type lines into a shell; give what its terminal shows at the end."""
    screen, cut = Screen(), b''
    with tempfile.TemporaryDirectory() as home:
        process, terminal = pty.fork()
        if not process:
            os.chdir(ROOT)
            os.environ.update(
                PS1='$ ', XDG_STATE_HOME=home, HF_HUB_CACHE=home, TERM='xterm', LANG='C.UTF-8',
                PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
            )  # fmt: skip
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('4H', 40, COLUMNS, 0, 0))
            os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])
        lines = 0
        for prompt, line in [*typed, ('$ ', '')]:
            end = time.monotonic() + LIMIT
            while len(screen.lines) <= lines or screen.lines[-1] != prompt:
                if not select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise SystemExit(f'{prompt!r} never came: {screen.lines!r}')
                part = cut + os.read(terminal, 4096)
                text = part.decode(errors='ignore')  # what is cut in two comes with the next part
                cut = part[len(text.encode()) :]
                screen.write(text)
            lines = len(screen.lines)
            if line:
                os.write(terminal, f'{line}\r'.encode())
        os.close(terminal)
        os.waitpid(process, 0)
    return screen.lines[:-1]


def draw(lines: list[str], title: str) -> str:
    """Write a terminal as SVG."""
    width, height = COLUMNS * CELL + 2 * EDGE, (len(lines) + 1) * LINE + 2 * EDGE
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}">',
        f'<title>{escape(title)}</title>',
        '<style>',
        'text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, "Noto Sans Mono CJK '
        'SC", monospace; fill: #d7dce2; white-space: pre }',
        '.typed { fill: #8fd18f }',
        '</style>',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#1b2028"/>',
    ]
    out += [
        f'<circle cx="{EDGE + 4 + 18 * i}" cy="{EDGE}" r="5" fill="{colour}"/>'
        for i, colour in enumerate(COLOURS)
    ]
    for i, line in enumerate(map(str.rstrip, lines)):
        if line:
            kind = ' class="typed"' if line.startswith(('$ ', '> ')) else ''
            # fonts differ in their width; those of Chinese also in how wide a space beside it is
            fit = f' textLength="{len(line) * CELL:.1f}"' if line.isascii() else ''
            y = EDGE + (i + 2) * LINE - 6
            out.append(f'<text x="{EDGE}" y="{y}"{fit}{kind}>{escape(line)}</text>')
    return '\n'.join([*out, '</svg>', ''])


def main() -> None:
    """Record all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='folder (docs)')
    out: Path = parser.parse_args().out
    for name, typed in SESSIONS.items():
        (out / name).write_text(draw(record(typed), typed[0][1]), encoding='utf-8')


if __name__ == '__main__':
    main()
