"""Ctrl-C at any moment, and readers that leave."""

from __future__ import annotations

import json
import signal
from subprocess import PIPE

from shell import ENDLESS, start


def test_ctrl_c_stops_an_answer():
    with start('ask', 'Say x.', *ENDLESS) as process:
        assert process.stdout.read(3) == b'xxx'
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.strip(b'x') == b'\n' and err == b''


def test_ctrl_c_with_json_still_prints_what_there_is(screen):
    terminal = screen('ask', 'Say x.', *ENDLESS, '--json', '--n-ctx=16384', stdout=PIPE)
    terminal.until('answering')
    terminal.interrupt()
    with terminal.process.stdout as stdout:
        out = stdout.read()
    assert terminal.process.wait(20) == 130
    assert json.loads(out)['finish_reason'] == 'cancelled'


def test_a_reader_that_leaves_is_no_error():
    with start('ask', 'Say x.', *ENDLESS) as process:
        process.stdout.read(3)
        process.stdout.close()
        assert process.stderr.read() == b''
        assert process.wait(20) == 141
