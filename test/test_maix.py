"""What a MaixPy program finds here; its documented example runs with one changed line."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys as python

from core import unfinished
from hobot_vlm import PictureError, VLM, VlmError
from hobot_vlm.maix import display, err, image, log, nn, sys
import numpy as np
import pytest

HERE = Path(__file__).parent
PROGRAM = HERE / 'data' / 'maix_program.txt'  # of MaixPy's page on InternVL, as it stands there

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


# -- the program of the documentation ---------------------------------------------------------


def run_program(tmp_path, catalogue: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run MaixPy's program with its import changed, on a machine with this catalogue."""
    program = PROGRAM.read_text(encoding='utf-8')
    assert program.count('from maix import') == 1
    (tmp_path / 'config' / 'hobot_vlm').mkdir(parents=True)
    (tmp_path / 'config' / 'hobot_vlm' / 'models.yaml').write_text(catalogue)
    return subprocess.run(
        [
            python.executable,
            '-c',
            program.replace('from maix import', 'from hobot_vlm.maix import'),
        ],
        env=os.environ
        | {'XDG_CONFIG_HOME': str(tmp_path / 'config'), 'HF_HUB_CACHE': str(tmp_path / 'hub')}
        | env,
        cwd=HERE.parent,
        capture_output=True,
        encoding='utf-8',
        timeout=100,
    )


def test_the_program_of_the_documentation(tmp_path):
    catalogue = f"""
models:
  internvl2.5-1b:
    family: internvl
    variants:
      any:
        encoder: {HERE}/models/internvl/vision.onnx
        decoder: {HERE}/models/internvl/decoder.gguf
"""
    shown = tmp_path / 'shown.png'
    done = run_program(tmp_path, catalogue, HOBOT_VLM_DISPLAY=str(shown))
    assert (done.returncode, done.stderr) == (0, '')
    first, asked, last = done.stdout.partition('>> 请描述图中有什么\n')
    assert first.count('memory info:') == 2 and 'format: FMT_RGB888' in first and asked
    answer, asked, other = last.partition('>> Describe the picture\n')
    assert answer and asked and other
    picture = image.load(str(shown))
    assert (picture.width(), picture.height()) == (640, 480)
    assert np.asarray(picture).std() > 10


