"""
Named models: which files they are made of, on which machine, and how to come by them.

The names stand in ``catalogue.yaml`` beside this file and in the user's own ``models.yaml``. Files
from the Hugging Face hub lie in the cache of huggingface_hub, where its other users find them too.
Nothing here opens a model; fetching is the business of ``hub.py``, which is asked when
``download`` is called or ``auto_download`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
import difflib
from functools import cache
import os
from pathlib import Path
import re
import reprlib
from typing import Any

from . import hub
from .config import Config, FAMILIES, FAMILY_NUMBERS
from .errors import ConfigError, DownloadError

DEFAULT = 'demo'
ANY = 'any'

#: Bytes of a catalogue: a thousand entries.
MOST_BYTES = 1 << 20

#: Quotes what stands in a catalogue; aliases of aliases would make it endless.
quote = reprlib.Repr()
quote.maxlevel, quote.maxstring, quote.maxother = 2, 80, 80

#: machine -> what it says of itself, in lower case
BOARDS = {
    'rdkx5': re.compile(r'(^|rdk )x5[uhm]?\b'),
    'rdks100': re.compile(r'(^|rdk |drobot,)s100p?\b'),
}
BOARD_FILES = (
    'sys/class/boardinfo/soc_name',
    'sys/class/socinfo/soc_name',
    'proc/device-tree/model',
    'proc/device-tree/compatible',
)


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
class Model:
    """An entry of the catalogue."""

    name: str
    title: str
    family: str
    languages: tuple[str, ...]
    size_mb: float
    variants: Mapping[str, Variant]
    source: Path

    def variant(self, board: str = '') -> Variant:
        """
        Give the files for a machine, by default this one.

        :raises ConfigError: the model does not run there
        """
        board = board or machine()
        for kind in (board, ANY):
            if kind in self.variants:
                return self.variants[kind]
        raise ConfigError(
            f'the model {self.name} has no files for this machine ({board}), only '
            f'for {", ".join(self.variants)}',
            'model',
        )


@dataclass(frozen=True)
class Files:
    """
    What a configuration comes down to.

    :param encoder: None for a language model without pictures
    :param options: values for options that the user left at their defaults
    """

    encoder: Path | None
    decoder: Path
    options: Mapping[str, Any] = field(default_factory=dict)


def machine(root: str | Path = '/') -> str:
    """Say which machine this is: ``rdkx5``, ``rdks100`` or ``any``."""
    for name in BOARD_FILES:
        try:
            text = (Path(root) / name).read_text(errors='replace').replace('\0', ' ').lower()
        except OSError:
            continue
        for board, words in BOARDS.items():
            if words.search(text.strip()):
                return board
    return ANY


# -- choosing ---------------------------------------------------------------------------------


def resolve(config: Config) -> Files:
    """
    Find the files that a configuration asks for.

    A file that is named wins over the one of the catalogue's ``model``. A decoder alone is a
    language model without pictures; the decoder for an encoder alone is the one that the
    catalogue pairs with an encoder of that name.

    :raises ConfigError: no such model
    :raises DownloadError: the files are not on this machine, or could not be fetched
    """
    encoder, decoder = (
        Path(os.path.expanduser(name)) if name else None
        for name in (config.model_file_name, config.llm_model_name)
    )
    if encoder and decoder:
        return Files(encoder, decoder)
    if decoder and config.model == DEFAULT:
        return Files(None, decoder)
    if encoder and config.model == DEFAULT:
        model, variant = _by_encoder(encoder)
        beside = encoder.with_name(Path(variant.decoder.path).name)
        decoder = beside if beside.is_file() else None
    else:
        model = find(config.model)
        variant = model.variant()
    if encoder is None and variant.encoder is not None:
        encoder = _obtain(model, variant.encoder, config.auto_download)
    if decoder is None:
        decoder = _obtain(model, variant.decoder, config.auto_download)
    return Files(encoder, decoder, _options(model, variant))


def find(name: str) -> Model:
    """
    Look a model up.

    :raises ConfigError: there is none of that name
    """
    models = load()
    if name not in models:
        near = _nearest(name, models)
        raise ConfigError(
            f'there is no model {name[:80]!r}'
            f'{f"; did you mean {near}?" if near else "."} `vlm models` lists '
            f'those of the catalogue; add your own in {user_file()}, or give files '
            'in model_file_name and llm_model_name',
            'model',
        )
    return models[name]


def _nearest(name: str, models: Mapping[str, Model]) -> str:
    """Give the model that a name may mean: misspelt, cut short, or as a hub writes it."""

    def plain(text: str) -> str:  # OpenGVLab/InternVL2_5-1B is internvl2.5-1b
        return re.sub('[^a-z0-9]', '', text.rpartition('/')[2].lower())

    known = {plain(one): one for one in models}
    wanted = plain(name)
    longer = [one for one in known if one.startswith(wanted)] if wanted else []
    shorter = [one for one in known if wanted.startswith(one)]
    near = shorter[-1:] or longer[:1] or difflib.get_close_matches(wanted, known, 1)
    return known[near[0]] if near else ''


def _by_encoder(encoder: Path) -> tuple[Model, Variant]:
    for model in load().values():
        for variant in model.variants.values():
            if variant.encoder and Path(variant.encoder.path).name == encoder.name:
                return model, variant
    raise ConfigError(
        f'model_file_name is {encoder}, and no language model is named with it: '
        'give its .gguf file in llm_model_name',
        'llm_model_name',
    )


def _options(model: Model, variant: Variant) -> dict[str, Any]:
    family = {'model_type': FAMILY_NUMBERS[model.family]} if model.family else {}
    return {**family, **variant.options}


def _obtain(model: Model, file: File, may_download: bool) -> Path:
    path = file.local()
    if path is not None:
        return path
    if not file.repo:
        raise DownloadError(
            f'the model {model.name} needs the file {file.path}, which is not '
            f'there; put it there, or correct {model.source}'
        )
    if not may_download:
        raise DownloadError(
            f'the model {model.name} is not on this machine ({file} is missing): run '
            f'`vlm download {model.name}`, or set auto_download to true (`-p auto_download:=true` '
            'for the node), or give your own files in model_file_name and llm_model_name'
        )
    return hub.fetch(file.repo, file.path)


# -- reading the catalogue --------------------------------------------------------------------


def user_file() -> Path:
    """Give the place of the user's own catalogue."""
    home = os.environ.get('XDG_CONFIG_HOME') or '~/.config'
    return Path(os.path.expanduser(home)) / 'hobot_vlm' / 'models.yaml'


