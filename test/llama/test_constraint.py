"""What schemas and regular expressions let through, and how those that cannot be are refused."""

from __future__ import annotations

import json
import random

from decoding import MODELS, PLAIN
from hobot_vlm.config import Config
from hobot_vlm.errors import ConfigError, GrammarError
from hobot_vlm.llama.constraint import open_constraint
from hobot_vlm.llama.model import Model
import numpy as np
import pytest
from spm_model import write


@pytest.fixture(scope='module')
def model():
    model = Model(PLAIN)
    yield model
    model.close()


def answers(model, n=20, seed=0, **rule):
    """Give texts that follow a rule, chosen at random; short ones are likelier."""
    choose = random.Random(seed)
    for _ in range(n):
        constraint, tokens = open_constraint(model, **rule), []
        while not (tokens and model.is_end(tokens[-1])) and len(tokens) < 3000:
            tokens += constraint.forced()
            if tokens and model.is_end(tokens[-1]):
                break
            logits = np.zeros(model.n_vocab, np.float32)
            constraint.mask(logits)
            allowed = np.flatnonzero(np.isfinite(logits)).tolist()
            ends = [t for t in allowed if model.is_end(t) or model.piece(t)[:1] in b'"]}']
            tokens.append(choose.choice(ends if ends and choose.random() < 0.3 else allowed))
            constraint.accept(tokens[-1])
        yield b''.join(map(model.piece, tokens)).decode()


def allows(model, text, **rule):
    constraint = open_constraint(model, **rule)
    return constraint.fits(model.tokenize(text)) and constraint.complete


def schema_allows(model, schema, value):
    text = json.dumps(value, ensure_ascii=False)
    return allows(model, text, json_schema=json.dumps(schema))


# -- schemas ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['plain', 'internvl', 'smolvlm'])
@pytest.mark.parametrize(
    'value', ['🐶', 'a\\b', 'a"b', 'é\n\t', '\\u0041', '', 'nul\0', [1, {'a': 'ü'}], -0.5, None]
)
def test_a_constant_is_that_very_value(name, value):
    with_model = Model(MODELS / name / 'decoder.gguf')
    for schema in ({'const': value}, {'enum': [value]}):
        (text,) = answers(with_model, 1, json_schema=json.dumps(schema))
        assert json.loads(text) == value
    with_model.close()


@pytest.mark.parametrize(
    ('schema', 'good', 'bad'),
    [
        ({'$defs': {'e': {'enum': ['x', 'y']}}, 'allOf': [{'$ref': '#/$defs/e'}]}, 'x', {}),
        ({'type': ['integer', 'null'], 'minimum': 3}, 3, 2),
        ({'type': 'number', 'exclusiveMinimum': 0.5}, 0.6, 0.5),
        ({'type': 'integer', 'multipleOf': 5}, 15, 16),
        ({'type': 'object', 'required': ['b']}, {'b': 1}, {'a': 1}),
        (
            {'type': 'object', 'patternProperties': {'^a': {'type': 'null'}}},
            {'ab': None},
            {'ab': 1},
        ),
        ({'pattern': '^[^"]+$'}, 'a', '"'),
        ({'pattern': '^[^\\\\]+$'}, '"', '\\'),
        ({'pattern': '^\\P{P}+$'}, 'ab', '"'),
        ({'pattern': '^[\\x00-\\x20]+$'}, '\t ', '"'),
        ({'pattern': '^[[a]+$'}, '[a', 'b'),
        ({'pattern': '^[^a-]+$'}, 'b', '-'),
        ({'type': 'string', 'pattern': '^a+$', 'maxLength': 3}, 'aaa', 'aaaa'),
        ({'type': 'string', 'format': 'date'}, '2026-02-28', '2026-13-01'),
        ({'maxLength': 2.0, 'type': 'string'}, 'ab', 'abc'),
        ({'type': 'array', 'items': {'type': 'null'}, 'uniqueItems': False}, [None, None], [1]),
        ({'x-guidance': {'lenient': True}, 'type': 'null'}, None, 1),
        ({'description': 'a colour', 'title': 't', 'enum': ['red']}, 'red', 'blue'),
        ({'properties': {'a': {}}, 'required': ['a']}, {'a': 1}, {'a': 1, 'b': 1}),
        ({'items': {'properties': {'a': {}}}}, [{'a': 1}], [{'b': 1}]),
        ({'properties': {'a': {}}, 'additionalProperties': True}, {'a': 1, 'b': 1}, ...),
        ({'properties': {'a': {}}, 'allOf': [{'properties': {'b': {}}}]}, {'a': 1, 'b': 1}, ...),
        (True, 5, ...),
    ],
)
def test_what_a_schema_says_is_followed(model, schema, good, bad):
    assert schema_allows(model, schema, good)
    if bad is not ...:
        assert not schema_allows(model, schema, bad)


