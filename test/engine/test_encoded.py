"""Pictures that are encoded in one place and asked about in another: the answers are the same."""

from __future__ import annotations

from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
import json
import threading

from core import embed
from folders import DEMO, MODELS
from hobot_vlm import ConfigError, EncodedImage, ModelMismatch, PictureError, Reply, Vision, VLM
from hobot_vlm.vlm import make_request
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as some
import numpy as np
from pictures import picture
import pytest

QUESTION = 'Tell me what you see.'
SHOWN = picture(200, 150, 340)
SMALL = {'n_predict': 24, 'llm_threads': 1, 'warm_up': False, 'max_tiles': 4}


def halves(name):
    """Give the options of a whole model, of its eyes, and of its words."""
    if name == 'demo':
        return {}, {}, {'encoder_device': 'elsewhere'}
    folder = MODELS / name
    decoder = {'llm_model_name': str(folder / 'decoder.gguf')}
    encoder = {'model_file_name': str(folder / 'vision.onnx')}
    kind = {'model_type': {'internvl': 0, 'smolvlm': 1}[name]}
    return encoder | decoder, encoder | kind, decoder | {'encoder_device': 'elsewhere'}


@pytest.fixture(scope='module', params=['internvl', 'smolvlm', 'demo'])
def model(request):
    whole, eyes, words = halves(request.param)
    with VLM.load(**SMALL | whole) as one, Vision.load(**eyes) as vision:
        with VLM.load(**SMALL | words) as other:
            yield one, vision, other


@pytest.fixture(scope='module')
def sent():
    """Give an encoded picture on its way: header and numbers."""
    with Vision.load('demo') as vision:
        return vision.encode_image(DEMO / 'sample.png').pack()


def test_the_answer_is_that_of_one_machine(model):
    """Also where the picture is known already."""
    one, vision, other = model
    for shown in (SHOWN, DEMO / 'sample.png'):
        there = EncodedImage.unpack(*vision.encode_image(shown, max_tiles=4).pack())
        expected, got = one.ask(QUESTION, shown), other.ask(QUESTION, there)
        assert got.text == expected.text
        assert (got.prompt_tokens, got.image_tokens) == (
            expected.prompt_tokens,
            expected.image_tokens,
        )
        assert one.ask(QUESTION, there).text == expected.text  # a whole model takes it too
        hits = other.status().image_hits
        again = other.ask('And now?', EncodedImage.unpack(*there.pack()))
        assert other.status().image_hits == hits + 1
        assert again.reused_tokens > got.image_tokens


def test_bfloat16_is_rounded_to_the_nearest(model):
    """Eight bits: what is trained says the same of it, random weights need not."""
    one, vision, other = model
    there = vision.encode_image(DEMO / 'sample.png', max_tiles=1)
    came = EncodedImage.unpack(*there.pack('bfloat16'))
    for sent, got in zip(there.tiles, came.tiles, strict=True):
        assert (np.abs(got - sent) <= np.abs(sent) / 256).all()
    if one.config.model == 'demo' and not one.config.llm_model_name:
        question = 'Describe the picture.'
        assert other.ask(question, came).text == one.ask(question, DEMO / 'sample.png').text


def test_what_a_vlm_encodes_is_what_the_half_encodes(model):
    one, vision, _ = model
    mine, theirs = one.encode_image(SHOWN, max_tiles=1), vision.encode_image(SHOWN, max_tiles=1)
    assert mine == theirs and mine.encoder == theirs.encoder and mine.key == theirs.key
    assert len({mine, theirs, one.encode_image(SHOWN, max_tiles=4)}) == 2


def test_several_and_fewer(model):
    one, vision, other = model
    shown = [SHOWN, picture(150, 150, 3)]
    there = [vision.encode_image(each, max_tiles=4) for each in shown]
    assert other.ask(QUESTION, there).text == one.ask(QUESTION, shown).text
    half = {'keep_image_tokens': 0.5}
    assert other.ask(QUESTION, there[0], **half).text == one.ask(QUESTION, SHOWN, **half).text
    message = [{'type': 'image', 'image': there[0]}, {'type': 'text', 'text': QUESTION}]
    content = [{'role': 'user', 'content': message}]
    assert other.ask(content).image_tokens == one.ask(QUESTION, SHOWN).image_tokens


def test_boxes_are_in_pixels_of_the_picture():
    """As the encoder cut it, whatever the other machine would have done."""
    whole, _, words = halves('internvl')
    request = make_request('the cat', SHOWN, find=True)
    reply = Reply('<box>[[0, 250, 500, 1000]]</box>')
    with VLM.load(**SMALL | whole, fit='contain') as one:
        there = one.encode_image(SHOWN, max_tiles=1)
        (here,) = embed(one, SHOWN)
        (expected,) = one.maker.with_places(request, here, reply).boxes
    with VLM.load(**SMALL | words) as other:
        (image,) = embed(other, there)
        (box,) = other.maker.with_places(request, image, reply).boxes
    assert box == expected and box.x2 == 100


