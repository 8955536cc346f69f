"""Pictures stand where ``<image>`` stands in a prompt, as in the model cards."""

from __future__ import annotations

from core import parts, prompt
from folders import MODELS
from hobot_vlm import VLM
from hobot_vlm.errors import PromptError
from pictures import picture
import pytest

ONE, TWO = picture(150, 100, 1), picture(90, 130, 2)


@pytest.fixture(scope='module', params=['internvl', 'smolvlm'])
def vlm(request):
    with VLM.load(
        model_file_name=MODELS / request.param / 'vision.onnx',
        llm_model_name=MODELS / request.param / 'decoder.gguf',
        llm_threads=1,
        encoder_threads=1,
        max_tiles=2,
        n_ctx=2048,
        encoder_device='cpu',
        warm_up=False,
    ) as opened:
        yield opened


def ids(vlm, question, shown=None):
    return prompt(vlm, question, shown).prompt.ids


def around(vlm, made):
    """Give the control tokens and texts of a prompt; embeddings as E."""
    model = parts(vlm).model
    names = {i: text for text, i in model.controls.items()}
    pieces = ['E' if i < 0 else names.get(i) or model.piece(i).decode('latin1') for i in made]
    return ''.join(piece for i, piece in enumerate(pieces) if piece != 'E' or pieces[i - 1] != 'E')


def test_the_marks_of_the_makers_are_what_is_done_without(vlm):
    if parts(vlm).family.name == 'internvl':
        assert ids(vlm, '<image>\nWhat?', [ONE]) == ids(vlm, 'What?', [ONE])
        marked = 'Image-1: <image>\nImage-2: <image>\nWhat?'
        assert ids(vlm, marked, [ONE, TWO]) == ids(vlm, 'What?', [ONE, TWO])
    else:
        assert ids(vlm, '<image>What?', [ONE]) == ids(vlm, 'What?', [ONE])
        assert ids(vlm, '<image><image>What?', [ONE, TWO]) == ids(vlm, 'What?', [ONE, TWO])


def test_pictures_stand_anywhere(vlm):
    made = ids(vlm, 'First <image>, then <image>. Which?', [ONE, TWO])
    model = parts(vlm).model
    embeddings = [[i for i in ids(vlm, 'x', [image]) if i < 0] for image in (ONE, TWO)]
    places = [[made.index(i) for i in each] for each in embeddings]
    texts = [
        b''.join(model.piece(i) for i in part if i >= 0).decode()
        for part in (
            made[: places[0][0]],
            made[places[0][-1] : places[1][0]],
            made[places[1][-1] :],
        )
    ]
    assert texts[0].endswith('First ') and texts[1].startswith(', then ')
    assert texts[2].startswith('. Which?')
    assert vlm.ask('First <image>, then <image>. Which?', [ONE, TWO], n_predict=2).image_tokens


def test_one_mark_stands_for_all(vlm):
    made = around(vlm, ids(vlm, '<image>\nCompare.', [ONE, TWO]))
    single = sum(i < 0 for i in ids(vlm, 'x', [ONE])) + sum(i < 0 for i in ids(vlm, 'x', [TWO]))
    assert sum(i < 0 for i in ids(vlm, '<image>\nCompare.', [ONE, TWO])) == single
    if parts(vlm).family.name == 'internvl':
        assert made.count('<img>') == made.count('</img>') == 1
        assert '<img>E</img>\nCompare.' in made
    else:
        assert made.count('<global-img>') == 2


def test_messages_have_marks_too(vlm):
    text = {'type': 'text', 'text': 'Before <image> after <image>'}
    shown = [{'type': 'image', 'image': image} for image in (ONE, TWO)]
    talk = [{'role': 'user', 'content': [*shown, text]}]
    assert ids(vlm, talk) == ids(vlm, text['text'], [ONE, TWO])


def test_another_number_of_marks_is_refused(vlm):
    for question, shown in (('<image> <image>', [ONE]), ('<image>' * 3, [ONE, TWO])):
        with pytest.raises(PromptError, match='marks <image>.*write one mark for each'):
            vlm.ask(question, shown)


def test_without_pictures_it_is_text(vlm):
    made = ids(vlm, 'what does <image> mean?')
    assert '<image>' not in around(
        vlm, [i for i in made if i in parts(vlm).model.controls.values()]
    )
    assert vlm.tokenize('<image>')[0] in made