@pytest.mark.parametrize(
    ('schema', 'keyword'),
    [
        ({'type': 'array', 'items': {'type': 'null'}, 'uniqueItems': True}, 'uniqueItems'),
        ({'not': {'type': 'null'}}, 'not'),
        ({'properties': {'a': {'if': {}}}}, 'if'),
        ({'items': {'contains': {}}}, 'contains'),
        (
            {'$defs': {'e': {'propertyNames': {}}}, 'anyOf': [{'$ref': '#/$defs/e'}]},
            'propertyNames',
        ),
        ({'type': 'string', 'maxlength': 3}, 'maxlength.*did you mean maxLength'),
        ({'type': 'string', 'nullable': True}, 'nullable'),
        ({'type': 'string', 'format': 'colour'}, 'format'),
        ({'type': 'colour'}, 'type'),
        ({'type': 'string', 'pattern': '(?=a)b'}, 'pattern'),
        ({'type': 'string', 'pattern': 'a\\x00'}, 'pattern.*zero'),
        ({'type': 'string', 'pattern': '[a&&b]'}, 'pattern.*&&'),
        ({'type': 'object', 'minProperties': 3}, 'minProperties'),
        ({'oneOf': [{'type': 'integer'}, {'type': 'number'}]}, 'oneOf'),
        ({'$ref': 'https://example.org/schema'}, r'\$ref'),
        ({'$ref': '#/$defs/no'}, r'\$ref|\$defs'),
        ({'$ref': '#'}, r'\$ref'),
        ({'type': 'integer', 'minimum': 3, 'maximum': 2}, 'minimum'),
        ({'type': 'integer', 'multipleOf': 999983}, 'multipleOf'),
        ({'allOf': [{'multipleOf': 9973}, {'multipleOf': 9967}]}, 'multipleOf'),
        ({'enum': []}, 'enum|anyOf'),
        ({'maxLength': '3'}, 'maxLength'),
        ({'properties': []}, 'properties'),
        ({'required': 'a'}, 'required'),
        (False, 'false'),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(model, schema, keyword):
    with pytest.raises(GrammarError, match=f'json_schema cannot be followed: .*({keyword})'):
        open_constraint(model, json_schema=json.dumps(schema))


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('{', 'nor JSON'),
        ('{"const": NaN}', 'nor JSON'),
        ('{"const": 1e999}', 'too large|cannot be followed'),
        ('{"const": ' + '9' * 5000 + '}', 'nor JSON'),
        ('[]', 'expected an object'),
        ('"text"', 'expected an object'),
        ('[' * 100_000, 'nested'),
        ('{"items":' * 3000 + '{}' + '}' * 3000, 'nested'),
        ('{"const": "' + 'x' * 1_000_000 + '"}', 'characters'),
    ],
)
def test_text_that_is_no_schema_is_refused(model, text, match):
    with pytest.raises(GrammarError, match=match) as caught:
        open_constraint(model, json_schema=text)
    assert len(str(caught.value)) < 500


