"""
A question -> the JSON of a chat completion, as a kind of server understands it.

Knows messages, options and dialects; nothing that connects. What a server has no field for is an
error that names it: nothing is asked for and then not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
import json
from typing import Any

from .dialect import Dialect, DIALECTS, Fields
from .pictures import Picture
from ..config import Config
from ..engine.request import Request
from ..errors import ConfigError, GrammarError, PromptError
from ..families import boxes
from ..option import default_of
from ..values import Text

Content = list[str | Picture]

#: bytes of the pictures of a request: as base64 they fit the 32 MiB that `vlm serve` takes
MOST_BYTES = 20 << 20
#: options about how a model here reads a picture
LOCAL = ('fit', 'keep_image_tokens')
#: options of OpenAI's API, by its names
USUAL = {'temperature': 'temperature', 'top_p': 'top_p'}


@dataclass
class Exchange:
    """A question and its answer, as a conversation remembers them."""

    user: Content
    answer: str = ''

    @property
    def pictures(self) -> list[Picture]:
        """Give the pictures of the question."""
        return [part for part in self.user if isinstance(part, Picture)]


@dataclass
class Question:
    """
    What is asked, with its pictures ready.

    :param exchanges: earlier turns of its conversation
    :param said: the messages of a chat API, (role, content); empty where ``user`` is the question
    :param user: the question
    """

    system: str
    exchanges: list[Exchange]
    said: list[tuple[str, Content]] = field(default_factory=list)
    user: Content = field(default_factory=list)

    @property
    def goes_on(self) -> bool:
        """Whether there are turns before it."""
        return bool(self.exchanges) or any(role == 'assistant' for role, _ in self.said)

    def messages(self) -> list[tuple[str, Content]]:
        """Give all messages in order."""
        given = self.said
        if given and given[0][0] == 'system':
            system, given = given[0][1], given[1:]
        else:
            system = [self.system] if self.system else []
        found: list[tuple[str, Content]] = [('system', system)] if system else []
        for exchange in self.exchanges:
            found += [('user', exchange.user), ('assistant', [exchange.answer])]
        return [*found, *(given or [('user', self.user)])]

    def split(self) -> None:
        """Make turns of what was said; the last is the question."""
        for role, content in self.said:
            if role == 'system':
                self.system = ''.join(map(str, content))
            elif role == 'user':
                self.exchanges.append(Exchange(content))
            elif self.exchanges:
                self.exchanges[-1].answer += ''.join(map(str, content))
        self.user, self.said = self.exchanges.pop().user, []

    def shorten(self) -> bool:
        """Drop the oldest turn; the newest picture stays. False where there is none."""
        if not self.exchanges:
            return False
        gone, *rest = self.exchanges
        later = any(exchange.pictures for exchange in rest) or any(
            isinstance(part, Picture) for part in self.user
        )
        if gone.pictures and not later:
            if rest:
                rest[0] = replace(rest[0], user=[*gone.pictures, *rest[0].user])
            else:
                self.user = [*gone.pictures, *self.user]
        self.exchanges = rest
        return True


def question_of(
    request: Request,
    config: Config,
    pictures: Sequence[Sequence[Picture]],
    exchanges: Sequence[Exchange],
    in_turns: bool,
) -> Question:
    """
    Put a request together.

    :param pictures: of each of its sources
    :param in_turns: messages are turns of a conversation, which remembers them
    :raises PromptError: it cannot be written as text
    """
    question = Question(config.system_text(), list(exchanges))
    if request.messages:
        for message in request.messages:
            parts: Content = []
            for part in message.parts:
                parts += [part] if isinstance(part, str) else _with_names(pictures[part], '')
            question.said.append((message.role, parts))
        if in_turns:
            question.split()
        return question
    if not isinstance(request.prompt, str):
        raise PromptError('the prompt is a list of spans: expected text for a model elsewhere')
    text = request.prompt
    if request.find and pictures:
        text = _finding(text)
    labels = request.labels or [''] * len(pictures)
    for label, each in zip(labels, pictures, strict=True):
        question.user += _with_names(each, label)
    question.user.append(text)
    return question


def _finding(prompt: str) -> str:
    """Ask where a thing is, in the words that models were taught."""
    asked = boxes.question(prompt, ())
    if isinstance(asked, str):
        return asked
    return ''.join(span.text for span in asked if isinstance(span, Text))


def _with_names(pictures: Sequence[Picture], label: str) -> Content:
    """Give pictures with what they are called; frames of a video with their times."""
    parts: Content = []
    for picture in pictures:
        name = label
        if picture.seconds is not None:
            name = f'{label} frame at {picture.seconds:.1f} s'.strip()
        parts += [f'{name}: ', picture] if name else [picture]
    return parts


# -- JSON --------------------------------------------------------------------------------------


def body_of(
    model: str, dialect: Dialect, question: Question, request: Request, config: Config
) -> bytes:
    """
    Write a request.

    :raises ConfigError: an option that such a server has no field for
    :raises GrammarError: a form of the answer that it cannot be asked for
    :raises PromptError: its pictures are too large
    """
    tiles = _tiles(dialect, config)
    size = 0
    messages = []
    for role, content in question.messages():
        size += sum(len(part.jpeg) for part in content if isinstance(part, Picture))
        messages.append({'role': role, 'content': _content(content, tiles)})
    if size > MOST_BYTES:
        raise PromptError(
            f'the pictures have {size >> 20} MB as they are sent: expected {MOST_BYTES >> 20} at '
            'most; show fewer, or lower remote_image_side'
        )
    fields = {
        'model': model,
        'messages': messages,
        'stream': True,
        'stream_options': {'include_usage': True},
        'max_tokens': config.n_predict,
        **dialect.more,
        **_sampling(dialect, request, config),
        **_form(dialect, config),
        **(dialect.choices(request.choices) if dialect.choices and request.choices else {}),
        **_thinking(dialect, config),
    }
    return json.dumps(fields, ensure_ascii=False).encode('utf-8', 'replace')


def _content(parts: Content, tiles: Fields) -> str | list[Fields]:
    if all(isinstance(part, str) for part in parts):
        return ''.join(map(str, parts))
    return [
        {'type': 'text', 'text': part}
        if isinstance(part, str)
        else {'type': 'image_url', 'image_url': {'url': part.url, **tiles}}
        for part in parts
        if part
    ]


def _tiles(dialect: Dialect, config: Config) -> Fields:
    for name in LOCAL:
        if getattr(config, name) != _default(name):
            raise _no_field(dialect, name, config)
    if not config.max_tiles:
        return {}
    if dialect.tiles is None:
        raise _no_field(dialect, 'max_tiles', config)
    return dialect.tiles(config.max_tiles)


def _sampling(dialect: Dialect, request: Request, config: Config) -> Fields:
    fields: Fields = {wire: getattr(config, name) for name, wire in USUAL.items()}
    for name in ('top_k', 'min_p', 'repeat_penalty'):
        wire = dialect.samplers.get(name)
        if wire is not None:
            fields[wire] = getattr(config, name)
        elif getattr(config, name) != _default(name):
            raise _no_field(dialect, name, config)
    if config.seed >= 0:
        fields['seed'] = config.seed
    if request.stop:
        fields['stop'] = list(request.stop)
    if request.logit_bias:
        fields['logit_bias'] = {str(k): v for k, v in request.logit_bias.items()}
    if request.logprobs:
        fields |= {'logprobs': True, 'top_logprobs': request.logprobs}
    return fields


def _form(dialect: Dialect, config: Config) -> Fields:
    given = [name for name in ('json_schema', 'grammar', 'regex') if getattr(config, name)]
    if len(given) > 1:
        raise GrammarError(f'{" and ".join(given)} are given: an answer follows one of them')
    if not given:
        return {}
    if given == ['json_schema']:
        try:
            schema = json.loads(config.schema_text())
        except (ValueError, RecursionError) as exc:
            raise GrammarError(f'json_schema is no JSON: {str(exc)[:100]}') from exc
        return {'response_format': dialect.schema(schema)}
    write = dialect.regex if given == ['regex'] else dialect.grammar
    if write is None:
        raise GrammarError(
            f'{given[0]} cannot be asked of {dialect.title}: use json_schema{_hint(dialect)}'
        )
    return write(config.regex if given == ['regex'] else config.grammar_text())


def _thinking(dialect: Dialect, config: Config) -> Fields:
    if dialect.thinking is not None:
        return dialect.thinking(config.thinking)
    if config.thinking:
        raise _no_field(dialect, 'thinking', config)
    return {}


def _default(name: str) -> Any:
    return default_of(Config.__dataclass_fields__[name])


def _no_field(dialect: Dialect, name: str, config: Config) -> ConfigError:
    return ConfigError(
        f'{name} is {getattr(config, name)!r}, and {dialect.title} cannot be asked for it: leave '
        f'it at {_default(name)!r}{_hint(dialect)}',
        name,
    )


def _hint(dialect: Dialect) -> str:
    if dialect is not DIALECTS['openai']:
        return ''
    return ', or name the kind of server in model, as in vllm/NAME@http://…'
