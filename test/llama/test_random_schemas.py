"""Random schemas, and random answers to them: an independent validator has the last word."""

from __future__ import annotations

import json
import random

from decoding import PLAIN
from hobot_vlm.errors import GrammarError
from hobot_vlm.llama.constraint import open_constraint
from hobot_vlm.llama.model import Model
import numpy as np
import pytest

SCHEMAS, ANSWERS, LONGEST = 500, 3, 60

VALUES = [
    0,
    1,
    -1,
    2.5,
    True,
    None,
    '',
    'a',
    'ab',
    'é',
    '🐶',
    'a"b',
    'a\\b',
    [],
    ['a', 1],
    {'a': 1},
]
PATTERNS = [
    '^a',
    'b$',
    '^.{2}$',
    '^(yes|no)$',
    '^[^"]*$',
    '^[^\\\\]+$',
    '^\\w+$',
    '^\\s',
    '^$',
    '"',
]
FORMATS = ['date', 'ipv4', 'uuid', 'ipv6']
TYPES = ['string', 'integer', 'number', 'boolean', 'null', 'array', 'object', ['string', 'null']]
BOUNDS = [0, 1, -3, 2.5, 10, -0.5, 100]


class Schemas:
    """Makes schemas of the keywords that are followed, in every combination."""

    def __init__(self, seed):
        self.choose = random.Random(seed)
        pick = self.choose.choice
        self.simple = {
            'type': lambda: pick(TYPES),
            'enum': lambda: [pick(VALUES) for _ in range(pick([1, 2, 4]))],
            'const': lambda: pick(VALUES),
            'pattern': lambda: pick(PATTERNS),
            'format': lambda: pick(FORMATS),
            'multipleOf': lambda: pick([1, 2, 3, 5]),
            'required': lambda: self.choose.sample('abcd', pick([0, 1, 2])),
        }
        for keyword in ('minLength', 'maxLength', 'minItems', 'maxItems', 'maxProperties'):
            self.simple[keyword] = lambda: pick([0, 1, 2, 5])
        for keyword in ('minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'):
            self.simple[keyword] = lambda: pick(BOUNDS)

    def make(self, depth=2):
        pick, part = self.choose.choice, lambda: self.make(depth - 1)
        holding = {
            'properties': lambda: {pick('abc'): part() for _ in range(pick([1, 2, 3]))},
            'additionalProperties': lambda: pick([True, False, part()]),
            'patternProperties': lambda: {pick(['^a', 'b', '^c$']): part()},
            'items': lambda: pick([True, False, part()]),
            'prefixItems': lambda: [part() for _ in range(pick([1, 2]))],
            'allOf': lambda: [part() for _ in range(pick([1, 2]))],
            'anyOf': lambda: [part() for _ in range(pick([1, 2, 3]))],
            'oneOf': lambda: [part() for _ in range(pick([1, 2]))],
            '$ref': lambda: '#/$defs/one',
        }
        keywords = {**self.simple, **holding} if depth else self.simple
        names = ['type', *(pick(list(keywords)) for _ in range(pick([0, 1, 2, 3])))]
        return {name: keywords[name]() for name in names[pick([0, 0, 1]) :]}

    def whole(self):
        schema = self.make()
        while '$ref' in (one := json.dumps(self.make(1))):
            pass
        return {**schema, '$defs': {'one': json.loads(one)}}


def answer(model, schema, choose):
    """Give an answer that follows a schema, chosen at random; None where it is long."""
    constraint, tokens = open_constraint(model, json_schema=json.dumps(schema)), []
    while len(tokens) < LONGEST:
        tokens += constraint.forced()
        if tokens and model.is_end(tokens[-1]):
            return b''.join(map(model.piece, tokens)).decode()
        logits = np.zeros(model.n_vocab, np.float32)
        constraint.mask(logits)
        allowed = np.flatnonzero(np.isfinite(logits)).tolist()
        closing = [t for t in allowed if model.is_end(t) or model.piece(t) in (b'"', b']', b'}')]
        tokens.append(choose.choice(closing if closing and choose.random() < 0.4 else allowed))
        constraint.accept(tokens[-1])
        if model.is_end(tokens[-1]):
            return b''.join(map(model.piece, tokens)).decode()
    return None


def test_random_answers_follow_random_schemas():
    jsonschema = pytest.importorskip('jsonschema', reason='jsonschema is not installed')
    formats = jsonschema.FormatChecker(FORMATS)
    model, schemas = Model(PLAIN), Schemas(7)
    checked = followed = 0
    for _ in range(SCHEMAS):
        schema = schemas.whole()
        try:
            open_constraint(model, json_schema=json.dumps(schema))
        except GrammarError:
            continue
        followed += 1
        judge = jsonschema.Draft202012Validator(schema, format_checker=formats)
        for _ in range(ANSWERS):
            text = answer(model, schema, schemas.choose)
            if text is not None:
                checked += 1
                errors = [error.message for error in judge.iter_errors(json.loads(text))]
                assert not errors, (json.dumps(schema), text)
    model.close()
    assert followed > 0.7 * SCHEMAS and checked > 2 * followed
