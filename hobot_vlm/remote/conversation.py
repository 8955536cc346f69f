"""
The turns of one conversation with a model elsewhere, and the file that keeps them.

The server keeps nothing: every question goes out with all turns before it. Knows texts and
pictures; nothing of HTTP.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
import itertools
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

from .body import Exchange
from .pictures import Picture
from ..conversation import Conversation
from ..conversation_file import as_path, replacing, target
from ..errors import StateError

if TYPE_CHECKING:
    from .vlm import RemoteVLM

FORMAT = 'hobot_vlm remote conversation 1'
#: bytes of a file: many times what one request may carry
MOST_BYTES = 256 << 20

_numbers = itertools.count()


class RemoteConversation(Conversation):
    """Several turns with one model elsewhere."""

    def __init__(
        self,
        vlm: RemoteVLM,
        system_prompt: str = '',
        overflow: str = 'drop_oldest',
        exchanges: Sequence[Exchange] = (),
    ) -> None:
        super().__init__(vlm, system_prompt, overflow)
        self.exchanges = list(exchanges)
        self.number = next(_numbers)

    def prefill(self) -> None:
        """Do nothing: there is no KV cache here."""

    def reset(self) -> None:
        """Forget all turns."""
        super().reset()
        self.exchanges = []

    def keep(self, exchanges: list[Exchange], era: int) -> None:
        """Make turns the history, unless it was forgotten meanwhile."""
        if era == self.era:
            self.exchanges = exchanges

    def save(self, path: str | Path, cells: bool = True) -> None:
        """
        Write the conversation to a file, with its pictures as they were sent.

        :param cells: has no effect: there are none here
        :raises StateError: it cannot be written
        """
        content = {
            'format': FORMAT,
            'system_prompt': self.system_prompt,
            'overflow': self.overflow,
            'turns': [
                {'user': [_flat(part) for part in exchange.user], 'answer': exchange.answer}
                for exchange in self.exchanges
            ],
        }
        with replacing(as_path(path)) as file:
            file.write(json.dumps(content).encode())


def _flat(part: str | Picture) -> Any:
    if isinstance(part, str):
        return part
    picture = {'jpeg': base64.b64encode(part.jpeg).decode(), 'size': part.size}
    return picture if part.seconds is None else {**picture, 'seconds': part.seconds}


def read(path: Path) -> tuple[str, str, list[Exchange]]:
    """
    Read a file that ``save`` wrote; it may come from anywhere.

    :return: system prompt, overflow, turns
    :raises StateError: it is none, or damaged
    """
    path = target(path)
    try:
        with path.open('rb') as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as exc:
        raise StateError(f'{path} cannot be read: {exc.strerror or exc}') from exc
    if len(data) > MOST_BYTES:
        raise StateError(f'{path} has more than {MOST_BYTES >> 20} MB: it is no conversation')
    try:
        content = json.loads(data)
        if not isinstance(content, dict) or content.get('format') != FORMAT:
            raise ValueError('it is of another kind, perhaps of a model on this machine')
        turns = [
            Exchange([_part(part) for part in turn['user']], _checked(turn['answer'], str))
            for turn in content['turns']
        ]
        return _checked(content['system_prompt'], str), _checked(content['overflow'], str), turns
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as exc:
        why = f'{type(exc).__name__}: {exc}'[:200]
        raise StateError(
            f'{path} is no conversation with a model elsewhere ({why}): save it anew'
        ) from exc


def _part(value: Any) -> str | Picture:
    if isinstance(value, str):
        return value
    try:
        jpeg = base64.b64decode(value['jpeg'], validate=True)
    except binascii.Error as exc:
        raise ValueError('a picture is no base64') from exc
    width, height = (_checked(side, int) for side in value['size'])
    seconds = value.get('seconds')
    return Picture(jpeg, (width, height), None if seconds is None else float(seconds))


def _checked(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f'{type(value).__name__} stands where {kind.__name__} belongs')
    return value
