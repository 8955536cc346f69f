"""How each family lays out pictures, and how a model's family is found."""

from __future__ import annotations

from pathlib import Path

from core import parts, prompt
from folders import MODELS
from hobot_vlm import ModelMismatch, VLM
from hobot_vlm.families import detect, family
from hobot_vlm.prompt.template import ChatTemplate
from hobot_vlm.prompt_maker import PromptMaker
from hobot_vlm.values import Control, ImageEmbedding, Text, Tile, TileSpan
from hobot_vlm.vlm import make_request
from pictures import picture
import pytest

QWEN = ('<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|vision_end|>')
SMOL = ('<|im_start|>', '<end_of_utterance>', '<fake_token_around_image>', '<global-img>')


def embedding(tiles, rows=0, columns=0, tokens=2):
    """Make the embedding of a picture."""
    made = tuple(Tile(bytes([i]), tokens) for i in range(tiles))
    return ImageEmbedding(made, rows, columns, True, b'key', (9, 9))


def written(parts):
    """Join parts: control tokens as they are, embeddings as E and the number of the tile."""
    text = ''
    for part in parts:
        for span in [Text(part)] if isinstance(part, str) else part:
            text += (
                span.text
                if isinstance(span, Text)
                else span.token
                if isinstance(span, Control)
                else f'E{span.index}'
            )
            assert isinstance(span, (Text, Control, TileSpan))
    return text


@pytest.mark.parametrize(
    ('controls', 'name'),
    [
        (('<img>', '</img>'), 'internvl'),
        (QWEN, 'internvl'),
        (SMOL, 'smolvlm'),
        ((*SMOL, *QWEN), 'smolvlm'),
    ],
)
def test_a_family_is_known_by_its_marks(controls, name):
    assert detect(controls, -1, Path('model.gguf')).name == name


def test_the_user_may_choose_the_family():
    assert detect((*SMOL, *QWEN), 0, Path('model.gguf')).name == 'internvl'
    with pytest.raises(ModelMismatch, match='smolvlm: <fake_token_around_image> <global-img>'):
        detect(QWEN, 1, Path('model.gguf'))
    with pytest.raises(ModelMismatch, match='internvl: <img> </img>.*smolvlm'):
        detect(('<s>',), -1, Path('model.gguf'))


@pytest.mark.parametrize(
    ('labels', 'pictures', 'expected'),
    [
        ((), [embedding(1)], '<img>E0</img>\n'),
        ((), [embedding(3, 1, 2)], '<img>E0E1E2</img>\n'),
        ((), [embedding(1)] * 2, 'Image-1: <img>E0</img>\nImage-2: <img>E0</img>\n'),
        (
            ('Frame1', 'Frame2'),
            [embedding(1)] * 2,
            'Frame1: <img>E0</img>\nFrame2: <img>E0</img>\n',
        ),
    ],
)
def test_internvl(labels, pictures, expected):
    made = family('internvl')
    assert written(made.parts(pictures, labels, ('<img>', '</img>', *QWEN))) == expected
    fallback = expected.replace('<img>', '<|vision_start|>').replace('</img>', '<|vision_end|>')
    assert written(made.parts(pictures, labels, QWEN)) == fallback


@pytest.mark.parametrize(
    ('labels', 'pictures', 'expected'),
    [
        ((), [embedding(1)], '@<global-img>E0@'),
        (
            (),
            [embedding(5, 2, 2)],
            '@<row_1_col_1>E0@<row_1_col_2>E1\n'
            '@<row_2_col_1>E2@<row_2_col_2>E3\n\n@<global-img>E4@',
        ),
        ((), [embedding(1)] * 2, '@<global-img>E0@@<global-img>E0@'),
        (('Frame1',), [embedding(1)], 'Frame1: @<global-img>E0@\n'),
    ],
)
def test_smolvlm(labels, pictures, expected):
    shown = written(family('smolvlm').parts(pictures, labels, SMOL))
    assert shown.replace('<fake_token_around_image>', '@') == expected


def test_smolvlm_has_a_space_only_before_text():
    chat = ChatTemplate(family('smolvlm').template, SMOL, image_mark='<image>')
    assert written([chat.opening('', ['Hi'])]).startswith('<|im_start|>User: Hi<end')
    assert written([chat.opening('', [[Control('<global-img>')], 'Hi'])]).startswith(
        '<|im_start|>User:<global-img>Hi<end'
    )


def test_reasoning_is_asked_for_as_its_makers_do():
    files = {
        'model_file_name': MODELS / 'internvl' / 'vision.onnx',
        'llm_model_name': MODELS / 'internvl' / 'decoder.gguf',
    }
    shown = picture(60, 60, 1)
    with VLM.load(**files, max_tiles=1, llm_threads=1) as vlm:

        def temperature(**options):
            request = make_request('Why?', shown, **options)
            return PromptMaker(parts(vlm)).config_of(request).temperature

        assert temperature() == 0
        assert temperature(thinking=True) == 0.6
        assert temperature(thinking=True, temperature=0.2) == 0.2
        model = parts(vlm).model
        made = prompt(vlm, 'Why?', shown, thinking=True)
        text = b''.join(model.piece(i) for i in made.prompt.ids if i >= 0).decode()
        assert 'You are an AI assistant that rigorously follows' in text
        assert '<think> and </think> tags.\n\n2. After the thinking section' in text
        assert len(made.prompt.ids) > len(prompt(vlm, 'Why?', shown).prompt.ids)
