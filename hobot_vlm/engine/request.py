"""
What a caller wants, checked at the door.

Knows nothing of how it is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..errors import ConfigError, PromptError
from ..llama.context import MAX_SEQUENCES
from ..prompt.history import Message, read_messages
from ..values import Control, Images, ImageSource, Part, Text, TileSpan, Tokens

#: likeliest tokens that may be reported for each place, as OpenAI's API has it
MAX_LOGPROBS = 20

#: texts that may end an answer: each is looked for at every token, while everybody waits. OpenAI
#: takes four
MAX_STOPS = 64


@dataclass(frozen=True)
class Request:
    """
    A question and what goes with it.

    ``messages`` is the prompt where that is a list of messages, checked.

    :param prompt: the question: text, the spans of one, or messages as chat APIs have them
    :param images: a path, the bytes of an image file, RGB uint8 (height, width, 3), a PIL image or
        a data URL, or several of these
    :param labels: what to call each picture in the prompt; empty: as the family does
    :param stop: texts that end the answer; they are not part of it
    :param logit_bias: token id -> what is added to its logit
    :param logprobs: likeliest tokens to report for each token of the answer
    :param choices: answers to choose between, 2 to 32; see :meth:`hobot_vlm.VLM.choose`
    :param exact: these are weighed as they are written, at the beginning of the answer
    :param find: the prompt names a thing, whose boxes are wanted
    :param priority: higher goes first
    :param timeout: seconds after which the answer ends as it is; 0: never
    :param bgr: arrays are in BGR order, as OpenCV has them
    :param options: any of ``config.PER_REQUEST``
    :raises PromptError: a prompt of another type
    :raises ConfigError: something else of another type
    """

    prompt: Part
    images: Images = None
    labels: Sequence[str] = ()
    stop: Sequence[str] = ()
    logit_bias: Mapping[int, float] | None = None
    logprobs: int = 0
    choices: Sequence[str] = ()
    exact: bool = False
    find: bool = False
    priority: int = 0
    timeout: float = 0.0
    bgr: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Message] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, 'stop', (self.stop,))
        if isinstance(self.prompt, (list, tuple)) and any(
            isinstance(part, Mapping) for part in self.prompt
        ):
            messages, images = read_messages(self.prompt)
            if self.images is not None and images:
                raise PromptError('pictures stand both in the messages and in images: give one')
            object.__setattr__(self, 'messages', messages)
            object.__setattr__(self, 'images', images or self.images)
        elif not isinstance(self.prompt, str) and not _are_spans(self.prompt):
            raise PromptError(
                f'the prompt is of type {type(self.prompt).__name__}: expected text, or messages '
                "such as {'role': 'user', 'content': 'What is it?'}"
            )
        self._check(
            'stop',
            _texts(self.stop) and len(self.stop) <= MAX_STOPS,
            f'a text, or up to {MAX_STOPS}',
        )
        self._check('labels', _texts(self.labels), 'texts')
        bias = self.logit_bias or {}
        self._check(
            'logit_bias',
            isinstance(bias, Mapping)
            and all(_whole(k) and _number(v) and math.isfinite(v) for k, v in bias.items()),
            'token ids with finite numbers',
        )
        if self.logit_bias is not None:  # NumPy's numbers are as good
            plain = {int(k): float(v) for k, v in bias.items()}
            object.__setattr__(self, 'logit_bias', plain)
        self._check(
            'logprobs',
            _whole(self.logprobs) and 0 <= self.logprobs <= MAX_LOGPROBS,
            f'a whole number from 0 to {MAX_LOGPROBS}',
        )
        self._check_choices()
        self._check('priority', _whole(self.priority), 'a whole number')
        self._check(
            'timeout',
            isinstance(self.timeout, (int, float))
            and not isinstance(self.timeout, bool)
            and 0 <= self.timeout < math.inf,
            'seconds, or 0 for none',
        )
        self._check('find', isinstance(self.find, bool), 'True or False')
        self._check('bgr', isinstance(self.bgr, bool), 'True or False')
        if self.bgr:
            object.__setattr__(self, 'images', [_to_rgb(source) for source in self.sources])

    @property
    def sources(self) -> list[ImageSource]:
        """Give one picture, several or none as a list; arrays are RGB."""
        if self.images is None:
            return []
        if isinstance(self.images, (list, tuple)):
            return list(self.images)
        return [self.images]

    def _check_choices(self) -> None:
        """
        Check what is to be chosen between.

        :raises ConfigError: no texts, too few or too many, one twice, or beside what they exclude
        """
        self._check('exact', isinstance(self.exact, bool), 'True or False')
        if not self.choices:
            self._check('choices', _texts(self.choices), 'texts')
            self._check('exact', not self.exact, 'choices beside it')
            return
        good = _texts(self.choices) and all(map(str.strip, self.choices))
        self._check('choices', good, 'a list of texts')
        alike = {text if self.exact else folded(text) for text in self.choices}
        count = len(self.choices)
        if not 2 <= count <= MAX_SEQUENCES or len(alike) < count:
            raise ConfigError(
                f'there are {count} choices: expected 2 to {MAX_SEQUENCES} different ones, as '
                'spaces around them and the case of their first letters do not tell them apart',
                'choices',
            )
        options = [name for name in ('grammar', 'json_schema', 'regex') if self.options.get(name)]
        fields = [
            name for name in ('stop', 'logit_bias', 'logprobs', 'find') if getattr(self, name)
        ]
        for name in (*options, *fields):
            raise ConfigError(
                f'choices and {name} are given: one of the choices is the whole answer, so leave '
                f'out {name}',
                'choices',
            )

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            value = repr(getattr(self, name))
            raise ConfigError(f'{name} is {value[:80]}: expected {expected}', name)


#: what ``VLM.stream`` takes besides options
FIELDS = {f.name for f in fields(Request)} - {'prompt', 'images', 'options'}


def make_request(prompt: Any, images: Images = None, **more: Any) -> Request:
    """Make a request of keyword arguments: fields of ``Request``, and options."""
    known = {name: more.pop(name) for name in FIELDS & set(more)}
    return Request(prompt, images, **known, options=more)


def _are_spans(value: object) -> bool:
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(part, (Text, Control, Tokens, TileSpan)) for part in value)
    )


def folded(choice: str) -> str:
    """Give what all spellings of a choice have in common."""
    bare = choice.strip()
    return bare[:1].lower() + bare[1:]


def _texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)


def _to_rgb(source: ImageSource) -> ImageSource:
    """Give an array of OpenCV, BGR or BGRA (height, width, channels), in RGB order."""
    if not isinstance(source, np.ndarray):
        raise ConfigError(
            f'bgr is for arrays, and a picture is of type {type(source).__name__}: leave bgr out, '
            'files say themselves how their colours stand',
            'bgr',
        )
    if source.ndim == 3 and source.shape[2] in (3, 4):
        return source[..., [2, 1, 0, 3][: source.shape[2]]]
    return source  # grey, or what is refused later


def _number(value: object) -> bool:
    return isinstance(value, Real)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