NODE = {
    'type': 'object',
    'properties': {
        'value': {'type': 'boolean'},
        'children': {'type': 'array', 'items': {'$ref': '#/$defs/node'}, 'maxItems': 2},
    },
    'required': ['value', 'children'],
    'additionalProperties': False,
}


@pytest.mark.parametrize(
    'schema',
    [
        {'type': 'string', 'maxLength': 65536},
        {'type': 'string', 'maxLength': 20000},
        {'$defs': {'node': NODE}, '$ref': '#/$defs/node'},
        {'enum': [f'value {i}' for i in range(5000)]},
        {'type': 'array', 'maxItems': 1_000_000, 'items': {'type': 'null'}},
        {'type': 'object', 'additionalProperties': {'type': 'integer', 'minimum': 10**17}},
        {
            '$defs': {f'd{i}': {'allOf': [{'$ref': f'#/$defs/d{i + 1}'}] * 2} for i in range(25)}
            | {'d25': {'type': 'null'}},
            '$ref': '#/$defs/d0',
        },
    ],
)
def test_large_schemas_end_in_an_answer(model, schema):
    for text in answers(model, 3, json_schema=json.dumps(schema)):
        assert schema_allows(model, schema, json.loads(text))


@pytest.mark.parametrize(
    'schema',
    [
        {'type': 'object', 'properties': {f'p{i}': {'type': 'string'} for i in range(3000)}},
        {'allOf': [{'anyOf': [{'properties': {f'a{i}': {}}}, {'properties': {f'b{i}': {}}}]}
                   for i in range(20)]},
        {'type': 'object', 'properties': {'a': {'$ref': '#'}}, 'required': ['a']},
        {'patternProperties': {f'^a.{{{i}}}$': {} for i in range(100)}},
    ],
)  # fmt: skip
def test_schemas_that_are_too_much_are_refused(model, schema):
    with pytest.raises(GrammarError, match='cannot be followed'):
        open_constraint(model, json_schema=json.dumps(schema))


def test_random_answers_follow_their_schema(model):
    schema = {
        'type': 'object',
        'properties': {
            'name': {'type': 'string', 'pattern': '^[a-z ]{2,8}$'},
            'size': {'type': 'number', 'minimum': -1.5, 'exclusiveMaximum': 20},
            'tags': {'type': 'array', 'items': {'enum': ['a', 'b']}, 'minItems': 1, 'maxItems': 3},
            'more': {'anyOf': [{'type': 'null'}, {'type': 'boolean'}]},
        },
        'required': ['name', 'tags'],
        'additionalProperties': False,
    }
    for text in answers(model, 200, json_schema=json.dumps(schema)):
        value = json.loads(text)
        assert set(value) <= set(schema['properties']) and {'name', 'tags'} <= set(value)
        assert 2 <= len(value['name']) <= 8 and value['name'].replace(' ', 'a').isalpha()
        assert -1.5 <= value.get('size', 0) < 20
        assert 1 <= len(value['tags']) <= 3 and set(value['tags']) <= {'a', 'b'}
        assert value.get('more') in (None, True, False)


# -- at Python's door --------------------------------------------------------------------------


class Shape:
    """What a class of pydantic offers."""

    @classmethod
    def model_json_schema(cls):
        return {'type': 'object', 'properties': {'sides': {'type': 'integer'}}}


def test_a_schema_may_be_a_dict_or_a_pydantic_class():
    assert json.loads(Config(json_schema={'type': 'null'}).schema_text()) == {'type': 'null'}
    assert json.loads(Config(json_schema=Shape).schema_text()) == Shape.model_json_schema()
    pydantic = pytest.importorskip('pydantic', reason='pydantic is not installed')

    class Dog(pydantic.BaseModel):
        name: str

    assert json.loads(Config(json_schema=Dog).schema_text()) == Dog.model_json_schema()


@pytest.mark.parametrize('schema', [{'a': {1, 2}}, 17, [1], Shape()])
def test_a_schema_of_another_type_is_refused(schema):
    with pytest.raises(ConfigError, match='json_schema'):
        Config(json_schema=schema)


