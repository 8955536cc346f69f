"""What waits, what is replaced, and who is woken."""

from concurrent.futures import ThreadPoolExecutor
import math
import threading
import time

from hobot_vlm.ros.inbox import CAPACITY, CAPACITY_BYTES, Frame, Inbox, Prompt, Reset, Stamp

NEVER = lambda: math.inf  # noqa: E731
NOW = lambda: 0.0  # noqa: E731


def prompt(text=''):
    return Prompt(text, Stamp(0, 0))


def frame(name=b''):
    return Frame('/image', name, bytes)


def until(condition):
    """Wait for something that another thread does."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_prompts_keep_their_order_and_resets_their_place():
    inbox = Inbox()
    first, reset, second = prompt('a'), Reset(), prompt('b')
    for item in (first, reset, second):
        assert inbox.put(item)
    assert len(inbox) == 3
    assert [inbox.get(NEVER) for _ in range(3)] == [first, reset, second]
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
    inbox.put_frame(0, old)
    inbox.put_frame(0, new)
    inbox.put(prompt())
    assert inbox.frames_for(inbox.get(NEVER)) == (new,)
    assert (inbox.received, inbox.dropped) == (2, 1)
    inbox.put_frame(0, frame())
    assert inbox.dropped == 1  # the one before was read


def test_a_prompt_waits_for_a_frame_of_every_camera():
    inbox = Inbox(cameras=2)
    left, right = frame(), frame()
    inbox.put_frame(1, right)
    inbox.put(prompt())
    asked = inbox.get(NEVER)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(inbox.frames_for, asked)
        until(lambda: inbox.missing == (0,))
        inbox.put_frame(0, left)
        assert waiting.result() == (left, right)
    assert inbox.missing == ()
    assert inbox.first_frames().done()


def test_waiting_for_a_frame_ends_with_cancel_and_with_close():
    for end in (Inbox.cancel, Inbox.close):
        inbox = Inbox(cameras=1)
        inbox.put(prompt())
        asked = inbox.get(NEVER)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(inbox.frames_for, asked)
            until(lambda inbox=inbox: inbox.missing == (0,))
            end(inbox)
            assert waiting.result() == ()


def test_cancel_meets_only_what_runs():
    inbox = Inbox()
    stopped = []
    assert not inbox.cancel()
    first, second = prompt(), prompt()
    inbox.put(first)
    inbox.put(second)
    inbox.get(NEVER)
    first.stop = lambda: stopped.append(1)
    assert inbox.cancel()
    assert stopped == [1]
    assert first.cancelled.is_set()
    assert inbox.get(NEVER) is second
    assert not second.cancelled.is_set()


def test_prompts_are_weighed():
    """So many bytes may wait, in however many prompts; what has left weighs nothing."""
    inbox = Inbox()
    half = '中' * (CAPACITY_BYTES // 6)
    assert inbox.put(prompt(half)) and inbox.put(prompt(half))
    assert not inbox.put(prompt('abcdef'))
    inbox.get(NEVER)
    assert inbox.put(prompt('abc'))
    inbox.drain()
    assert inbox.put(prompt(half)) and inbox.put(prompt(half))


def test_frames_without_a_prompt_come_once_and_after_prompts():
    inbox = Inbox(cameras=1)
    shown, asked = frame(), prompt()
    inbox.put_frame(0, shown)
    inbox.put(asked)
    assert inbox.get(NOW) is asked
    assert inbox.get(NOW) == (shown,)
    timer = threading.Timer(0.05, inbox.close)
    timer.start()
    assert inbox.get(NOW) is None  # the same frame is not given twice
    assert inbox.get(NOW) is None


def test_what_waits_outlives_a_close():
    inbox = Inbox()
    waits = prompt()
    inbox.put(waits)
    inbox.close()
    assert inbox.get(NEVER) is None
    inbox.open()
    assert inbox.get(NEVER) is waits


def test_the_last_frames_are_kept_where_they_are_wanted():
    """At least a period apart, but for the newest, which is half a period from the one before."""
    inbox = Inbox(cameras=2, frames=3, period=1.0)
    for number in range(40):  # one in a quarter of a second
        at = number / 4
        inbox.put_frame(0, Frame('/left', b'', bytes, at))
        assert not inbox.newest()
        (frame,) = (frame for frame in inbox._frames[:1] if frame)
        times = [one.received for one in frame.earlier]
        assert not any(one.earlier for one in frame.earlier)
        kept = [float(whole) for whole in range(int(at) + 1) if whole != at]
        if kept and at - kept[-1] < 0.5:
            kept.pop()
        assert times == kept[-2:]
    inbox.put_frame(1, frame_ := Frame('/right', b'', bytes))
    assert inbox.newest()[1].data == frame_.data and not inbox.newest()[1].earlier
    inbox.close()
    inbox.open()
    inbox.put_frame(0, Frame('/left', b'', bytes, 50.0))
    assert not inbox._frames[0].earlier


def test_who_looks_now_and_then_gets_the_newest():
    inbox = Inbox(cameras=1)
    assert inbox.next_frames((), 0.0, 0.01) == ()
    first, second = frame(), frame()
    inbox.put_frame(0, first)
    assert inbox.next_frames((), 0.0, 9.0) == (first,)
    assert inbox.next_frames((first,), 0.0, 0.01) == ()  # the same again
    inbox.put_frame(0, second)
    assert inbox.next_frames((first,), time.perf_counter() + 9, 0.01) == ()  # too early
    with ThreadPoolExecutor() as pool:
        due = time.perf_counter() + 0.05
        later = pool.submit(inbox.next_frames, (first,), due, 9.0)
        assert later.result() == (second,) and time.perf_counter() >= due
        inbox.put_frame(0, frame())
        assert inbox.dropped == 0  # all were looked at
        closing = pool.submit(inbox.next_frames, inbox.newest(), 0.0, 9.0)
        inbox.close()
        assert closing.result() == ()
