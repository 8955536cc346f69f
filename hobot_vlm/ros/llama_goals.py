"""
The goals of llama_ros's actions as requests of OpenAI's API, and the answers as its messages.

Knows the fields of both and no ROS graph: ``llama_actions`` serves the actions. What a request may
hold, ``server/openai.py`` checks, as it does for HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import json
import math
from typing import Any

from .images import rgb_of
from ..errors import ConfigError
from ..server.answers import Event, Writer
from ..server.openai import Asked, read_chat
from ..values import Pixels

#: what stands for a picture in a text of llama.cpp
MARKER = '<__media__>'
#: cv_bridge's names for what OpenCV has, which its clients send as it is
OPENCV = {'8UC1': 'mono8', '8UC3': 'bgr8', '8UC4': 'bgra8'}
TOOL_CHOICES = ('auto', 'required', 'none')
#: its seed that stands for another one each time
ANY_SEED = 4294967295
#: most likely tokens that are named: OpenAI's bound
MOST_PROBS = 20

#: its sampling -> OpenAI's, where both know it
SAMPLING = {
    'temp': 'temperature',
    'top_k': 'top_k',
    'top_p': 'top_p',
    'min_p': 'min_p',
    'penalty_repeat': 'repeat_penalty',
}
#: its sampling that has no counterpart here -> what asks for nothing
NEUTRAL = {
    'ignore_eos': False,
    'dynatemp_range': 0.0,
    'top_n_sigma': -1.0,
    'xtc_probability': 0.0,
    'typical_p': 1.0,
    'penalty_freq': 0.0,
    'penalty_present': 0.0,
    'dry_multiplier': 0.0,
    'adaptive_target': -1.0,
    'mirostat': 0,
    'grammar_lazy': False,
    'reasoning_budget': -1,
}


def read_prompt(goal: Any) -> Asked:
    """
    Read a goal of ``GenerateResponse``.

    :raises VlmError: something that is not known here, or a picture that cannot be read
    """
    message = {'role': 'user', 'content': goal.prompt}
    return _read(goal, [message], {'stop': list(goal.stop)})


def read_messages(goal: Any) -> Asked:
    """
    Read a goal of ``GenerateChatCompletions``.

    :raises VlmError: something that is not known here, or a picture that cannot be read
    """
    more: dict[str, Any] = {}
    if goal.tools:
        if not 0 <= goal.tool_choice < len(TOOL_CHOICES):
            raise ConfigError(f'tool_choice is {goal.tool_choice}: expected 0, 1 or 2')
        more = {
            'tools': [_tool(item.function) for item in goal.tools],
            'tool_choice': TOOL_CHOICES[goal.tool_choice],
        }
    return _read(goal, [_message(message) for message in goal.messages], more)


def _read(goal: Any, messages: list[dict[str, Any]], more: Mapping[str, Any]) -> Asked:
    if goal.audios:
        raise ConfigError('audios are given: this model hears nothing')
    pictures: list[Pixels] = []
    for image in goal.images:
        image.encoding = OPENCV.get(image.encoding, image.encoding)
        pictures.append(rgb_of(image))
    body = {'messages': _placed(messages, len(pictures)), **_sampling(goal), **more}
    # what "fetches" a picture is given its number, and gives its pixels
    fetch: Callable[[str, str], Any] = lambda url, where: pictures[int(url)]  # noqa: E731
    return read_chat(body, fetch)


def _placed(messages: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """
    Put the pictures where their marks stand, and the rest before the last text of the user.

    :raises ConfigError: there are more marks than pictures
    """
    numbers = iter(range(count))

    def image(number: int) -> dict[str, Any]:
        return {'type': 'image_url', 'image_url': {'url': str(number)}}

    def parts(text: str) -> Iterator[dict[str, Any]]:
        first, *others = text.split(MARKER)
        yield from [{'type': 'text', 'text': first}] if first.strip() else []
        for other in others:
            number = next(numbers, None)
            if number is None:
                raise ConfigError(f'there are more marks {MARKER} than pictures ({count})')
            yield image(number)
            yield from [{'type': 'text', 'text': other}] if other.strip() else []

    for message in messages:
        if message['role'] == 'user':
            message['content'] = list(parts(message['content']))
    of_user = [message for message in messages if message['role'] == 'user']
    left = [image(number) for number in numbers]
    if left and not of_user:
        raise ConfigError('there are pictures and no message of the user to show them with')
    if left:
        of_user[-1]['content'] = [*left, *of_user[-1]['content']]
    return messages


def _message(message: Any) -> dict[str, Any]:
    for part in message.content_parts:
        if part.type != 'text':
            raise ConfigError(
                f'content_parts holds one of type {part.type[:40]!r}: expected text; pictures '
                'stand in images'
            )
    text = message.content + ''.join(part.text for part in message.content_parts)
    said: dict[str, Any] = {'role': message.role, 'content': text}
    if message.tool_calls:
        said['tool_calls'] = [
            {'function': {'name': call.name, 'arguments': call.arguments}}
            for call in message.tool_calls
        ]
    return said


def _tool(function: Any) -> dict[str, Any]:
    try:
        parameters = json.loads(function.parameters or '{}')
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f'the parameters of the tool {function.name[:60]!r}: {exc}') from exc
    inner = {'name': function.name, 'description': function.description, 'parameters': parameters}
    return {'type': 'function', 'function': inner}


def _sampling(goal: Any) -> dict[str, Any]:
    """
    Give how tokens are chosen.

    :raises ConfigError: a way that is not known here
    """
    sampling = goal.sampling_config
    for name, nothing in NEUTRAL.items():
        if getattr(sampling, name) != nothing:
            raise ConfigError(f'sampling_config.{name} is not known here: leave it at {nothing}')
    body = {ours: getattr(sampling, name) for name, ours in SAMPLING.items()}
    body['temperature'] = max(body['temperature'], 0.0)  # less than none is none to llama.cpp
    body['seed'] = -1 if sampling.seed == ANY_SEED else sampling.seed
    if sampling.n_probs > 0:
        body |= {'logprobs': True, 'top_logprobs': min(sampling.n_probs, MOST_PROBS)}
    if sampling.logit_bias.data:
        body['logit_bias'] = {str(item.token): item.bias for item in sampling.logit_bias.data}
    if sampling.grammar:
        body['grammar'] = sampling.grammar
    if sampling.grammar_schema:
        try:
            schema = json.loads(sampling.grammar_schema)
        except (ValueError, RecursionError) as exc:
            raise ConfigError(f'sampling_config.grammar_schema is no JSON: {exc}') from exc
        form = {'name': 'answer', 'schema': schema}
        body['response_format'] = {'type': 'json_schema', 'json_schema': form}
    return body


class Messages:
    """
    Makes the messages of llama_msgs.

    :param msg: its module of messages
    :param tokenize: gives the tokens of a text
    """

    def __init__(self, msg: Any, tokenize: Callable[[str], list[int]]):
        self._msg = msg
        self._tokenize = tokenize

    def probabilities(self, entries: Any) -> list[Any]:
        """Give how likely tokens were: one message for each token."""
        return [
            self._msg.TokenProbArray(
                data=[self._probability(one) for one in (entry, *entry['top_logprobs'])],
                chosen_token=self._token(entry['token']),
            )
            for entry in entries
        ]

    def _probability(self, entry: Event) -> Any:
        return self._msg.TokenProb(
            token=self._token(entry['token']),
            probability=math.exp(entry['logprob']),
            token_text=entry['token'],
        )

    def _token(self, text: str) -> int:
        """Give the number of a token by its text; -1 where that is not one token by itself."""
        ids = self._tokenize(text)
        return ids[0] if len(ids) == 1 else -1

    def partial(self, event: Event) -> list[Any]:
        """Give the pieces of ``GenerateResponse`` in an event of a chat completion."""
        (choice,) = event['choices']
        text = choice['delta'].get('content', '')
        if not text:
            return []
        found = self.probabilities((choice.get('logprobs') or {}).get('content', []))
        piece = self._msg.PartialResponse(text=text, token=self._token(text))
        if found:
            piece.probs = found[0]
        return [piece]

    def response(self, whole: Event) -> Any:
        """Give the result of ``GenerateResponse``."""
        (choice,) = whole['choices']
        text = choice['message']['content'] or ''
        probs = self.probabilities((choice['logprobs'] or {}).get('content', []))
        return self._msg.Response(text=text, tokens=self._tokenize(text), probs=probs)

    def _calls(self, calls: Any) -> list[Any]:
        return [
            self._msg.ChatToolCall(
                id=call.get('id', ''),
                index=call.get('index', number),
                name=call['function'].get('name', ''),
                arguments=call['function']['arguments'],
            )
            for number, call in enumerate(calls)
        ]

    def chunk(self, event: Event) -> Any:
        """Give the piece of ``GenerateChatCompletions`` in an event."""
        (choice,) = event['choices']
        delta = choice['delta']
        found = self.probabilities((choice.get('logprobs') or {}).get('content', []))
        made = self._msg.ChatChoiceChunk(
            delta=self._msg.ChatDeltaChunk(
                content=delta.get('content', ''),
                role=delta.get('role', ''),
                tool_calls=self._calls(delta.get('tool_calls', [])),
                reasoning_content=delta.get('reasoning_content', ''),
            ),
            finish_reason=choice['finish_reason'] or '',
        )
        if found:
            made.logprobs = found[0]
        return made

    def choice(self, whole: Event) -> Any:
        """Give the answer of ``GenerateChatCompletions``."""
        (choice,) = whole['choices']
        message = choice['message']
        return self._msg.ChatChoice(
            message=self._msg.ChatMessage(
                role=message['role'],
                content=message['content'] or '',
                tool_calls=self._calls(message.get('tool_calls', [])),
                reasoning_content=message.get('reasoning_content', ''),
            ),
            logprobs=self.probabilities((choice['logprobs'] or {}).get('content', [])),
            finish_reason=choice['finish_reason'],
        )

    def head(self, kind: Any, writer: Writer, choices: list[Any], usage: Event | None) -> Any:
        """Give a result or a feedback of ``GenerateChatCompletions``."""
        names = ('completion_tokens', 'prompt_tokens', 'total_tokens')
        made = kind(id=writer.id, created=writer.created, model=writer.model, choices=choices)
        if usage is not None:
            made.usage = self._msg.UsageStats(**{name: usage[name] for name in names})
        return made