def test_a_model_that_has_to_be_fetched_first_is_named(tmp_path):
    done = run_program(tmp_path, '')
    assert done.returncode == 1
    assert '`vlm download internvl2.5-1b`' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ('model', 'words'),
    [
        ('/root/models/InternVL2.5-1B/model.mud', 'vlm download internvl2.5-1b'),
        ('/root/models/internvl2_5-1b-maixcam2.mud', 'vlm download internvl2.5-1b'),
        ('/root/models/InternVL3-1B-maixcam2/model.mud', 'vlm download internvl3-1b'),
        ('smolvlm2-256m.mud', 'vlm download smolvlm2-256m'),
        ('/root/models/yolo11n.mud', 'no model here has its name: give one of demo, '),
    ],
)
def test_a_mud_file_stands_for_the_model_of_its_name(model, words, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(VlmError, match=words):
        nn.InternVL(model)


def test_the_callback_gets_what_is_new(internvl, sample, demo, capsys):
    assert (internvl.input_width(), internvl.input_height()) == (demo.tile_size,) * 2
    assert image.format_name(internvl.input_format()) == 'FMT_RGB888'

    def on_reply(obj, resp):
        assert obj is internvl and resp.msg.endswith(resp.msg_new)
        print(resp.msg_new, end='')

    internvl.set_system_prompt('You are a helpful assistant.')
    internvl.set_reply_callback(on_reply)
    img = image.load(sample, format=internvl.input_format())
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


def test_a_picture_is_encoded_when_it_is_set_and_kept(internvl):
    blue = np.zeros((40, 60, 3), np.uint8)
    blue[..., 2] = 255
    vlm = internvl.vlm
    misses = vlm.status().image_misses
    assert internvl.set_image(blue) == err.Err.ERR_NONE
    assert vlm.status().image_misses == misses + 1
    expected = internvl.send('What colour is the background?').msg
    blue[:] = 0  # drawing on the original changes nothing
    assert internvl.send('What colour is the background?').msg == expected != ''
    assert vlm.status().image_misses == misses + 1


def test_fit_reaches_the_encoder(internvl):
    y, x = np.mgrid[:90, :160]
    picture = np.stack([x % 32 * 8, y % 32 * 8, x + y], 2).astype(np.uint8)
    misses = internvl.vlm.status().image_misses
    for fit in (*image.Fit, *image.Fit):  # each is another cut, which is encoded once
        assert internvl.set_image(picture, fit) == err.Err.ERR_NONE
        assert internvl.send(QUESTION).err_code == err.Err.ERR_NONE
    assert internvl.vlm.status().image_misses == misses + len(image.Fit)


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
    with unfinished(internvl.vlm, tokens=5):
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


# -- pictures, display, log -------------------------------------------------------------------


def test_a_picture_can_be_drawn_on_and_saved(tmp_path, sample):
    img = image.load(sample)
    before = np.array(img)
    assert (img.height(), img.width(), 3) == before.shape
    assert img.draw_string(10, 20, 'dog', image.COLOR_RED, scale=2) is img
    changed = (np.asarray(img) != before).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 20 <= rows.min() and rows.max() < 20 + 2 * 24
    assert 10 <= columns.min() and columns.max() < 120
    assert img.save(str(tmp_path / 'out.png')) == err.Err.ERR_NONE
    assert np.array_equal(image.load(str(tmp_path / 'out.png')), img)
    assert img.save(str(tmp_path / 'no' / 'out.png')) == err.Err.ERR_RUNTIME
    assert img.save(str(tmp_path / 'out.nonsense')) == err.Err.ERR_RUNTIME


def test_text_wraps_at_the_edge_and_may_be_in_any_language():
    for text in ('word ' * 20, '一只狗' * 20):
        img = image.Image(np.zeros((200, 100, 3), np.uint8)).draw_string(0, 0, text)
        rows = np.nonzero(np.asarray(img).any(axis=(1, 2)))[0]
        assert rows.max() - rows.min() > 40
    with pytest.raises(PictureError, match='nofont.ttf'):
        img.draw_string(0, 0, 'x', font='nofont.ttf')


def test_resizing_keeps_the_proportions_where_it_is_to():
    img = image.Image(np.full((100, 200, 3), 255, np.uint8))
    contained = np.asarray(img.resize(80, 80, image.Fit.FIT_CONTAIN))
    assert not contained[:19].any() and contained[21:59].all() and not contained[61:].any()
    assert np.asarray(img.resize(80, 80, image.Fit.FIT_COVER)).all()
    assert np.asarray(img.resize(80, 80)).all()


def test_what_is_no_picture():
    with pytest.raises(PictureError, match='nowhere'):
        image.load('/nowhere/dog.jpg')


def test_a_sample_of_the_board_is_the_bundled_one(caplog, sample):
    img = image.load('/maixapp/share/picture/2024.1.1/ssd_car.jpg')
    assert np.array_equal(img, image.load(sample))
    assert 'sample.png' in caplog.text


def test_a_display_without_a_screen(tmp_path, monkeypatch, sample):
    disp = display.Display()
    monkeypatch.delenv('HOBOT_VLM_DISPLAY', raising=False)
    disp.show(image.load(sample))
    monkeypatch.setenv('HOBOT_VLM_DISPLAY', str(tmp_path / 'screen.jpg'))
    disp.show(image.load(sample))
    assert image.load(str(tmp_path / 'screen.jpg')).width() == disp.width() == 640
    assert [path.name for path in tmp_path.iterdir()] == ['screen.jpg']
    monkeypatch.setenv('HOBOT_VLM_DISPLAY', str(tmp_path / 'no' / 'screen.jpg'))
    with pytest.raises(PictureError, match='HOBOT_VLM_DISPLAY.*screen.jpg'):
        disp.show(image.load(sample))


def test_the_log_says_what_it_is_to_say(capsys, monkeypatch):
    monkeypatch.setattr(log.logger, 'handlers', [])
    monkeypatch.setattr(log.logger, 'level', 0)
    log.set_log_level(log.LogLevel.LEVEL_WARN, color=False)
    for say in (log.error, log.warn, log.info, log.debug):
        say('100 %', 'of', 3)
    assert capsys.readouterr().err == '-- [E] 100 % of 3\n-- [W] 100 % of 3\n'
    assert log.get_log_level() == log.LogLevel.LEVEL_WARN
    log.set_log_level(log.LogLevel.LEVEL_NONE)
    log.error('nothing')
    assert capsys.readouterr().err == ''
    log.set_log_level(log.LogLevel.LEVEL_DEBUG)
    log.error('red')
    assert capsys.readouterr().err == '\x1b[31m-- [E] red\x1b[0m\n'
