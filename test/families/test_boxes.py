"""Detection: what is asked, and where the boxes of an answer lie in the picture."""

from __future__ import annotations

from time import process_time

from core import parts, prompt
from folders import MODELS
from hobot_vlm import VLM
from hobot_vlm.families import family
from hobot_vlm.families.boxes import find, QUESTION, question
from hobot_vlm.prompt.tokens import to_prompt
from hobot_vlm.values import Box, Control, Text
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

FITS = ('fill', 'contain', 'cover', 'topleft')
SIDE = 448


# -- the question ---------------------------------------------------------------------------------


def test_the_question_is_as_the_model_was_taught():
    """The marks are control tokens; those that a user writes stay text."""
    assert question('the <ref>dog</ref>', ('<ref>', '</ref>', '<img>')) == [
        Text(QUESTION),
        Control('<ref>'),
        Text('the <ref>dog</ref>'),
        Control('</ref>'),
    ]
    assert question('dog', ('<img>',)) == [
        Text(QUESTION),
        Text('<ref>'),
        Text('dog'),
        Text('</ref>'),
    ]


@pytest.mark.parametrize('name', ['internvl', 'smolvlm'])
def test_the_question_stands_in_the_prompt_of_each_family(name):
    """Whole, behind the picture; the vocabulary of SmolVLM has no such marks."""
    files = {
        'model_file_name': MODELS / name / 'vision.onnx',
        'llm_model_name': MODELS / name / 'decoder.gguf',
    }
    with VLM.load(**files) as vlm:
        picture, model = np.zeros((30, 40, 3), np.uint8), parts(vlm).model
        asked = question('dog', model.controls)
        assert isinstance(asked[1], Control if name == 'internvl' else Text)
        ids = prompt(vlm, 'dog', picture, find=True).prompt.ids
        whole = to_prompt(model, asked).ids
        start = next(i for i in range(len(ids)) if ids[i : i + len(whole)] == whole)
        assert any(i < 0 for i in ids[:start])
        reply = vlm.ask('dog', picture, find=True, n_predict=1)
        assert reply.completion_tokens == 1 and reply.boxes == ()


# -- the answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'answer, boxes',
    [
        # with the marks as text, and without them, which is how llama.cpp gives control tokens
        ('<ref>dog</ref><box>[[100, 200, 300, 400]]</box>', [('dog', 100, 200, 300, 400)]),
        ('dog[[100, 200, 300, 400]]', [('dog', 100, 200, 300, 400)]),
        # languages
        ('<ref>左边的狗</ref><box>[[1,2,3,4]]</box>', [('左边的狗', 1, 2, 3, 4)]),
        ('图中有一只猫，[[1,2,3,4]]', [('图中有一只猫', 1, 2, 3, 4)]),
        # the thing that was asked for within a sentence, and no label at all
        ('Here is the red ball: [[1, 2, 3, 4]]', [('red ball', 1, 2, 3, 4)]),
        ('[[1, 2, 3, 4]]', [('red ball', 1, 2, 3, 4)]),
        ('<box>[[1, 2, 3, 4]]</box>', [('red ball', 1, 2, 3, 4)]),
        # several boxes of one label, several labels
        ('dog[[1, 2, 3, 4], [5, 6, 7, 8]]', [('dog', 1, 2, 3, 4), ('dog', 5, 6, 7, 8)]),
        (
            '<ref>dog</ref><box>[[1, 2, 3, 4]]</box>, <ref>cat</ref><box>[[5, 6, 7, 8]]</box>',
            [('dog', 1, 2, 3, 4), ('cat', 5, 6, 7, 8)],
        ),
        ('dog[[1, 2, 3, 4]]\ncat[[5, 6, 7, 8]]', [('dog', 1, 2, 3, 4), ('cat', 5, 6, 7, 8)]),
        ('<ref>a</ref> and <ref>b</ref><box>[[1, 2, 3, 4]]</box>', [('b', 1, 2, 3, 4)]),
        # spaces, fractions, one pair of brackets
        ('dog [[ 1 ,2.5,\t3 , 4 ]]', [('dog', 1, 2.5, 3, 4)]),
        ('<ref>dog</ref><box>[1, 2, 3, 4]</box>', [('dog', 1, 2, 3, 4)]),
        # corners that are swapped or beyond the edge
        ('dog[[300, 400, 100, 200]]', [('dog', 100, 200, 300, 400)]),
        ('dog[[-5, 20, 30, 1001]]', [('dog', 0, 20, 30, 1000)]),
        (f'dog[[1, 2, 3, {"9" * 5000}]]', [('dog', 1, 2, 3, 1000)]),
        # no box: nothing inside, cut off, too few numbers, too many, words
        ('dog[[5, 6, 5, 8]]', []),
        ('dog[[1200, 6, 1300, 8]]', []),
        ('<ref>dog</ref><box>[[100, 200, 30', []),
        ('dog[[1, 2, 3]]', []),
        ('dog[[1, 2, 3, 4, 5]]', []),
        ('dog[[left, 2, 3, 4]]', []),
        ('dog[[1. 2. 3. 4]]', []),
        ('There is no red ball.', []),
        ('', []),
        # one whole box before one that is cut off
        ('dog[[1, 2, 3, 4], [5, 6', [('dog', 1, 2, 3, 4)]),
    ],
)
def test_reading_an_answer(answer, boxes):
    found = find(answer, 'red ball', 1000, 1000, SIDE, 'fill')
    assert [(b.label, b.x1, b.y1, b.x2, b.y2) for b in found] == boxes


