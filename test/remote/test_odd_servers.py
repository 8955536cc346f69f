"""Whatever a server does ends in an answer, the fallback's answer, or one clear error."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

from hobot_vlm import RemoteError, VlmError
from hobot_vlm.remote import call
import pytest

from .conftest import remote
from .odd_server import ANSWER, CUT, NO_ANSWER, odd_server, WAYS

#: seconds that a server may be silent, where it is to be found out, before a word and after one
TIMEOUT, LATER_TIMEOUT = 0.3, 1.0
ODD_TEXT = ('not_utf_8', 'half_characters')
ANSWERED = [
    name for name in WAYS if name not in {*NO_ANSWER, *CUT, *ODD_TEXT, 'slow_with_progress'}
]


@contextmanager
def hasty(url, fallback=None, timeout=60):
    """Give a model elsewhere that waits only so long for an answer, but not for its list."""
    with remote(url, fallback, remote_timeout=60) as vlm:
        vlm._config = replace(vlm.config, remote_timeout=timeout)
        yield vlm


def ask(vlm, way, **more):
    """Ask; give the pieces that came, and the reply or the error."""
    pieces = []
    try:
        stream = vlm.stream(way, n_predict=16, **more)
        for chunk in stream:
            if not chunk.thinking:
                pieces.append(chunk.text)
        return pieces, stream.wait()
    except VlmError as exc:
        return pieces, exc


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(call, 'PAUSE', 0.01)
    monkeypatch.setattr(call, 'GRACE', 0.1)


def test_there_are_enough_ways():
    assert len(WAYS) >= 30
    assert set(NO_ANSWER) | set(CUT) | set(ODD_TEXT) < set(WAYS)


@pytest.mark.parametrize('way', ANSWERED)
def test_answered(odd, demo, way):
    with remote(odd.url, demo) as vlm:
        pieces, reply = ask(vlm, way)
    assert str(reply) == ANSWER == ''.join(pieces)
    assert (reply.finish_reason, reply.model) == ('stop', f'odd@{odd.url}')
    assert reply.completion_tokens >= 1
    assert reply.thinking == ('A door it is.' if way.startswith(('reasoning', 'think')) else '')
    assert reply.timings.ttft_ms > 0


@pytest.mark.parametrize('way', NO_ANSWER)
def test_no_answer(odd, demo, way):
    timeout = TIMEOUT if NO_ANSWER[way] == 'remote_timeout' else 60
    with hasty(odd.url, timeout=timeout) as vlm:
        pieces, error = ask(vlm, way)
    assert isinstance(error, RemoteError) and not pieces
    with pytest.raises(RemoteError, match=NO_ANSWER[way]):
        raise error
    assert len(str(error)) < 700 and str(error).isprintable()
    with hasty(odd.url, demo, timeout) as vlm:
        pieces, reply = ask(vlm, way)
    assert reply.model == 'demo' and reply.completion_tokens
    assert ''.join(pieces) == reply.text


@pytest.mark.parametrize('way', CUT)
def test_cut(odd, demo, way):
    before = odd.counts[way]
    timeout = LATER_TIMEOUT if CUT[way] == 'remote_timeout' else 60
    with hasty(odd.url, demo, timeout) as vlm:
        pieces, error = ask(vlm, way)
    assert ''.join(pieces).startswith(('The door', 'word'))
    with pytest.raises(RemoteError, match=CUT[way]):
        raise error
    assert odd.counts[way] == before + 1  # nobody is answered twice


@pytest.mark.parametrize('way', ODD_TEXT)
def test_odd_text(odd, way):
    with remote(odd.url) as vlm:
        _, reply = ask(vlm, way)
    assert reply.text == 'The \N{REPLACEMENT CHARACTER} door'


def test_a_retry_is_bounded(odd):
    before = odd.counts['status_500']
    with remote(odd.url) as vlm:
        ask(vlm, 'status_500')
    assert odd.counts['status_500'] == before + 3


def test_others_wait_for_a_server_that_asks_for_patience(odd, demo):
    with odd_server() as server, remote(server.url, demo) as vlm:
        first = vlm.stream('busy_once')
        while not server.counts['busy_once']:
            pass
        assert vlm.ask('good').model == first.wait().model == f'odd@{server.url}'
        assert server.counts['busy_once'] == 2
        assert vlm.ask('busy_for_an_hour').model == 'demo'
        assert vlm.ask('good').model == f'odd@{server.url}'


def test_a_server_that_says_how_far_it_is_is_not_silent(odd):
    with remote(odd.url, remote_timeout=LATER_TIMEOUT) as vlm:
        stream = vlm.stream('slow_with_progress')
        assert stream.wait().text == ANSWER
        assert (stream.progress.done, stream.progress.total) == (7, 8)


def test_logprobs_that_are_wanted_and_not_given(odd, demo):
    with remote(odd.url) as vlm:
        _, error = ask(vlm, 'good', logprobs=2)
        assert isinstance(error, RemoteError) and 'no logprobs' in str(error)
    with remote(odd.url, demo) as vlm:
        _, reply = ask(vlm, 'good', logprobs=2)
        assert reply.model == 'demo' and reply.logprobs


def test_an_answer_can_be_stopped_while_the_server_is_silent(odd):
    with remote(odd.url, remote_timeout=60) as vlm:
        stream = vlm.stream('silent')
        stream.cancel()
        assert stream.wait().finish_reason == 'cancelled'
        stream = vlm.stream('silent_in_the_middle')
        next(iter(stream))
        vlm.cancel()
        reply = stream.wait()
        assert reply.finish_reason == 'cancelled' and 'The door is'.startswith(reply.text)
        assert vlm.ask('silent', timeout=0.1).finish_reason == 'timeout'
        open_ones = [vlm.stream('silent') for _ in range(3)]
    assert {stream.wait().finish_reason for stream in open_ones} == {'cancelled'}
    with pytest.raises(VlmError, match='closed'):
        vlm.stream('good')
