"""
The turns of a conversation -> spans and tokens, and which turns fit.

Knows templates and tokens; nothing of requests or of the KV cache. A turn is text, pictures and
the tokens that answered it; messages, as chat APIs have them, are turned into turns here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from . import marks
from .template import ChatTemplate
from .tokens import Prompt, to_prompt
from ..errors import PromptError, PromptTooLong
from ..families import Family
from ..llama.model import Model
from ..values import ImageEmbedding, ImageSource, Part, Span, Text, Tokens

ROLES = ('system', 'user', 'assistant')


@dataclass
class Turn:
    """
    A question as it stands in the prompt, and what answered it.

    :param images: the first parts of ``user``, those of pictures
    """

    user: list[Part]
    images: list[Part] = field(default_factory=list)
    answer: Tokens | Text = Tokens(())


# -- turns -> prompt ---------------------------------------------------------------------------


def to_spans(template: ChatTemplate, system: str, turns: Sequence[Turn]) -> list[Span]:
    """Put turns in order, up to where the answer of the last one begins."""
    spans: list[Span] = []
    for turn in turns:
        spans += template.following(turn.user) if spans else template.opening(system, turn.user)
        spans.append(turn.answer)
    return spans[:-1]


def fit(
    model: Model,
    template: ChatTemplate,
    system: str,
    turns: Sequence[Turn],
    n_ctx: int,
    n_predict: int,
    drop_oldest: bool,
) -> tuple[list[Turn], list[Span], Prompt]:
    """
    Make the prompt of some turns, of which the oldest may have to leave.

    An answer is to have ``n_predict`` tokens, or a quarter of the context where that is less: more
    would cost turns that are there for answers that are seldom so long.

    :return: the turns that stay, their spans and their prompt
    :raises PromptTooLong: the newest turn alone does not fit, or none may leave
    """
    room = n_ctx - min(n_predict, n_ctx // 4)
    staying = list(turns)
    while True:
        spans = to_spans(template, system, staying)
        prompt = to_prompt(model, spans)
        if len(staying) == 1 or not drop_oldest or len(prompt.ids) <= room:
            break
        staying = without_oldest(staying)
    if len(prompt.ids) > n_ctx:
        raise PromptTooLong(len(prompt.ids), n_ctx)
    return staying, spans, prompt


def without_oldest(turns: Sequence[Turn]) -> list[Turn]:
    """Leave out the oldest turn; the newest picture stays."""
    gone, *rest = turns
    if gone.images and not any(turn.images for turn in rest):
        rest[0] = replace(rest[0], user=[*gone.images, *rest[0].user], images=gone.images)
    return rest


def with_images(
    family: Family | None,
    controls: Collection[str],
    question: Part,
    images: Sequence[ImageEmbedding],
    labels: Sequence[str],
) -> Turn:
    """
    Put pictures, videos and a question in the family's order, or where the question has marks.

    :raises PromptError: it has another number of them
    """
    if family is None or not images:
        return Turn([question])
    if isinstance(question, str):
        placed = marks.place(family, controls, question, _items(images))
        if placed is not None:
            return Turn(placed, [part for part in placed if not isinstance(part, str)])
    pictures = [image for image in images if image.seconds is None or labels]
    parts = family.parts(pictures, labels, controls) if pictures else []
    frames = [image for image in images if image.seconds is not None and not labels]
    for video in _videos(frames):
        times = [frame.seconds or 0.0 for frame in video]
        parts += family.video(video, times, video[0].duration, controls)
    return Turn([*parts, question], parts)


def _items(images: Sequence[ImageEmbedding]) -> list[list[ImageEmbedding]]:
    """Give pictures, and the frames of each video together, in order."""
    items: list[list[ImageEmbedding]] = []
    for still, group in groupby(images, lambda image: image.seconds is None):
        run = list(group)
        items += [[image] for image in run] if still else _videos(run)
    return items


def _videos(frames: Sequence[ImageEmbedding]) -> list[list[ImageEmbedding]]:
    """Tell the videos apart, in each of which time goes on."""
    videos: list[list[ImageEmbedding]] = []
    for frame in frames:
        last = videos[-1][-1] if videos else None
        same = last is not None and last.duration == frame.duration
        if last is not None and same and (last.seconds or 0.0) < (frame.seconds or 0.0):
            videos[-1].append(frame)
        else:
            videos.append([frame])
    return videos


# -- messages -> turns -------------------------------------------------------------------------


@dataclass
class Message:
    """
    A message of a chat API, checked.

    :param parts: texts, and ``int`` where a picture stands: its place in the list of all
    """

    role: str
    parts: list[str | int]


def read_messages(messages: Any) -> tuple[list[Message], list[ImageSource]]:
    """
    Check messages: ``{'role': …, 'content': text or [parts]}``.

    Parts are ``{'type': 'text', 'text': …}``, ``{'type': 'image', 'image': …}`` and
    ``{'type': 'image_url', 'image_url': {'url': …}}``.

    :return: the messages, and their pictures in order
    :raises PromptError: they are no messages, or the last one is not the user's
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise PromptError(f'messages of type {type(messages).__name__}: expected a list of them')
    images: list[ImageSource] = []
    checked: list[Message] = []
    for number, message in enumerate(messages):
        where = f'message {number + 1}'
        if not isinstance(message, Mapping) or message.get('role') not in ROLES:
            raise PromptError(f'{where}: expected a role, one of {", ".join(ROLES)}, and content')
        parts = _read_parts(message.get('content'), images, where)
        role = str(message['role'])
        if role != 'user' and any(isinstance(part, int) for part in parts):
            raise PromptError(f'{where}: pictures stand in messages of the user only')
        checked.append(Message(role, parts))
    order = [message.role for message in checked]
    if 'system' in order[1:]:
        raise PromptError('only the first message may be the system prompt')
    if order[-1] != 'user':
        raise PromptError(f'the last message is of the {order[-1]}: expected one of the user')
    return checked, images