@pytest.mark.parametrize(
    'fit, box',
    [
        ('fill', (160, 180, 320, 360)),
        # the whole width, and 640 - 360 = 280 rows of black around it
        ('contain', (160, 20, 320, 180)),
        ('topleft', (160, 160, 320, 320)),
        # 140 columns are lost on each side
        ('cover', (230, 90, 320, 180)),
    ],
)
def test_where_a_box_lies_for_each_fit(fit, box):
    """A quarter to a half of the tile both ways."""
    height = 720 if fit == 'fill' else 360
    (found,) = find('[[250, 250, 500, 500]]', 'it', 640, height, 320, fit)
    assert (found.x1, found.y1, found.x2, found.y2) == box


def test_a_small_picture_is_not_enlarged_at_the_top_left():
    (found,) = find('[[0, 0, 100, 100], [500, 0, 600, 100]]', 'it', 200, 100, 448, 'topleft')
    assert found == Box('it', 0, 0, 44.8, 44.8)


texts = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(
            ['[', ']', '[[', ']]', ', ', '<ref>', '</ref>', '<box>', '</box>', 'dog', '狗', '\0']
        )
        | st.integers(-2000, 2000).map(str)
        | st.floats(0, 1000).map(str)
    ).map(''.join),
    st.lists(st.integers(-100, 1100), min_size=4, max_size=4).map(lambda n: f'dog[{n}]'),
)


@settings(max_examples=300)
@given(texts, st.text(), st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(FITS))
def test_whatever_a_model_says_boxes_lie_in_the_picture(answer, thing, width, height, fit):
    for box in find(answer, thing, width, height, SIDE, fit):
        assert 0 <= box.x1 < box.x2 <= width
        assert 0 <= box.y1 < box.y2 <= height


@pytest.mark.parametrize('piece', ['[', '[1', '1', '[[1, 2, ', '<ref>', 'a', ' ', '[ ', '1.1.'])
def test_a_long_answer_takes_no_long_time(piece):
    began = process_time()
    assert find(piece * 50000, 'it', 640, 480, SIDE, 'fill') == ()
    assert process_time() - began < 2


@settings(max_examples=100)
@given(
    st.sampled_from(('internvl', 'smolvlm')),
    st.sampled_from(FITS),
    st.sampled_from((1, 6)),
    st.integers(120, 700),
    st.integers(120, 700),
    st.data(),
)
def test_a_box_is_where_the_families_put_the_picture(name, fit, max_tiles, width, height, data):
    """Paint a rectangle, look where it is on the tile of the whole picture, and ask back."""
    side = 128
    # in the square in the middle, which is there whatever the fit
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    size = data.draw(st.integers(edge // 3, edge // 2))
    x = left + data.draw(st.integers(2, edge - size - 2))
    y = top + data.draw(st.integers(2, edge - size - 2))
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[y : y + size, x : x + size] = 255
    tile = family(name).tiles(rgb, side, max_tiles, fit).pixels[-1]
    rows, columns = (np.flatnonzero(tile[..., 0].max(axis) > 127) for axis in (1, 0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    numbers = ', '.join(str(round(1000 * int(n) / side)) for n in seen)
    (box,) = find(f'it[[{numbers}]]', 'it', width, height, side, fit)
    # two pixels of the tile, as large as they are in the picture
    allowed = 2 * max(width, height, side) / side
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx(
        (x, y, x + size, y + size), abs=allowed
    )
