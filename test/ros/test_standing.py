"""Standing questions: how they are written, and what is believed of a row of probabilities."""

from __future__ import annotations

from itertools import pairwise

from hobot_vlm.config import NodeConfig
from hobot_vlm.errors import ConfigError
from hobot_vlm.ros.parameters import valid
from hobot_vlm.ros.similar import similar, thumbnails
from hobot_vlm.ros.standing import Belief, MOST, NO, read_questions, YES
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest


@pytest.mark.parametrize(
    'text, name, question, answers',
    [
        ('door: Is the door open?', 'door', 'Is the door open?', ('yes', 'no')),
        (' d2_x :Is it 3: or 4?  ', 'd2_x', 'Is it 3: or 4?', ('yes', 'no')),
        ('men: 有人吗？', 'men', '有人吗？', ('是', '否')),
        ('l: Which light? [ green |red]', 'l', 'Which light?', ('green', 'red')),
        ('a: [b | c] of what? [d e | f]', 'a', '[b | c] of what?', ('d e', 'f')),
        ('a: What is [this]?', 'a', 'What is [this]?', ('yes', 'no')),
    ],
)
def test_how_they_are_written(text, name, question, answers):
    (read,) = read_questions([text])
    assert (read.name, read.question, read.answers) == (name, question, answers)


@pytest.mark.parametrize(
    'texts',
    [
        ['Is the door open?'],
        ['door:'],
        [': Is it?'],
        ['a b: Is it?'],
        ['2a: Is it?'],
        ['a__b: Is it?'],
        ['a_: Is it?'],
        ['门: Is it?'],
        [f'{"a" * 61}: Is it?'],
        ['a: [yes | no]'],
        ['a: Which? [x | x]'],
        ['a: Which? [x | ]'],
        ['a: Is it?', 'a: Is it not?'],
        [f'a{i}: Is it?' for i in range(MOST + 1)],
    ],
)
def test_what_is_no_question(texts):
    with pytest.raises(ConfigError, match='watch holds') as caught:
        read_questions(texts)
    assert len(str(caught.value)) < 400


def test_only_cameras_are_watched():
    with pytest.raises(ConfigError, match='only feed_type 1'):
        valid(NodeConfig(watch=('a: Is it?',), feed_type=2))
    valid(NodeConfig(watch=('a: Is it?',), feed_type=1))


steps = st.lists(
    st.tuples(st.floats(0.01, 3), st.sampled_from([0.0, NO, 0.45, 0.5, 0.55, YES, 1.0])),
    max_size=60,
)


@given(steps, st.sampled_from([0.0, 0.5, 1.0, 4.0]))
def test_what_holds_is_published_once_and_what_does_not_is_not(steps, hold):
    belief, at, level = Belief(), 0.0, None
    since, published = 0.0, []
    for gap, probability in steps:
        at += gap
        if level is None or not NO < probability < YES:  # between them it stays what it was
            now = probability >= 0.5
            if now is not level:
                level, since = now, at
        news = belief.observe(probability, at, hold)
        expected = at - since >= hold and level is not (published[-1] if published else None)
        assert news == expected
        if news:
            published.append(belief.value)
        assert belief.value is (published[-1] if published else None)
        due = belief.due(hold)
        assert (due is None) == (level is belief.value)
        assert due is None or due == since + hold
    assert all(one is not other for one, other in pairwise(published))


def test_what_was_forgotten_has_to_hold_again():
    belief = Belief()
    assert belief.observe(1.0, 0.0, 0.0) and belief.value is True
    assert belief.forget() and belief.value is None and belief.due(1.0) is None
    assert not belief.forget()
    assert not belief.observe(1.0, 5.0, 1.0)
    assert belief.observe(1.0, 6.0, 1.0) and belief.value is True


def test_pictures_that_look_the_same():
    room = np.full((360, 640, 3), 90, np.uint8)
    noise = np.random.default_rng(5).normal(0, 6, room.shape)
    grains = np.clip(room + noise, 0, 255).astype(np.uint8)
    cat = room.copy()
    cat[200:220, 300:335] = 30  # far off: a twentieth of the width
    seen = thumbnails([room])
    assert similar(thumbnails([grains]), seen)
    assert not similar(thumbnails([cat]), seen)
    assert not similar(thumbnails([room + 8]), seen)  # the light has changed
    assert not similar(seen, None)
    assert not similar(thumbnails([room, room]), seen)
