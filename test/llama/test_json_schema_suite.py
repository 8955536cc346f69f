"""The JSON Schema Test Suite, asked as a user asks: nothing invalid is let through."""

from __future__ import annotations

import json
from pathlib import Path
import re

from core import Refused, wishes
from folders import MODELS
from hobot_vlm import VLM
from hobot_vlm.errors import GrammarError
import pytest

SUITE = Path(__file__).parents[3] / 'shared' / 'json_schema_suite'
#: valid instances that must be let through; others have their names in another order, names that
#: are not listed, numbers in another notation (1.0), or do not have their format
ACCEPTED = 370
#: and the groups that may be refused
REFUSED = 210


@pytest.fixture(scope='module')
def vlm():
    plain = MODELS / 'plain' / 'decoder.gguf'
    with VLM.load(llm_model_name=plain, n_ctx=4096, llm_threads=1, n_predict=1000) as vlm:
        yield vlm


def lets_through(vlm, want, schema, text):
    """
    Say whether an answer under a schema can be this text.

    :raises GrammarError: the schema is refused
    """
    want(text)
    try:
        return vlm.ask('.', json_schema=schema).text == text
    except Refused:
        return False


def groups():
    for path in sorted(SUITE.glob('*.json')):
        for group in json.loads(path.read_text(encoding='utf-8')):
            yield f'{path.stem}: {group["description"]}', group


@pytest.mark.skipif(
    not SUITE.is_dir(), reason=f'the JSON Schema Test Suite does not lie in {SUITE}'
)
def test_no_invalid_instance_is_let_through_and_most_valid_ones_are(vlm):
    wrong, accepted, refused = [], 0, []
    with wishes(vlm) as want:
        for name, group in groups():
            schema = json.dumps(group['schema'])
            for test in group['tests']:
                text = json.dumps(test['data'], ensure_ascii=False)
                try:
                    if not lets_through(vlm, want, schema, text):
                        continue
                except GrammarError as exc:
                    refused.append((name, schema, str(exc)))
                    break
                accepted += test['valid']
                if not test['valid']:
                    wrong.append((name, test['description']))
    assert not wrong
    assert accepted >= ACCEPTED
    assert len(refused) <= REFUSED
    for name, schema, message in refused:
        head, _, said = message.partition(' cannot be followed: ')
        assert head == 'json_schema', name
        keywords = {'false', *re.findall(r'"([$\w]+)":', schema)}
        assert keywords & set(re.findall(r'[$\w]+', said)), (name, message)
        assert len(message) < 600


TREE = {
    '$ref': '#/$defs/tree',
    '$defs': {
        'tree': {
            'type': 'object',
            'properties': {'of': {'type': 'array', 'items': {'$ref': '#/$defs/tree'}}},
            'required': ['of'],
        }
    },
}


@pytest.mark.parametrize(
    ('schema', 'text'),
    [
        ({'maxLength': 65536}, '"' + 'ab' * 300 + '"'),
        ({'maxLength': 65536}, '{"any": [1, null]}'),
        ({'type': 'string', 'maxLength': 20000}, '"' + 'ab' * 300 + '"'),
        (TREE, '{"of": [{"of": []}, {"of": [{"of": []}]}]}'),
    ],
    ids=('any', 'other', 'string', 'tree'),
)
def test_a_schema_that_ended_the_process_once_is_followed(vlm, schema, text):
    with wishes(vlm) as want:
        assert lets_through(vlm, want, schema, text)
        assert not lets_through(vlm, want, schema, text + ', 1')


def test_a_schema_that_is_too_deep_is_refused(vlm):
    deep = '{"type": "array", "items": ' * 3000 + '{}' + '}' * 3000
    with pytest.raises(GrammarError, match='json_schema is nested more than 100 deep'):
        vlm.ask('.', json_schema=deep)
