"""Clients and libraries as people have them: older majors of `openai`, Starlette of 2020 on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from hobot_vlm.server.guard import Settings
import pytest

from .conftest import installed, QUESTION, ROOT, serving

PICTURE_FILE = ROOT / 'hobot_vlm' / 'demo' / 'sample.png'

COMMON = f"""
import base64, json, sys
url = sys.argv[1]
data = base64.b64encode(open({str(PICTURE_FILE)!r}, 'rb').read()).decode()
messages = [{{'role': 'user', 'content': [
    {{'type': 'text', 'text': {QUESTION!r}}},
    {{'type': 'image_url', 'image_url': {{'url': 'data:image/png;base64,' + data}}}}]}}]
"""

BEFORE_1 = """
import openai
openai.api_base, openai.api_key = url + '/v1', 'secret'
ask = {'model': 'demo', 'messages': messages}
whole = openai.ChatCompletion.create(**ask)['choices'][0]['message']['content']
streamed = ''
for chunk in openai.ChatCompletion.create(**ask, stream=True):
    streamed += chunk['choices'][0]['delta'].get('content', '')
openai.api_key = 'wrong'
try:
    openai.Model.list()
except openai.error.AuthenticationError as exc:
    print(json.dumps([openai.VERSION, whole, streamed, exc.http_status]))
"""

SINCE_1 = """
import asyncio, openai
client = openai.OpenAI(base_url=url + '/v1', api_key='secret', max_retries=0)
ask = {'model': client.models.list().data[0].id, 'messages': messages}
whole = client.chat.completions.create(**ask, seed=1).choices[0].message.content

async def main():
    text = ''
    async with openai.AsyncOpenAI(base_url=url + '/v1', api_key='secret') as client:
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            text += chunk.choices[0].delta.content or ''
    return text

streamed = asyncio.run(main())
try:
    openai.OpenAI(base_url=url + '/v1', api_key='wrong', max_retries=0).models.list()
except openai.AuthenticationError as exc:
    print(json.dumps([openai.__version__, whole, streamed, exc.status_code]))
"""


def run_with(path, code, *args):
    """Run code in a process that finds the packages of a folder first."""
    there = os.pathsep.join([str(path), str(ROOT)])
    environment = {**os.environ, 'PYTHONPATH': there, 'NO_PROXY': '*'}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *args],
        env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ('version', 'more', 'code'),
    [('0.28.1', (), BEFORE_1), ('1.3.0', ('httpx<0.28',), SINCE_1)],
    ids=['0.28', '1.3'],
)
def test_an_old_openai_client(demo, sample, version, more, code):
    path = installed(f'openai=={version}', *more)
    with serving(demo, Settings(api_key='secret')) as server:
        used, whole, streamed, refused = run_with(path, COMMON + code, server.url)
    assert used == version
    parts = [{'type': 'text', 'text': QUESTION}, {'type': 'image', 'image': sample}]
    assert whole == streamed == demo.ask([{'role': 'user', 'content': parts}]).text
    assert refused == 401


#: what Ubuntu 22.04, Debian 12 and Ubuntu 24.04 ship, of Starlette, uvicorn and Prometheus
SHIPPED = {
    'jammy': ('starlette==0.13.8', 'uvicorn==0.15.0', 'prometheus-client==0.9.0'),
    'bookworm': (
        'starlette==0.26.1', 'uvicorn==0.17.6', 'prometheus-client==0.16.0', 'anyio<4',
    ),
    'noble': ('starlette==0.31.1', 'uvicorn==0.27.1', 'prometheus-client==0.19.0', 'anyio<5'),
}  # fmt: skip

SERVER = """
import json, socket, urllib.error, urllib.request
import starlette, uvicorn
from hobot_vlm import VLM
from hobot_vlm.server.guard import Settings
from hobot_vlm.server.http import create_app, HttpServer

def get(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, data)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()

vlm = VLM.load('demo')
app, service = create_app(vlm, Settings(max_body=100000))
with HttpServer(app, service, '127.0.0.1', 0) as server:
    ask = {'messages': [{'role': 'user', 'content': 'Hello'}]}
    found = [get('/health'), get('/'), get('/nothing'), get('/health', {})]
    found += [get('/v1/chat/completions', ask)]
    found += [get('/v1/chat/completions', {**ask, 'stream': True})]
    found += [get('/v1/chat/completions', {'messages': 'x' * 200000}), get('/metrics')]
    raw = socket.create_connection(('127.0.0.1', server.port))
    body = json.dumps({**ask, 'stream': True, 'max_tokens': 100000,
                       'grammar': 'root ::= "x" root'}).encode()
    raw.sendall(b'POST /v1/chat/completions HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: '
                + str(len(body)).encode() + b'\\r\\n\\r\\n' + body)
    assert raw.recv(100).startswith(b'HTTP/1.1 200')
    while not (running := vlm.status().running):
        pass
    raw.close()
    while vlm.status().running:
        pass
vlm.close()
print(json.dumps([starlette.__file__, uvicorn.__version__, found, running]))
"""


@pytest.mark.parametrize('shipped', SHIPPED)
def test_the_server_runs_with_what_a_distribution_ships(shipped):
    path = installed(*SHIPPED[shipped])
    where, uvicorn, found, running = run_with(path, SERVER)
    assert where.startswith(str(path))
    assert f'uvicorn=={uvicorn}' in SHIPPED[shipped]
    assert [status for status, _ in found] == [200, 200, 404, 405, 200, 200, 413, 200]
    assert found[5][1].endswith('data: [DONE]\n\n')
    assert json.loads(found[2][1])['error']['type'] == 'not_found_error'
    assert 'vlm_requests_running' in found[7][1]
    assert running == 1
