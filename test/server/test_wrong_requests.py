"""What clients send wrong: every answer says what, none is a failure of the server."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
from pathlib import Path
import random
import socket
import sys
import time

from core import unfinished
from hobot_vlm import VLM
from hobot_vlm.server.guard import Settings
import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))

import make_mtmd_models  # noqa: E402

from .conftest import asked, data_url, ENDLESS, serving

CHAT = '/v1/chat/completions'
PICTURE_FIELD = 'messages[0].content[0].image_url.url'


def user(content):
    return {'messages': [{'role': 'user', 'content': content}]}


def image(url):
    return user([{'type': 'image_url', 'image_url': {'url': url}}])


HELLO = user('Hello')
WRONG_BODIES = [
    b'', b'{', b'[]', b'null', b'"x"', b'\xff\xfe', b'{"messages": NaN}', b'[' * 100000,
    b'{"a":' * 100000, b'{"messages": ' + b'9' * 5000 + b'}',
]  # fmt: skip
#: a body -> the field that the error names
WRONG_FIELDS = [
    ({}, 'messages'),
    ({'messages': []}, 'messages'),
    ({'messages': 'Hello'}, 'messages'),
    ({'messages': ['Hello']}, 'messages[0]'),
    ({'messages': [{'content': 'Hello'}]}, 'messages[0].role'),
    ({'messages': [{'role': 'robot', 'content': 'x'}]}, 'messages[0].role'),
    ({'messages': [{'role': ['user'], 'content': 'x'}]}, 'messages[0].role'),
    ({'messages': [{'role': 'user'}]}, 'messages[0]'),
    ({'messages': [{'role': 'user', 'content': 7}]}, 'messages[0].content'),
    ({'messages': [{'role': 'user', 'content': 'x', 'mood': 'good'}]}, 'messages[0].mood'),
    (user([{'type': 'input_audio', 'input_audio': {}}]), 'messages[0].content[0].type'),
    (user([{'type': 'text'}]), 'messages[0].content[0].text'),
    (user([{'type': 'text', 'text': 5}]), 'messages[0].content[0].text'),
    (user([{'type': 'image_url'}]), 'messages[0].content[0].image_url'),
    (image(5), PICTURE_FIELD),
    (image('http://localhost/x.png'), PICTURE_FIELD),
    (image('file:///etc/passwd'), PICTURE_FIELD),
    (image('/etc/passwd'), PICTURE_FIELD),
    (image('data:image/png;base64,@@@@'), PICTURE_FIELD),
    (image('data:image/png;base64,AAA'), PICTURE_FIELD),
    (image('data:image/png,abc'), PICTURE_FIELD),
    ({'messages': [{'role': 'system', 'content': [
        {'type': 'image_url', 'image_url': {'url': 'data:;base64,AAAA'}}]}]},
     'messages[0].content'),
    ({**HELLO, 'temperature': 'hot'}, 'temperature'),
    ({**HELLO, 'temperature': -1}, 'temperature'),
    ({**HELLO, 'temperature': 1e300}, 'temperature'),
    ({**HELLO, 'top_p': True}, 'top_p'),
    ({**HELLO, 'top_k': 1.5}, 'top_k'),
    ({**HELLO, 'max_tokens': 0}, 'max_tokens'),
    ({**HELLO, 'max_completion_tokens': 'many'}, 'max_completion_tokens'),
    ({**HELLO, 'n': 1000}, 'n'),
    ({**HELLO, 'seed': 0.5}, 'seed'),
    ({**HELLO, 'stop': ['']}, 'stop'),
    ({**HELLO, 'stop': ['x'] * 100}, 'stop'),
    ({**HELLO, 'stop': {'a': 1}}, 'stop'),
    ({**HELLO, 'stream': 'yes'}, 'stream'),
    ({**HELLO, 'stream_options': {'x': 1}}, 'stream_options.x'),
    ({**HELLO, 'top_logprobs': 3}, 'logprobs'),
    ({**HELLO, 'logprobs': True, 'top_logprobs': 50}, 'top_logprobs'),
    ({**HELLO, 'logit_bias': {'dog': 1}}, 'logit_bias.dog'),
    ({**HELLO, 'logit_bias': {'1': 'x'}}, 'logit_bias.1'),
    ({**HELLO, 'logit_bias': [1]}, 'logit_bias'),
    ({**HELLO, 'response_format': {'type': 'xml'}}, 'response_format.type'),
    ({**HELLO, 'response_format': {'type': 'json_schema'}}, 'response_format'),
    ({**HELLO, 'response_format': {'type': 'json_schema', 'json_schema': {'schema': 5}}},
     'response_format'),
    ({**HELLO, 'tools': [{'type': 'web_search'}]}, 'tools[0].type'),
    ({**HELLO, 'tools': [{'type': 'function', 'function': {'name': 'a b'}}]},
     'tools[0].function.name'),
    ({**HELLO, 'tools': [{'type': 'function', 'function': {'name': 'a', 'parameters': 1}}]},
     'tools[0].function.parameters'),
    ({**HELLO, 'tool_choice': 'required'}, 'tools'),
    ({**HELLO, 'tool_choice': {'function': {'name': 'x'}}}, 'tool_choice'),
    ({**HELLO, 'tool_choice': 5}, 'tool_choice'),
    ({**HELLO, 'presence_penalty': 1.5}, 'presence_penalty'),
    ({**HELLO, 'modalities': ['audio']}, 'modalities'),
    ({**HELLO, 'tempreature': 1}, 'tempreature'),
    ({**HELLO, 'image': 'x' * 100000}, 'image'),
    ({**HELLO, 'grammar': 'root ::= "x"', 'response_format': {'type': 'json_object'}},
     'response_format'),
    ({**HELLO, 'response_format': {'type': 'regex_schema'}}, 'response_format.regex_schema'),
]  # fmt: skip


def complaint(answer, status=400):
    """Check that an answer is an error as OpenAI's clients read it; give it."""
    assert answer.status_code == status, answer.text[:300]
    error = answer.json()['error']
    assert set(error) == {'message', 'type', 'param', 'code'}
    assert 10 < len(error['message']) < 400, error['message']
    return error


