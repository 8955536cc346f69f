"""The real client of OpenAI, newest version: everything that it can ask of this server."""

from __future__ import annotations

import asyncio
from http.client import HTTPConnection
from io import BytesIO
import json
import threading
import time

from core import parts, unfinished
import openai
from PIL import Image
from pydantic import BaseModel
import pytest

from .conftest import asked, data_url, ENDLESS, QUESTION

pytestmark = pytest.mark.filterwarnings('ignore')  # of the client, about its own types

TOOL = {
    'type': 'function',
    'function': {
        'name': 'drive',
        'description': 'Drive the robot.',
        'parameters': {
            'type': 'object',
            'properties': {
                'speed': {'$ref': '#/$defs/speed'},
                'direction': {'type': 'string', 'enum': ['left', 'right']},
            },
            'required': ['speed', 'direction'],
            'additionalProperties': False,
            '$defs': {'speed': {'type': 'integer', 'minimum': 0, 'maximum': 9}},
        },
    },
}


@pytest.fixture(scope='module')
def client(server):
    with openai.OpenAI(base_url=f'{server.url}/v1', api_key='any', max_retries=0) as client:
        yield client


@pytest.fixture(scope='module')
def expected(demo, sample):
    return demo.ask(QUESTION, sample)


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ['demo']
    assert client.models.retrieve('demo').owned_by == 'hobot_vlm'
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve('other')


@pytest.mark.parametrize('form', [{'structured_outputs': {'choice': ['yes', 'no']}},
                                  {'guided_choice': ['yes', 'no']}])  # fmt: skip
def test_choosing(client, picture, demo, sample, form):
    """By the names of vLLM; how likely each is stands beside the message."""
    question = 'Is there a banana?'
    shares = demo.choose(question, sample, ['yes', 'no'])
    ask = {'model': 'demo', 'messages': asked(picture, question), 'extra_body': form}
    (choice,) = client.chat.completions.create(**ask).choices
    assert choice.message.content == max(shares, key=shares.get)
    assert choice.choice_probabilities == pytest.approx(shares, abs=0.02)
    chunks = list(client.chat.completions.create(**ask, stream=True))
    assert ''.join(c.choices[0].delta.content or '' for c in chunks) == choice.message.content
    assert chunks[-1].choices[0].choice_probabilities == pytest.approx(shares, abs=0.02)
    reply = client.responses.create(model='demo', input='Hello', extra_body=form)
    assert reply.output_text in ('yes', 'no') and set(reply.choice_probabilities) == {'yes', 'no'}


@pytest.mark.parametrize(
    'form',
    [
        {'guided_choice': 'yes'},
        {'guided_choice': ['yes']},
        {'structured_outputs': {'choice': ['yes', 7]}},
        {'structured_outputs': {'choice': ['yes', 'no'], 'colour': 1}},
        {'guided_choice': ['yes', 'no'], 'grammar': 'root ::= "a"'},
        {'guided_choice': ['yes', 'no'], 'stop': ['a']},
    ],
)
def test_choices_that_cannot_be(client, form):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(
            model='demo', messages=[{'role': 'user', 'content': 'Hi'}], extra_body=form
        )


def test_a_picture_is_answered_as_by_the_library(client, picture, expected):
    reply = client.chat.completions.create(model='demo', messages=asked(picture))
    (choice,) = reply.choices
    assert choice.message.content == expected.text
    assert (choice.finish_reason, choice.message.role) == ('stop', 'assistant')
    assert reply.usage.prompt_tokens == expected.prompt_tokens
    assert reply.usage.completion_tokens == expected.completion_tokens
    assert reply.usage.total_tokens == expected.prompt_tokens + expected.completion_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens >= expected.image_tokens
    assert reply.timings['predicted_n'] == expected.completion_tokens
    assert reply.timings['cache_n'] + reply.timings['prompt_n'] == expected.prompt_tokens


def test_a_stream_joins_to_the_same(client, picture, expected):
    text, last = '', None
    stream = client.chat.completions.create(
        model='demo', messages=asked(picture), stream=True, stream_options={'include_usage': True}
    )
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ''
            reason = chunk.choices[0].finish_reason
        last = chunk
    assert text == expected.text
    assert reason == 'stop'
    assert last.choices == [] and last.usage.completion_tokens == expected.completion_tokens


