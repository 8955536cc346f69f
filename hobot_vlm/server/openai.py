"""
OpenAI's JSON -> what ``VLM.stream`` is asked.

Three requests come down to one ``Asked``: chat completions, responses, and the old completions.
What a field means stands here; what its value may be, in ``fields.py``. What has no counterpart
here is refused unless it asks for nothing: nothing is accepted and then not followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
import json
from typing import Any

from .fields import clean, Fields, named
from .messages import call_text, Fetch, Message, Messages
from .tools import read_toolbox, Toolbox
from ..errors import ConfigError

#: OpenAI's bounds
MOST_CHOICES = 128
MOST_TOP_LOGPROBS = 20
LARGEST_BIAS = 100.0
#: stop strings of one request: OpenAI allows 4, others more; each costs time at every token
MOST_STOPS = 16
#: numbers above these are errors of the engine's own options (see config.py)
LARGEST_SEED = 4294967294
MOST_TOKENS = 1048576
#: tokens that the repeat penalty is about: llama.cpp's default, and what its clients send
REPEAT_WINDOW = 64

#: OpenAI's name, and those of other servers -> the option, its lowest and its highest value
NUMBERS = {
    'temperature': ('temperature', 0.0, 10.0),
    'top_p': ('top_p', 0.0, 1.0),
    'min_p': ('min_p', 0.0, 1.0),
    'repeat_penalty': ('repeat_penalty', 0.1, 10.0),  # llama.cpp
    'repetition_penalty': ('repeat_penalty', 0.1, 10.0),  # LMDeploy, vLLM
}
#: fields that are about something else than the answer, or without effect by themselves
IGNORED = (
    'model', 'user', 'store', 'metadata', 'service_tier', 'safety_identifier', 'prompt_cache_key',
    'prompt_cache_retention', 'prompt_cache_options', 'parallel_tool_calls', 'verbosity',
    # llama.cpp
    'cache_prompt', 'timings_per_token', 'id_slot', 'n_keep', 'return_progress', 'samplers',
    'reasoning_format', 'dynatemp_exponent', 'xtc_threshold', 'dry_base', 'dry_allowed_length',
    'dry_penalty_last_n', 'dry_sequence_breakers', 'mirostat_tau', 'mirostat_eta',
    'backend_sampling',
    # vLLM, LMDeploy
    'request_id', 'with_cache', 'preserve_cache',
)  # fmt: skip
#: fields that have no counterpart here -> the values that ask for nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    'frequency_penalty': (0,),
    'presence_penalty': (0,),
    'modalities': (['text'],),
    'functions': ([],),
    'function_call': ('none',),
    'best_of': (1,),
    'echo': (False,),
    'suffix': ('',),
    # llama.cpp
    'dynatemp_range': (0,),
    'dry_multiplier': (0,),
    'mirostat': (0,),
    'n_probs': (0,),
    'repeat_last_n': (REPEAT_WINDOW,),
    'typical_p': (1,),
    'xtc_probability': (0,),
    # vLLM, LMDeploy
    'add_generation_prompt': (True,),
    'continue_final_message': (False,),
    'do_preprocess': (True,),
    'ignore_eos': (False,),
    'include_stop_str_in_output': (False,),
    'length_penalty': (1,),
    'min_new_tokens': (0,),
    'min_tokens': (0,),
    'priority': (0,),
    'return_token_ids': (False,),
    'session_id': (-1,),
    'skip_special_tokens': (True,),
    'spaces_between_special_tokens': (True, False),
    'stop_token_ids': ([],),
    'use_beam_search': (False,),
}

#: a JSON schema, and a regular expression
Form = tuple[dict[str, Any] | None, str]


@dataclass(frozen=True)
class Asked:
    """
    What a client wants.

    :param prompts: messages, once for each prompt; only the old completions know several
    :param options: keyword arguments of ``VLM.stream``
    :param n: answers to each prompt
    :param stream: whether the answer is sent as it is made
    :param usage: whether a stream ends with the counts of tokens
    :param top_logprobs: likeliest tokens to name in each place; None where nobody asked
    :param toolbox: the tools that the answer may call
    :param raw: whether the words beside the tools are JSON, by ``response_format``
    :param progress: whether a stream says how far its pictures are, until the answer begins
    :param low: whether one tile of each picture is enough, where the model has tiles
    """

    prompts: tuple[list[Message], ...]
    options: Mapping[str, Any]
    n: int = 1
    stream: bool = False
    usage: bool = False
    top_logprobs: int | None = None
    toolbox: Toolbox | None = None
    raw: bool = False
    progress: bool = False
    low: bool = False


def read_chat(body: Any, fetch: Fetch) -> Asked:
    """
    Read a request of chat completions.

    :raises ConfigError: a field that is missing, wrong or not known
    :raises PictureError: a picture that cannot be fetched
    """
    fields = Fields(body)
    messages = Messages(fetch)
    said = fields.items('messages')
    for index, message in enumerate(said):
        messages.add(message, f'messages[{index}]')
    if not said:
        raise ConfigError('messages is empty: expected at least one', 'messages')
    top = fields.whole('top_logprobs', 0, MOST_TOP_LOGPROBS)
    if fields.flag('logprobs'):
        top = top or 0
    elif top is not None:
        raise ConfigError('top_logprobs is given: expected logprobs to be true', 'logprobs')
    form = _response_format(fields.object('response_format'))
    usage = _stream_options(fields)
    progress = fields.flag('return_progress')  # llama.cpp's name
    return replace(_asked(fields, messages, form, usage=usage, top=top), progress=progress)


def read_completion(body: Any, fetch: Fetch) -> Asked:
    """
    Read a request of the old completions; each prompt is asked like the question of a user.

    :raises ConfigError: a field that is missing, wrong or not known
    """
    fields = Fields(body)
    prompt = fields.any('prompt')
    prompts = prompt if isinstance(prompt, list) else [prompt]
    for index, text in enumerate(prompts):
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(
                f'prompt[{index}] is {named(text)}: expected text; token ids are not understood',
                'prompt',
            )
    if not 1 <= len(prompts) <= MOST_CHOICES:
        raise ConfigError(f'prompt: expected 1 to {MOST_CHOICES} texts', 'prompt')
    top = fields.whole('logprobs', 0, MOST_TOP_LOGPROBS)
    form = _response_format(fields.object('response_format'))
    usage = _stream_options(fields)
    asked = _asked(fields, Messages(fetch), form, usage=usage, top=top)
    said = tuple([{'role': 'user', 'content': clean(text)}] for text in prompts)
    return Asked(said, asked.options, asked.n, asked.stream, asked.usage, top)


def read_response(body: Any, fetch: Fetch) -> Asked:
    """
    Read a request of responses; the server keeps none, so the whole history comes with it.

    :raises ConfigError: a field that is missing, wrong or not known
    :raises PictureError: a picture that cannot be fetched
    """
    fields = Fields(body)
    messages = Messages(fetch)
    for name in ('previous_response_id', 'conversation', 'prompt'):
        if fields.any(name) is not None:
            raise ConfigError(
                f'{name}: this server keeps no responses; send the whole history in input', name
            )
    instructions = fields.text('instructions')
    _input(fields.any('input'), messages)
    if instructions:
        messages.list.insert(0, {'role': 'system', 'content': instructions})
    text = fields.object('text')
    form: Form = (None, '')
    if text:
        form = _response_format(text.object('format'), 'text.format')
        text.ignore('verbosity')
        text.end()
    reasoning = fields.object('reasoning')
    effort = reasoning.any('effort') if reasoning else None
    top = fields.whole('top_logprobs', 0, MOST_TOP_LOGPROBS)
    include = fields.items('include')
    if 'message.output_text.logprobs' in include:
        top = top or 0
    fields.neutral({'background': (False,), 'truncation': ('disabled', 'auto')})
    fields.ignore('max_tool_calls', 'stream_options')
    if effort is not None:
        fields = Fields({**fields.left(), 'reasoning_effort': effort})
    asked = _asked(fields, messages, form, usage=True, top=top)
    if asked.n > 1:
        raise ConfigError('n: a response has one answer', 'n')
    return asked


def _asked(
    fields: Fields, messages: Messages, form: Form, *, usage: bool, top: int | None
) -> Asked:
    """Read what all requests have, and put it together."""
    options = _sampling(fields)
    schema, regex = form
    tools, choice = fields.items('tools'), fields.any('tool_choice')
    toolbox = read_toolbox(tools, choice, schema)
    n = fields.whole('n', 1, MOST_CHOICES) or 1
    stream = fields.flag('stream')
    if toolbox:
        messages.system(toolbox.prompt())
        # A text that holds a line end is never read as the path of a file.
        options['json_schema'] = toolbox.schema() + '\n'
    elif schema is not None:
        options['json_schema'] = json.dumps(schema, ensure_ascii=False) + '\n'
    if regex:
        options['regex'] = regex
    if len({'grammar', 'json_schema', 'regex', 'choices'} & set(options)) > 1:
        raise ConfigError(
            'an answer follows one thing: expected one of grammar, response_format, choices and '
            'tools; tools go with json_schema',
            'response_format',
        )
    if top is not None:
        options['logprobs'] = max(top, 1)
    options.update(messages.options)
    fields.neutral(NEUTRAL)
    fields.ignore(*IGNORED)
    fields.end()
    raw, low = schema is not None, messages.low
    return Asked((messages.list,), options, n, stream, usage, top, toolbox, raw, low=low)


def _sampling(fields: Fields) -> dict[str, Any]:
    """Read how tokens are chosen, and when to stop."""
    options: dict[str, Any] = {}
    for name, (option, low, high) in NUMBERS.items():
        number = fields.number(name, low, high)
        if number is not None:
            options[option] = number
    top_k = fields.whole('top_k', -1, 1000000)  # -1 is 0 to LMDeploy and vLLM
    if top_k is not None:
        options['top_k'] = max(top_k, 0)
    seed = fields.whole('seed', -(2**63), 2**63 - 1)
    if seed is not None:
        options['seed'] = seed if seed == -1 else seed % (LARGEST_SEED + 1)
    for name in ('max_tokens', 'max_completion_tokens', 'max_output_tokens', 'n_predict'):
        most = fields.whole(name, -1, MOST_TOKENS)
        if most == 0:
            raise fields.wrong(name, most, 'a whole number from 1 on, or -1 for no limit')
        if most is not None:
            options['n_predict'] = most if most > 0 else MOST_TOKENS
    stops = fields.any('stop', [])
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(x, str) and x for x in stops):
        raise fields.wrong('stop', stops, 'text, or an array of texts')
    if len(stops) > MOST_STOPS:
        raise ConfigError(f'stop has {len(stops)} texts: expected {MOST_STOPS} at most', 'stop')
    if stops:
        options['stop'] = tuple(map(clean, stops))
    chosen = _choices(fields)
    if chosen:
        options['choices'] = chosen
    bias = _logit_bias(fields.any('logit_bias', {}), fields)
    if bias:
        options['logit_bias'] = bias
    grammar = fields.text('grammar')
    if grammar:
        options['grammar'] = grammar + '\n'  # never read as the path of a file
    thinking = _thinking(fields)
    if thinking is not None:
        options['thinking'] = thinking
    return options


def _choices(fields: Fields) -> list[str]:
    """Read what is to be chosen between, by vLLM's names: the newer one, or the older."""
    outputs = fields.object('structured_outputs')
    chosen = fields.any('guided_choice', [])
    where = fields.path('guided_choice')
    if outputs is not None:
        chosen, where = outputs.any('choice', chosen), outputs.path('choice')
        outputs.end()
    if not isinstance(chosen, list) or not all(isinstance(text, str) for text in chosen):
        raise ConfigError(f'{where} is {named(chosen)}: expected an array of texts', where)
    return [clean(text) for text in chosen]


