"""The package as Python programmers meet it: names, types, options, replies, colours."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import distribution
import inspect
import logging
from pathlib import Path
import pydoc
import re
import subprocess
import sys

import hobot_vlm
from hobot_vlm import ConfigError, Reply, Timings, VLM
from hobot_vlm.vlm import make_request
from mypy import api
import numpy as np
from PIL import Image
import pytest

ROOT = Path(__file__).parents[1]
QUESTION = 'Describe the picture.'


def in_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


# -- names ------------------------------------------------------------------------------------


def test_every_public_name_is_there_and_listed():
    out = in_python(
        'import hobot_vlm\nfirst = dir(hobot_vlm)\n'
        'print([n for n in hobot_vlm.__all__ if n not in first])\n'
        'print([getattr(hobot_vlm, n).__name__ for n in hobot_vlm.__all__] == hobot_vlm.__all__)\n'
        'from hobot_vlm import *\nprint(VLM, Reply)'
    )
    assert out.splitlines()[:2] == ['[]', 'True']
    with pytest.raises(AttributeError, match='nonsense'):
        hobot_vlm.nonsense  # noqa: B018


def test_help_shows_the_classes():
    text = pydoc.plain(pydoc.render_doc(hobot_vlm))
    for name in hobot_vlm.__all__:
        assert f'class {name}' in text
    assert 'def ask' in text or 'ask(self' in text


def test_importing_the_package_imports_nothing_else():
    heavy = {'numpy', 'llama_cpp', 'onnxruntime', 'cv2', 'PIL', 'huggingface_hub', 'jinja2'}
    assert not heavy & set(in_python('import hobot_vlm, sys; print(*sys.modules)').split())


# -- options ----------------------------------------------------------------------------------


def test_the_types_of_options_are_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    tool = import_module('make_option_types')
    assert tool.PLACE.read_text(encoding='utf-8') == tool.make(), (
        'run: python tools/make_option_types.py'
    )


def test_a_type_checker_finds_a_wrong_option(tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(
        'from hobot_vlm import VLM\n'
        "vlm = VLM.load('demo', n_ctx=2048, temperature=0.5)\n"
        "vlm.ask('x', n_predict=3, stop=['y'], bgr=True, json_schema={'type': 'object'})\n"
        "vlm.conversation().stream('x', seed=1)\n"
        "vlm.ask('x', temprature=1.0)\n"
        "vlm.stream('x', n_predict='3')\n"
        "VLM.load('demo', n_ctxx=2048)\n"
    )
    out, err, status = api.run(
        ['--strict', '--config-file', str(ROOT / 'pyproject.toml'), str(program)]
    )
    assert status == 1 and err == ''
    assert {line.split(':')[1] for line in out.splitlines() if ': error:' in line} == {
        '5', '6', '7'
    }  # fmt: skip
    assert 'temprature' in out and 'did you mean "temperature"' in out


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'temprature': 1.0}, "there is no option 'temprature'; did you mean temperature?"),
        ({'prioriti': 1}, 'did you mean priority?'),
        ({'n_ctx': 512}, 'n_ctx cannot differ from question to question'),
        ({'qqq': 1}, "there is no option 'qqq'$"),
    ],
)
def test_a_wrong_option_is_said(demo, options, words):
    with pytest.raises(ConfigError, match=words):
        demo.ask('Hello', **options)


def test_a_wrong_option_of_loading_is_said():
    with pytest.raises(ConfigError, match='did you mean n_ctx?'):
        VLM.load('demo', n_ctxx=512)


# -- replies ----------------------------------------------------------------------------------


def test_a_reply_prints_as_its_text():
    reply = Reply('A dog.', completion_tokens=3)
    assert str(reply) == f'{reply}' == 'A dog.'
    assert 'completion_tokens=3' in repr(reply)


def test_a_notebook_shows_the_text_and_runs_nothing():
    shown = Reply(
        'two\nlines <script>alert(1)</script>',
        prompt_tokens=50,
        timings=Timings(ttft_ms=12.4, tokens_per_second=7.25),
    )._repr_html_()
    assert 'two\nlines &lt;script&gt;' in shown and '<script' not in shown
    assert 'pre-wrap' in shown and '50 tokens' in shown and '12 ms' in shown


# -- colours ----------------------------------------------------------------------------------


def test_a_picture_of_opencv(demo, sample):
    rgb = np.asarray(Image.open(sample).convert('RGB'))
    expected = demo.ask(QUESTION, rgb).text
    assert demo.ask(QUESTION, rgb[..., ::-1], bgr=True).text == expected
    alpha = np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], 255, np.uint8)])
    assert demo.ask(QUESTION, [alpha], bgr=True).text == expected
    with demo.conversation() as talk:
        assert talk.ask(QUESTION, rgb[..., ::-1], bgr=True).text == expected


def test_bgr_turns_the_colours_of_every_array():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    three, four, grey = picture[..., :3], picture, picture[..., 0]
    sources = make_request('x', [three, four, grey], bgr=True).sources
    assert np.array_equal(sources[0], three[..., ::-1])
    assert np.array_equal(sources[1], four[..., [2, 1, 0, 3]])
    assert np.array_equal(sources[2], grey)
    assert make_request('x', three).sources[0] is three


def test_bgr_is_for_arrays(demo, sample):
    with pytest.raises(ConfigError, match='bgr is for arrays.*str'):
        demo.ask(QUESTION, sample, bgr=True)
    with pytest.raises(ConfigError, match='bgr is 1: expected True or False'):
        demo.ask(QUESTION, np.zeros((2, 2, 3), np.uint8), bgr=1)


def test_the_signatures_name_the_options():
    for method in (VLM.ask, VLM.stream, VLM.ask_many, hobot_vlm.Conversation.ask):
        assert 'Unpack[AskOptions]' in str(inspect.signature(method))


# -- the page ---------------------------------------------------------------------------------


def test_the_examples_of_the_page_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.getLogger('hobot_vlm'), 'level', 0)
    text = (ROOT / 'docs' / 'python.md').read_text(encoding='utf-8')
    examples = re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    assert len(examples) == 8
    for example in examples:
        exec(compile(example, 'docs/python.md', 'exec'), {})
    out = capsys.readouterr().out
    assert out.count('dog on the left') >= 2 and 'did you mean temperature?' in out


def test_an_editable_installation_can_be_followed():
    place = Path(distribution('hobot_vlm').locate_file(''))
    paths = [path.read_text() for path in place.glob('__editable__*hobot_vlm*.pth')]
    if not paths:
        pytest.skip('the package is installed as a copy')
    assert (Path(paths[0].strip()) / 'hobot_vlm').is_dir(), 'run: make setup'
