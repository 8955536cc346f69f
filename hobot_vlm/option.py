"""
One option: how it is declared, and how a value for it is checked.

Knows types, ranges and words for errors; which options there are stands in ``config.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import Field, field, MISSING
import difflib
import json
import math
from numbers import Integral, Real
from pathlib import Path
import reprlib
from typing import Any

from .errors import ConfigError

quote = reprlib.Repr()  # a message is not to carry all that somebody gave
quote.maxlevel, quote.maxstring = 2, 100


def option(
    default: Any,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
    live: bool = False,
) -> Any:
    """
    Declare an option.

    :param low: smallest value; with ``high`` also the range of the ROS descriptor
    :param choices: the only values allowed
    :param live: whether the node may change it while it runs
    """
    return field(
        default=default,
        metadata={'doc': doc, 'low': low, 'high': high, 'choices': choices, 'live': live},
    )


def unknown_option(name: Any, known: Collection[str]) -> ConfigError:
    """Make the error for an option that does not exist, with the one that was meant."""
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f'; did you mean {near[0]}?' if near else ''
    return ConfigError(f'there is no option {str(name)[:80]!r}{hint}', str(name))


def checked(item: Field[Any], value: Any) -> Any:
    """
    Give the value in the option's type.

    :raises ConfigError: it has another type or is out of range
    """
    kind: type[Any] = type(default_of(item))
    name, meta = item.name, item.metadata
    if name == 'json_schema' and not isinstance(value, (str, Path)):
        value = _schema_text(value)
    if type(value) not in (bool, int, float):  # NumPy's numbers are as good
        if isinstance(value, Integral):
            value = int(value)
        elif isinstance(value, Real):
            value = float(value)
    if kind is bool:
        if isinstance(value, str) and value.lower() in ('true', 'false', '1', '0', 'yes', 'no'):
            value = value.lower() in ('true', '1', 'yes')
        if isinstance(value, Integral) and value in (0, 1):
            value = bool(value)
    elif kind in (int, float) and isinstance(value, str):
        try:
            value = kind(value)
        except ValueError:
            pass
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            pass
    elif kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    elif kind is str and isinstance(value, Path):
        value = str(value)
    elif kind is tuple:
        value = _texts(value)
    if type(value) is not kind:
        raise ConfigError(f'{name} is {quote.repr(value)}: expected {_kind_words(kind)}', name)
    if kind is str and '\0' in value:
        raise ConfigError(f'{name} holds a zero byte: expected text', name)
    if kind is float and not math.isfinite(value):
        raise ConfigError(f'{name} is {value}: expected a finite number', name)
    if meta['choices'] and value not in meta['choices']:
        allowed = ', '.join(repr(c) for c in meta['choices'])
        raise ConfigError(f'{name} is {quote.repr(value)}: expected one of {allowed}', name)
    low, high = meta['low'], meta['high']
    if low is not None and not low <= value <= high:
        raise ConfigError(f'{name} is {quote.repr(value)}: expected {low} to {high}', name)
    return value


def _texts(value: Any) -> Any:
    """Give texts as a tuple; a text is one of them, or a list as YAML and JSON write it."""
    if isinstance(value, str):
        import yaml  # which `--help` need not wait for

        try:
            read = yaml.safe_load(value) if value.lstrip().startswith('[') else [value]
        except (yaml.YAMLError, RecursionError, ValueError):
            return value
        value = [text for text in read if text != '']
    if isinstance(value, (list, tuple)) and all(
        isinstance(text, str) and '\0' not in text for text in value
    ):
        return tuple(value)
    return value


def _schema_text(value: Any) -> Any:
    """Give a JSON schema as text: that of a pydantic model, or one of dicts; else as it is."""
    schema_of = getattr(value, 'model_json_schema', None)
    try:
        if isinstance(value, type) and schema_of is not None:
            value = schema_of()
        return json.dumps(value) if isinstance(value, (Mapping, bool)) else value
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigError(
            f'json_schema is no JSON schema ({str(exc)[:200]}): expected text, a dict of JSON '
            'values, or a pydantic model class',
            'json_schema',
        ) from exc


def _kind_words(kind: type) -> str:
    words = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text'}
    return {**words, tuple: 'a list of texts'}[kind]


def default_of(item: Field[Any]) -> Any:
    """Give the default of an option."""
    assert item.default is not MISSING
    return item.default
