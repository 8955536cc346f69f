"""The limit on the time of a run: whom it ends, and when its own thread ends."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from hobot_vlm.encoders.time_limit import TimeLimit
import pytest


@pytest.fixture
def watches():
    """Give what lists the threads of limits that were made in this test."""
    before = set(threading.enumerate())
    return lambda: [t for t in threading.enumerate() if t.name == 'time limit' and t not in before]


def test_only_the_run_whose_time_is_over_is_ended():
    limit = TimeLimit(60.0)
    ended, late, timely = (SimpleNamespace(terminate=False) for _ in range(3))
    limit.begin(ended, 0.0)
    limit.over()
    limit.check()
    limit.begin(late, 0.0)
    limit.check()
    limit.begin(timely, 60.0)
    limit.check()
    assert (ended.terminate, late.terminate, timely.terminate) == (False, True, False)
    limit.close()


def test_its_thread_looks_by_itself_and_ends_when_it_is_closed(watches):
    limit = TimeLimit(0.04)
    (thread,) = watches()
    over = threading.Event()

    class Options:
        def __setattr__(self, name, value):
            assert (name, value) == ('terminate', True)
            over.set()

    limit.begin(Options(), 0.0)
    assert over.wait(30)
    limit.close()
    limit.close()
    thread.join(30)
    assert not thread.is_alive()


def test_its_thread_ends_when_nobody_has_it_any_more(watches):
    limit = TimeLimit(0.04)
    (thread,) = watches()
    del limit
    thread.join(30)
    assert not thread.is_alive()
