"""Several servers, those that are away and come back, the fallback, and many who ask at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from urllib.request import urlopen

from core import unfinished
from hobot_vlm import RemoteError, VLM
from hobot_vlm.cli.main import main
from hobot_vlm.remote import call
from hobot_vlm.server.guard import Settings
from hobot_vlm.server.http import create_app, HttpServer
import httpx
import pytest
from server.conftest import installed

from .conftest import remote, serving
from .odd_server import ANSWER, odd_server

#: seconds of the test with many clients; two minutes for a release
SECONDS = float(os.environ.get('HOBOT_VLM_LOAD_SECONDS', '1'))
CLIENTS = 10
#: how often something is looked at that is to come within some seconds
TICK = 0.02
DEMO = os.path.join(os.path.dirname(call.__file__), '..', 'demo', 'decoder.gguf')


def until(condition, limit=30.0):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(TICK)


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


# -- the fallback ------------------------------------------------------------------------------


def test_the_fallback_answers_until_the_server_is_back(demo, sample):
    port = free_port()
    url = f'http://127.0.0.1:{port}/v1'
    question = 'What is on the left?', sample
    with VLM.load(url, fallback='demo') as vlm:
        assert vlm.troubles() and vlm.ask(*question).model == 'demo'
        talk = vlm.conversation()
        assert talk.ask(*question).model == 'demo'
        for _ in range(2):  # it comes, and is killed
            app, service = create_app(demo, Settings())
            with HttpServer(app, service, '127.0.0.1', port):
                until(lambda: not vlm.troubles())
                reply = talk.ask('What is on the right?')
                assert (reply.text, reply.model) == (
                    'There is a sunflower on the right.', f'demo@{url}'
                )  # fmt: skip
            reply = talk.ask('What is in the middle?')
            assert (reply.text, reply.model) == ('There is an automobile in the middle.', 'demo')
            assert vlm.troubles() == [f'{url} is away: {vlm.engines.all[0].away}']
        assert len(talk.exchanges) == 5
        with unfinished(vlm.local):
            stream = vlm.stream('Hello', grammar='root ::= "x" root', n_predict=100000)
            next(stream)
            stream.cancel()
            assert (stream.wait().finish_reason, stream.wait().model) == ('cancelled', 'demo')
        assert set(vlm.choose('Hello', None, ['Hello', 'No'])) == {'Hello', 'No'}
        assert vlm.ask('Hello', json_schema={'type': 'null'}).text == 'null'


def test_without_a_fallback_an_error_says_what_is_wrong(monkeypatch):
    monkeypatch.setattr(call, 'PAUSE', 0.01)
    url = f'http://127.0.0.1:{free_port()}/v1'
    with VLM.load(url) as vlm:
        for ask in (vlm.ask, vlm.tokenize, vlm.conversation().ask):
            with pytest.raises(RemoteError, match=f'{url} cannot be reached'):
                ask('Hello')
        assert vlm.name == url


def test_the_doctor_asks_a_server(odd, capsys):
    gone = f'http://127.0.0.1:{free_port()}/v1'
    assert main(['doctor', '-m', f'{odd.url},{gone}']) == 1
    said = capsys.readouterr().out
    assert f'odd@{odd.url} answers' in said and f'{gone} is away' in said
    assert main(['doctor', '-m', odd.url]) == 0
    for model in (gone, 'http://host:port/v1'):
        assert main(['doctor', '-m', model]) == 1
        assert 'BAD' in capsys.readouterr().out


def test_the_api_and_its_page_say_which_model_answered(odd, demo):
    with remote(odd.url, demo) as vlm, serving(vlm) as url, httpx.Client() as client:
        assert client.get(f'{url}/models').json()['data'][0]['id'] == 'odd'
        for prompt, name in (('good', 'odd'), ('refused', 'demo')):
            body = {'messages': [{'role': 'user', 'content': prompt}]}
            answer = client.post(f'{url}/chat/completions', json=body, timeout=60).json()
            assert answer['model'] == name
            lines = client.post(f'{url}/chat/completions', json={**body, 'stream': True},
                                timeout=60).text.split('\n\n')  # fmt: skip
            assert json.loads(lines[-3][6:])['model'] == name
        answer = client.post(f'{url}/responses', json={'input': 'refused'}, timeout=60).json()
        assert answer['model'] == 'demo'


# -- several servers ---------------------------------------------------------------------------


def test_the_least_busy_of_several_is_asked_and_one_that_is_away_is_not(monkeypatch):
    with odd_server() as one, odd_server() as two:
        gone = f'http://127.0.0.1:{free_port()}/v1'
        with VLM.load(f'{one.url},{two.url},{gone}', remote_timeout=60) as vlm:
            slow = [vlm.stream('silent') for _ in range(4)]
            until(lambda: one.counts['silent'] + two.counts['silent'] == 4)
            assert one.counts == two.counts == {'silent': 2}
            for stream in slow[::2]:
                stream.close()
            until(lambda: sorted(engine.open for engine in vlm.engines.all) == [0, 0, 2])
            before = one.counts['good'] + two.counts['good']
            vlm.ask('good')
            busy = max(vlm.engines.all, key=lambda engine: engine.open).url
            assert (one if busy == one.url else two).counts['good'] == 0
            assert one.counts['good'] + two.counts['good'] == before + 1
            assert [trouble.split()[0] for trouble in vlm.troubles()] == [gone]
        # one fails, another answers
        monkeypatch.setattr(call, 'PAUSE', 0.01)
        with VLM.load(f'{gone},{one.url}') as vlm:
            assert vlm.ask('fails_at_first').text == ANSWER
            assert vlm.ask('good').text == ANSWER


def test_a_conversation_stays_where_it_is():
    with odd_server() as one, odd_server() as two, VLM.load(f'{one.url},{two.url}') as vlm:
        talks = [vlm.conversation() for _ in range(4)]
        for _ in range(3):
            for talk in talks:
                talk.ask('good')
        assert one.counts['good'] == two.counts['good'] == 6
        lengths = {len(body['messages']) for body in one.bodies}
        assert lengths == {1, 3, 5}
        # the messages of a chat API, too: whoever has its beginning in a cache
        for number in range(3):
            chat = [{'role': 'user', 'content': f'chat {number}'}]
            vlm.ask(chat)
            for _ in range(2):
                chat += [{'role': 'assistant', 'content': ANSWER}, chat[0]]
                vlm.ask(chat)
        for number in range(3):
            assert sorted(s.counts[f'chat {number}'] for s in (one, two)) == [0, 3]


# -- many who ask ------------------------------------------------------------------------------


def test_many_clients_at_one_server_each_with_its_own_answers(demo):
    """No question is lost, and each answer reaches whoever asked."""
    wrong, counts = [], [0] * CLIENTS

    def work(number, url):
        with VLM.load(url, remote_timeout=60, n_predict=24) as vlm:
            end = time.monotonic() + SECONDS
            while not counts[number] or time.monotonic() < end:
                names = [f'{number} asks {counts[number] + i}' for i in range(3)]
                streams = [vlm.stream('Hello', grammar=f'root ::= "{name}"') for name in names]
                for name, stream in zip(names, streams, strict=True):
                    try:
                        said = stream.wait().text
                    except Exception as exc:
                        said = repr(exc)
                    if said != name:
                        wrong.append((name, said))
                    counts[number] += 1

    with serving(demo) as url:
        threads = [threading.Thread(target=work, args=(i, url)) for i in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert min(counts) >= 3, counts


# -- another implementation --------------------------------------------------------------------


@pytest.fixture(scope='module')
def llama_server():
    """Give the address of llama-cpp-python's own server, with the decoder of the demo."""
    site = installed('fastapi', 'pydantic-settings', 'sse-starlette', 'starlette-context<0.4')
    port = free_port()
    path = os.pathsep.join([str(site), os.environ.get('PYTHONPATH', '')])
    command = [sys.executable, '-m', 'llama_cpp.server', '--model', DEMO, '--n_ctx', '1024']
    process = subprocess.Popen(
        [*command, '--port', str(port), '--host', '127.0.0.1', '--n_threads', '1'],
        env={**os.environ, 'PYTHONPATH': path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f'http://127.0.0.1:{port}/v1'

    def there():
        assert process.poll() is None
        try:
            with urlopen(f'{url}/models', timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False

    try:
        until(there, 60)
        yield url
    finally:
        process.kill()
        process.wait()


def test_the_server_of_llama_cpp_python(llama_server, demo):
    with VLM.load(llama_server) as vlm:
        here = demo.ask('Hello')
        assert [chunk.text for chunk in vlm.stream('Hello')][0] == 'Hello'
        assert vlm.ask('Hello').text == here.text
        assert vlm.tokenize('Hello there') == demo.tokenize('Hello there')
        assert vlm.ask('Hello', json_schema={'enum': ['left']}).text.strip() == '"left"'
        assert vlm.ask('Hello', grammar='root ::= "yes"').text == 'yes'
        assert vlm.ask('Hello', stop=['the']).text == here.text.partition(' the')[0]
        reply = vlm.ask('Hello', logprobs=2, n_predict=3)
        assert (reply.finish_reason, len(reply.logprobs)) == ('length', 3)
        stream = vlm.stream('Hello', grammar='root ::= "x" root', n_predict=100000)
        next(stream)
        stream.close()
        # it would break off each of these for the next
        assert {str(reply) for reply in vlm.ask_many([('Hello', None)] * 4)} == {here.text}
        talk = vlm.conversation()
        assert talk.ask('Hello').text == here.text and talk.ask('And now?').text
