"""
Tools that a model may call: OpenAI's functions -> a system prompt and a schema -> its calls.

A model that was never taught to call tools does it by the schema of its answer: either
``{"name": …, "arguments": …}`` of one of the tools or, where it may also just talk,
``{"answer": …}``. Knows neither the model nor HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import json
import re
from typing import Any
import uuid

from .fields import Fields
from ..errors import ConfigError

#: how OpenAI has them be named
NAME = re.compile(r'[\w.:-]{1,64}')
#: keywords whose values are data, in which ``$ref`` means nothing
DATA = ('const', 'default', 'enum', 'examples')
#: keywords whose values map names to schemas
NAMED = ('properties', 'patternProperties', 'dependentSchemas', '$defs', 'definitions')


@dataclass(frozen=True)
class Tool:
    """A function as it was described."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Toolbox:
    """
    The tools of one request.

    :param talk: whether the model may answer in words as well
    :param answer: schema of those words
    """

    tools: tuple[Tool, ...]
    talk: bool
    answer: Mapping[str, Any]

    def prompt(self) -> str:
        """Give the words that tell the model of its tools."""
        listed = '\n'.join(
            json.dumps(
                {'name': t.name, 'description': t.description, 'parameters': t.parameters},
                ensure_ascii=False,
            )
            for t in self.tools
        )
        text = (
            f'# Tools\n\nYou can call these functions:\n{listed}\n\nTo call one, answer with '
            'a JSON object {"name": <its name>, "arguments": <an object>}.'
        )
        if self.talk:
            text += ' If none is needed, answer with {"answer": <what you say>}.'
        return text

    def schema(self) -> str:
        """Give the JSON schema of an answer."""
        kinds: list[dict[str, Any]] = [
            _object(name={'const': t.name}, arguments={'$ref': f'#/$defs/{i}'})
            for i, t in enumerate(self.tools)
        ]
        schemas = {str(i): _moved(t.parameters, f'#/$defs/{i}') for i, t in enumerate(self.tools)}
        if self.talk:
            kinds.append(_object(answer={'$ref': '#/$defs/answer'}))
            schemas['answer'] = _moved(self.answer, '#/$defs/answer')
        return json.dumps({'anyOf': kinds, '$defs': schemas}, ensure_ascii=False)


def _object(**properties: Any) -> dict[str, Any]:
    return {
        'type': 'object',
        'properties': properties,
        'required': list(properties),
        'additionalProperties': False,
    }


