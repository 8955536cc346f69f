"""Whole characters, reasoning and sentences, however the bytes arrive."""

from __future__ import annotations

from hobot_vlm.engine.detokenizer import AnswerText, Utf8Stream
from hobot_vlm.ros.sentences import SentenceSplitter
from hypothesis import given
from hypothesis import strategies as st
import pytest


def cut(data, sizes):
    """Cut into pieces of the given sizes, over and over."""
    pieces, i = [], 0
    while data:
        size = sizes[i % len(sizes)]
        pieces.append(data[:size])
        data, i = data[size:], i + 1
    return pieces


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(st.text(), sizes)
def test_characters_are_never_cut(text, sizes):
    stream = Utf8Stream()
    pieces = [stream.feed(part) for part in cut(text.encode('utf-8', 'replace'), sizes)]
    joined = ''.join(pieces) + stream.finish()
    assert joined == text.encode('utf-8', 'replace').decode()
    assert '\ufffd' not in joined or '\ufffd' in text


def test_a_character_waits_for_its_last_byte():
    stream = Utf8Stream()
    assert [stream.feed(bytes([b])) for b in '好'.encode()] == ['', '', '好']


def test_bytes_that_are_no_character_become_one_sign():
    stream = Utf8Stream()
    assert stream.feed(b'a\xff') + stream.feed(b'b\xe5') + stream.finish() == 'a\ufffdb\ufffd'


def read(text, sizes, thinking=False):
    """Feed in pieces; give (reasoning, answer)."""
    splitter = AnswerText(thinking)
    chunks = [c for part in cut(text, sizes) for c in splitter.feed(part)] + splitter.finish()
    assert all(c.text for c in chunks)
    return tuple(''.join(c.text for c in chunks if c.thinking is kind) for kind in (True, False))


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('Hello.', ('', 'Hello.')),
        (' Hello there. \n', ('', 'Hello there.')),
        ('<think>\nIt is red.\n</think>\n\nRed.', ('It is red.', 'Red.')),
        ('<think></think>Red.', ('', 'Red.')),
        ('<think>\n\n</think>\n\nRed.', ('', 'Red.')),
        ('<think>never ends', ('never ends', '')),
        ('a <think> b </think> c', ('', 'a <think> b </think> c')),
        ('<thin', ('', '<thin')),
        ('<think>a</thin</think>b', ('a</thin', 'b')),
        ('   ', ('', '')),
    ],
)
@pytest.mark.parametrize('size', [1, 2, 3, 100])
def test_reasoning_is_told_from_the_answer(text, expected, size):
    assert read(text, [size]) == expected


def test_reasoning_that_the_template_opened():
    assert read('It is red.</think>Red.', [4], thinking=True) == ('It is red.', 'Red.')


@given(st.text(), sizes)
def test_only_outer_space_is_left_out(text, sizes):
    thought, answer = read(text, sizes)
    if not text.strip().startswith('<think>'):
        assert (thought, answer) == ('', text.strip())


@given(st.text(alphabet='ab .!?。！？\n"”）3', max_size=60), sizes)
def test_sentences_join_to_the_text(text, sizes):
    splitter = SentenceSplitter()
    pieces = [p for part in cut(text, sizes) for p in splitter.feed(part)] + splitter.finish()
    assert ''.join(pieces) == text
    assert all(pieces)


@pytest.mark.parametrize(
    ('text', 'sentences'),
    [
        ('There is a dog. It runs!', ['There is a dog. ', 'It runs!']),
        ('图中有一只狗。它在跑！好。', ['图中有一只狗。', '它在跑！', '好。']),
        ('It is 3.5 m away. Go.', ['It is 3.5 m away. ', 'Go.']),
        ('"Stop." He ran.', ['"Stop." ', 'He ran.']),
        ('什么？！好', ['什么？！', '好']),
        ('one\ntwo', ['one\n', 'two']),
        ('no end', ['no end']),
        ('他说：“好。”然后走了。', ['他说：“好。”', '然后走了。']),
    ],
)
def test_sentences(text, sentences):
    splitter = SentenceSplitter()
    assert [p for c in text for p in splitter.feed(c)] + splitter.finish() == sentences


def test_a_sentence_is_given_as_soon_as_the_next_begins():
    splitter = SentenceSplitter()
    assert splitter.feed('A dog. ') == []
    assert splitter.feed('A') == ['A dog. ']
