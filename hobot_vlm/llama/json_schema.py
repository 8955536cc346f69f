"""
The look at a JSON schema before llguidance reads it: what it says is followed, or refused by name.

JSON Schema ignores keywords that it does not know. An answer that silently does not follow what
somebody wrote helps nobody, so here they are refused. Knows nothing of tokens.
"""

from __future__ import annotations

from decimal import Decimal
import difflib
import json
import math
import re
from typing import Any, NoReturn

from .json_pattern import llguidance_pattern
from ..errors import GrammarError

#: Characters of a schema: llguidance reads one of this size in about a second.
MAX_SCHEMA = 1_000_000
#: Brackets within brackets: the JSON reader of llguidance goes no deeper than 128.
MAX_DEPTH = 100

#: Of all multipleOf of a schema, their least common multiple without zeros at its end: it has as
#: many states, and at this number takes a third of a second and 50 MB; at ten times it 6 seconds.
MAX_MULTIPLE = 100_000

#: keywords that llguidance follows
_FOLLOWED = frozenset(
    'type enum const $ref allOf anyOf oneOf '
    'properties required additionalProperties patternProperties minProperties maxProperties '
    'items prefixItems minItems maxItems pattern format minLength maxLength '
    'minimum maximum exclusiveMinimum exclusiveMaximum multipleOf'.split()
)
#: keywords that allow and forbid nothing
_REMARKS = frozenset(
    'title description default examples example deprecated readOnly writeOnly $schema $id $anchor '
    '$comment $defs definitions $vocabulary discriminator '
    'contentMediaType contentEncoding contentSchema'.split()
)
#: keywords of the standard that nothing here can follow
_KNOWN = frozenset(
    'not if then else uniqueItems contains minContains maxContains propertyNames '
    'dependentRequired dependentSchemas unevaluatedItems unevaluatedProperties '
    '$dynamicRef $dynamicAnchor dependencies additionalItems nullable'.split()
)
#: a value with which such a keyword says nothing
_SAYS_NOTHING = {
    'uniqueItems': False,
    'nullable': False,
    'unevaluatedItems': True,
    'unevaluatedProperties': True,
}
_COUNTS = frozenset('minLength maxLength minItems maxItems minProperties maxProperties'.split())
#: where schemas stand within a schema: by name, in a list, alone
_BY_NAME = ('properties', 'patternProperties')
_LISTS = ('allOf', 'anyOf', 'oneOf', 'prefixItems')
_ALONE = ('items', 'additionalProperties')

_STANDARD = re.compile('https?://json-schema.org/')
_BRACKET_OR_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def checked_schema(text: str) -> str:
    """
    Give a schema as llguidance is to read it.

    :raises GrammarError: no JSON, too much of it, or a keyword that cannot be followed
    """
    schema = _read(text)
    if isinstance(schema, bool):
        if not schema:
            _refuse('false', 'it allows no answer at all')
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError(
            f'json_schema cannot be followed: it is a {type(schema).__name__}; expected an '
            'object, as in {"type": "object"}'
        )
    _check(schema)
    _close(schema)
    return json.dumps(schema)


def _read(text: str) -> Any:
    if len(text) > MAX_SCHEMA:
        raise GrammarError(
            f'json_schema has {len(text)} characters: expected {MAX_SCHEMA} or fewer'
        )
    depth = 0
    for match in _BRACKET_OR_TEXT.finditer(text):
        mark = match.group()[0]
        depth += (mark in '[{') - (mark in ']}')
        if depth > MAX_DEPTH:
            raise GrammarError(
                f'json_schema is nested more than {MAX_DEPTH} deep: give its parts names in '
                '$defs, and refer to them with $ref'
            )

    def no_number(name: str) -> NoReturn:
        raise ValueError(f'{name} is no number of JSON')

    try:
        return json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as exc:
        raise GrammarError(
            f'json_schema is neither a file that is here nor JSON: {text[:80]!r} ({exc})'
        ) from exc


def _check(root: dict[str, Any]) -> None:
    """Go through every schema within a schema, and leave out what says nothing."""
    waiting: list[Any] = [root]
    seen: set[int] = set()
    multiple = 1
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        for keyword in list(schema):
            _check_keyword(schema, keyword)
        for keyword in _BY_NAME:
            if isinstance(schema.get(keyword), dict):
                waiting += schema[keyword].values()
        for keyword in _LISTS:
            if isinstance(schema.get(keyword), list):
                waiting += schema[keyword]
        waiting += [schema[keyword] for keyword in _ALONE if keyword in schema]
        multiple = math.lcm(multiple, _digits(schema.get('multipleOf', 1)))
        if multiple > MAX_MULTIPLE:
            _refuse('multipleOf', f'all of them together make {multiple}, over {MAX_MULTIPLE}')
        least, required = schema.get('minProperties', 0), schema.get('required', ())
        if isinstance(least, int) and least > max(1, len(set(map(str, required)))):
            # only names that are spelt out cannot come twice
            _refuse('minProperties', f'expected 1 or less, or as many names in required: {least}')
        ref = schema.get('$ref')
        if isinstance(ref, str) and ref.startswith('#/'):
            waiting.append(_target(root, ref))
        if (ref is not None and not str(ref).startswith('#/')) or '$id' in schema:
            # by another name, or by a path that starts elsewhere: all that has a name is checked
            for keyword in ('$defs', 'definitions'):
                if isinstance(schema.get(keyword), dict):
                    waiting += schema[keyword].values()
                if isinstance(root.get(keyword), dict):
                    waiting += root[keyword].values()


