"""
Reading the fields of a JSON object that somebody sent, each with its type and range.

Knows nothing of what the fields mean. Every error names the field and what was expected; of the
value it says no more than a few characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import difflib
import json
import math
from typing import Any

from ..errors import ConfigError

#: characters of a wrong value that an error repeats: enough to recognise it by
ECHO = 40


def parse(body: bytes) -> dict[str, Any]:
    """
    Read the body of a request: a JSON object in UTF-8.

    :raises ConfigError: it is none
    """
    try:
        value = json.loads(body, parse_constant=_no_number)
    except RecursionError as exc:
        raise ConfigError('the body is nested too deeply: expected a JSON object') from exc
    except ValueError as exc:  # UnicodeDecodeError and JSONDecodeError are such
        reason = exc.msg if isinstance(exc, json.JSONDecodeError) else shortened(str(exc))
        raise ConfigError(f'the body is no JSON ({reason}): expected a JSON object') from exc
    if not isinstance(value, dict):
        raise ConfigError(f'the body is {named(value)}: expected a JSON object')
    return value


def _no_number(text: str) -> float:
    raise ValueError(f'{text} is no number of JSON')


def shortened(text: str) -> str:
    """Give the beginning of a text, fit to stand in a message."""
    text = ' '.join(clean(text[: ECHO + 1]).split())
    return text if len(text) <= ECHO else text[:ECHO] + '…'


def named(value: Any) -> str:
    """Say what a JSON value is, without repeating what it holds."""
    if value is None:
        return 'null'
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, (int, float)):
        return f'the number {value:.6g}' if abs(value) < 1e300 else 'a huge number'
    if isinstance(value, str):
        return f"the text '{shortened(value)}'"
    return 'an array' if isinstance(value, list) else 'an object'


def clean(text: str) -> str:
    r"""Give the text with U+FFFD in place of half characters, as JSON's ``\ud83d`` makes them."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


class Fields:
    """
    A JSON object whose fields are read one by one; null counts as absent.

    :param where: what the object is, for messages: ``messages[2]`` for example
    """

    def __init__(self, value: Any, where: str = '') -> None:
        if not isinstance(value, dict):
            raise ConfigError(f'{where} is {named(value)}: expected an object', where)
        self.where = where
        self._left = {name: item for name, item in value.items() if item is not None}

    def path(self, name: str) -> str:
        """Give the name of a field as messages say it."""
        return f'{self.where}.{name}' if self.where else name

    def wrong(self, name: str, value: Any, expected: str) -> ConfigError:
        """Make the error for a value that cannot be used."""
        return ConfigError(
            f'{self.path(name)} is {named(value)}: expected {expected}', self.path(name)
        )

    def any(self, name: str, default: Any = None) -> Any:
        """Read a field of any type."""
        return self._left.pop(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        """Read true or false."""
        value = self.any(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, 'true or false')
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """Read a number from ``low`` to ``high``; None where it is absent."""
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(name, value, f'a number from {low:g} to {high:g}')
        if not low <= value <= high:  # also what is no number
            raise self.wrong(name, value, f'{low:g} to {high:g}')
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Read a whole number from ``low`` to ``high``; None where it is absent."""
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, value, 'a whole number')
        if not low <= value <= high:
            raise self.wrong(name, value, f'{low} to {high}')
        return value

    def text(self, name: str, default: str | None = None) -> str | None:
        """Read a text."""
        value = self.any(name, default)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, value, 'text')
        return value if value is None else clean(value)

    def needed_text(self, name: str) -> str:
        """Read a text that must be there."""
        value = self.text(name)
        if value is None:
            raise ConfigError(f'{self.path(name)} is missing: expected text', self.path(name))
        return value

    def items(self, name: str) -> list[Any]:
        """Read an array; an empty one where it is absent."""
        value = self.any(name, [])
        if not isinstance(value, list):
            raise self.wrong(name, value, 'an array')
        return value

    def object(self, name: str) -> Fields | None:
        """Read an object; None where it is absent."""
        value = self.any(name)
        return None if value is None else Fields(value, self.path(name))

    def choice(self, name: str, allowed: Iterable[str], default: str) -> str:
        """Read one of some words."""
        value = self.any(name, default)
        if not isinstance(value, str) or value not in allowed:
            raise self.wrong(name, value, ' or '.join(sorted(allowed)))
        return value

    def left(self) -> dict[str, Any]:
        """Give the fields that nobody has read yet."""
        return dict(self._left)

    def ignore(self, *names: str) -> None:
        """Drop fields that change nothing here."""
        for name in names:
            self._left.pop(name, None)

    def neutral(self, values: Mapping[str, tuple[Any, ...]]) -> None:
        """
        Drop fields that have no counterpart here, where their value asks for nothing.

        :raises ConfigError: a value that would have to be followed
        """
        for name, accepted in values.items():
            value = self._left.pop(name, None)
            if value is not None and value not in accepted:
                raise self.wrong(name, value, f'{json.dumps(accepted[0])}; it has no effect here')

    def end(self) -> None:
        """
        Check that nothing is left.

        :raises ConfigError: a field that nobody asked for
        """
        for name in self._left:
            near = difflib.get_close_matches(name, KNOWN, 1)
            hint = f'; did you mean {near[0]}?' if near else ': leave it out'
            raise ConfigError(
                f'{self.path(shortened(name))} is not known here{hint}', self.path(shortened(name))
            )


#: what the hint after an unknown field is chosen from
KNOWN = (
    'messages', 'model', 'max_tokens', 'max_completion_tokens', 'max_output_tokens', 'temperature',
    'top_p', 'top_k', 'min_p', 'seed', 'stop', 'stream', 'stream_options', 'logprobs',
    'top_logprobs', 'logit_bias', 'response_format', 'tools', 'tool_choice', 'repeat_penalty',
    'input', 'instructions', 'prompt', 'content', 'n',
)  # fmt: skip
