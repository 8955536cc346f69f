"""
How servers differ behind OpenAI's chat completions: names of fields, and what there is at all.

A table, and nothing that connects. What a server has no field for is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Fields = dict[str, Any]


def _named_schema(schema: Any) -> Fields:
    """Give OpenAI's form of a schema."""
    return {'type': 'json_schema', 'json_schema': {'name': 'answer', 'schema': schema}}


def _plain_schema(schema: Any) -> Fields:
    """Give llama.cpp's form of a schema."""
    return {'type': 'json_object', 'schema': schema}


def _structured(name: str) -> Callable[[str], Fields]:
    """Give vLLM's form, from 0.11 on."""
    return lambda text: {'structured_outputs': {name: text}}


def _field(name: str) -> Callable[[str], Fields]:
    return lambda text: {name: text}


def _regex_schema(text: str) -> Fields:
    """Give LMDeploy's form of a regular expression."""
    return {'response_format': {'type': 'regex_schema', 'regex_schema': text}}


def _enable_thinking(value: bool) -> Fields:
    """Give what chat templates of Qwen3 and its kin ask for."""
    return {'chat_template_kwargs': {'enable_thinking': value}}


def _enable_thinking_twice(value: bool) -> Fields:
    """Give LMDeploy's own field, too: older versions know no other."""
    return {'enable_thinking': value, **_enable_thinking(value)}


@dataclass(frozen=True)
class Tokenizing:
    """
    How a server gives the tokens of a text.

    :param path: below the address without its ``/v1``
    :param text: name of the field that holds the text
    :param more: what else is sent
    :param tokens: name of the field that holds the answer
    """

    path: str
    text: str
    more: Mapping[str, Any]
    tokens: str


@dataclass(frozen=True)
class Dialect:
    """
    What a kind of server understands.

    :param samplers: option -> the field that has it, beside those of OpenAI
    :param schema: JSON schema -> ``response_format``
    :param regex: regular expression -> fields; None: it has none
    :param grammar: GBNF -> fields; None: it has none
    :param thinking: whether to reason -> fields; None: it has none
    :param tiles: most tiles of a picture -> fields beside its URL; None: it has none
    :param tokenizing: None: it does not tell
    :param choices: texts -> fields, where its answer has a share for each; None: it has none
    :param more: fields that every request has
    :param most_open: requests that it is sent at once; 0: as many as there are
    """

    title: str
    samplers: Mapping[str, str] = field(default_factory=dict)
    schema: Callable[[Any], Fields] = _named_schema
    regex: Callable[[str], Fields] | None = None
    grammar: Callable[[str], Fields] | None = None
    thinking: Callable[[bool], Fields] | None = None
    tiles: Callable[[int], Fields] | None = None
    tokenizing: Tokenizing | None = None
    choices: Callable[[Sequence[str]], Fields] | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    most_open: int = 0


#: says how far pictures and prompt are: a server that works is not silent
_PROGRESS = {'return_progress': True}
_OTHERS = {'top_k': 'top_k', 'min_p': 'min_p', 'repeat_penalty': 'repetition_penalty'}
_LLAMA = {'top_k': 'top_k', 'min_p': 'min_p', 'repeat_penalty': 'repeat_penalty'}

#: prefix of ``model`` -> what such servers understand
DIALECTS = {
    'hobot': Dialect(
        'vlm serve',
        _LLAMA,
        regex=_regex_schema,
        grammar=_field('grammar'),
        thinking=_enable_thinking,
        tiles=lambda n: {'max_dynamic_patch': n},
        tokenizing=Tokenizing('/tokenize', 'content', {}, 'tokens'),
        choices=lambda texts: {'structured_outputs': {'choice': list(texts)}},
        more=_PROGRESS,
    ),
    'lmdeploy': Dialect(
        'LMDeploy',
        _OTHERS,
        regex=_regex_schema,
        thinking=_enable_thinking_twice,
        tiles=lambda n: {'max_dynamic_patch': n},
        tokenizing=Tokenizing('/v1/encode', 'input', {'add_bos': False}, 'input_ids'),
    ),
    'vllm': Dialect(
        'vLLM',
        _OTHERS,
        regex=_structured('regex'),
        grammar=_structured('grammar'),
        thinking=_enable_thinking,
        tokenizing=Tokenizing('/tokenize', 'prompt', {'add_special_tokens': False}, 'tokens'),
    ),
    'sglang': Dialect(
        'SGLang',
        _OTHERS,
        regex=_field('regex'),
        grammar=_field('ebnf'),
        thinking=_enable_thinking,
        tokenizing=Tokenizing('/tokenize', 'prompt', {'add_special_tokens': False}, 'tokens'),
    ),
    'llamacpp': Dialect(
        'llama.cpp',
        _LLAMA,
        schema=_plain_schema,
        grammar=_field('grammar'),
        thinking=_enable_thinking,
        tokenizing=Tokenizing('/tokenize', 'content', {}, 'tokens'),
        more=_PROGRESS,
    ),
    'llama-cpp-python': Dialect(
        'llama-cpp-python',
        _LLAMA,
        schema=_plain_schema,
        grammar=_field('grammar'),
        tokenizing=Tokenizing('/extras/tokenize', 'input', {}, 'tokens'),
        most_open=1,  # it has one context, and breaks off an answer when another request comes
    ),
    'openai': Dialect('this server'),
}
#: what a server says in ``owned_by`` of its models -> its kind
MAKERS = {
    'hobot_vlm': 'hobot',
    'lmdeploy': 'lmdeploy',
    'vllm': 'vllm',
    'sglang': 'sglang',
    'llamacpp': 'llamacpp',
    'me': 'llama-cpp-python',
}


def dialect_of(kind: str, maker: object) -> Dialect:
    """
    Give what a server understands.

    :param kind: as the user says; empty: as it says itself
    :param maker: ``owned_by`` of its first model
    """
    return DIALECTS[kind or MAKERS.get(str(maker).lower(), 'openai')]
