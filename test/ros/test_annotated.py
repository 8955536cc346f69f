"""What is drawn on a picture: boxes, points and the answer, in any script, and nothing else."""

from __future__ import annotations

from hobot_vlm.ros import annotated
from hobot_vlm.ros.annotated import answer_of, COLOURS, draw, length, wrapped
from hobot_vlm.values import Box, Point, Reply
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

GREY = np.full((240, 320, 3), 90, np.uint8)


def changed(reply, rgb=GREY):
    """Say which pixels were drawn on."""
    before = rgb.copy()
    after = np.asarray(draw(rgb, reply))
    assert after.shape == rgb.shape and (rgb == before).all()
    return after, (after != before).any(-1)


def test_boxes_and_points():
    reply = Reply('', boxes=(Box('', 40, 60, 200, 180),), points=(Point('', 300, 20),))
    after, drawn = changed(reply)
    for y, x in ((60, 100), (179, 100), (100, 40), (100, 199), (20, 300)):
        assert tuple(after[y, x]) == COLOURS[0]
    # within the edges, and nowhere else
    assert not drawn[62:178, 42:198].any() and not drawn[:60, :280].any()
    assert not drawn[181:].any() and not drawn[100, 201:].any()


def test_each_label_has_a_colour_and_stands_at_its_box():
    boxes = (
        Box('dog', 10, 100, 60, 150),
        Box('猫', 100, 100, 150, 150),
        Box('dog', 200, 5, 250, 60),
    )
    after, drawn = changed(Reply('', boxes=boxes))
    assert tuple(after[110, 10]) == tuple(after[30, 200]) == COLOURS[0]
    assert tuple(after[110, 100]) == COLOURS[1]
    assert drawn[85:99, 10:30].all()  # above the box
    assert not drawn[:4].any()  # and within one at the upper edge


def test_the_answer_stands_at_the_lower_edge():
    _, drawn = changed(Reply('There is a dog. 有一只狗。'))
    assert drawn[-15:].mean() > 0.9 and not drawn[:150].any()
    assert not changed(Reply(''))[1].any()
    assert answer_of(Reply('yes', choices={'yes': 0.966, 'no': 0.034})) == 'yes (0.97)'
    # a long one leaves most of the picture
    assert not changed(Reply('word ' * 1000))[1][:150].any()


def test_lines_are_cut_between_words_and_between_characters():
    assert wrapped('a dog', 20, 500, 3) == ['a dog']
    for text in (
        'There is a dog on the left and a bus. ' * 3,
        '左边有一只狗，右边有一辆汽车。' * 4,
        'x' * 90,
    ):
        lines = wrapped(text, 20, 300, 9)
        assert len(lines) > 1 and all(length(line, 20) <= 300 for line in lines)
        assert ''.join(lines).replace(' ', '') == text.replace(' ', '')
    cut = wrapped('left ' * 100, 20, 300, 2)
    assert len(cut) == 2 and cut[-1].endswith('…') and length(cut[-1], 20) <= 300


def test_a_machine_without_fonts(monkeypatch):
    """What the font of Pillow lacks stands as a question mark."""
    annotated._fonts.cache_clear()
    monkeypatch.setattr(annotated, 'FONTS', ())
    try:
        assert changed(Reply('A dog. 狗', boxes=(Box('狗', 1, 2, 50, 60),)))[1][-10:].mean() > 0.9
    finally:
        annotated._fonts.cache_clear()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.text(max_size=60),
    st.text(max_size=20),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_whatever_is_said_can_be_drawn(width, height, text, label, corners):
    x1, x2 = sorted((corners[0] * width, corners[1] * width))
    y1, y2 = sorted((corners[2] * height, corners[3] * height))
    reply = Reply(text, boxes=(Box(label, x1, y1, x2, y2),), points=(Point(label, x2, y1),))
    changed(reply, np.zeros((height, width, 3), np.uint8))


@pytest.mark.parametrize('text', ['\ud800', '\0', '\n\n', '\u202e', '👍🏽', 'e\u0301' * 20])
def test_odd_texts(text):
    changed(Reply(text, boxes=(Box(text, 5, 5, 9, 9),)))
