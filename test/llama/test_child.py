"""A child is ended for what it computes, not for how long others keep it from computing."""

from __future__ import annotations

import os
import signal
import sys

from hobot_vlm.llama import child
import pytest


def run(program, seconds):
    # -S: the start itself computes next to nothing
    return child.run([sys.executable, '-S', '-c', program], os.environ, seconds)


def test_how_it_ended_and_what_it_said():
    program = "import sys; print('x' * 10**6, 'last', file=sys.stderr); sys.exit(7)"
    status, words = run(program, 10.0)
    assert status == 7 and words.endswith(b' last\n') and len(words) > 10**6
    assert run('import os; os.abort()', 10.0)[0] == -signal.SIGABRT


def test_what_computes_too_long_is_ended():
    status, words = run("import os; os.write(2, b'begun')\nwhile True: pass", 0.3)
    assert (status, words) == (None, b'begun')


def test_what_waits_for_others_is_not():
    """It sleeps for longer than it may compute, as on a machine that gives it no time."""
    assert run("import time; time.sleep(1.5); print('done')", 0.4)[0] == 0


@pytest.mark.parametrize(
    ('name', 'value', 'program'),
    [
        ('STILL', 0.5, 'import time; time.sleep(600)'),
        ('PATIENCE', 2, 'import time\nwhile True: time.sleep(0.001)'),
    ],
)
def test_what_does_nothing_or_next_to_nothing_is_ended(monkeypatch, name, value, program):
    monkeypatch.setattr(child, name, value)
    assert run(program, 0.5)[0] is None


def test_the_busiest_thread_counts():
    """Many threads may compute side by side for as long as one may."""
    assert 0 < child.busiest(os.getpid(), 0.0) <= sum(os.times()[:2]) + 0.1
    assert child.busiest(2**22 + 1, 5.0) == 5.0  # where nothing is known of it