def test_a_stream_says_how_far_its_pictures_are(client, demo, monkeypatch):
    """In events of their own, before the answer; clients that did not ask for them get none."""
    encoder, go_on = parts(demo).encoder, threading.Event()
    encode = encoder.encode
    monkeypatch.setattr(encoder, 'encode', lambda tiles: go_on.wait(30) and encode(tiles))
    stream = client.chat.completions.create(
        model='demo',
        messages=asked(png((9, 40, 7))),
        stream=True,
        max_tokens=2,
        extra_body={'return_progress': True},
    )
    seen = []
    for chunk in stream:
        seen.append(chunk.model_extra.get('image_progress'))
        if seen[-1]:
            go_on.set()
    said = [progress for progress in seen if progress]
    assert said[0].items() >= {'encoded': 0, 'total': 1}.items()
    assert seen[-1] is None  # the answer itself
    plainly = client.chat.completions.create(
        model='demo', messages=asked(png((9, 40, 8))), stream=True, max_tokens=2
    )
    assert not any('image_progress' in chunk.model_extra for chunk in plainly)


def test_the_history_is_read_once(client, picture):
    first = asked(picture, 'What is on the left?')
    answer = client.chat.completions.create(model='demo', messages=first)
    history = [
        {'role': 'system', 'content': 'You are a helpful assistant.'},
        *first,
        {'role': 'assistant', 'content': answer.choices[0].message.content},
        {'role': 'user', 'content': 'What is on the right?'},
    ]
    client.chat.completions.create(model='demo', messages=history[1:])
    again = client.chat.completions.create(model='demo', messages=history[1:])
    details = again.usage.prompt_tokens_details
    assert details.cached_tokens >= again.usage.prompt_tokens - 1
    assert details.image_tokens and again.timings['encode_ms'] == 0
    other = client.chat.completions.create(model='demo', messages=history)
    assert other.usage.prompt_tokens != again.usage.prompt_tokens


def test_several_pictures_between_texts(client, picture, demo, sample):
    image = {'type': 'image_url', 'image_url': {'url': picture, 'detail': 'low'}}
    parts = ['First:', image, 'Second:', image, 'What is on the left?']
    content = [{'type': 'text', 'text': p} if isinstance(p, str) else p for p in parts]
    reply = client.chat.completions.create(
        model='demo', messages=[{'role': 'user', 'content': content}], max_tokens=8
    )
    image = {'type': 'image', 'image': sample}
    content = [{'type': 'text', 'text': p} if isinstance(p, str) else image for p in parts]
    wanted = demo.ask([{'role': 'user', 'content': content}], n_predict=8, max_tiles=1)
    assert reply.choices[0].message.content == wanted.text
    assert reply.usage.prompt_tokens_details.image_tokens == wanted.image_tokens


def test_stop_seed_and_bounds_are_followed(client, picture):
    ask = {'model': 'demo', 'messages': asked(picture)}
    short = client.chat.completions.create(**ask, max_completion_tokens=3)
    assert short.choices[0].finish_reason == 'length' and short.usage.completion_tokens == 3
    cut = {**ask, 'max_tokens': 2, 'extra_body': {'grammar': 'root ::= "a" [a-z] [a-z] [a-z] "."'}}
    part = client.chat.completions.create(**cut)  # what a form cuts off is no error to OpenAI
    assert part.choices[0].finish_reason == 'length' and part.choices[0].message.content
    pieces = list(client.chat.completions.create(**cut, stream=True))
    assert [p.choices[0].finish_reason for p in pieces if p.choices][-1] == 'length'
    text = ''.join(p.choices[0].delta.content or '' for p in pieces if p.choices)
    assert text == part.choices[0].message.content
    stopped = client.chat.completions.create(**ask, stop=[' dog', ' cat'])
    assert stopped.choices[0].message.content == 'There is a'
    assert stopped.choices[0].finish_reason == 'stop'
    warm = {**ask, 'temperature': 10.0, 'top_p': 1.0, 'seed': 7, 'max_tokens': 6}
    one, two = (client.chat.completions.create(**warm) for _ in range(2))
    assert one.choices[0].message.content == two.choices[0].message.content
    many = client.chat.completions.create(**warm, n=3, extra_body={'top_k': 0, 'min_p': 0})
    texts = [choice.message.content for choice in many.choices]
    assert [choice.index for choice in many.choices] == [0, 1, 2] and len(set(texts)) > 1
    assert many.usage.completion_tokens <= 18


