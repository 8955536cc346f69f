"""
Time what HTTP adds to an answer: to its first token, and to its decoding.

The client is a process of its own, as it is in life. It and ``vlm.stream`` ask the same in turn,
so that whatever else the machine does meets both.
"""

from __future__ import annotations

import base64
from contextlib import suppress
import json
from pathlib import Path
from statistics import median
import subprocess
import sys
from time import perf_counter
from typing import Any

from hobot_vlm import AnswerCut, VLM
from hobot_vlm.server.http import create_app, HttpServer
from report import BOUNDS, Report

SAMPLE = Path(__file__).parents[1] / 'hobot_vlm' / 'demo' / 'sample.png'
SECTION = 'Over HTTP, against vlm.stream'
QUESTION = 'Describe the picture.'
ROUNDS = 15

BOUNDS |= {
    'added to the first token, ms': (3, False),
    'added to decoding, share': (0.03, False),
    'prompt of a second question that is reused, share': (0.5, True),
}

#: for each line of its input: posts it, and prints when the first and the last piece came
CLIENT = """
import http.client, sys
from time import perf_counter
for line in sys.stdin:
    body = line.encode()
    connection = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]))
    began = perf_counter()
    connection.request('POST', '/v1/chat/completions', body)
    answer = connection.getresponse()
    first, data = None, b''
    while piece := answer.read1(65536):
        data += piece
        if first is None and data.count(b'data: ') > 1:
            first = perf_counter()
    end = perf_counter()
    assert answer.status == 200 and data.endswith(b'[DONE]\\n\\n'), data
    print(first - began, end - first, data.count(b'data: '), flush=True)
"""


def bench_server(report: Report, vlm: VLM, n_predict: int = 64, rounds: int = ROUNDS) -> None:
    """
    Time the answers of a model, with HTTP and without.

    :param n_predict: tokens of an answer, which none ends before
    :param rounds: how often each of the two is timed
    """
    # A greedy answer of a fixed length: neither of the two may be lucky.
    options: dict[str, Any] = {'n_predict': n_predict, 'grammar': 'root ::= [a-z] root\n'}
    picture = SAMPLE.read_bytes()
    url = 'data:image/png;base64,' + base64.b64encode(picture).decode()
    parts: list[dict[str, Any]] = [
        {'type': 'image_url', 'image_url': {'url': url}},
        {'type': 'text', 'text': QUESTION},
    ]
    body = {
        'messages': [{'role': 'user', 'content': parts}],
        'stream': True,
        'max_tokens': n_predict,
        'grammar': options['grammar'],
    }
    direct = [
        {'role': 'user', 'content': [{'type': 'image', 'image': picture}, parts[1]]}
    ]  # fmt: skip
    app, service = create_app(vlm)
    with HttpServer(app, service, '127.0.0.1', 0) as server:
        command = [sys.executable, '-c', CLIENT, str(server.port)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdin and client.stdout
            added, shares = [], []
            for number in range(rounds + 2):
                began = perf_counter()
                stream = vlm.stream(direct, **options)
                chunks = iter(stream)
                next(chunks)
                first = perf_counter()
                with suppress(AnswerCut):  # the grammar has no end
                    for _ in chunks:
                        pass
                end = perf_counter()
                client.stdin.write(json.dumps(body) + '\n')
                client.stdin.flush()
                http_first, http_rest, _ = map(float, client.stdout.readline().split())
                if number >= 2:  # what was not known is known now
                    added.append(1000 * (http_first - (first - began)))
                    shares.append(http_rest / (end - first) - 1)
            client.stdin.close()
            reused = second_question(server, url)
    report.add(SECTION, 'added to the first token, ms', median(added))
    report.add(SECTION, 'added to decoding, share', median(shares))
    report.add(SECTION, 'prompt of a second question that is reused, share', reused)


def second_question(server: HttpServer, url: str) -> float:
    """Ask twice about one picture, the second time with the history; give what is reused."""
    import http.client

    image = {'type': 'image_url', 'image_url': {'url': url}}
    messages: list[dict[str, Any]] = [
        {'role': 'user', 'content': [image, {'type': 'text', 'text': QUESTION}]}
    ]
    usage: dict[str, Any] = {}
    connection = http.client.HTTPConnection('127.0.0.1', server.port)
    for question in ('What is on the left?', ''):
        body = json.dumps({'messages': messages, 'max_tokens': 20})
        connection.request('POST', '/v1/chat/completions', body)
        answer = json.loads(connection.getresponse().read())
        usage = answer['usage']
        said = answer['choices'][0]['message']['content']
        messages += [{'role': 'assistant', 'content': said}, {'role': 'user', 'content': question}]
    return float(usage['prompt_tokens_details']['cached_tokens'] / usage['prompt_tokens'])