def _logit_bias(value: Any, fields: Fields) -> dict[int, float]:
    if not isinstance(value, dict):
        raise fields.wrong('logit_bias', value, 'an object of token ids and numbers')
    bias: dict[int, float] = {}
    entries = Fields(value, 'logit_bias')
    for name in value:
        number = entries.number(name, -LARGEST_BIAS, LARGEST_BIAS)
        if not name.isascii() or not name.isdigit() or len(name) > 10:
            raise entries.wrong(name, name, 'the id of a token')
        if number is not None:
            bias[int(name)] = number
    return bias


def _thinking(fields: Fields) -> bool | None:
    """Read whether the model is to reason first, in the words of OpenAI or of vLLM."""
    effort = fields.any('reasoning_effort')
    template = fields.object('chat_template_kwargs')
    thinking: bool | None = fields.any('enable_thinking')
    if thinking is not None and not isinstance(thinking, bool):
        raise fields.wrong('enable_thinking', thinking, 'true or false')
    if template:
        thinking = template.flag('enable_thinking')
        template.end()
    if effort is not None:
        if not isinstance(effort, str):
            raise fields.wrong('reasoning_effort', effort, 'none, low, medium or high')
        thinking = effort not in ('none', 'minimal')
    return thinking


def _stream_options(fields: Fields) -> bool:
    options = fields.object('stream_options')
    if options is None:
        return False
    usage = options.flag('include_usage')
    options.ignore('include_obfuscation')
    options.end()
    return usage


