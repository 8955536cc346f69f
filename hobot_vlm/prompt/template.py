"""
System text, pictures and questions -> spans, in the order of a chat template.

A template is a program from an untrusted file, and so is never shown what people wrote: it gets a
slot for each piece of text, and the pieces are put in its place afterwards. What the template
itself wrote may become control tokens; what people wrote never does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
import re
from typing import Any

from llama_cpp.llama_chat_format import Jinja2ChatFormatter

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
        parts ({'type': 'image'} and {'type': 'text'}); empty: it wants one text
    """

    def __init__(
        self,
        source: str,
        controls: Collection[str],
        bos: str = '',
        eos: str = '',
        image_mark: str = '',
    ):
        self._controls = controls
        self._image_mark = image_mark
        try:
            self._render = Jinja2ChatFormatter(source, eos_token=eos, bos_token=bos)
        except Exception as exc:  # whatever Jinja makes of an untrusted text
            raise ModelMismatch(f'the chat template of the model cannot be read: {exc}') from exc

    def opening(self, system: str, user: Sequence[Part]) -> list[Span]:
        """Lay out the start of a conversation up to where the answer begins."""
        slots: list[Part] = []
        turn = self._turn('user', user, slots)
        if system:
            first = self._turn('system', [system], slots)
            mark = len(slots) - 1
            try:
                rendered = self._rendered([first, turn])
            except ModelMismatch:
                rendered = ''  # some templates refuse the role, some drop it
            if _SLOT.format(mark) not in rendered:
                return self.opening('', [system + '\n\n', *user])
        else:
            rendered = self._rendered([turn])
        return self._spans(rendered, slots)

    def following(self, user: Sequence[Part]) -> list[Span]:
        """Lay out a later turn, from the end of the answer before it to where its own begins."""
        slots: list[Part] = []
        before = self._turn('user', ['.'], slots)
        answer = self._turn('assistant', ['.'], slots)
        mark = _SLOT.format(len(slots) - 1)
        turn = self._turn('user', user, slots)
        rendered = self._rendered([before, answer, turn])
        if mark not in rendered:
            raise ModelMismatch(
                'the chat template of the model leaves out earlier answers, so it '
                'is good for one question only'
            )
        return self._spans(rendered.partition(mark)[2], slots)

    def _turn(self, role: str, parts: Sequence[Part], slots: list[Part]) -> dict[str, Any]:
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
        return {'role': role, 'content': ''.join(item['text'] for item in content)}

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        try:
            rendered = str(self._render(messages=messages).prompt)  # type: ignore[arg-type]
        except Exception as exc:  # whatever an untrusted program does
            raise ModelMismatch(f'the chat template of the model fails: {exc}') from exc
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
        return rendered

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
