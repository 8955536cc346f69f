"""The examples of docs/serving.md do what the page says, and it names what there is."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess

from hobot_vlm.cli import serve
from hobot_vlm.server import app
import pytest

from .conftest import ROOT

PAGES = ('serving.md', 'serving_cn.md')
EACH = pytest.mark.parametrize('name', PAGES)


def blocks(name, language):
    text = (ROOT / 'docs' / name).read_text(encoding='utf-8')
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.MULTILINE | re.DOTALL)


@EACH
@pytest.mark.filterwarnings('ignore')  # of the client, about its own types
def test_the_python_examples_run(name, server, monkeypatch, capsys, demo, sample):
    monkeypatch.chdir(ROOT)
    for example in blocks(name, 'python'):
        if 'agents' not in example:
            exec(compile(example.replace('127.0.0.1:8000', server.url[7:]), name, 'exec'), {})
    said = capsys.readouterr().out
    assert demo.ask('Describe the picture.', sample).text in said
    assert 'dog' in said.splitlines()[1]
    assert re.search(r'"to"\s*:\s*"(left|right)"', said)


@EACH
@pytest.mark.skipif(not shutil.which('curl'), reason='curl is not installed')
def test_the_curl_examples_run(name, server):
    for example in blocks(name, 'bash'):
        lines = example.replace('\\\n', ' ').splitlines()
        for command in [line for line in lines if line.startswith('curl ')]:
            command = command.replace('127.0.0.1:8000', server.url[7:])
            done = subprocess.run(
                ['bash', '-c', f'{command} --noproxy "*"'], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert '[DONE]' in done.stdout or done.stdout == '{"status":"ok"}'


@EACH
def test_paths_and_options_are_those_that_there_are(name, server, capsys):
    text = (ROOT / 'docs' / name).read_text(encoding='utf-8')
    named = set(re.findall(r'`(?:GET|POST) (/[\w/.]*)', text))
    routes = {f'/v1/{name}' for name in ('chat/completions', 'responses', 'completions', 'models')}
    routes |= {'/tokenize', '/health', '/metrics', '/live', '/live/questions', '/'}
    assert named == routes | set(re.findall(r'GET (/live\.mjpeg)', text))
    assert '/' in app.ASSETS
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    serve.add_parser(commands)
    options = {flag for flags, _ in serve.OPTIONS for flag in flags if flag.startswith('--')}
    table = set(re.findall(r'`(--[\w-]+)`', text))
    assert options - {'--verbose'} <= table
