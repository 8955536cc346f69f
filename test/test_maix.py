"""What a MaixPy program finds here; its documented example runs as it stands there."""

from __future__ import annotations

from hobot_vlm import VLM, VlmError
from hobot_vlm.maix import err, image, nn, sys
import numpy as np
import pytest

QUESTION = 'Describe the picture.'


@pytest.fixture(scope='module')
def internvl():
    with nn.InternVL('demo') as model:
        yield model


@pytest.fixture(autouse=True)
def clean(internvl):
    internvl.set_system_prompt('')
    internvl.set_reply_callback()
    internvl.clear_image()


def test_the_example_of_the_documentation(internvl, sample, demo, capsys):
    for k, v in sys.memory_info().items():
        print(f'\t{k:12}: {sys.bytes_to_human(v)}')
    assert 'MB' in capsys.readouterr().out
    in_fmt = internvl.input_format()
    assert (internvl.input_width(), internvl.input_height()) == (demo.encoder.side,) * 2
    assert image.format_name(in_fmt) == 'FMT_RGB888'

    def on_reply(obj, resp):
        assert obj is internvl and resp.msg.endswith(resp.msg_new)
        print(resp.msg_new, end='')

    internvl.set_system_prompt('You are a helpful assistant.')
    internvl.set_reply_callback(on_reply)
    img = image.load(sample, format=in_fmt)
    assert internvl.set_image(img, fit=image.Fit.FIT_CONTAIN) == err.Err.ERR_NONE
    for msg in ('描述一下这张图片.', QUESTION):
        resp = internvl.send(msg)
        err.check_raise(resp.err_code)
        expected = demo.ask(
            msg, sample, fit='contain', system_prompt='You are a helpful assistant.'
        )
        assert capsys.readouterr().out == resp.msg == expected.text != ''


def test_nothing_is_remembered_between_questions(internvl, sample):
    internvl.set_image(sample)
    first = internvl.send(QUESTION).msg
    internvl.send('背景是什么颜色？')
    assert internvl.send(QUESTION).msg == first


def test_a_picture_is_encoded_when_it_is_set_and_kept(internvl, monkeypatch):
    blue = np.zeros((40, 60, 3), np.uint8)
    blue[..., 2] = 255
    assert internvl.set_image(blue) == err.Err.ERR_NONE
    monkeypatch.setattr(internvl._vlm.encoder, 'encode', None)  # nothing is left to encode
    expected = internvl.send('What colour is the background?').msg
    blue[:] = 0  # drawing on the original changes nothing
    assert internvl.send('What colour is the background?').msg == expected != ''


def test_fit_reaches_the_encoder(internvl, monkeypatch):
    used = []
    tiles = type(internvl._vlm.family).tiles
    monkeypatch.setattr(
        type(internvl._vlm.family),
        'tiles',
        lambda self, rgb, side, most, fit: (used.append(fit), tiles(self, rgb, side, most, fit))[
            1
        ],
    )
    for number, fit in enumerate(image.Fit):
        picture = np.full((30, 80, 3), 20 + number, np.uint8)
        assert internvl.set_image(picture, fit) == err.Err.ERR_NONE
        internvl.send(QUESTION)
    assert used == ['', 'fill', 'contain', 'cover']  # once each


def test_errors_are_codes(internvl, sample):
    assert internvl.set_image(sample) == err.Err.ERR_NONE
    assert internvl.set_image('/nowhere/dog.jpg') == err.Err.ERR_ARGS
    assert not internvl.is_image_set()
    assert internvl.set_image(sample, 7) == err.Err.ERR_ARGS
    resp = internvl.send('dog ' * 20_000)
    assert resp.err_code == err.Err.ERR_ARGS and 'n_ctx' in resp.err_msg and resp.msg == ''
    with pytest.raises(VlmError, match='n_ctx'):
        err.check_raise(resp.err_code, resp.err_msg)
    with pytest.raises(VlmError, match='ERR_RUNTIME'):
        err.check_raise(err.Err.ERR_RUNTIME)
    err.check_raise(internvl.send('Hello').err_code)


def test_the_callback_may_cancel_and_may_fail(internvl, sample):
    internvl.set_image(sample)
    whole = internvl.send(QUESTION).msg
    internvl.set_reply_callback(lambda obj, resp: obj.cancel())
    resp = internvl.send(QUESTION)
    assert whole.startswith(resp.msg) and len(resp.msg) < len(whole) / 2
    assert resp.err_code == err.Err.ERR_NONE

    def fail(obj, resp):
        raise ZeroDivisionError

    internvl.set_reply_callback(fail)
    with pytest.raises(ZeroDivisionError):
        internvl.send(QUESTION)
    internvl.set_reply_callback(None)
    assert internvl.send(QUESTION).msg == whole


def test_memory_figures():
    before = sys.memory_info()
    assert 0 < before['process'] < before['used'] < before['total']
    with VLM.load('demo'):
        block = np.ones(64 << 20, np.uint8)
        assert sys.memory_info()['process'] > before['process'] + block.nbytes / 2
    assert sys.bytes_to_human(3 << 20) == '3.00 MB'
    assert sys.bytes_to_human(5 << 40) == '5.00 TB'