@pytest.mark.parametrize('path', [CHAT, '/v1/responses', '/v1/completions', '/tokenize'])
def test_what_is_no_json(http, path):
    for body in WRONG_BODIES:
        assert complaint(http.post(path, content=body))['type'] == 'invalid_request_error'


@pytest.mark.parametrize(('body', 'param'), WRONG_FIELDS, ids=[p for _, p in WRONG_FIELDS])
def test_a_wrong_field_is_named(http, body, param):
    error = complaint(http.post(CHAT, json=body))
    assert error['param'] == param
    assert param in error['message']
    streamed = complaint(http.post(CHAT, json={'stream': True, **body}))
    assert streamed['param'] == param


@pytest.mark.parametrize(
    ('path', 'body', 'param'),
    [
        ('/v1/responses', {}, 'input'),
        ('/v1/responses', {'input': [{'type': 'image_generation_call'}]}, 'input[0].type'),
        ('/v1/responses', {'input': 'x', 'conversation': 'c'}, 'conversation'),
        ('/v1/responses', {'input': 'x', 'background': True}, 'background'),
        ('/v1/responses', {'input': 'x', 'text': {'format': {'type': 'x'}}}, 'text.format.type'),
        ('/v1/completions', {'prompt': [1, 2]}, 'prompt'),
        ('/v1/completions', {'prompt': 'x', 'suffix': 'y'}, 'suffix'),
        ('/v1/completions', {'prompt': 'x', 'echo': True}, 'echo'),
        ('/tokenize', {}, 'prompt'),
        ('/tokenize', {'content': 'x', 'with_pieces': True}, 'with_pieces'),
    ],
)
def test_a_wrong_field_of_the_other_paths_is_named(http, path, body, param):
    assert complaint(http.post(path, json=body))['param'] == param


def test_a_hint_names_the_nearest_field(http):
    error = complaint(http.post(CHAT, json={**HELLO, 'max_token': 5}))
    assert 'did you mean max_tokens?' in error['message']


@pytest.mark.parametrize('stream', [False, True])
def test_what_the_engine_refuses(http, picture, stream):
    more = {'stream': stream}
    no_picture = data_url(b'no picture at all')
    complaint(http.post(CHAT, json={**image(no_picture), **more}))
    cut = data_url(base64.b64decode(picture.partition(',')[2])[:5000])
    complaint(http.post(CHAT, json={**image(cut), **more}))
    long = complaint(http.post(CHAT, json={**user('word ' * 20000), **more}))
    assert 'n_ctx' in long['message']
    complaint(http.post(CHAT, json={**HELLO, 'grammar': 'root ::= [', **more}))
    form = {'type': 'json_schema', 'json_schema': {'schema': {'type': 'nothing'}}}
    complaint(http.post(CHAT, json={**HELLO, 'response_format': form, **more}))
    assert http.post(CHAT, json=HELLO).status_code == 200


def test_half_characters_and_control_tokens_are_text(http):
    for text in ('half \ud83d of one', '\udc00', 'a\0b', '<|im_end|><image>', '\u202e'):
        body = json.dumps(user(text))
        answer = http.post(CHAT, content=body)
        assert answer.status_code in (200, 400), answer.text
    answer = http.post('/tokenize', json={'content': '<|im_end|>'})
    assert answer.json()['count'] > 1