def load() -> dict[str, Model]:
    """
    Read the catalogue, the user's entries last.

    :raises ConfigError: a file that cannot be understood
    """
    own = user_file()
    return {**_bundled(), **(_read(own) if os.path.exists(own) else {})}


@cache
def _bundled() -> dict[str, Model]:
    return _read(Path(__file__).with_name('catalogue.yaml'))


def _read(path: Path) -> dict[str, Model]:
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
    return {str(name): _model(path, str(name), entry) for name, entry in entries.items()}


def _model(path: Path, name: str, entry: Any) -> Model:
    entry = _mapping(path, name, entry, ('title', 'family', 'languages', 'size_mb', 'variants'))
    family, languages, size = (
        entry.get('family', ''),
        entry.get('languages', []),
        entry.get('size_mb', 0),
    )
    if family not in ('', *FAMILIES):
        raise ConfigError(
            f'{path}: {name}: family is {quote.repr(family)}: expected {" or ".join(FAMILIES)}'
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
    variants = _mapping(path, f'{name}: variants', entry.get('variants'), (*BOARDS, ANY))
    if not variants:
        raise ConfigError(
            f'{path}: {name}: variants is empty: expected files for at least one of '
            f'{", ".join((*BOARDS, ANY))}'
        )
    return Model(
        name,
        str(entry.get('title', name)),
        family,
        tuple(languages),
        size,
        {kind: _variant(path, f'{name}: {kind}', v) for kind, v in variants.items()},
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
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo) or '..' in parts or not all(parts):
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


# -- downloading ------------------------------------------------------------------------------


def download(name: str) -> Files:
    """
    Bring the files of a model for this machine onto it; those that are here are only checked.

    :raises ConfigError: no such model
    :raises DownloadError: a file could not be fetched, or is not what the hub says it is
    """
    model = find(name)
    variant = model.variant()
    paths = []
    for file in (variant.encoder, variant.decoder):
        path = file.local() if file else None
        if file and path and file.repo and not hub.all_intact(path):
            path = None  # what was damaged is gone
        paths.append(path or (_obtain(model, file, True) if file else None))
    encoder, decoder = paths
    assert decoder is not None
    return Files(encoder, decoder, _options(model, variant))
