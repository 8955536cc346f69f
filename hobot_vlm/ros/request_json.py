"""
What a request may hold: JSON from a topic, checked.

Whoever may publish is not thereby allowed to read files of this machine, or to reach what it
reaches: options come as text, and pictures as data URLs. With ``allow_urls`` pictures may be
addresses on the network, too. docs/requests.md describes the fields.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
import json
import os
from typing import Any, TYPE_CHECKING

from .outcome import shortened
from ..config import PER_REQUEST
from ..errors import PictureError, PromptError
from ..node_config import FEED_TEXT, NodeConfig

if TYPE_CHECKING:
    from .frames import Pictures

#: characters of an id
ID_LENGTH = 200

#: stands for every request where one is cancelled
EVERY = 'all'

#: fields of the model's requests that make sense in JSON
FIELDS = ('stop', 'find', 'choices', 'exact', 'priority', 'timeout')
OWN = ('id', 'prompt', 'messages', 'images', 'cancel')
KEYS = (*OWN, *FIELDS, *PER_REQUEST)
#: options that may be given as the path of a file, but not by somebody on a topic
TEXTS = ('system_prompt', 'grammar', 'json_schema')


@dataclass(frozen=True)
class Question:
    """
    A request, checked.

    :param images: ``newest``, or the bytes of picture files, or their addresses
    :param more: what else ``VLM.stream`` is given
    """

    id: str
    prompt: str | list[dict[str, Any]]
    images: str | list[bytes | str]
    more: dict[str, Any]

    @property
    def text(self) -> str:
        """Give the question, or of messages the text of the last one."""
        if isinstance(self.prompt, str):
            return self.prompt
        content = self.prompt[-1].get('content', '')
        if isinstance(content, str):
            return content
        return ''.join(part['text'] for part in content if part.get('type') == 'text')

    def with_pictures(self, newest: Pictures) -> tuple[Any, Any]:
        """
        Give prompt and images for the model; pictures of messages belong to the last one.

        :param newest: those of the cameras, which messages see without the ones before
        """
        if isinstance(self.prompt, str):
            shown: list[Any] = [*newest.shown] if self.images == 'newest' else [*self.images]
            return self.prompt, shown or None
        images: list[Any] = newest.rgb if self.images == 'newest' else list(self.images)
        *earlier, last = self.prompt
        content = last.get('content', '')
        parts = [{'type': 'text', 'text': content}] if isinstance(content, str) else content
        pictures = [{'type': 'image', 'image': image} for image in images]
        return [*earlier, {**last, 'content': [*pictures, *parts]}], None


def read(text: str) -> tuple[str, Mapping[str, Any]]:
    """
    Read the JSON of a request: (id, all fields); the id is empty where there is none.

    :raises PromptError: it is no JSON object
    """
    try:
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as exc:
        raise PromptError(
            f'a request that is no JSON ({str(exc)[:100]}): expected an object such as '
            '{"id": "1", "prompt": "What is this?"}'
        ) from exc
    if not isinstance(fields, dict):
        raise PromptError(
            'a request that is no JSON object: expected one such as '
            '{"id": "1", "prompt": "What is this?"}'
        )
    number = fields.get('id')
    return number if isinstance(number, str) and len(number) <= ID_LENGTH else '', fields


def check(fields: Mapping[str, Any], config: NodeConfig) -> Question:
    """
    Make a question of the fields of a request.

    :raises PromptError: one is missing, unknown or of a wrong type
    :raises PictureError: a picture is neither a data URL nor an address that is allowed
    """
    feed_type, urls = config.feed_type, config.allow_urls
    for name in fields:
        if name not in KEYS:
            raise PromptError(
                f'a request has no field {name[:60]!r}: expected {", ".join(sorted(KEYS))}'
            )
    number = fields.get('id')
    if not isinstance(number, str) or not 0 < len(number) <= ID_LENGTH:
        raise PromptError(f'id: expected a text of 1 to {ID_LENGTH} characters')
    if number == EVERY:
        raise PromptError(f'id: {EVERY!r} is what cancels every request: choose another')
    if ('prompt' in fields) == ('messages' in fields):
        raise PromptError('expected either prompt or messages')
    prompt: Any = fields.get('prompt', fields.get('messages'))
    if 'prompt' in fields and not isinstance(prompt, str):
        raise PromptError('prompt: expected a text')
    if 'messages' in fields:
        prompt = _messages(prompt, urls)
    default = 'newest' if 'prompt' in fields and feed_type != FEED_TEXT else 'none'
    images = _images(fields.get('images', default), urls)
    if images == 'newest' and feed_type == FEED_TEXT:
        raise PromptError('images is newest, and feed_type is 2: no camera is subscribed to')
    more = {name: fields[name] for name in (*FIELDS, *PER_REQUEST) if name in fields}
    if isinstance(more.get('json_schema'), dict):
        more['json_schema'] = json.dumps(more['json_schema'])
    for name in TEXTS:
        value = more.get(name)
        if isinstance(value, str) and len(value) < 4096 and _is_file(value):
            raise PromptError(f'{name} names a file: a request gives the text itself')
    return Question(number, prompt, images, more)


def _is_file(text: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(text))
    except ValueError:  # a zero byte, for one
        return False


def _images(images: Any, urls: bool) -> str | list[bytes | str]:
    if images in ('none', None):
        return []
    if images == 'newest':
        return 'newest'
    if isinstance(images, str):
        return [_picture(images, urls)]
    if not isinstance(images, list):
        raise PromptError('images: expected "newest", "none" or data URLs')
    return [_picture(image, urls) for image in images]


def _messages(messages: Any, urls: bool) -> list[dict[str, Any]]:
    """Put bytes in the place of data URLs; what else is wrong with messages, the model says."""
    if not isinstance(messages, list) or not messages:
        raise PromptError('messages: expected a list of them')
    read = []
    for message in messages:
        if not isinstance(message, dict):
            raise PromptError('messages: expected objects with role and content')
        content = message.get('content')
        if isinstance(content, list):
            content = [_part(part, urls) for part in content]
        elif not isinstance(content, str):
            raise PromptError('messages: expected content that is text, or a list of parts')
        read.append({**message, 'content': content})
    return read


def _part(part: Any, urls: bool) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise PromptError('messages: expected parts that are objects with a type')
    if part.get('type') == 'text' and isinstance(part.get('text'), str):
        return {'type': 'text', 'text': part['text']}
    source = part.get('image', part.get('image_url'))
    if isinstance(source, dict):
        source = source.get('url')
    if part.get('type') in ('image', 'image_url'):
        return {'type': 'image', 'image': _picture(source, urls)}
    raise PromptError('messages: expected parts of type text, image or image_url')


def _picture(url: Any, urls: bool) -> bytes | str:
    """Give the bytes of a data URL or, where they are allowed, an address as it is."""
    address = isinstance(url, str) and url[:8].lower().startswith(('http://', 'https://'))
    if address and urls:
        return str(url)
    if address:
        raise PictureError(
            f'a picture given as {shortened(url, 40)!r}: start the node with allow_urls to have '
            'it fetch pictures, or send data:image/...;base64,...'
        )
    return from_data_url(url)


def from_data_url(url: Any) -> bytes:
    """
    Give the bytes of a picture in a data URL; anything else is refused.

    :raises PictureError: it is none
    """
    head, comma, data = url.partition(',') if isinstance(url, str) else ('', '', '')
    if not (comma and head.lower().startswith('data:image/') and head.endswith(';base64')):
        what = repr(shortened(url, 40)) if isinstance(url, str) else type(url).__name__
        raise PictureError(
            f'a picture given as {what}: a request takes data:image/...;base64,... only'
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise PictureError(f'a data URL whose data is no base64: {exc}') from exc