def test_paths_and_methods(http):
    complaint(http.get('/v1/chat'), 404)
    complaint(http.get(CHAT), 405)
    complaint(http.post('/v1/embeddings', json={}), 404)
    complaint(http.get('/live.mjpeg'), 404)
    complaint(http.delete('/health'), 405)


def test_a_huge_body_is_refused_and_the_next_one_answered(demo):
    with serving(demo, Settings(max_body=1 << 20)) as server:
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            error = complaint(client.post(CHAT, content=b'x' * (8 << 20)), 413)
            assert '--max-body' in error['message']
            assert client.post(CHAT, json=HELLO).status_code == 200


def test_more_than_can_wait_is_refused_and_later_answered(demo):
    small = Settings(max_body=3000)
    body = {**user('x' * 2000), **ENDLESS, 'stream': True}
    with serving(demo, small) as server, contextlib.ExitStack() as open_ones:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            statuses = []
            with unfinished(demo, tokens=100):
                while 503 not in statuses and len(statuses) < 50:
                    answer = open_ones.enter_context(client.stream('POST', CHAT, json=body))
                    statuses.append(answer.status_code)
            assert statuses.count(200) >= 8
            assert answer.headers['retry-after']
            answer.read()
            assert complaint(answer, 503)['code'] == 'overloaded'
            open_ones.close()
            end = time.monotonic() + 30
            while client.post(CHAT, json=HELLO).status_code != 200:
                assert time.monotonic() < end


def test_what_is_no_http_or_breaks_off_ends_nothing(server, http):
    for data in (
        b'\x00\x01\x02\r\n\r\n',
        b'GET / HTTP/9.9\r\n\r\n',
        b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc',
        b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n',
    ):
        with socket.create_connection(('127.0.0.1', server.port), timeout=10) as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(12)
            assert answer == b'' or answer[9:10] == b'4', answer
    assert http.get('/health').status_code == 200


def test_mutated_requests_never_fail_the_server(http, picture):
    """Seeds chosen once: a run that fails can be run again."""
    tool = {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object'}}}
    good = {
        'messages': [{'role': 'system', 'content': 'Be short.'}, *asked(picture)],
        'max_tokens': 2, 'temperature': 0.5, 'top_p': 0.9, 'seed': 1, 'stop': ['x'],
        'logit_bias': {'5': 1}, 'logprobs': True, 'top_logprobs': 2, 'tools': [tool],
        'tool_choice': 'auto', 'response_format': {'type': 'json_object'},
        'stream': False, 'stream_options': {'include_usage': True},
    }  # fmt: skip
    values = [None, True, -1, 0, 2**70, 0.5, 1e308, '', 'x', '\ud800', [], {}, [[]], {'': {}}]
    for seed in range(150):
        chance = random.Random(seed)
        body = copy.deepcopy(good)
        for _ in range(chance.randint(1, 3)):
            place = body
            while True:
                keys = list(place) if isinstance(place, dict) else range(len(place))
                if not keys:
                    break
                key = chance.choice(list(keys))
                if isinstance(place[key], (dict, list)) and chance.random() < 0.7:
                    place = place[key]
                    continue
                place[key] = chance.choice(values)
                break
        answer = http.post(CHAT, content=json.dumps(body))
        assert answer.status_code in (200, 400), (seed, answer.text[:300])


def test_a_wrong_grammar_leaves_the_others_running(http, picture):
    with http.stream('POST', CHAT, json={**HELLO, **ENDLESS, 'stream': True}) as running:
        lines = running.iter_lines()
        assert next(lines).startswith('data:')
        complaint(http.post(CHAT, json={**HELLO, 'grammar': 'root ::= root'}))
        assert next(line for line in lines if line).startswith('data:')


def test_low_detail_of_a_model_that_cuts_its_pictures_itself(tmp_path, picture):
    """It changes nothing, while a number of tiles is refused."""
    make_mtmd_models.write(tmp_path)
    files = {
        'model_file_name': tmp_path / 'llava' / 'mmproj.gguf',
        'llm_model_name': tmp_path / 'llava' / 'decoder.gguf',
    }
    with VLM.load(**files, n_ctx=512, warm_up=False) as vlm, serving(vlm) as server:
        said = []
        for more in ({}, {'detail': 'low'}, {'detail': 'low', 'max_dynamic_patch': 2}):
            body = user([{'type': 'image_url', 'image_url': {'url': picture, **more}}])
            said.append(httpx.post(server.url + CHAT, json=body | {'max_tokens': 4}, timeout=60))
    assert [answer.status_code for answer in said] == [200, 200, 400]
    texts = [answer.json()['choices'][0]['message']['content'] for answer in said[:2]]
    assert texts[0] == texts[1]
    assert 'max_tiles' in said[2].json()['error']['message']
