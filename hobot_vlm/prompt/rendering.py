"""
Chat templates, rendered within bounds of time, memory and length.

Knows nothing of slots, spans or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import lru_cache
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from .jinja_child import MAX_MEMORY, MAX_SECONDS, render
from ..errors import ModelMismatch

#: Seconds that pass until the child is stopped, however little of them it could run.
PATIENCE = 30.0
#: Rendered conversations that are kept. As they hold no text of people, there are only as many as
#: there are numbers of pictures, at the start and later.
KEPT = 256

Message = dict[str, Any]


class Renderer:
    """
    Renders conversations by one template.

    :param source: Jinja
    :param trusted: it comes from this package, and is rendered in this process
    """

    def __init__(self, source: str, bos: str, eos: str, trusted: bool):
        self._template = source, bos, eos
        self._render = render if trusted else _rendered_by_child
        self._known: dict[str, dict[str, str]] = {}

    def prepare(self, conversations: Sequence[Sequence[Message]]) -> None:
        """
        Render conversations at once, for later.

        :raises ModelMismatch: the template cannot be read, or exceeds its bounds
        """
        keys = [_key(messages) for messages in conversations]
        source, bos, eos = self._template
        found = self._render(source, bos, eos, [list(messages) for messages in conversations])
        if 'error' in found:
            raise ModelMismatch(f'the chat template of the model cannot be read: {found["error"]}')
        if len(self._known) + len(keys) > KEPT:
            self._known.clear()
        self._known.update(zip(keys, found['results'], strict=True))

    def render(self, messages: Sequence[Message]) -> str:
        """
        Give a conversation as text, up to where the answer begins.

        :raises ModelMismatch: the template fails, or exceeds its bounds
        """
        key = _key(messages)
        if key not in self._known:
            self.prepare([messages])
        found = self._known[key]
        if 'error' in found:
            raise ModelMismatch(f'the chat template of the model fails: {found["error"]}')
        return found['text']


def _key(messages: Sequence[Message]) -> str:
    # some templates write the date
    return date.today().isoformat() + json.dumps(messages)


def _rendered_by_child(
    source: str, bos: str, eos: str, conversations: list[Any]
) -> dict[str, Any]:
    asked = {'source': source, 'bos': bos, 'eos': eos, 'conversations': conversations}
    found: dict[str, Any] = json.loads(_child(json.dumps(asked), date.today()))
    return found


@lru_cache(maxsize=16)  # the same model may be loaded more than once
def _child(asked: str, _: date) -> str:
    """Run ``jinja_child.py`` on a request."""
    program = 'import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); '
    program += "runpy.run_path(sys.argv[2], run_name='__main__')"
    script = Path(__file__).with_name('jinja_child.py')
    try:
        child = subprocess.run(
            [sys.executable, '-c', program, json.dumps(sys.path), str(script)],
            input=asked,
            capture_output=True,
            text=True,
            encoding='utf-8',
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise _exceeded() from None
    except OSError as exc:
        raise ModelMismatch(
            f'the chat template of the model needs a process of its own, and {sys.executable} '
            f'cannot be run: {exc}'
        ) from exc
    if child.returncode:
        raise _exceeded()
    return child.stdout


def _exceeded() -> ModelMismatch:
    return ModelMismatch(
        f'the chat template of the model takes more than {MAX_SECONDS} s or '
        f'{MAX_MEMORY >> 20} MB: published ones take a thousandth of that, so its file is '
        'damaged or harmful; get it from another place'
    )
