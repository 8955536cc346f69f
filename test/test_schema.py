"""JSON schemas as grammars: what numbers they let through, and what they refuse."""

from __future__ import annotations

import json
import re

from hobot_vlm.errors import GrammarError
from hobot_vlm.llama.schema import bounded, grammar_of_schema
from hypothesis import given
from hypothesis import strategies as st
import pytest


def pattern(schema):
    """Give the regular expression that says the same as the grammar of a bounded number."""
    parts = re.findall(r'"[^"]*"|\[[^\]]*\]|\{[^}]*\}|[()|?]', bounded(schema))
    return re.compile(''.join(re.escape(p[1:-1]) if p[0] == '"' else p for p in parts))


BOUND = st.integers(-1200, 1200)


@given(st.none() | BOUND, st.none() | BOUND, st.booleans())
def test_integers_between_bounds(low, high, excluded):
    low_key, high_key = ('exclusiveMinimum', 'maximum') if excluded else ('minimum', 'maximum')
    bounds = {key: b for key, b in ((low_key, low), (high_key, high)) if b is not None}
    if not bounds:
        return
    first = -2000 if low is None else low + excluded
    last = 2000 if high is None else high
    if first > last:
        with pytest.raises(GrammarError, match='nothing lies between'):
            bounded({'type': 'integer', **bounds})
        return
    allowed = pattern({'type': 'integer', **bounds})
    for number in range(-2000, 2001):
        text = str(number)
        assert bool(allowed.fullmatch(text)) == (first <= number <= last), text
        assert not allowed.fullmatch('0' + text)
    assert not allowed.fullmatch('1.5')


@given(st.none() | BOUND, st.none() | BOUND, st.floats(-1300, 1300))
def test_numbers_between_bounds(low, high, number):
    if (low is None and high is None) or (low is not None and high is not None and low > high):
        return
    bounds = {k: b for k, b in (('minimum', low), ('maximum', high)) if b is not None}
    allowed = pattern({'type': 'number', **bounds})
    for text in (f'{number:.3f}', f'{number:.0f}', str(low), str(high), f'{high}.00'):
        if text.startswith('None') or not float(text.lstrip('-')):  # -0 need not be let through
            continue
        value = float(text)
        fits = (low is None or value >= low) and (high is None or value <= high)
        assert bool(allowed.fullmatch(text)) == fits, text


def test_bounds_far_away():
    allowed = pattern({'type': 'integer', 'minimum': 10**17})
    assert allowed.fullmatch(str(10**17)) and not allowed.fullmatch(str(10**17 - 1))


@pytest.mark.parametrize(
    ('schema', 'match'),
    [
        ({'type': 'number', 'minimum': 0.5}, 'minimum is 0.5'),
        ({'type': 'number', 'exclusiveMinimum': 0}, 'exclusiveMinimum is 0'),
        ({'type': 'integer', 'minimum': True}, 'no number'),
        ({'type': 'integer', 'multipleOf': 5}, 'multipleOf'),
        ({'type': 'array', 'items': {'type': 'null'}, 'uniqueItems': True}, 'uniqueItems'),
        ({'type': 'object', 'patternProperties': {'a': {}}}, 'patternProperties'),
        ({'not': {'type': 'null'}}, 'not'),
        ({'type': 'string', 'pattern': '^a+$', 'maxLength': 3}, 'maxLength'),
        ({'properties': {'a': {'type': 'integer', 'multipleOf': 2}}}, 'multipleOf'),
        ({'type': 'object', 'properties': {}, 'required': ['a']}, 'a is required'),
        ({'$ref': 'https://example.org/schema'}, 'etch'),
        ({'$ref': '#/$defs/no'}, 'no'),
        ([], 'cannot be followed'),
        ('text', 'cannot be followed'),
    ],
)
def test_what_cannot_be_followed_is_refused(schema, match):
    with pytest.raises(GrammarError, match=match):
        grammar_of_schema(json.dumps(schema))


@pytest.mark.parametrize(
    'schema',
    [
        {'type': ['integer', 'null'], 'minimum': 3, 'description': 'a number or nothing'},
        {'type': 'integer', 'minLength': 3},  # says nothing about integers
        {'type': 'string', 'format': 'email'},
        {'type': 'object', 'properties': {'number': {'type': 'integer', 'maximum': 3}}},
        {'$defs': {'n': {'type': 'integer', 'minimum': 1}}, '$ref': '#/$defs/n'},
        {'enum': [1, 2], 'type': 'integer'},
        {},
    ],
)
def test_what_can_be_followed(schema):
    assert 'root ::=' in grammar_of_schema(json.dumps(schema))
