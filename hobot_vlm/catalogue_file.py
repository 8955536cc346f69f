"""
The form of a catalogue: a YAML file of named models, read and checked.

Knows which entries make sense, and whether a file is on this machine; nothing of which machine
this is, of choosing among models and of fetching.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import difflib
import os
from pathlib import Path
import re
import reprlib
from typing import Any, TypeVar

from . import hub
from .config import Config, FAMILY_NUMBERS
from .errors import ConfigError

BOARDS = ('rdkx5', 'rdks100')
ANY = 'any'

KEYS = (
    'title', 'family', 'languages', 'size_mb', 'license', 'checkpoint', 'variants'
)  # fmt: skip
REPO = re.compile(r'[\w.-]+/[\w.-]+')

#: Bytes of a catalogue: a thousand entries.
MOST_BYTES = 1 << 20

#: Quotes what stands in a catalogue; aliases of aliases would make it endless.
quote = reprlib.Repr()
quote.maxlevel, quote.maxstring, quote.maxother = 2, 80, 80


@dataclass(frozen=True)
class File:
    """
    One file of a model.

    :param repo: ``owner/name`` on the hub; empty for a file on this machine
    :param path: in the repository, where ``*`` stands for any characters, or on this machine
    """

    repo: str
    path: str

    def __str__(self) -> str:
        return f'{self.repo}:{self.path}' if self.repo else self.path

    def local(self) -> Path | None:
        """Give the whole file, or the first part of a whole split, if it is on this machine."""
        if self.repo:
            return hub.local(self.repo, self.path)
        return Path(self.path) if hub.whole(Path(self.path)) else None


@dataclass(frozen=True)
class Variant:
    """The files of a model for one kind of machine."""

    encoder: File | None
    decoder: File
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """
    One model.

    :param checkpoint: repository on the hub that its files are made from, where they are not
        published; empty: they are
    :param source: the file that it stands in
    """

    name: str
    title: str
    family: str
    languages: tuple[str, ...]
    size_mb: float
    license: str
    checkpoint: str
    variants: Mapping[str, Variant]
    source: Path


E = TypeVar('E', bound=Entry)


def read(path: Path, kind: type[E]) -> dict[str, E]:
    """
    Read a catalogue.

    :param kind: the class of its entries
    :raises ConfigError: it cannot be understood
    """
    import yaml

    try:
        with path.open(encoding='utf-8') as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f'it is larger than {MOST_BYTES >> 20} MB')
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as exc:
        why = ' '.join(str(exc).split())[:300]
        raise ConfigError(f'{path}: cannot be read: {why}') from exc
    body = _mapping(path, 'the file', content or {}, ('models',))
    entries = _mapping(path, 'models', body.get('models') or {})
    return {str(name): _entry(path, str(name), entry, kind) for name, entry in entries.items()}


def _entry(path: Path, name: str, entry: Any, kind: type[E]) -> E:
    entry = _mapping(path, name, entry, KEYS)
    family, languages, size = (
        entry.get('family', ''),
        entry.get('languages', []),
        entry.get('size_mb', 0),
    )
    if family not in ('', *FAMILY_NUMBERS):
        raise ConfigError(
            f'{path}: {name}: family is {quote.repr(family)}: expected '
            f'{" or ".join(FAMILY_NUMBERS)}'
        )
    if not isinstance(languages, list) or not all(isinstance(x, str) for x in languages):
        raise ConfigError(
            f'{path}: {name}: languages is {quote.repr(languages)}: expected a list, as in '
            '[en, zh]'
        )
    if isinstance(size, bool) or not isinstance(size, (int, float)) or size < 0:
        raise ConfigError(
            f'{path}: {name}: size_mb is {quote.repr(size)}: expected a number of megabytes'
        )
    checkpoint = entry.get('checkpoint', '')
    if checkpoint and not (isinstance(checkpoint, str) and REPO.fullmatch(checkpoint)):
        raise ConfigError(
            f'{path}: {name}: checkpoint is {quote.repr(checkpoint)}: expected OWNER/NAME of a '
            'repository on the hub'
        )
    variants = _mapping(path, f'{name}: variants', entry.get('variants'), (*BOARDS, ANY))
    if not variants:
        raise ConfigError(
            f'{path}: {name}: variants is empty: expected files for at least one of '
            f'{", ".join((*BOARDS, ANY))}'
        )
    return kind(
        name,
        str(entry.get('title', name)),
        family,
        tuple(languages),
        size,
        str(entry.get('license', '')),
        checkpoint,
        {board: _variant(path, f'{name}: {board}', v) for board, v in variants.items()},
        path,
    )


def _variant(path: Path, where: str, entry: Any) -> Variant:
    entry = _mapping(path, where, entry, ('encoder', 'decoder', 'options'))
    files: dict[str, File | None] = {'encoder': None, 'decoder': None}
    for role in files:
        value = entry.get(role)
        if value is None and role == 'encoder':
            continue
        if not isinstance(value, str) or not value:
            raise ConfigError(
                f'{path}: {where}: {role} is {quote.repr(value)}: expected OWNER/NAME:FILE or '
                'the path of a file'
            )
        files[role] = _file(path, where, value)
    options = _mapping(path, f'{where}: options', entry.get('options') or {})
    for name, value in options.items():
        if not isinstance(value, (str, int, float)):
            raise ConfigError(
                f'{path}: {where}: options: {quote.repr(name)} is {quote.repr(value)}: expected '
                'text, a number, true or false'
            )
    try:
        Config.from_flat(options)
    except ConfigError as exc:
        raise ConfigError(f'{path}: {where}: options: {str(exc)[:300]}') from exc
    assert files['decoder'] is not None
    return Variant(files['encoder'], files['decoder'], options)


def _file(path: Path, where: str, value: str) -> File:
    repo, colon, name = value.partition(':')
    if not colon:
        return File('', str(path.parent / os.path.expanduser(value)))
    parts = name.split('/')
    if not REPO.fullmatch(repo) or '..' in parts or not all(parts):
        raise ConfigError(
            f'{path}: {where}: {quote.repr(value)} is no file on the hub: expected OWNER/NAME:FILE'
        )
    return File(repo, name)


def _mapping(path: Path, where: str, value: Any, known: tuple[str, ...] = ()) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f'{path}: {where} is {quote.repr(value)}: expected names with values')
    for name in value if known else ():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            raise ConfigError(
                f'{path}: {where}: there is no {quote.repr(name)}'
                f'{f"; did you mean {near[0]}?" if near else ""} Expected '
                f'{", ".join(known)}'
            )
    return value