def test_a_dict_within_itself_is_refused():
    schema: dict[str, object] = {}
    schema['items'] = schema
    with pytest.raises(ConfigError, match='json_schema'):
        Config(json_schema=schema)


# -- regular expressions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('regex', 'good', 'bad'),
    [
        ('yes|no', 'yes', 'yesno'),
        ('^[0-9]{2}$', '17', '1'),
        ('(?i)dog', 'DoG', 'cat'),
        ('[^\\x00]{1,3}', '🐶é', 'abcd'),
        ('\\d+ (cm|mm)', '12 cm', '12 m'),
        ('a*', '', 'b'),
    ],
)
def test_a_regular_expression_is_matched_as_a_whole(model, regex, good, bad):
    assert allows(model, good, regex=regex)
    assert not allows(model, bad, regex=regex)


@pytest.mark.parametrize(
    ('regex', 'match'),
    [
        ('(a', 'unclosed'),
        ('(?=a)b', 'look-around'),
        ('(.)\\1', 'backreferences'),
        ('[^\\s\\S]', 'no answer'),
        ('(' * 4000 + 'a' + ')' * 4000, 'nest'),
        ('a' * 20000, 'characters'),
        ('(?:a?){5000}a{5000}', 'cannot be followed'),
        ('\ud800', 'cannot be followed'),
    ],
)
def test_a_regular_expression_that_cannot_be_used_is_refused(model, regex, match):
    with pytest.raises(GrammarError, match=match) as caught:
        for _ in answers(model, 1, regex=regex):
            pass
    assert len(str(caught.value)) < 500


# -- vocabularies ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def sentencepiece(tmp_path_factory):
    model = Model(write(tmp_path_factory.mktemp('sentencepiece') / 'decoder.gguf'))
    yield model
    model.close()


def test_a_sentencepiece_vocabulary_writes_the_same_texts(sentencepiece):
    assert sentencepiece.piece(sentencepiece.tokenize('dog')[0]).startswith(b' ')
    for value in ('the dog is', ' the', '🐶 né', 'a\\b\n', {'name': 'dog', 'colour': ['is']}):
        (text,) = answers(sentencepiece, 1, json_schema=json.dumps({'const': value}))
        assert json.loads(text) == value
    for text in answers(sentencepiece, 50, regex='(the|dog| is){1,4}[0-9é]'):
        assert text.strip(' thedogis')[-1] in '0123456789é'


def test_forced_tokens_are_those_of_a_sentencepiece_model(sentencepiece):
    schema = json.dumps({'const': {'name': 'the dog', 'colour': 0}})
    tokens = open_constraint(sentencepiece, json_schema=schema).forced()
    pieces = [sentencepiece.piece(token) for token in tokens]
    assert b''.join(pieces) == b'{"name": "the dog", "colour": 0}'
    assert b' dog' in pieces and b'name' in pieces and b'colour' in pieces


def test_a_long_constant_is_tokenised_in_parts(model):
    text = 'x' * 60_000 + ' the dog' * 1000
    tokens = open_constraint(model, json_schema=json.dumps({'const': text})).forced()
    assert b''.join(map(model.piece, tokens)).decode() == json.dumps(text)


def test_control_tokens_never_stand_in_an_answer():
    model = Model(MODELS / 'internvl' / 'decoder.gguf')
    named = {token for text, token in model.controls.items() if text in model.marks}
    never = named | {t for t in range(model.n_vocab) if not model.piece(t)}
    for rule in ({'json_schema': '{"type": "string"}'}, {'regex': '(?s).*'}):
        constraint = open_constraint(model, **rule)
        constraint.forced()
        logits = np.zeros(model.n_vocab, np.float32)
        constraint.mask(logits)
        allowed = {t for t in np.flatnonzero(np.isfinite(logits)) if not model.is_end(int(t))}
        assert allowed and not allowed & never
    model.close()
