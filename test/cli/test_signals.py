"""Ctrl-C at any moment, and readers that leave."""

from __future__ import annotations

import json
from pathlib import Path
import signal
import subprocess
from subprocess import PIPE
import sys
import time

import pytest
from shell import ENDLESS, ROOT, start

#: the command, with a step of the start that takes a minute of C code
SLOW = """
import ctypes, sys
from hobot_vlm import {module} as module
original = module.{name}
def slow(*args, **more):
    print('slow', flush=True)
    ctypes.CDLL(None).sleep(60)
    return original(*args, **more)
module.{name} = slow
from hobot_vlm.cli.main import main
sys.exit(main())
"""


def test_ctrl_c_stops_an_answer():
    with start('ask', 'Say x.', *ENDLESS) as process:
        assert process.stdout.read(3) == b'xxx'
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.strip(b'x') == b'\n' and err == b''


def test_ctrl_c_with_json_still_prints_what_there_is(screen):
    terminal = screen('ask', 'Say x.', *ENDLESS, '--json', '--n-ctx=16384', stdout=PIPE)
    terminal.until('answering')
    terminal.interrupt()
    with terminal.process.stdout as stdout:
        out = stdout.read()
    assert terminal.process.wait(60) == 130
    assert json.loads(out)['finish_reason'] == 'cancelled'


def wait_for(process, library):
    """Wait until a process has loaded a library."""
    end = time.monotonic() + 60
    while library not in Path(f'/proc/{process.pid}/maps').read_text():
        assert time.monotonic() < end and process.poll() is None, f'{library} was never loaded'
        time.sleep(0.001)


@pytest.mark.parametrize('library', ['_multiarray_umath', 'libllama', '_imaging'])
def test_ctrl_c_while_modules_are_imported(library):
    for command in (['ask', 'Say x.', *ENDLESS], ['chat', *ENDLESS]):
        with start(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
            wait_for(process, library)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, b'') and out.strip(b'x\n') == b''


@pytest.mark.parametrize(
    ('module', 'name', 'command'),
    [
        ('loader', 'load', ['ask', 'Say x.']),
        ('loader', 'load', ['chat']),
        ('catalogue', 'download', ['download', 'demo']),
        ('catalogue', 'load', ['models']),
    ],
)
def test_ctrl_c_while_c_code_is_at_work(module, name, command):
    script = SLOW.format(module=module, name=name)
    with subprocess.Popen(
        [sys.executable, '-c', script, *command], cwd=ROOT, stdout=PIPE, stderr=PIPE, stdin=PIPE
    ) as process:
        assert process.stdout.readline() == b'slow\n'
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b'', b'')


def test_ctrl_c_while_a_question_is_awaited_from_a_pipe():
    with start('chat', stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        process.stdin.write(b'Hello\n')
        process.stdin.flush()
        assert process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b''


def test_a_reader_that_leaves_is_no_error():
    with start('ask', 'Say x.', *ENDLESS) as process:
        process.stdout.read(3)
        process.stdout.close()
        assert process.stderr.read() == b''
        assert process.wait(60) == 141
