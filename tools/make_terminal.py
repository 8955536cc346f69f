"""
Record the terminals that the documents show: a real shell, at a real pseudo-terminal.

``python tools/make_terminal.py`` writes terminal.svg and terminal_cn.svg into docs: what is typed
stands in ``SESSIONS``, all else is what the programs wrote. Each line comes up at the time at
which it was written; where a picture may not move, all of it is there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
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
PAUSE = 0.8  # seconds between an answer and the next line, so that it can be read
CELL, LINE, EDGE = 8.4, 20, 16  # pixels: a character of 14 pixels, a line, the margin

#: escape sequences; none that the programs write moves the cursor
ESCAPE = re.compile(r'\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])')


@dataclass
class Row:
    """A line of the screen, and when what stands in it began to."""

    text: str = ''
    since: float = 0.0


@dataclass
class Screen:
    """What a terminal shows of what was written to it: text, new lines and carriage returns."""

    rows: list[Row] = field(default_factory=lambda: [Row()])
    column: int = 0

    def write(self, text: str, now: float) -> None:
        """Show more text."""
        for letter in ESCAPE.sub('', text):
            row = self.rows[-1]
            if letter == '\n':
                self.rows.append(Row(since=now))
                self.column = 0
            elif letter == '\r':
                self.column = 0
            elif letter == '\b':
                self.column = max(0, self.column - 1)
            elif letter >= ' ':
                if self.column == 0:
                    row.since = now
                row.text = row.text[: self.column] + letter + row.text[self.column + 1 :]
                self.column += 1


def record(lines: list[tuple[str, str]]) -> list[Row]:
    """Type lines into a shell; give what its terminal shows at the end."""
    screen, began = Screen(), time.monotonic()
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
        rest = b''

        def until(prompt: str, rows: int) -> None:
            nonlocal rest
            end = time.monotonic() + LIMIT
            while len(screen.rows) <= rows or screen.rows[-1].text != prompt:
                if not select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
                    raise SystemExit(f'{prompt!r} never came: {screen.rows[-1].text!r}')
                rest += os.read(terminal, 4096)
                text = rest.decode(errors='ignore')  # what is cut in two comes with the next part
                rest = rest[len(text.encode()) :]
                screen.write(text, time.monotonic() - began)

        rows = 0
        for prompt, line in lines:
            until(prompt, rows)
            rows = len(screen.rows)
            began -= PAUSE  # as if somebody had read for so long
            screen.rows[-1].since = time.monotonic() - began
            os.write(terminal, f'{line}\r'.encode())
        until('$ ', rows)
        os.close(terminal)
        os.waitpid(process, 0)
    return screen.rows


def draw(rows: list[Row], title: str) -> str:
    """Write a terminal as SVG."""
    width, height = COLUMNS * CELL + 2 * EDGE, (len(rows) + 1) * LINE + 2 * EDGE
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" '
        f'width="{width:.0f}" height="{height}">',
        f'<title>{escape(title)}</title>',
        '<style>',
        'text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, "Noto Sans Mono CJK '
        'SC", monospace; fill: #d7dce2; white-space: pre; animation: come 1s step-end backwards }',
        '.typed { fill: #8fd18f }',
        '@keyframes come { from { opacity: 0 } }',
        '</style>',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#1b2028"/>',
    ]
    out += [
        f'<circle cx="{EDGE + 4 + 18 * i}" cy="{EDGE}" r="5" fill="{colour}"/>'
        for i, colour in enumerate(('#e0605a', '#dfa93f', '#59b55c'))
    ]
    for i, row in enumerate(rows):
        text = row.text.rstrip()
        if text:
            kind = ' class="typed"' if text.startswith(('$ ', '> ')) else ''
            # fonts differ in their width; those of Chinese also in how wide a space beside it is
            fit = f' textLength="{len(text) * CELL:.1f}"' if text.isascii() else ''
            out.append(
                f'<text x="{EDGE}" y="{EDGE + (i + 2) * LINE - 6}"{fit}{kind} '
                f'style="animation-delay: {row.since - 1:.2f}s">{escape(text)}</text>'
            )
    return '\n'.join([*out, '</svg>', ''])


def main() -> None:
    """Record all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='folder (docs)')
    out: Path = parser.parse_args().out
    for name, lines in SESSIONS.items():
        rows = [row for row in record(lines) if row.text != '$ ']
        (out / name).write_text(draw(rows, lines[0][1]), encoding='utf-8')


if __name__ == '__main__':
    main()