def _moved(schema: Any, base: str) -> Any:
    """Give a schema as it reads at another place of a document: its own references follow."""
    if isinstance(schema, list):
        return [_moved(item, base) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved: dict[str, Any] = {}
    for name, value in schema.items():
        if name == '$ref' and isinstance(value, str) and value.startswith('#'):
            moved[name] = base + value[1:]
        elif name in DATA:
            moved[name] = value
        elif name in NAMED and isinstance(value, Mapping):
            moved[name] = {key: _moved(item, base) for key, item in value.items()}
        else:
            moved[name] = _moved(value, base)
    return moved


def read_toolbox(tools: Any, choice: Any, answer: Mapping[str, Any] | None) -> Toolbox | None:
    """
    Read ``tools`` and ``tool_choice``, in the form of chat completions or of responses.

    :param answer: schema of answers in words, where there is one
    :return: None where no tool is to be called
    :raises ConfigError: a tool or a choice that cannot be used
    """
    known: dict[str, Tool] = {}
    for index, value in enumerate(tools):
        tool = _tool(value, f'tools[{index}]')
        known[tool.name] = tool
    mode = 'auto' if choice is None else choice
    if isinstance(mode, Mapping):
        mode, known = _chosen(mode, known)
    if mode not in ('none', 'auto', 'required', 'any'):
        raise ConfigError(
            'tool_choice: expected none, auto, required, or the name of a function', 'tool_choice'
        )
    if mode != 'none' and choice is not None and not known:
        raise ConfigError('tool_choice is given without tools: expected tools', 'tools')
    if mode == 'none' or not known:
        return None
    return Toolbox(tuple(known.values()), mode == 'auto', answer or {'type': 'string'})


def _chosen(choice: Mapping[str, Any], known: Mapping[str, Tool]) -> tuple[str, dict[str, Tool]]:
    """Read a ``tool_choice`` that is an object: the mode, and the tools that it leaves."""
    if choice.get('type') == 'allowed_tools':
        allowed = choice.get('allowed_tools', choice)
        names = [_name_of(item) for item in allowed.get('tools', [])]
        mode = allowed.get('mode', 'auto')
    else:
        names, mode = [_name_of(choice)], 'required'
    for name in names:
        if name not in known:
            raise ConfigError('tool_choice names no function of tools', 'tool_choice')
    return mode, {name: known[name] for name in names}


def _name_of(choice: Any) -> Any:
    if not isinstance(choice, Mapping):
        return None
    function = choice.get('function')
    name = function.get('name') if isinstance(function, Mapping) else choice.get('name')
    return name if isinstance(name, str) else None


def _tool(value: Any, where: str) -> Tool:
    fields = Fields(value, where)
    kind = fields.any('type')
    if kind != 'function':
        raise fields.wrong('type', kind, 'function; other tools are not known here')
    inner = fields.object('function') or fields  # responses have no object in between
    name = inner.needed_text('name')
    if not NAME.fullmatch(name):
        raise inner.wrong('name', name, 'letters, digits, _ and -, 64 at most')
    description = inner.text('description', '') or ''
    parameters = inner.any('parameters', {'type': 'object', 'properties': {}})
    if not isinstance(parameters, dict):
        raise inner.wrong('parameters', parameters, 'a JSON schema')
    inner.ignore('strict', 'defer_loading')
    inner.end()
    if inner is not fields:
        fields.ignore('strict')
        fields.end()
    return Tool(name, description, parameters)


@dataclass(frozen=True)
class Call:
    """The beginning of a call: which tool, and the name that this call goes by."""

    name: str
    id: str


class ToolReader:
    """
    Reads an answer that follows ``Toolbox.schema`` while it is made.

    :param raw: whether the words of ``answer`` are JSON themselves, and not one text
    """

    _HEAD = re.compile(
        r'\s*\{\s*"(?:name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"|answer")\s*:\s*', re.DOTALL
    )

    def __init__(self, raw: bool) -> None:
        self._raw = raw
        self._text = ''
        self._sent = 0
        self.call: Call | None = None
        self._begun = False

    def feed(self, text: str) -> tuple[str, str]:
        """
        Read a piece of the answer.

        :return: what it adds to the words, and to the arguments of ``call``
        """
        self._text += text
        if not self._begun:
            head = self._HEAD.match(self._text)
            if not head or head.end() == len(self._text):
                return '', ''  # space may follow, which belongs to neither
            self._begun = True
            self._text = self._text[head.end() :]
            if head.group(1):
                self.call = Call(json.loads(head.group(1)), f'call_{uuid.uuid4().hex[:24]}')
        if self.call or self._raw:
            piece = self._value()
            return ('', piece) if self.call else (piece, '')
        return self._words(), ''

    def _value(self) -> str:
        """Give what is new of the value; the brace that closes the whole answer is not its."""
        whole = self._text.rstrip()
        end = len(whole[:-1].rstrip() if whole.endswith('}') else whole)
        piece = self._text[self._sent : end] if end > self._sent else ''
        self._sent = max(end, self._sent)
        return piece

    def _words(self) -> str:
        """Give what is new of a text, without the escapes of JSON; half of one waits."""
        text = self._text
        if not text.startswith('"'):
            return ''
        start = max(self._sent, 1)
        end = start
        while end < len(text) and text[end] != '"':
            size = 1
            if text[end] == '\\':
                size = 6 if text[end + 1 : end + 2] == 'u' else 2
                high = re.match(r'\\u[dD][89abAB]', text[end : end + 6])
                size = 12 if high else size
            if end + size > len(text):
                break
            end += size
        self._sent = end
        try:
            return str(json.loads(f'"{text[start:end]}"'))
        except ValueError:  # an escape that was cut short by the end of the answer
            return ''
