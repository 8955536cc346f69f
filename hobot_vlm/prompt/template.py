"""
System text, pictures and questions -> spans, in the order of a chat template.

A template is a program from an untrusted file, and so is never shown what people wrote: it gets a
slot for each piece of text, and the pieces are put in its place afterwards. What the template
itself wrote may become control tokens; what people wrote never does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
import json
import re

from .rendering import Message, Renderer
from ..errors import ModelMismatch
from ..values import Control, Part, Span, Text

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
#: For a model that was never taught to chat and so has no control tokens.
PLAIN = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{{ message['content'] }}\n{% endfor %}"
    '{% if add_generation_prompt %}Assistant:{% endif %}'
)

# private-use characters, so that no template takes them for anything
_SLOT = '\ue000{}\ue001'
_SLOT_PATTERN = re.compile('\ue000(\\d+)\ue001')


class ChatTemplate:
    """
    A chat template that gives spans.

    :param source: Jinja
    :param controls: texts of the model's control tokens
    :param image_mark: what the template writes for a picture, if it wants a turn as a list of
        parts ({'type': 'image'} and {'type': 'text'}); empty: it wants one text, or one part
    :param trusted: the template comes from this package
    :raises ModelMismatch: it cannot be read, leaves out the question, or exceeds its bounds
    """

    def __init__(
        self,
        source: str,
        controls: Collection[str],
        bos: str = '',
        eos: str = '',
        image_mark: str = '',
        trusted: bool = False,
    ):
        self._controls = controls
        self._image_mark = image_mark
        self._renderer = Renderer(source, bos, eos, trusted or source in (CHATML, PLAIN))
        self._in_parts = bool(image_mark)
        if not image_mark:
            self._choose_form()

    def _choose_form(self) -> None:
        """Find out whether the template wants texts, or lists of one part, by trying both."""
        usual = []
        for self._in_parts in (False, True):
            slots: list[Part] = []
            user, system = (self._turn(role, ['.'], slots) for role in ('user', 'system'))
            usual += [[user], [system, user], self._later(['.'], [])]
        self._renderer.prepare(usual)
        reasons = []
        for self._in_parts in (False, True):
            try:
                self.opening('', ['.'])
            except ModelMismatch as exc:
                reasons.append(str(exc))
            else:
                return
        raise ModelMismatch(reasons[0])

    def opening(self, system: str, user: Sequence[Part]) -> list[Span]:
        """
        Lay out the start of a conversation up to where the answer begins.

        :raises ModelMismatch: the template fails, or leaves out what was asked
        """
        slots: list[Part] = []
        turn = self._turn('user', user, slots)
        if system:
            first = self._turn('system', [system], slots)
            try:
                return self._spans(self._rendered([first, turn]), slots)
            except ModelMismatch:  # some templates refuse the role, some drop it
                return self.opening('', [system + '\n\n', *user])
        return self._spans(self._rendered([turn]), slots)

    def following(self, user: Sequence[Part]) -> list[Span]:
        """
        Lay out a later turn, from the end of the answer before it to where its own begins.

        :raises ModelMismatch: the template fails, or leaves out something
        """
        slots: list[Part] = []
        messages = self._later(user, slots)
        rendered = self._rendered(messages, messages[1:])
        return self._spans(rendered.partition(_SLOT.format(1))[2], slots)

    def _later(self, user: Sequence[Part], slots: list[Part]) -> list[Message]:
        """Make the messages of a later turn; slot 1 is the answer before it."""
        turns: tuple[tuple[str, Sequence[Part]], ...] = (
            ('user', ['.']),
            ('assistant', ['.']),
            ('user', user),
        )
        return [self._turn(role, parts, slots) for role, parts in turns]

    def _turn(self, role: str, parts: Sequence[Part], slots: list[Part]) -> Message:
        """Make one message of slots; neighbouring texts share one."""
        content: list[dict[str, str]] = []
        for part in parts:
            if isinstance(part, str) and content and content[-1]['type'] == 'text':
                slots[-1] = str(slots[-1]) + part
                continue
            slots.append(part)
            slot = _SLOT.format(len(slots) - 1)
            content.append({'type': 'text' if isinstance(part, str) else 'image', 'text': slot})
        if self._image_mark:
            return {'role': role, 'content': content}
        text = ''.join(item['text'] for item in content)
        return {
            'role': role,
            'content': [{'type': 'text', 'text': text}] if self._in_parts else text,
        }

    def _rendered(self, messages: list[Message], needed: list[Message] | None = None) -> str:
        """
        Give what the template writes.

        :param needed: messages whose slots must be in it; left out: all
        """
        rendered = self._renderer.render(messages)
        if self._image_mark:  # the k-th mark stands for the k-th picture
            pictures = [
                item['text']
                for message in messages
                for item in message['content']
                if item['type'] == 'image'
            ]
            pieces = rendered.split(self._image_mark)
            if len(pieces) != len(pictures) + 1:
                raise ModelMismatch(
                    f'the chat template of the model wrote {len(pieces) - 1} '
                    f'picture marks for {len(pictures)} pictures'
                )
            rendered = pieces[0] + ''.join(
                p + t for p, t in zip(pictures, pieces[1:], strict=True)
            )
        checked = messages if needed is None else needed
        given = [self._check(message, rendered) for message in checked]
        order = sum(given, [])
        if [slot for slot in _SLOT_PATTERN.findall(rendered) if slot in order] != order:
            raise self._wrong('reorders', 'what was said')
        return rendered

    def _check(self, message: Message, rendered: str) -> list[str]:
        """
        Check that what a message holds is in what the template wrote, once and in order.

        :return: its slots
        """
        given = _SLOT_PATTERN.findall(json.dumps(message, ensure_ascii=False))
        written = [slot for slot in _SLOT_PATTERN.findall(rendered) if slot in given]
        if written != given:
            did = 'leaves out' if len(written) < len(given) else 'repeats or reorders'
            what = {
                'system': 'the system prompt',
                'assistant': 'earlier answers, so it is good for one question only',
            }.get(message['role'], 'the question, or a part of it')
            raise self._wrong(did, what)
        return given

    @staticmethod
    def _wrong(did: str, what: str) -> ModelMismatch:
        return ModelMismatch(
            f'the chat template of the model {did} {what}: use another GGUF file of the model'
        )

    def _spans(self, rendered: str, slots: Sequence[Part]) -> list[Span]:
        spans: list[Span] = []
        pieces = _SLOT_PATTERN.split(rendered)  # template, slot, template, slot, ...
        for i, piece in enumerate(pieces):
            if i % 2 == 0:
                spans += self._marked(piece)
                continue
            part = slots[int(piece)]
            spans += [Text(part)] if isinstance(part, str) else part
        return spans

    def _marked(self, text: str) -> list[Span]:
        """Find the control tokens in what the template wrote."""
        present = sorted((c for c in self._controls if c and c in text), key=len, reverse=True)
        if not present:
            return [Text(text)] if text else []
        spans: list[Span] = []
        for piece in re.split('(' + '|'.join(map(re.escape, present)) + ')', text):
            if piece:
                spans.append(Control(piece) if piece in present else Text(piece))
        return spans


def ends_in_thought(spans: Sequence[Span]) -> bool:
    """Say whether the template opened the model's reasoning itself."""
    last = [s for s in spans[-2:] if isinstance(s, (Text, Control))]
    text = ''.join(s.text if isinstance(s, Text) else s.token for s in last)
    return text.rstrip().endswith('<think>')
