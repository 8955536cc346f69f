"""Many requests in a row: constrained answers that all parse, and memory that stays flat."""

from __future__ import annotations

import gc
import json
import os
import re

from folders import MODELS
from hobot_vlm import VLM
from hobot_vlm.machine import resident_bytes
from pictures import picture
import pytest

#: requests whose memory is watched, after the first hundred. By hand: HOBOT_VLM_REQUESTS=10000
REQUESTS = int(os.environ.get('HOBOT_VLM_REQUESTS', '1500'))

WORD = {'type': 'string', 'maxLength': 12}
SCHEMAS = [
    {
        'type': 'object',
        'required': ['colour', 'count'],
        'additionalProperties': False,
        'properties': {'colour': {'enum': ['red', 'blue', '红色']}, 'count': {'type': 'integer'}},
    },
    {'type': 'array', 'minItems': 1, 'maxItems': 3, 'items': WORD},
    {
        'type': 'object',
        'required': ['box', 'sure'],
        'additionalProperties': False,
        'properties': {
            'box': {'type': 'array', 'minItems': 4, 'maxItems': 4, 'items': {'type': 'integer'}},
            'sure': {'type': 'boolean'},
            'note': {'anyOf': [WORD, {'type': 'null'}]},
        },
    },
    {'enum': [1, 'two[^', None, {'three': [4]}]},
    {'type': 'string', 'pattern': '^[A-Z].{2,5}[^a-z]$'},
]
GRAMMARS = [
    'root ::= ("yes" | "no") [!?]{0,2}',
    'root ::= [0-9]{1,3} ("," [0-9]{1,3}){0,4} "."',
    'root ::= ("左" | "右") [一-龥]{1,5} "。"',
]
PATTERNS = ['(yes|no)[!?]{0,2}', r'[0-9]{1,3}(,[0-9]{1,3}){0,4}[.]', '[左右][一-龥]{1,5}。']


@pytest.fixture(scope='module')
def small():
    with VLM.load(
        llm_model_name=str(MODELS / 'internvl' / 'decoder.gguf'),
        llm_threads=1,
        model_file_name=str(MODELS / 'internvl' / 'vision.onnx'),
        n_ctx=512,
    ) as vlm:
        yield vlm


def fits(text, schema):
    """Say whether a string follows; bytes that are no character may be more or fewer than one."""
    if 'pattern' in schema:
        return '\ufffd' in text or bool(re.search(schema['pattern'], text))
    return '\ufffd' in text or len(text) <= schema['maxLength']


def follows(value, schema):
    """Say whether a value follows one of the schemas above."""
    if 'enum' in schema:
        return value in schema['enum']
    if 'anyOf' in schema:
        return any(follows(value, item) for item in schema['anyOf'])
    kind = schema['type']
    if kind == 'object':
        return (
            isinstance(value, dict)
            and set(schema['required']) <= set(value)
            and all(follows(v, schema['properties'][k]) for k, v in value.items())
        )
    if kind == 'array':
        return (
            isinstance(value, list)
            and schema['minItems'] <= len(value) <= schema['maxItems']
            and all(follows(v, schema['items']) for v in value)
        )
    if kind == 'integer':
        return type(value) is int
    return {
        'string': lambda: isinstance(value, str) and fits(value, schema),
        'boolean': lambda: type(value) is bool,
        'null': lambda: value is None,
    }[kind]()


@pytest.mark.timeout(300)
def test_five_hundred_constrained_answers_all_parse(small):
    """A random model says anything at all, so only the constraint can make it right."""
    said = set()
    for i in range(500):
        options = {
            'temperature': (0.0, 1.0, 3.0)[i % 3],
            'seed': i,
            'n_predict': 400,
            'top_k': 0,
            'min_p': 0.0,
            'top_p': 1.0,
        }
        question = f'Question {i % 50}'
        which = i % (len(SCHEMAS) + len(GRAMMARS))
        if which < len(SCHEMAS):
            reply = small.ask(question, json_schema=json.dumps(SCHEMAS[which]), **options)
            assert follows(json.loads(reply.text), SCHEMAS[which]), reply.text
        else:
            which -= len(SCHEMAS)
            reply = small.ask(question, grammar=GRAMMARS[which], **options)
            assert re.fullmatch(PATTERNS[which], reply.text), reply.text
        assert reply.finish_reason == 'stop'
        said.add(reply.text)
    assert len(said) > 150


@pytest.mark.timeout(0)
def test_memory_is_flat_over_many_requests(small):
    """Every kind of request, in turn; resident memory stays within 1 % after the first 100."""
    chats = [small.conversation() for _ in range(2)]
    grammar = 'root ::= "yes" | "no"'

    def one(i):
        kind = i % 6
        if kind == 0:
            small.ask('Why?', picture(40, 40, i), n_predict=3, max_tiles=1)
        elif kind == 1:
            chats[i % 2].ask(f'What is {i}?', n_predict=3)
        elif kind == 2:
            small.ask(f'Is it {i}?', grammar=grammar, logprobs=2, stop=['x'], logit_bias={5: 1.0})
        elif kind == 3:
            stream = small.stream('Tell me.', n_predict=50)
            next(stream)
            stream.close()
        elif kind == 4:
            small.ask_many([(f'{i} {k}', None) for k in range(3)], n_predict=3)
        else:
            small.conversation('Be short.').ask('Who?', n_predict=3, temperature=1.0)

    for i in range(100):
        one(i)
    gc.collect()
    before = resident_bytes()
    for i in range(100, 100 + REQUESTS):
        one(i)
    gc.collect()
    after = resident_bytes()
    print(f'{before / 1e6:.1f} -> {after / 1e6:.1f} MB in {REQUESTS} requests')
    assert after < 1.01 * before
