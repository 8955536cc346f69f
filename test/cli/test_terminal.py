"""What only a terminal sees: the waiting line, editing, Ctrl-C in a conversation."""

from __future__ import annotations

import io
import time

from hobot_vlm.cli.terminal import Waiting
from shell import ENDLESS


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_waiting_line_counts_and_goes_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr('sys.stderr', terminal)
    with Waiting() as waiting:
        waiting.show('looking')
        end = time.monotonic() + 10
        while 'looking … 0.' not in terminal.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
        waiting.hide()
        shown = terminal.getvalue()
    assert 'looking … 0.' in shown
    last = shown.rsplit('looking', 1)[1]
    assert last.endswith('\r' + ' ' * len('looking … 0.4 s') + '\r')
    assert terminal.getvalue() == shown


def test_no_waiting_line_where_nobody_looks(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr('sys.stderr', pipe)
    with Waiting() as waiting:
        waiting.show('looking')
        time.sleep(0.5)
    assert pipe.getvalue() == ''


def test_a_terminal_conversation(screen, sample, demo):
    expected = demo.ask('Describe the picture.', images=sample).text
    terminal = screen('chat', sample)
    terminal.until('> ')
    terminal.type('Describe the picture.\n')
    assert expected in terminal.until('> ').replace('\r\n', ' ')
    terminal.type('/stats\n')
    terminal.until('tokens/s')
    terminal.until('> ')
    terminal.type('\x04')
    assert terminal.process.wait(20) == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(screen):
    terminal = screen('chat', *ENDLESS)
    terminal.until('> ')
    terminal.type('Say x.\n')
    terminal.until('xxxxx')
    terminal.type('\x03')
    terminal.until('> ')
    terminal.type('half a quest')
    terminal.until('half a quest')
    terminal.type('\x03')  # at the prompt it drops the line
    terminal.until('> ')
    terminal.type('/stats\n')
    assert 'cancelled' in terminal.until('> ')
    terminal.type('Say x.\n')  # the model is still there
    terminal.until('xxxxx')
    terminal.type('\x03')
    terminal.until('> ')
    terminal.type('/quit\n')
    assert terminal.process.wait(20) == 0


def test_lines_can_be_called_back(screen):
    terminal = screen('chat')
    terminal.until('> ')
    terminal.type('/nonsense\n')
    terminal.until('there is no /nonsense')
    terminal.until('> ')
    terminal.type('\x1b[A\n')  # arrow up
    terminal.until('there is no /nonsense')
