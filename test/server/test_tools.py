"""Calls of tools: the schema that holds the model to them, and reading them while they come."""

from __future__ import annotations

import json

from hobot_vlm.errors import ConfigError
from hobot_vlm.server.tools import read_toolbox, ToolReader
from hypothesis import given
from hypothesis import strategies as st
import pytest


def function(name, parameters=None):
    inner = {'name': name, 'description': f'does {name}'}
    return {'type': 'function', 'function': {**inner, 'parameters': parameters or {}}}


def pieces(text, cuts):
    """Cut a text in pieces."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in zip(places, places[1:], strict=False)]


@given(
    st.dictionaries(st.text(max_size=5), st.text() | st.integers() | st.none(), max_size=3),
    st.lists(st.integers(0, 500), max_size=20),
    st.booleans(),
)
def test_arguments_come_out_whole_however_they_are_cut(arguments, cuts, spaced):
    text = json.dumps({'name': 'drive', 'arguments': arguments}, indent=1 if spaced else None)
    reader = ToolReader(raw=False)
    fed = [reader.feed(piece) for piece in pieces(text, cuts)]
    assert reader.call.name == 'drive'
    assert json.loads(''.join(added for _, added in fed)) == arguments
    assert not any(words for words, _ in fed)


@given(st.text(), st.lists(st.integers(0, 500), max_size=20), st.booleans())
def test_words_come_out_whole_however_they_are_cut(answer, cuts, plain):
    text = json.dumps({'answer': answer}, ensure_ascii=plain)
    reader = ToolReader(raw=False)
    words = ''.join(reader.feed(piece)[0] for piece in pieces(text, cuts))
    assert (words, reader.call) == (answer, None)


@given(st.dictionaries(st.text(max_size=3), st.integers()), st.lists(st.integers(0, 99)))
def test_words_that_are_json_stay_json(answer, cuts):
    text = json.dumps({'answer': answer})
    reader = ToolReader(raw=True)
    assert json.loads(''.join(reader.feed(piece)[0] for piece in pieces(text, cuts))) == answer


@pytest.mark.parametrize('text', ['{"answer": "half a w', '{"answer": "\\ud83d', '{"answer": "\\'])
def test_an_answer_that_was_cut_short_gives_what_it_has(text):
    words, _ = ToolReader(raw=False).feed(text)
    assert words == ('half a w' if 'half' in text else '')


def test_the_schema_takes_each_tool_with_its_own_references():
    parameters = {
        'type': 'object',
        'properties': {'$ref': {'$ref': '#/$defs/speed'}, 'to': {'const': {'$ref': '#'}}},
        '$defs': {'speed': {'type': 'integer'}},
    }
    toolbox = read_toolbox([function('a'), function('b', parameters)], 'auto', None)
    schema = json.loads(toolbox.schema())
    assert [sorted(kind['properties']) for kind in schema['anyOf']] == [
        ['arguments', 'name'], ['arguments', 'name'], ['answer'],
    ]  # fmt: skip
    moved = schema['$defs']['1']
    assert moved['properties']['$ref'] == {'$ref': '#/$defs/1/$defs/speed'}
    assert moved['properties']['to'] == {'const': {'$ref': '#'}}
    assert 'does b' in toolbox.prompt() and '"answer"' in toolbox.prompt()


@pytest.mark.parametrize(
    ('choice', 'names', 'talk'),
    [
        (None, ['a', 'b'], True),
        ('auto', ['a', 'b'], True),
        ('required', ['a', 'b'], False),
        ({'type': 'function', 'function': {'name': 'b'}}, ['b'], False),
        ({'type': 'function', 'name': 'b'}, ['b'], False),
        ({'type': 'allowed_tools', 'mode': 'auto', 'tools': [{'name': 'a'}]}, ['a'], True),
    ],
)
def test_what_may_be_called(choice, names, talk):
    toolbox = read_toolbox([function('a'), function('b')], choice, None)
    assert [tool.name for tool in toolbox.tools] == names
    assert toolbox.talk is talk
    assert (len(json.loads(toolbox.schema())['anyOf']) > len(names)) is talk


def test_no_tools_and_none_are_no_toolbox():
    assert read_toolbox([], None, None) is None
    assert read_toolbox([function('a')], 'none', None) is None
    for choice in ('all', {'name': 'c'}, {'type': 'allowed_tools', 'tools': [5]}, 7):
        with pytest.raises(ConfigError, match='tool_choice'):
            read_toolbox([function('a')], choice, None)
