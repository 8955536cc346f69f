"""Health and counters: what is counted is what was answered."""

from __future__ import annotations

import threading

from hobot_vlm import VLM
from hobot_vlm.errors import ModelFileError
import httpx
from prometheus_client.parser import text_string_to_metric_families
import pytest

from .conftest import asked, serving

CHAT = '/v1/chat/completions'


def counters(client):
    """Give the samples by name, those with labels as name{label=value}."""
    found = {}
    for family in text_string_to_metric_families(client.get('/metrics').text):
        for sample in family.samples:
            labels = ','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))
            found[sample.name + (f'{{{labels}}}' if labels else '')] = sample.value
    return found


@pytest.fixture
def client(fresh):
    with serving(fresh) as server:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            yield client


def test_the_counters_add_up(client, picture):
    totals = dict.fromkeys(('prompt_tokens', 'completion_tokens'), 0)
    cached = 0
    for stream in (False, True, False):
        body = {'messages': asked(picture), 'stream': stream}
        if stream:
            client.post(CHAT, json=body)
            continue
        usage = client.post(CHAT, json=body).json()['usage']
        cached += usage['prompt_tokens_details']['cached_tokens']
        totals = {name: totals[name] + usage[name] for name in totals}
    client.post(CHAT, json={})
    found = counters(client)
    assert found['vlm_http_requests_total{path=/v1/chat/completions,status=200}'] == 3
    assert found['vlm_http_requests_total{path=/v1/chat/completions,status=400}'] == 1
    assert found['vlm_answers_total{finish_reason=stop}'] == 3
    assert found['vlm_prompt_tokens_total'] == totals['prompt_tokens'] * 3 / 2
    assert found['vlm_answer_tokens_total'] == totals['completion_tokens'] * 3 / 2
    assert found['vlm_reused_tokens_total'] >= cached
    assert found['vlm_time_to_first_token_seconds_count'] == 3
    assert found['vlm_time_per_token_seconds_count'] == 3
    assert found['vlm_encode_seconds_count'] == 1
    assert found['vlm_picture_cache_misses_total'] == 1
    assert found['vlm_picture_cache_hits_total'] == 2
    assert found['vlm_requests_running'] == found['vlm_requests_waiting'] == 0


def test_paths_that_are_not_there_are_counted_as_one(client):
    for number in range(5):
        client.get(f'/nothing/{number}')
    found = counters(client)
    assert found['vlm_http_requests_total{path=other,status=404}'] == 5
    assert not [name for name in found if '/nothing' in name]


def test_health_tells_of_loading(sample):
    go = threading.Event()

    def load():
        go.wait()
        return VLM.load('demo')

    with serving(load) as server:
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            assert client.get('/').status_code == 200
            for path in ('/health', '/v1/models'):
                answer = client.get(path)
                assert answer.status_code == 503
                assert answer.headers['retry-after']
                assert answer.json()['error']['code'] == 'loading'
            assert client.post(CHAT, json={}).status_code == 503
            go.set()
            while client.get('/health').status_code != 200:
                pass
            assert client.get('/health').json() == {'status': 'ok'}
            assert client.get('/v1/models').json()['data'][0]['id'] == 'demo'


def test_health_tells_why_there_is_no_model():
    def load():
        raise ModelFileError('x.gguf', 'there is no such file')

    with serving(load) as server:
        answer = httpx.get(f'{server.url}/health', trust_env=False)
        while 'Loading' in answer.text:
            answer = httpx.get(f'{server.url}/health', trust_env=False)
        assert answer.status_code == 503 and 'x.gguf' in answer.text