#: schemas whose keywords are followed together with those of what they hold
_COMBINE = ('properties', 'allOf', 'anyOf', 'oneOf', '$ref')


def _close(root: dict[str, Any]) -> None:
    """
    Allow objects no names but those that ``properties`` lists, where nothing else speaks of names.

    A model that may make up names goes on making them up. Such answers follow the schema, too, and
    what follows the last name is known then.
    """
    alone: dict[int, bool] = {}  # by the id of a schema, whether it is combined with no other
    schemas: list[dict[str, Any]] = []
    waiting: list[tuple[Any, bool]] = [(root, True)]
    while waiting:
        schema, single = waiting.pop()
        if not isinstance(schema, dict) or alone.get(id(schema), True) is False:
            continue
        single = single and sum(keyword in schema for keyword in _COMBINE) < 2
        if alone.get(id(schema)) is single:
            continue
        alone[id(schema)] = single
        schemas.append(schema)
        for keyword in _BY_NAME:
            if isinstance(schema.get(keyword), dict):
                waiting += [(part, True) for part in schema[keyword].values()]
        for keyword in _LISTS:
            if isinstance(schema.get(keyword), list):
                within = keyword == 'prefixItems' or (single and keyword != 'allOf')
                waiting += [(part, within) for part in schema[keyword]]
        waiting += [(schema[keyword], True) for keyword in _ALONE if keyword in schema]
        ref = schema.get('$ref')
        if isinstance(ref, str) and ref.startswith('#'):
            waiting.append((_target(root, ref) if ref.startswith('#/') else root, single))
    for schema in schemas:
        names, required = schema.get('properties'), schema.get('required', ())
        if (
            alone[id(schema)]
            and isinstance(names, dict)
            and not {'additionalProperties', 'patternProperties'} & set(schema)
            and isinstance(required, list | tuple)
            and all(isinstance(name, str) and name in names for name in required)
        ):
            schema['additionalProperties'] = False


def _check_keyword(schema: dict[str, Any], keyword: str) -> None:
    value = schema[keyword]
    if keyword.startswith('x-'):  # an extension; llguidance would read its own from them
        del schema[keyword]
    elif keyword in _SAYS_NOTHING and value is _SAYS_NOTHING[keyword]:
        del schema[keyword]
    elif keyword in _KNOWN:
        _refuse(keyword, 'it is not supported: leave it out, or say it in another way')
    elif keyword == '$schema' and not _STANDARD.match(str(value)):
        _refuse(keyword, 'expected one of json-schema.org, or none')
    elif keyword not in _FOLLOWED and keyword not in _REMARKS:
        near = difflib.get_close_matches(keyword, _FOLLOWED, 1)
        hint = f'; did you mean {near[0]}?' if near else ''
        _refuse(keyword[:50], f'there is no such keyword{hint}')
    elif keyword == 'pattern' and isinstance(value, str):
        schema[keyword] = _pattern(keyword, value)
    elif keyword == 'patternProperties' and isinstance(value, dict):
        schema[keyword] = {_pattern(keyword, name): part for name, part in value.items()}
    elif keyword in _COUNTS and isinstance(value, float) and value.is_integer():
        schema[keyword] = int(value)
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse(keyword, 'its number is too large')


def _digits(number: Any) -> int:
    """Give the digits of a number, without zeros at its end; 1 where it is none."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number <= 0:
        return 1  # llguidance refuses it
    digits = Decimal(repr(number)).normalize().as_tuple().digits
    return int(''.join(map(str, digits)))


def _pattern(keyword: str, pattern: str) -> str:
    try:
        return llguidance_pattern(pattern)
    except ValueError as exc:
        _refuse(keyword, str(exc))


def keywords(text: str) -> list[str]:
    """Give the keywords of a checked schema that an answer has to follow, sorted."""
    found: set[str] = set()
    waiting = [json.loads(text)]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found |= _FOLLOWED & set(part)
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return sorted(found)


def _target(root: Any, ref: str) -> Any:
    """Give what a reference within the schema leads to; nothing where it leads nowhere."""
    found = root
    for step in ref[2:].split('/'):
        step = step.replace('~1', '/').replace('~0', '~')
        if isinstance(found, dict):
            found = found.get(step)
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found


def _refuse(keyword: str, why: str) -> NoReturn:
    raise GrammarError(f'json_schema cannot be followed: {keyword}: {why}')
