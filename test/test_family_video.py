"""How each family writes the frames of a video before the question."""

from __future__ import annotations

from dataclasses import replace

from hobot_vlm.families import family
from hobot_vlm.families.smolvlm import in_words
from hobot_vlm.values import Control, ImageEmbedding, Text, Tile, TileSpan
import pytest

FRAME = '<fake_token_around_image><global-img>E0<fake_token_around_image>'


def embedding(tiles=1, rows=0, columns=0):
    made = tuple(Tile(b'%d' % i, 2) for i in range(tiles))
    return ImageEmbedding(made, rows, columns, True, b'', (9, 9))


def written(parts):
    text = ''
    for part in parts:
        for span in [Text(part)] if isinstance(part, str) else part:
            if isinstance(span, Text):
                text += span.text
            elif isinstance(span, Control):
                text += span.token
            else:
                assert isinstance(span, TileSpan)
                text += f'E{span.index}'
    return text


def test_smolvlm_is_told_of_frames_as_it_was_trained():
    parts = family('smolvlm').video([embedding()] * 3, [0.2, 61.9, 3599.0], 3723.4, ())
    assert written(parts) == (
        'You are provided the following series of three frames from a 1:02:03 [H:MM:SS] video.\n'
        f'\nFrame from 00:00:{FRAME}\nFrame from 01:01:{FRAME}\nFrame from 59:59:{FRAME}\n\n'
    )


def test_smolvlm_sees_the_global_picture_of_a_frame_alone():
    parts = family('smolvlm').video([embedding(5, 2, 2)], [0.0], 0.04, ())
    assert written(parts).endswith(f'Frame from 00:00:{FRAME.replace("E0", "E4")}\n\n')


def test_internvl_numbers_the_frames():
    parts = family('internvl').video([embedding()] * 2, [0.0, 1.0], 2.0, ('<img>', '</img>'))
    assert written(parts) == 'Frame1: <img>E0</img>\nFrame2: <img>E0</img>\n'


@pytest.mark.parametrize('count', [1, 2, 3])
def test_other_models_see_pictures_one_after_the_other(count):
    """What InternVL's makers write before a frame, no others were trained on."""
    frames = [replace(embedding(), layout=(Control('<a>'), 0, Control('<b>')))] * count
    times = [float(number) for number in range(count)]
    assert written(family('mtmd').video(frames, times, 9.0, ())) == '<a>E0<b>' * count


@pytest.mark.parametrize(
    ('number', 'words'),
    [
        (1, 'one'),
        (13, 'thirteen'),
        (20, 'twenty'),
        (64, 'sixty-four'),
        (100, 'one hundred'),
        (128, 'one hundred and twenty-eight'),
        (1000, '1000'),
    ],
)
def test_numbers_in_words(number, words):
    assert in_words(number) == words