def test_what_does_not_fit_names_both(sent):
    whole, _, words = halves('internvl')
    there = EncodedImage.unpack(*sent)
    with VLM.load(**SMALL | words) as other:
        with pytest.raises(ModelMismatch, match=r'vision\.onnx .*smolvlm.*internvl'):
            other.ask(QUESTION, there)
        wide = replace(there, family='internvl')
        with pytest.raises(ModelMismatch, match=rf'width {there.n_embd},.*reads width'):
            other.ask(QUESTION, wide)
        with pytest.raises(ModelMismatch, match='is elsewhere'):
            other.ask(QUESTION, SHOWN)
        with pytest.raises(ModelMismatch, match='is elsewhere'):
            other.encode_image(SHOWN)
        assert other.ask(QUESTION).text
    with pytest.raises(ConfigError, match='model_type is -1.*0 .internvl. or 1 .smolvlm.'):
        Vision.load(model_file_name=whole['model_file_name'])
    with pytest.raises(ModelMismatch, match='model_type is 1 .smolvlm.*internvl'):
        Vision.load(model_file_name=str(MODELS / 'internvl' / 'mmproj.gguf'), model_type=1)
    with pytest.raises(ConfigError, match='elsewhere'):
        Vision.load(encoder_device='elsewhere')


@pytest.mark.parametrize(
    'change, says',
    [
        ({'hobot_vlm': 2}, 'is of version 2, and this hobot_vlm reads version 1'),
        ({'hobot_vlm': 'x' * 900}, 'is of version'),
        ({'tokens': [16, 16]}, 'contradict'),
        ({'tokens': [1 << 40]}, 'tokens is 1099511627776'),
        ({'tokens': 'many'}, "tokens is 'many'"),
        ({'n_embd': 0}, 'n_embd is 0'),
        ({'n_embd': True}, 'n_embd is True'),
        ({'n_embd': 64.0}, 'n_embd is 64.0'),
        ({'rows': 1, 'columns': 2}, 'contradict'),
        ({'dtype': 'float64'}, "dtype is 'float64'"),
        ({'size': [0, 4]}, 'size is 0'),
        ({'size': 4}, 'size is 4'),
        ({'hash': 'zz'}, "hash is 'zz'"),
        ({'family': 'a\n'}, 'family is'),
        ({'tile_size': -1}, 'tile_size is -1'),
        ({'fit': None}, 'lacks fit'),
    ],
)
def test_headers_that_cannot_be(sent, change, says):
    header, data = sent
    fields = {
        name: value for name, value in (json.loads(header) | change).items() if value is not None
    }
    with pytest.raises((PictureError, ModelMismatch), match=says) as caught:
        EncodedImage.unpack(json.dumps(fields, separators=(',', ':')), data)
    assert len(str(caught.value)) < 400


def test_numbers_that_cannot_be(sent):
    header, data = sent
    for wrong in (b'', data[:-1], data + b'\0'):
        with pytest.raises(PictureError, match='bytes of numbers'):
            EncodedImage.unpack(header, wrong)
    for value in (np.nan, np.inf):
        numbers = np.frombuffer(data, np.float16).copy()
        numbers[7] = value
        with pytest.raises(PictureError, match='not finite'):
            EncodedImage.unpack(header, numbers.tobytes())
    for name in ('jpeg', 'rgb8; jpeg compressed bgr8', '{"hobot_vlm":1', header + ' ' * 5000):
        with pytest.raises(PictureError):
            EncodedImage.unpack(name, data)


def test_a_number_beyond_float16(sent):
    there = EncodedImage.unpack(*sent)
    there.tiles[0][0, 0] = 70000.0
    with pytest.raises(PictureError, match='up to 70000.*bfloat16'):
        there.pack('float16')
    assert abs(EncodedImage.unpack(*there.pack('bfloat16')).tiles[0][0, 0] / 70000 - 1) < 0.004


@effort(max_examples=60, deadline=None)
@given(
    some.dictionaries(
        some.sampled_from(
            [
                'hobot_vlm',
                'family',
                'encoder',
                'rows',
                'columns',
                'overview',
                'tokens',
                'n_embd',
                'dtype',
                'tile_size',
                'fit',
                'size',
                'hash',
            ]  # fmt: skip
        ),
        some.recursive(
            some.none()
            | some.booleans()
            | some.integers()
            | some.floats()
            | some.text(max_size=9),
            lambda inner: some.lists(inner, max_size=3),
            max_leaves=5,
        ),
    ),
    some.binary(max_size=64),
)
def test_anything_is_an_error_or_an_embedding(fields, data):
    base = {'hobot_vlm': 1, 'family': 'f', 'encoder': 'e', 'rows': 0, 'columns': 0,
            'overview': True, 'tokens': [2], 'n_embd': 4, 'dtype': 'float16', 'tile_size': 8,
            'fit': '', 'size': [3, 4], 'hash': '0' * 32}  # fmt: skip
    header = json.dumps(base | fields, separators=(',', ':'))
    try:
        made = EncodedImage.unpack(header, data)
    except (PictureError, ModelMismatch) as exc:
        assert len(str(exc)) < 600
    else:
        assert all(np.isfinite(tile).all() for tile in made.tiles)


def test_eyes_that_close_while_they_encode(monkeypatch):
    """Who waits has an error at once, and the thread ends without a word, whatever it gives."""
    for works in (True, False):
        vision, entered, leave = Vision.load('demo'), threading.Event(), threading.Event()
        encode = vision.parts.encoder.encode

        def slow(tiles, works=works, encode=encode, entered=entered, leave=leave):
            entered.set()
            leave.wait(30)
            return encode(tiles if works else None)

        monkeypatch.setattr(vision.parts.encoder, 'encode', slow)
        with ThreadPoolExecutor(2) as pool:
            asked = pool.submit(vision.encode_image, SHOWN)
            assert entered.wait(30)
            closed = pool.submit(vision.close)
            with pytest.raises(CancelledError):
                asked.result(30)
            leave.set()
            closed.result(30)