def _read_parts(content: Any, images: list[ImageSource], where: str) -> list[str | int]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, (list, tuple)) or not content:
        raise PromptError(f'{where}: its content is neither text nor a list of parts')
    parts: list[str | int] = []
    for part in content:
        kind = part.get('type') if isinstance(part, Mapping) else None
        if kind == 'text' and isinstance(part.get('text'), str):
            parts.append(part['text'])
            continue
        if kind == 'image' and 'image' in part:
            images.append(part['image'])
        elif kind == 'image_url' and isinstance(_url(part), str):
            images.append(_url(part))
        else:
            raise PromptError(
                f'{where}: a part of type {str(kind)[:40]!r}: expected text, image or image_url, '
                'with what its name says'
            )
        parts.append(len(images) - 1)
    return parts


def _url(part: Mapping[str, Any]) -> Any:
    url = part.get('image_url')
    return url.get('url') if isinstance(url, Mapping) else url


def to_turns(
    family: Family | None,
    controls: Collection[str],
    messages: Sequence[Message],
    images: Sequence[ImageEmbedding],
    answers: Mapping[str, Tokens],
) -> tuple[str, list[Turn]]:
    """
    Give the system prompt and the turns of messages; neighbours of one role are joined.

    Pictures that open or close a message stand where the family has them; those between two texts
    stay there.

    :param answers: text -> the tokens that it was made of, which the KV cache may hold
    """
    system = ''
    turns: list[Turn] = []
    before = ''
    for message in messages:
        text = ''.join(part for part in message.parts if isinstance(part, str))
        if message.role == 'system':
            system = text
        elif message.role == 'assistant':
            if not turns:
                turns.append(Turn(['']))
            answered = turns[-1].answer
            joined = (
                answered.text + '\n'
                if before == 'assistant' and isinstance(answered, Text)
                else ''
            )
            turns[-1].answer = answers.get(joined + text, Text(joined + text))
        else:
            turn = _user_turn(family, controls, message, images)
            if before == 'user':
                last = turns.pop()
                turn = Turn([*last.user, '\n', *turn.user], [*last.images, *turn.images])
            turns.append(turn)
        before = message.role
    return system, turns


def _user_turn(
    family: Family | None,
    controls: Collection[str],
    message: Message,
    images: Sequence[ImageEmbedding],
) -> Turn:
    texts = [i for i, part in enumerate(message.parts) if isinstance(part, str)]
    between = [
        i
        for i, part in enumerate(message.parts)
        if isinstance(part, int) and texts and texts[0] < i < texts[-1]
    ]
    if family is None or not between:
        text = ''.join(part for part in message.parts if isinstance(part, str))
        chosen = [images[part] for part in message.parts if isinstance(part, int)]
        return with_images(family, controls, text, chosen, ())
    parts: list[Part] = [
        part if isinstance(part, str) else family.spans(images[part], controls)
        for part in message.parts
    ]
    return Turn(parts, [part for part in parts if not isinstance(part, str)])
