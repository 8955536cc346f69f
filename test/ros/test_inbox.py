"""What waits, what is replaced, and who is woken."""

import math
import threading

from hobot_vlm.ros.inbox import CAPACITY, Frame, Inbox, Prompt, Reset, Stamp

NEVER = lambda: math.inf  # noqa: E731
NOW = lambda: 0.0  # noqa: E731


def prompt(text=''):
    return Prompt(text, Stamp(0, 0))


def frame(name=b''):
    return Frame('/image', name)


def test_prompts_keep_their_order_and_resets_their_place():
    inbox = Inbox()
    first, reset, second = prompt('a'), Reset(), prompt('b')
    for item in (first, reset, second):
        assert inbox.put(item)
    assert len(inbox) == 3
    assert [inbox.take(NEVER) for _ in range(3)] == [first, reset, second]
    assert inbox.running is second


def test_too_many_prompts_are_refused():
    inbox = Inbox()
    assert all(inbox.put(prompt()) for _ in range(CAPACITY))
    assert not inbox.put(prompt())
    assert inbox.put(Reset())
    assert len(inbox.drain()) == CAPACITY


def test_only_the_newest_frame_is_kept():
    inbox = Inbox(cameras=1)
    old, new = frame(), frame()
    inbox.show(0, old)
    inbox.show(0, new)
    inbox.put(prompt())
    assert inbox.pictures(inbox.take(NEVER), print) == (new,)
    assert (inbox.seen, inbox.skipped) == (2, 1)
    inbox.show(0, frame())
    assert inbox.skipped == 1  # the one before was looked at


def test_a_prompt_waits_for_a_frame_of_every_camera():
    inbox = Inbox(cameras=2)
    left, right = frame(), frame()
    inbox.show(1, right)
    inbox.put(prompt())
    taken = inbox.take(NEVER)
    missing = []
    inbox_shows = threading.Timer(0.05, inbox.show, (0, left))
    inbox_shows.start()
    assert inbox.pictures(taken, missing.extend) == (left, right)
    assert missing == [0]


def test_waiting_for_a_frame_ends_with_cancel_and_with_close():
    for end in (lambda inbox: inbox.cancel(lambda: None), Inbox.close):
        inbox = Inbox(cameras=1)
        inbox.put(prompt())
        taken = inbox.take(NEVER)
        assert inbox.pictures(taken, lambda missing, e=end, i=inbox: e(i)) == ()


def test_cancel_meets_only_what_runs():
    inbox = Inbox()
    stopped = []
    assert not inbox.cancel(lambda: stopped.append(1))
    first, second = prompt(), prompt()
    inbox.put(first)
    inbox.put(second)
    inbox.take(NEVER)
    assert inbox.cancel(lambda: stopped.append(1))
    assert stopped == [1]
    assert first.cancelled.is_set()
    assert inbox.take(NEVER) is second
    assert not second.cancelled.is_set()


def test_frames_without_a_prompt_come_once_and_after_prompts():
    inbox = Inbox(cameras=1)
    shown, asked = frame(), prompt()
    inbox.show(0, shown)
    inbox.put(asked)
    assert inbox.take(NOW) is asked
    assert inbox.take(NOW) == (shown,)
    timer = threading.Timer(0.05, inbox.close)
    timer.start()
    assert inbox.take(NOW) is None  # the same frame is not given twice
    assert inbox.take(NOW) is None


def test_what_waits_outlives_a_close():
    inbox = Inbox()
    waits = prompt()
    inbox.put(waits)
    inbox.close()
    assert inbox.take(NEVER) is None
    inbox.open()
    assert inbox.take(NEVER) is waits
