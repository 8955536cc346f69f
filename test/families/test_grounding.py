"""Boxes and points of answers, in the forms of several families, and in pixels of the picture."""

from __future__ import annotations

from time import process_time

from hobot_vlm import VLM
from hobot_vlm.engine.request import Request
from hobot_vlm.families.boxes import QUESTION, question, task
from hobot_vlm.families.grounding import Frame, read
from hobot_vlm.image.resize import placed
from hobot_vlm.values import Box, Point, Text
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

FITS = ('fill', 'contain', 'cover', 'topleft')
SQUARE = Frame(1000, 1000, 448, 'fill')


def found(answer, thing='it', frame=SQUARE, bare=False):
    boxes, points = read(answer, thing, frame, bare)
    return [(b.label, b.x1, b.y1, b.x2, b.y2) for b in boxes] + [
        (p.label, p.x, p.y) for p in points
    ]


@pytest.mark.parametrize(
    'answer, expected',
    [
        # InternVL, where its marks are text
        ('<ref>dog</ref><box>[[100, 200, 300, 400]]</box>', [('dog', 100, 200, 300, 400)]),
        # LocateAnything
        (
            '<ref>bus</ref><box><124><265><595><653></box><ref>dog</ref><box><1><2><3><4></box>'
            '<box><5><6><7><8></box><|im_end|>',
            [('bus', 124, 265, 595, 653), ('dog', 1, 2, 3, 4), ('dog', 5, 6, 7, 8)],
        ),
        ('<ref>cup</ref><box><124><265></box>', [('cup', 124, 265)]),
        # Qwen2-VL
        (
            '<|object_ref_start|>the dog<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>',
            [('the dog', 1, 2, 3, 4)],
        ),
        # Qwen2.5-VL and Qwen3-VL
        (
            '```json\n[\n\t{"bbox_2d": [341, 258, 397, 360], "label": "car"},\n'
            '\t{"bbox_2d": [10.5, 20, 30, 40], "label": "左边的狗"}\n]\n```',
            [('car', 341, 258, 397, 360), ('左边的狗', 10.5, 20, 30, 40)],
        ),
        ('[{"point_2d": [12, 34], "label": "a \\"b\\""}]', [('a "b"', 12, 34)]),
        ('{"bbox_2d": [1, 2, 3, 4], "text_content": "EXIT"}', [('EXIT', 1, 2, 3, 4)]),
        ('[{"bbox_2d": [1, 2, 3, 4]}, {"bbox_2d": [5, 6', [('it', 1, 2, 3, 4)]),
        # Molmo: hundredths
        ('<point x="61.5" y="40.4" alt="dog">dogs</point>', [('dogs', 615, 404)]),
        (
            'Here: <points x1="1" y1="2" x2="30.5" y2="40" alt="cups">cups</points>',
            [('cups', 10, 20), ('cups', 305, 400)],
        ),
        ('<point x="5" y="6" alt="dog">', [('dog', 50, 60)]),
        # the same marks with larger numbers: thousandths
        ('<points x1="512" y1="100" alt="a"></points>', [('a', 512, 100)]),
        # a number above 1000: all are pixels
        (
            '[{"bbox_2d": [10, 20, 30, 40], "label": "a"}, {"point_2d": [1200, 50]}]',
            [('a', 10, 20, 30, 40), ('it', 1000, 50)],
        ),
        # none
        ('{"bbox_2d": [1, 2, 3], "point_2d": [1]}', []),
        ('{"bbox_2d": [true, 2, 3, 4]}', []),
        ('{"bbox_2d": [NaN, 2, 3, Infinity]}', []),
        ('{"bbox_2d": [1e400, 2, 3, 4]}', []),
        ('{"bbox_2d": ["a", 2, 3, 4]}', []),
        ('{"bbox_2d": {"x": 1}, "label": 7}', []),
        ('<point x="a" y="1"></point><point x="1"></point><points y="1">', []),
        ('The list [[1, 2, 3, 4]] and (1,2),(3,4).', []),
        ('', []),
    ],
)
def test_reading_an_answer(answer, expected):
    assert found(answer) == expected


def test_numbers_without_marks_count_where_boxes_were_asked_for():
    """Marks are control tokens, which stand in no text."""
    assert found('dog[[1, 2, 3, 4]]', bare=True) == [('dog', 1, 2, 3, 4)]
    assert found('the dog(1,2),(3,4)', bare=True) == [('the dog', 1, 2, 3, 4)]
    # each is read once
    both = found('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}]', bare=True)
    assert both == [('a', 1, 2, 3, 4)]


@pytest.mark.parametrize('fit', FITS)
def test_every_form_says_the_same_place(fit):
    frame = Frame(640, 360, 320, fit)
    answers = (
        '<box>[[300, 320, 500, 480]]</box>',
        '<box><300><320><500><480></box>',
        '<|box_start|>(300,320),(500,480)<|box_end|>',
        '{"bbox_2d": [300, 320, 500, 480]}',
    )
    assert len({tuple(found(answer, frame=frame)) for answer in answers}) == 1
    points = ('{"point_2d": [300, 320]}', '<point x="30" y="32"></point>', '<box><300><320></box>')
    (place,) = {tuple(found(answer, frame=frame)) for answer in points}
    (box,) = found(answers[0], frame=frame)
    assert place[0][1:] == box[1:3]


