"""
Many clients at once: pictures, cancels, disconnects. Every finished answer is right.

Ten seconds here; ``VLM_LOAD_SECONDS=120`` runs it for two minutes.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import time

import httpx
import pytest

from .conftest import asked, data_url, ROOT
from .test_metrics import counters

SECONDS = float(os.environ.get('VLM_LOAD_SECONDS', '10'))
CLIENTS = 32
CHAT = '/v1/chat/completions'
QUESTIONS = ('Describe the picture.', 'What is on the left?', '右边是什么？', 'Hello')
#: what may come to stay while everything is used for the first time
GROWTH = 64 << 20


COMMAND = [sys.executable, '-m', 'hobot_vlm.cli', 'serve', '--port', '0', '--n-ctx', '8192']

#: asks for the health until its input ends, and prints the slowest answer in milliseconds
WATCH = """
import http.client, select, sys, time
slowest = 0
connection = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]))
while not select.select([sys.stdin], [], [], 0.05)[0]:
    began = time.monotonic()
    connection.request('GET', '/health')
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
    slowest = max(slowest, time.monotonic() - began)
print(1000 * slowest)
"""


@contextmanager
def process():
    """Run a server of its own, as `vlm serve` is; give its address and process."""
    with subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            url = server.stderr.readline().split()[-1]
            server.stderr.readline()  # the model is there
            yield url, server
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
            assert server.stderr.read() == ''
        finally:
            server.kill()


def memory(server):
    pages = int(Path(f'/proc/{server.pid}/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


class Load:
    """The clients, and what came of their requests."""

    def __init__(self, url, pictures, expected):
        self.url = url
        self.pictures = pictures
        self.expected = expected
        self.whole = self.left = 0
        self.tokens = 0
        self.wrong = []
        self.end = 0.0

    async def run(self, seconds):
        """Let all clients go on for some time."""
        self.end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self.url, limits=limits, timeout=120, trust_env=False
        ) as client:
            await asyncio.gather(*(self.one(client, seed) for seed in range(CLIENTS)))

    async def one(self, client, seed):
        """Ask one thing after the other, and leave some answers early."""
        chance = random.Random(seed)
        while time.monotonic() < self.end:
            key = chance.choice(list(self.expected))
            name, question = key
            messages = asked(self.pictures[name], question) if name else [
                {'role': 'user', 'content': question}
            ]  # fmt: skip
            body = {'messages': messages, 'stream': chance.random() < 0.6}
            kind = chance.random()
            if kind < 0.2:
                await self.leave(client, {**body, 'stream': True}, chance.random() / 20)
            elif kind < 0.3:
                await self.time_out(client, body, chance.random() / 10)
            else:
                await self.finish(client, body, self.expected[key])

    async def finish(self, client, body, expected):
        """Read a whole answer, and compare it."""
        if not body['stream']:
            answer = (await client.post(CHAT, json=body)).json()
            text = answer['choices'][0]['message']['content']
            self.tokens += answer['usage']['completion_tokens']
        else:
            text = ''
            async with client.stream('POST', CHAT, json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith('data: {'):
                        event = httpx.Response(200, content=line[6:]).json()
                        text += event['choices'][0]['delta'].get('content', '')
                        self.tokens += event.get('timings', {}).get('predicted_n', 0)
        self.whole += 1
        if text != expected:
            self.wrong.append((text, expected))

    async def leave(self, client, body, seconds):
        """Leave a stream after some time."""
        async with client.stream('POST', CHAT, json=body) as answer:
            await asyncio.sleep(seconds)
            assert answer.status_code == 200
        self.left += 1

    async def time_out(self, client, body, seconds):
        """Break off before anything comes, or not long after it."""
        try:
            await asyncio.wait_for(client.post(CHAT, json=body), seconds)
        except (asyncio.TimeoutError, httpx.HTTPError):
            pass
        self.left += 1


@pytest.mark.timeout(SECONDS * 3 + 120)
def test_many_clients_at_once(demo, sample):
    pictures = {'sample': data_url(Path(sample).read_bytes())}
    files = {'sample': sample, '': None}
    expected = {
        (name, question): demo.ask(question, file).text
        for name, file in files.items()
        for question in QUESTIONS
    }
    with process() as (url, server):
        warm = Load(url, pictures, expected)
        asyncio.run(warm.run(min(SECONDS / 3, 10)))
        before = memory(server)
        load = Load(url, pictures, expected)
        command = [sys.executable, '-c', WATCH, url.rpartition(':')[2]]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as watch:
            asyncio.run(load.run(SECONDS))
            slowest = float(watch.communicate()[0])  # it has answered throughout
        with httpx.Client(base_url=url, trust_env=False) as client:
            end = time.monotonic() + 30
            while True:
                found = counters(client)
                if found['vlm_requests_running'] == found['vlm_requests_waiting'] == 0:
                    break
                assert time.monotonic() < end
        growth = memory(server) - before
    print(f'{load.whole} answers, {load.left} left, slowest health {slowest:.0f} ms, '
          f'memory {growth / 1e6:+.1f} MB')  # fmt: skip
    assert load.whole > CLIENTS and load.left > 5
    assert load.wrong == []
    assert growth < GROWTH
    answers = {k: v for k, v in found.items() if k.startswith('vlm_answers_total')}
    finished = answers['vlm_answers_total{finish_reason=stop}']
    assert finished >= load.whole + warm.whole
    assert sum(answers.values()) <= load.whole + warm.whole + load.left + warm.left
    assert found['vlm_answer_tokens_total'] >= load.tokens + warm.tokens
    status = f'vlm_http_requests_total{{path={CHAT},status=200}}'
    assert found[status] >= load.whole + warm.whole
    assert not [name for name in found if 'status=5' in name]
