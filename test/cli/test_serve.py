"""``vlm serve``, as a process: it starts, says where, answers, and ends with a signal."""

from __future__ import annotations

from pathlib import Path
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

ROOT = Path(__file__).parents[2]


def start(*args):
    return subprocess.Popen(
        [sys.executable, '-m', 'hobot_vlm.cli', 'serve', *args],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def get(url, key=''):
    request = urllib.request.Request(url, headers={'Authorization': f'Bearer {key}'})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_a_signal_comes(number):
    process = start('--port', '0', '--api-key', 'sesame', '--host', '0.0.0.0')
    try:
        url = process.stderr.readline().split()[-1]
        assert url.startswith('http://127.0.0.1:')
        assert process.stderr.readline().startswith('the model demo answers')
        assert get(f'{url}/health') == (200, '{"status":"ok"}')
        assert get(f'{url}/v1/models')[0] == 401
        assert '"demo"' in get(f'{url}/v1/models', 'sesame')[1]
        body = b'{"messages": [{"role": "user", "content": "x"}], "stream": true, '
        body += b'"max_tokens": 100000, "grammar": "root ::= \\"x\\" root"}'
        request = urllib.request.Request(
            f'{url}/v1/chat/completions', body, {'Authorization': 'Bearer sesame'}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as running:
            running.readline()
            process.send_signal(number)
            assert b'[DONE]' in running.read()  # the answer was stopped, and ended as one
        assert process.wait(60) == 0
        assert process.stderr.read() == ''
    finally:
        process.kill()
        process.communicate()


def test_what_keeps_it_from_starting_is_said():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        for args, words in (
            (['--port', port], ['cannot listen', port, '--port']),
            (['--port', '99999'], ['cannot listen', '99999']),
            (['--host', '0.0.0.0'], ['--api-key', '--no-api-key']),
            (['--host', '::'], ['--api-key']),
            (['--host', 'no.such.host.invalid', '--no-api-key'], ['cannot listen']),
            (['--port', '0', '--media-path', '/nothing'], ['--media-path', 'folder']),
            (['--port', '0', '--api-key', 'schlüssel'], ['API key', 'ASCII']),
            (['--port', '0', '--model', 'nothing'], ['there is no model']),
            (['--set', 'temprature=1'], ['did you mean temperature']),
        ):
            process = start(*args)
            _, said = process.communicate(timeout=60)
            assert process.returncode == 2, said
            assert 'Traceback' not in said
            for word in words:
                assert word in said


def test_a_library_that_is_missing_is_named(monkeypatch):
    from hobot_vlm import server
    from hobot_vlm.errors import BackendMissing

    server.check_libraries()
    monkeypatch.setattr(server, 'LIBRARIES', ('starlette', 'no_such_library'))
    with pytest.raises(BackendMissing, match=r'no_such_library.*hobot_vlm\[serve\]'):
        server.check_libraries()
