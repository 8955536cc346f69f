"""
From a JSON schema to a GBNF grammar.

The converter that llama-cpp-python brings does most of it. What it would leave out in silence is
added here (bounds of numbers) or refused, so that an answer always follows a schema that was
accepted. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import math
import re
from typing import Any

from llama_cpp.llama_grammar import RESERVED_NAMES, SchemaConverter

from ..errors import GrammarError

#: a quoted text of GBNF, or a class of characters
_LITERAL_OR_CLASS = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')

#: keywords that limit values of one type only, and mean nothing for another
_APPLIES_TO = {
    **dict.fromkeys(('properties', 'required', 'additionalProperties', 'allOf'), 'object'),
    **dict.fromkeys(('patternProperties', 'propertyNames', 'minProperties'), 'object'),
    **dict.fromkeys(('maxProperties', 'dependentRequired', 'dependentSchemas'), 'object'),
    **dict.fromkeys(('items', 'prefixItems', 'minItems', 'maxItems'), 'array'),
    **dict.fromkeys(('uniqueItems', 'contains', 'minContains', 'maxContains'), 'array'),
    **dict.fromkeys(('pattern', 'format', 'minLength', 'maxLength'), 'string'),
    **dict.fromkeys(('minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum'), 'number'),
    'multipleOf': 'number',
}
#: keywords that allow and forbid nothing; a format is one where the converter does not know it
_REMARKS = frozenset(
    'title description default examples deprecated readOnly writeOnly format '
    '$schema $id $comment $defs definitions'.split()
)
#: bounds of numbers, and how each becomes the outermost integer that it allows
_BOUNDS: dict[str, Callable[[float], int]] = {
    'minimum': math.ceil,
    'exclusiveMinimum': lambda bound: math.floor(bound) + 1,
    'maximum': math.floor,
    'exclusiveMaximum': lambda bound: math.ceil(bound) - 1,
}
#: what the converter reads of a schema, by the keyword that it goes by, in its own order
_READS = (
    ('$ref', ()),
    ('oneOf', ()),
    ('anyOf', ()),
    ('const', ('type',)),
    ('enum', ('type',)),
    ('properties', ('type', 'required', 'additionalProperties')),
    ('additionalProperties', ('type',)),
    ('allOf', ('type',)),
    ('items', ('type', 'minItems', 'maxItems')),
    ('prefixItems', ('type',)),
    ('pattern', ('type',)),
    ('minLength', ('type', 'maxLength')),
    ('maxLength', ('type',)),
    ('type', frozenset(_BOUNDS)),
)
#: digits of a number without an upper bound, and behind the point; as the converter has it
_DIGITS = 15


def grammar_of_schema(text: str) -> str:
    """
    Give the GBNF grammar of the JSON texts that follow a schema.

    :raises GrammarError: no JSON, or a schema that cannot be followed; says why
    """
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as exc:
        raise GrammarError(f'json_schema is no JSON: {exc}') from exc
    try:
        converter: Any = _Converter
        converter = converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        converter.visit(converter.resolve_refs(schema, ''), '')
        return _without_control_characters(converter.format_grammar())
    except GrammarError:
        raise
    except Exception as exc:  # the converter raises whatever a schema provokes
        raise GrammarError(f'json_schema cannot be followed: {exc}') from exc


def _without_control_characters(grammar: str) -> str:
    """
    Keep quotes and raw line ends out of the strings of a JSON grammar.

    The converter lets a string hold any character but quote and backslash, and a pattern's dot
    any character at all; JSON allows neither quotes nor control characters.
    """

    def narrowed(match: re.Match[str]) -> str:
        part = match.group()
        return r'[^"\\\x00-\x1F' + part[2:] if part.startswith('[^') else part

    return _LITERAL_OR_CLASS.sub(narrowed, grammar)


class _Converter(SchemaConverter):
    """Visits every part of a schema, before the converter does."""

    def visit(self, schema: dict[str, Any], name: str) -> str:
        """Add the rules of a part of a schema; gives the name of its rule."""
        converter: Any = super()  # comes without types
        kind = schema.get('type')
        if isinstance(kind, list):
            rest = {key: value for key, value in schema.items() if key != 'type'}
            return str(converter.visit({'anyOf': [{**rest, 'type': one} for one in kind]}, name))
        if kind:
            family = 'number' if kind == 'integer' else kind
            schema = {k: v for k, v in schema.items() if _APPLIES_TO.get(k, family) == family}
        by, reads = next((row for row in _READS if row[0] in schema), ('', ()))
        unread = sorted(set(schema) - _REMARKS - {by, *reads})
        if unread:
            raise GrammarError(
                f'json_schema cannot be followed: {unread[0]} has no effect beside '
                f'{by or "nothing else"}: leave it out, or say it in another way'
            )
        missing = set(schema.get('required', ())) - set(schema.get('properties', ()))
        if missing:
            raise GrammarError(
                f'json_schema cannot be followed: {min(missing)} is required, '
                'and properties does not say what it is'
            )
        if by == 'type' and _BOUNDS.keys() & set(schema):
            rule_name = f'{name}-' if name in RESERVED_NAMES else name or 'root'
            return str(converter._add_rule(rule_name, f'({bounded(schema)}) space'))
        return str(converter.visit(schema, name))


def bounded(schema: dict[str, Any]) -> str:
    """
    Give the GBNF expression of the numbers within the bounds of a schema.

    :raises GrammarError: bounds of a ``number`` that are not whole or that exclude themselves, or
        bounds that nothing lies between
    """
    bounds = {key: schema[key] for key in _BOUNDS.keys() & set(schema)}
    whole = schema['type'] == 'integer'
    for key, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise GrammarError(f'json_schema cannot be followed: {key} is {bound!r}, no number')
        if not whole and (key.startswith('exclusive') or bound != int(bound)):
            raise GrammarError(
                f'json_schema cannot be followed: {key} is {bound}: a number can have a whole '
                'minimum and maximum, and an integer any bounds'
            )
    inclusive = {key: _BOUNDS[key](bound) for key, bound in bounds.items()}
    lows = [inclusive[key] for key in ('minimum', 'exclusiveMinimum') if key in bounds]
    highs = [inclusive[key] for key in ('maximum', 'exclusiveMaximum') if key in bounds]
    low, high = max(lows, default=None), min(highs, default=None)
    if low is not None and high is not None and low > high:
        raise GrammarError(
            f'json_schema cannot be followed: nothing lies between {low} and {high}'
        )
    parts = []
    if high is None or high >= 0:
        parts.append(_from(max(low or 0, 0), high, whole))
    if low is None or low < 0:
        below = max(-high, 0) if high is not None else 0
        parts.append(f'"-" ({_from(below, None if low is None else -low, whole)})')
    return ' | '.join(parts)


def _from(low: int, high: int | None, whole: bool) -> str:
    """Give the expression of the numbers from ``low`` to ``high``, neither of them negative."""
    fraction = f'("." [0-9]{{1,{_DIGITS}}})?'
    if high is None:
        high = 10 ** max(_DIGITS, len(str(low))) - 1
        return f'({_integers(low, high)})' + ('' if whole else f' {fraction}')
    if whole:
        return _integers(low, high)
    last = f'"{high}" ("." "0"{{1,{_DIGITS}}})?'
    return f'({_integers(low, high - 1)}) {fraction} | {last}' if high > low else last


def _integers(low: int, high: int) -> str:
    """Give the expression of the integers from ``low`` to ``high``, one length at a time."""
    alternatives = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        alternatives.append(_digits(str(first), str(min(high, 10**length - 1))))
    return ' | '.join(alternatives)


def _digits(low: str, high: str) -> str:
    """Give the expression of the strings of digits between two of the same length."""
    if low == high:
        return f'"{low}"' if low else ''
    rest = len(low) - 1
    if not rest:
        return f'[{low}-{high}]'
    any_rest = f'[0-9]{{{rest}}}'
    if low[0] == high[0]:
        return f'"{low[0]}" ({_digits(low[1:], high[1:])})'
    alternatives = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != '0' * rest:
        alternatives.append(f'"{first}" ({_digits(low[1:], "9" * rest)})')
        first += 1
    if high[1:] != '9' * rest:
        alternatives.append(f'"{last}" ({_digits("0" * rest, high[1:])})')
        last -= 1
    if first <= last:
        alternatives.insert(1, f'[{first}-{last}] {any_rest}')
    return ' | '.join(alternatives)
