"""
OpenAI's messages -> the messages of ``VLM.stream``: roles, texts and pictures in their order.

Knows both forms of OpenAI's parts, those of chat completions and those of responses. Where a
picture lies elsewhere, ``pictures.py`` fetches it; whether it is one, the engine finds out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
import json
from typing import Any

from .fields import clean, Fields, named
from ..errors import ConfigError

Message = dict[str, Any]

#: gives the picture that a URL names, as ``VLM`` takes it; called in a thread that may wait
Fetch = Callable[[str, str], bytes | str]

ROLES = {
    'system': 'system',
    'developer': 'system',  # OpenAI's newer word for it
    'user': 'user',
    'assistant': 'assistant',
    'tool': 'user',  # what a tool said; small models know no such role
    'function': 'user',
}
TEXTS = ('text', 'input_text', 'output_text', 'refusal')
PICTURES = ('image_url', 'input_image')


class Messages:
    """
    The messages of one request, as they are read.

    :param fetch: see ``Fetch``
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._details: list[str] = []
        self._tiles: list[int] = []
        self.list: list[Message] = []

    @property
    def options(self) -> dict[str, Any]:
        """Give the options that follow from how the pictures were sent."""
        if self._tiles:
            return {'max_tiles': max(self._tiles)}
        return {}

    @property
    def low(self) -> bool:
        """Say whether one tile of each picture is enough, by OpenAI's ``detail``."""
        return not self._tiles and set(self._details) == {'low'}

    def add(self, value: Any, where: str) -> None:
        """
        Read one message of chat completions.

        :raises ConfigError: it is none
        """
        fields = Fields(value, where)
        said = fields.choice('role', ROLES, '')
        content = fields.any('content', '')
        calls = fields.items('tool_calls') if said == 'assistant' else []
        parts = self.parts(content, fields.path('content'), said)
        for index, call in enumerate(calls):
            parts.append(_text(_call(call, f'{where}.tool_calls[{index}]')))
        if said in ('tool', 'function'):
            parts = [_text('<tool_response>\n'), *parts, _text('\n</tool_response>')]
        if not parts and said != 'assistant':
            raise ConfigError(f'{where} says nothing: expected text or a picture', where)
        # what came with an answer of a server and goes back to it, and what names the speaker
        fields.ignore(
            'name', 'tool_call_id', 'refusal', 'audio', 'annotations', 'reasoning_content',
            'reasoning', 'function_call', 'id', 'type', 'status', 'phase',
        )  # fmt: skip
        fields.end()
        self.append(ROLES[said], parts)

    def append(self, role: str, parts: list[Message]) -> None:
        """Append a message; one text alone stands as text, system prompts in a series as one."""
        if role == 'system' and self.list and {m['role'] for m in self.list} == {'system'}:
            self.system(''.join(part['text'] for part in parts))
            return
        alone = len(parts) == 1 and parts[0]['type'] == 'text'
        content = parts[0]['text'] if alone else parts
        self.list.append({'role': role, 'content': content if parts else ''})

    def system(self, text: str) -> None:
        """Put a text behind the system prompt, or in its place where there is none."""
        first = self.list[0] if self.list else None
        if first and first['role'] == 'system':
            content = first['content']
            said = content if isinstance(content, str) else ''.join(p['text'] for p in content)
            first['content'] = f'{said}\n\n{text}' if said else text
        else:
            self.list.insert(0, {'role': 'system', 'content': text})

    def parts(self, content: Any, where: str, role: str = 'user') -> list[Message]:
        """
        Read the content of a message: a text, or texts and pictures in any order.

        :raises ConfigError: something else
        """
        if isinstance(content, str):
            return [_text(clean(content))] if content else []
        if not isinstance(content, list):
            raise ConfigError(
                f'{where} is {named(content)}: expected text, or an array of parts', where
            )
        found = []
        for index, item in enumerate(content):
            part = self._part(item, f'{where}[{index}]')
            if part['type'] == 'image' and role in ('system', 'developer', 'assistant'):
                raise ConfigError(
                    f'{where}[{index}] is a picture in a message of the role {role}: expected '
                    'pictures in those of the user',
                    where,
                )
            found.append(part)
        return found

    def _part(self, value: Any, where: str) -> Message:
        fields = Fields(value, where)
        kind = fields.any('type')
        if kind in TEXTS:
            text = fields.needed_text('refusal' if kind == 'refusal' else 'text')
            fields.ignore('annotations', 'logprobs', 'cache_control', 'prompt_cache_breakpoint')
            fields.end()
            return _text(text)
        if kind not in PICTURES:
            raise fields.wrong('type', kind, f'one of {", ".join((*TEXTS[:3], *PICTURES))}')
        if fields.any('file_id') is not None:
            raise ConfigError(
                f'{where}.file_id: this server keeps no files; send the picture as a data URL',
                f'{where}.file_id',
            )
        value = fields.any('image_url')
        inner = Fields({'url': value} if isinstance(value, str) else value, f'{where}.image_url')
        url = inner.needed_text('url')
        detail = fields.any('detail') or inner.any('detail') or 'auto'
        if detail not in ('auto', 'low', 'high', 'original'):
            raise fields.wrong('detail', detail, 'auto, low or high')
        tiles = inner.whole('max_dynamic_patch', 1, 64)  # LMDeploy's name; 64 as max_tiles has it
        fields.ignore('cache_control', 'prompt_cache_breakpoint')
        inner.end()
        fields.end()
        self._details.append(detail)
        if tiles:
            self._tiles.append(tiles)
        return {'type': 'image', 'image': self._fetch(url, inner.path('url'))}


def _text(text: str) -> Message:
    return {'type': 'text', 'text': text}


def _call(value: Any, where: str) -> str:
    """Give an earlier call of a tool in the words in which the model made it."""
    function = Fields(value, where).object('function')
    if function is None:
        raise ConfigError(f'{where}.function is missing: expected an object', where)
    return call_text(function.needed_text('name'), function.any('arguments', '{}'))


def call_text(name: str, arguments: Any) -> str:
    """
    Give a call of a tool as the model writes it.

    :param arguments: an object, or its JSON
    """
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # a call that was cut short goes back as it is
            arguments = json.loads(arguments or '{}')
    return clean(json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False))