#: what llama.cpp's own page sends with each question, and what LMDeploy's and vLLM's clients may
LLAMA_CPP = {
    'cache_prompt': True, 'reasoning_format': 'auto', 'samplers': ['top_k', 'temperature'],
    'temperature': 0, 'dynatemp_range': 0, 'dynatemp_exponent': 1, 'xtc_probability': 0,
    'xtc_threshold': 0.1, 'typical_p': 1, 'repeat_last_n': 64, 'repeat_penalty': 1,
    'presence_penalty': 0, 'frequency_penalty': 0, 'dry_multiplier': 0, 'dry_base': 1.75,
    'max_tokens': -1, 'timings_per_token': False,
}  # fmt: skip
LMDEPLOY = {
    'repetition_penalty': 1.0, 'session_id': -1, 'ignore_eos': False, 'top_k': -1, 'min_p': 0.0,
    'skip_special_tokens': True, 'enable_thinking': False, 'do_preprocess': True,
    'temperature': 0,
}  # fmt: skip


@pytest.mark.parametrize('extra', [LLAMA_CPP, LMDEPLOY])
def test_requests_for_other_servers(client, picture, expected, extra):
    reply = client.chat.completions.create(
        model='gpt-4o', messages=asked(picture), extra_body=extra
    )
    assert reply.choices[0].message.content == expected.text
    assert reply.model == 'demo'


def test_system_prompts_in_a_row_are_one(client):
    def asked_with(*prompts):
        messages = [{'role': role, 'content': text} for role, text in prompts]
        reply = client.chat.completions.create(
            model='demo', messages=[*messages, {'role': 'user', 'content': 'Hello'}], max_tokens=4
        )
        return reply.usage.prompt_tokens

    one = asked_with(('system', 'Be short.\n\nBe kind.'))
    assert asked_with(('system', 'Be short.'), ('developer', 'Be kind.')) == one


def test_n_answers_are_streamed_side_by_side(client, picture):
    ask = {'model': 'demo', 'messages': asked(picture), 'n': 2, 'temperature': 0.1, 'seed': 1}
    texts = ['', '']
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ''
    whole = client.chat.completions.create(**ask)
    assert texts == [choice.message.content for choice in whole.choices]