@settings(max_examples=200)
@given(
    st.sampled_from(FITS),
    st.integers(20, 4000),
    st.integers(20, 4000),
    st.sampled_from((192, 448, 512)),
    st.data(),
)
def test_a_place_comes_back_whatever_the_scale_and_the_fit(fit, width, height, side, data):
    """A place of the picture, written in thousandths of its tile, is read as that place."""
    left, top, across, down = placed(width, height, side, side, fit)
    # what the tile shows of the picture
    x0, x1 = max(0.0, -left / across), min(1.0, (side - left) / across)
    y0, y1 = max(0.0, -top / down), min(1.0, (side - top) / down)
    x = width * data.draw(st.floats(x0, x1))
    y = height * data.draw(st.floats(y0, y1))
    tile_x, tile_y = (left + x * across / width) / side, (top + y * down / height) / side
    answer = f'{{"point_2d": [{1000 * tile_x:.4f}, {1000 * tile_y:.4f}]}}'
    ((_, read_x, read_y),) = found(answer, frame=Frame(width, height, side, fit))
    assert read_x == pytest.approx(x, abs=0.02 + width * side / across / 1e6)
    assert read_y == pytest.approx(y, abs=0.02 + height * side / down / 1e6)


pieces = st.sampled_from(
    ['{', '}', '"bbox_2d": ', '"point_2d": ', '[1, 2, 3, 4]', '[5, 6]', '"label": "x"', ', ',
     '<point x="1" y="2"', '<points x1="3" y1="4"', 'alt="dog"', '>', '</point>', '</points>',
     '<box>', '</box>', '[[', ']]', '<12>', '(1,2)', '<|box_start|>', '<ref>', '狗', '\0', '\n']
)  # fmt: skip


@settings(max_examples=150)
@given(
    st.one_of(st.text(), st.lists(pieces | st.integers(-2000, 10**12).map(str)).map(''.join)),
    st.text(),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from(FITS),
    st.booleans(),
)
def test_whatever_a_model_says_places_lie_in_the_picture(answer, thing, width, height, fit, bare):
    boxes, points = read(answer, thing, Frame(width, height, 448, fit), bare)
    for box in boxes:
        assert isinstance(box, Box) and 0 <= box.x1 < box.x2 <= width
        assert 0 <= box.y1 < box.y2 <= height
    for point in points:
        assert isinstance(point, Point) and 0 <= point.x <= width and 0 <= point.y <= height


@pytest.mark.parametrize(
    'piece',
    ['{', '{"bbox_2d": ', '[1,', '<point x="1" ', '<points x1="', '<point >a', '<box><1>', '(1,',
     '(1,2),', '<|box_start|>(1,2),(', '<', '"', '{}', 'a="', '{"a":[['],
)  # fmt: skip
def test_a_long_answer_takes_no_long_time(piece):
    began = process_time()
    assert read(piece * 50000, 'it', SQUARE, True) == ((), ())
    assert process_time() - began < 3


def test_places_of_a_reply_are_in_the_first_picture():
    """Of several, each of its own size; without a picture there are none."""
    schema = {'const': [{'bbox_2d': [0, 0, 500, 1000], 'label': 'dog'}, {'point_2d': [500, 500]}]}
    wide, high = np.zeros((100, 300, 3), np.uint8), np.full((400, 200, 3), 99, np.uint8)
    with VLM.load('demo', llm_threads=1, encoder_threads=1, json_schema=schema) as vlm:
        for pictures in ([wide, high], [high, wide]):
            height, width = pictures[0].shape[:2]
            messages = [{'role': 'user', 'content': [
                *({'type': 'image', 'image': picture} for picture in pictures),
                {'type': 'text', 'text': 'Where is it?'},
            ]}]  # fmt: skip
            for reply in (vlm.ask('Where is it?', pictures), vlm.ask(messages)):
                assert reply.boxes == (Box('dog', 0, 0, width / 2, height),)
                assert reply.points == (Point('', width / 2, height / 2),)
        # as the picture was brought to the shape of the tile
        reply = vlm.ask('Where is it?', wide, fit='contain')
        assert reply.points == (Point('', 150, 50),)
        assert reply.boxes == (Box('dog', 0, 0, 150, 100),)
        reply = vlm.ask('Where is it?')
        assert (reply.boxes, reply.points) == ((), ())


# -- what is asked --------------------------------------------------------------------------------


def test_tasks_have_the_names_of_hobot_locateanything():
    assert task('dog') == ('/detect', 'dog')
    assert task('/point the red cup') == ('/point', 'the red cup')
    assert task('/text') == ('/text', '')
    assert task('/colour dog') == ('/detect', '/colour dog')

    def text(prompt):
        asked = question(prompt, ())
        return asked if isinstance(asked, str) else ''.join(s.text for s in asked)

    assert text('/ground the dog, on the left') == f'{QUESTION}<ref>the dog, on the left</ref>'
    assert text('/detect dog, red cup') == f'{QUESTION}<ref>dog</ref>, <ref>red cup</ref>'
    assert text('a dog, a cat') == f'{QUESTION}<ref>a dog, a cat</ref>'
    assert 'every {cup} in' in text('/point {cup}') and '{"point_2d": [x, y]' in text('/point a')
    assert text('/text') == 'Read all the text in the picture.'
    assert question('/ground x', ())[0] == Text(QUESTION)
    assert Request('/point dog', find=True).find