def _response_format(form: Fields | None, where: str = 'response_format') -> Form:
    """Give what answers must follow: a schema (None: they are free), and a regular expression."""
    if form is None:
        return None, ''
    kinds = ('text', 'json_object', 'json_schema', 'regex_schema')
    kind = form.choice('type', kinds, '')
    schema, regex = None, ''
    if kind == 'json_object':
        schema = form.any('schema', {'type': 'object'})  # llama.cpp takes one here
    elif kind == 'json_schema':
        inner = form.object('json_schema') or form  # responses have no object in between
        schema = inner.any('schema')
        inner.ignore('name', 'description', 'strict')
        inner.end()
    elif kind == 'regex_schema':  # LMDeploy's
        regex = form.needed_text('regex_schema')
    form.end()
    if kind.startswith('json') and not isinstance(schema, dict):
        raise ConfigError(f'{where}: expected a JSON schema in schema', where)
    return schema, regex


def _input(value: Any, messages: Messages) -> None:
    """Read the ``input`` of a response: a text, or items."""
    if isinstance(value, str) and value:
        messages.append('user', [{'type': 'text', 'text': clean(value)}])
        return
    if not isinstance(value, list) or not value:
        raise ConfigError(f'input is {named(value)}: expected text, or an array', 'input')
    for index, item in enumerate(value):
        where = f'input[{index}]'
        fields = Fields(item, where)
        kind = fields.any('type', 'message')
        if kind == 'message':
            messages.add({k: v for k, v in item.items() if k != 'type'}, where)
        elif kind == 'function_call':
            name = fields.needed_text('name')
            text = call_text(name, fields.any('arguments', '{}'))
            messages.append('assistant', [{'type': 'text', 'text': text}])
        elif kind == 'function_call_output':
            messages.add({'role': 'tool', 'content': fields.any('output', '')}, where)
        elif kind != 'reasoning':  # an earlier answer's, which no template shows again
            raise fields.wrong('type', kind, 'message, function_call or function_call_output')