def test_logit_bias_and_logprobs(client, picture, demo):
    ask = {'model': 'demo', 'messages': asked(picture), 'max_tokens': 4}
    plain = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    entries = plain.choices[0].logprobs.content
    assert len(entries) == 4 and all(len(entry.top_logprobs) == 3 for entry in entries)
    assert entries[0].token == entries[0].top_logprobs[0].token
    assert bytes(entries[0].bytes).decode() == entries[0].token
    first = demo.tokenize(entries[0].token)[-1]
    biased = client.chat.completions.create(**ask, logit_bias={str(first): -100})
    assert biased.choices[0].message.content != plain.choices[0].message.content
    streamed = [
        entry.token
        for chunk in client.chat.completions.create(**ask, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == [entry.token for entry in entries]


class Seen(BaseModel):
    dog: bool
    things: list[str]


def test_a_schema_is_followed(client, picture):
    parsed = client.chat.completions.parse(
        model='demo', messages=asked(picture), response_format=Seen, max_tokens=200, stop=['\n\n']
    )
    assert isinstance(parsed.choices[0].message.parsed, Seen)
    loose = client.chat.completions.create(
        model='demo',
        messages=asked(picture),
        response_format={'type': 'json_object'},
        logit_bias={},
        max_tokens=300,
    )
    if loose.choices[0].finish_reason == 'stop':
        assert isinstance(json.loads(loose.choices[0].message.content), dict)


def test_a_regular_expression_as_lmdeploy_has_it(client, picture):
    form = {'type': 'regex_schema', 'regex_schema': 'The background is (red|blue|green)\\.'}
    reply = client.chat.completions.create(
        model='demo',
        messages=asked(picture, 'What colour is the background?'),
        extra_body={'response_format': form},
    )
    assert reply.choices[0].message.content == 'The background is blue.'


@pytest.mark.parametrize(
    'choice', ['required', {'type': 'function', 'function': {'name': 'drive'}}]
)
def test_a_tool_is_called(client, picture, choice):
    ask = {'model': 'demo', 'messages': asked(picture), 'tools': [TOOL], 'tool_choice': choice}
    whole = client.chat.completions.create(**ask)
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == 'tool_calls'
    assert whole.choices[0].message.content is None
    arguments = json.loads(call.function.arguments)
    assert call.function.name == 'drive' and set(arguments) == {'speed', 'direction'}
    assert arguments['speed'] in range(10) and arguments['direction'] in ('left', 'right')
    streamed, name = '', None
    for chunk in client.chat.completions.create(**ask, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            name = name or piece.function.name
            streamed += piece.function.arguments or ''
        reason = chunk.choices[0].finish_reason
    assert (name, json.loads(streamed), reason) == ('drive', arguments, 'tool_calls')


def test_the_result_of_a_tool_goes_back(client, picture):
    ask = {'model': 'demo', 'tools': [TOOL], 'max_tokens': 40}
    messages = asked(picture)
    first = client.chat.completions.create(**ask, messages=messages, tool_choice='required')
    assert first.choices[0].finish_reason in ('tool_calls', 'length')
    message = first.choices[0].message
    messages += [
        message.model_dump(exclude_none=True),
        {'role': 'tool', 'tool_call_id': message.tool_calls[0].id, 'content': '{"done": true}'},
    ]
    none = client.chat.completions.create(**ask, messages=messages, tool_choice='none')
    assert none.choices[0].message.tool_calls is None
    auto = client.chat.completions.create(**ask, messages=messages)
    assert (auto.choices[0].message.content or '').find('"answer"') < 0


def test_a_cancelled_stream_stops_the_model(client, picture, demo):
    with unfinished(demo):
        stream = client.chat.completions.create(
            model='demo',
            messages=asked(picture),
            stream=True,
            max_tokens=ENDLESS['max_tokens'],
            extra_body={'grammar': ENDLESS['grammar']},
        )
        next(stream)
        assert demo.status().running == 1
        stream.close()
        wait_until(lambda: demo.status().running == 0)


def test_a_client_that_leaves_before_the_answer_stops_the_model(server, picture, demo):
    body = json.dumps({'messages': asked(picture), **ENDLESS})
    headers = {'Content-Type': 'application/json'}
    leaving = HTTPConnection('127.0.0.1', server.port)
    with unfinished(demo):
        leaving.request('POST', '/v1/chat/completions', body, headers)
        wait_until(lambda: demo.status().running == 1)
        leaving.close()
        wait_until(lambda: demo.status().running == 0)


def png(colour):
    file = BytesIO()
    Image.new('RGB', (64, 64), colour).save(file, 'png')
    return data_url(file.getvalue())


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_many_coroutines_at_once(server, picture, expected):
    async def main():
        async with openai.AsyncOpenAI(base_url=f'{server.url}/v1', api_key='any') as client:

            async def streamed():
                text = ''
                stream = await client.chat.completions.create(
                    model='demo', messages=asked(picture), stream=True
                )
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ''
                return text

            async def whole():
                reply = await client.chat.completions.create(model='demo', messages=asked(picture))
                return reply.choices[0].message.content

            return await asyncio.gather(*[streamed(), whole()] * 4, streamed())

    assert asyncio.run(main()) == [expected.text] * 9


def test_responses(client, picture, expected):
    content = [
        {'type': 'input_image', 'image_url': picture},
        {'type': 'input_text', 'text': QUESTION},
    ]
    ask = {'model': 'demo', 'input': [{'role': 'user', 'content': content}]}
    reply = client.responses.create(**ask)
    assert (reply.output_text, reply.status) == (expected.text, 'completed')
    assert reply.usage.output_tokens == expected.completion_tokens
    with client.responses.stream(**ask) as stream:
        deltas = [e.delta for e in stream if e.type == 'response.output_text.delta']
        assert ''.join(deltas) == stream.get_final_response().output_text == expected.text
    short = client.responses.create(**ask, max_output_tokens=2, instructions='Be short.')
    assert (short.status, short.incomplete_details.reason) == ('incomplete', 'max_output_tokens')
    parsed = client.responses.parse(**ask, text_format=Seen, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Seen)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**ask, previous_response_id='resp_1')


def test_tools_of_responses(client, picture):
    tool = {'type': 'function', **TOOL['function'], 'strict': True}
    ask = {'model': 'demo', 'input': 'Drive!', 'tools': [tool], 'tool_choice': 'required'}
    (call,) = client.responses.create(**ask).output
    assert (call.type, call.name) == ('function_call', 'drive')
    result = {'type': 'function_call_output', 'call_id': call.call_id, 'output': 'done'}
    history = [{'role': 'user', 'content': 'Drive!'}, call.model_dump(), result]
    assert client.responses.create(model='demo', input=history, max_output_tokens=9).output_text
    events = list(client.responses.create(**ask, stream=True))
    joined = ''.join(e.delta for e in events if e.type.endswith('arguments.delta'))
    assert json.loads(joined) == json.loads(call.arguments)
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert events[-1].response.output[0].arguments == joined


def test_old_completions(client):
    reply = client.completions.create(model='demo', prompt=['Hello', '你好'], logprobs=1)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.choices[0].text != reply.choices[1].text
    assert reply.choices[0].logprobs.tokens
    text = ''.join(
        chunk.choices[0].text
        for chunk in client.completions.create(model='demo', prompt='Hello', stream=True)
    )
    assert text == reply.choices[0].text
