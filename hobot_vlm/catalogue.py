"""
Named models: which files they are made of, on which machine, and how to come by them.

The names stand in ``catalogue.yaml`` beside this file and in the user's own ``models.yaml``. Files
from the Hugging Face hub lie in the cache of huggingface_hub, where its other users find them too.
Nothing here opens a model, and nothing goes to the network unless ``download`` is called or
``auto_download`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
import difflib
import errno
import fcntl
from functools import cache
import hashlib
import logging
import os
from pathlib import Path
import re
import shutil
from typing import Any, BinaryIO

from .config import Config
from .errors import BackendMissing, ConfigError, DownloadError

logger = logging.getLogger('hobot_vlm')

DEFAULT = 'demo'
FAMILIES = {'internvl': 0, 'smolvlm': 1}
ANY = 'any'

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
        """Give the whole file, if it is on this machine."""
        if not self.repo:
            return Path(self.path) if Path(self.path).is_file() else None
        folder = _cache(self.repo)
        try:
            commit = (folder / 'refs' / 'main').read_text().strip()
        except OSError:
            return None
        found = [p for p in (folder / 'snapshots' / commit).glob(self.path) if p.is_file()]
        return found[0] if len(found) == 1 else None


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
    family = {'model_type': FAMILIES[model.family]} if model.family else {}
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
    return _fetch(file)


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
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise ConfigError(f'{path}: cannot be read: {" ".join(str(exc).split())}') from exc
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
            f'{path}: {name}: family is {family!r}: expected {" or ".join(FAMILIES)}'
        )
    if not isinstance(languages, list) or not all(isinstance(x, str) for x in languages):
        raise ConfigError(
            f'{path}: {name}: languages is {languages!r}: expected a list, as in [en, zh]'
        )
    if isinstance(size, bool) or not isinstance(size, (int, float)) or size < 0:
        raise ConfigError(f'{path}: {name}: size_mb is {size!r}: expected a number of megabytes')
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
                f'{path}: {where}: {role} is {value!r}: expected OWNER/NAME:FILE or '
                'the path of a file'
            )
        files[role] = _file(path, where, value)
    options = _mapping(path, f'{where}: options', entry.get('options') or {})
    try:
        Config.from_flat(options)
    except ConfigError as exc:
        raise ConfigError(f'{path}: {where}: options: {exc}') from exc
    assert files['decoder'] is not None
    return Variant(files['encoder'], files['decoder'], options)


def _file(path: Path, where: str, value: str) -> File:
    repo, colon, name = value.partition(':')
    if not colon:
        return File('', str(path.parent / os.path.expanduser(value)))
    parts = name.split('/')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo) or '..' in parts or not all(parts):
        raise ConfigError(
            f'{path}: {where}: {value!r} is no file on the hub: expected OWNER/NAME:FILE'
        )
    return File(repo, name)


def _mapping(path: Path, where: str, value: Any, known: tuple[str, ...] = ()) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f'{path}: {where} is {value!r}: expected names with values')
    for name in value if known else ():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            raise ConfigError(
                f'{path}: {where}: there is no {name!r}'
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
        if file and path and file.repo and not _intact(path):
            logger.warning('%s is damaged and is fetched again', path)
            _remove(path)
            path = None
        paths.append(path or (_obtain(model, file, True) if file else None))
    encoder, decoder = paths
    assert decoder is not None
    return Files(encoder, decoder, _options(model, variant))


def _cache(repo: str) -> Path:
    """Give the folder in which huggingface_hub keeps a repository."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError as exc:
        raise BackendMissing(
            'models from the hub need huggingface_hub, which is not installed',
            'run `pip install huggingface_hub`',
        ) from exc
    return Path(HF_HUB_CACHE) / ('models--' + repo.replace('/', '--'))


def _fetch(file: File) -> Path:
    """
    Bring one file of the hub into the cache, whole and checked.

    huggingface_hub forgets what it has when a download breaks off for good, and does not compare
    checksums. So the bytes are collected here, with its own client, in a file that is named after
    the checksum; only when all are there and right does the cache get them.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, HfApi

    try:
        # 1. which file it is, where the name is a pattern
        name = file.path
        if '*' in name:
            name = _only_match(file, HfApi().list_repo_files(file.repo))
        # 2. what the hub says of it
        url = hf_hub_url(file.repo, name)
        about = get_hf_file_metadata(url)
        if not about.etag or '/' in about.etag or not about.commit_hash:
            raise DownloadError(
                f'{url}: the server gives no checksum, so it is no Hugging Face hub; correct '
                'HF_ENDPOINT'
            )
        # 3. the bytes, on from where an earlier try broke off
        blob = _cache(file.repo) / 'blobs' / about.etag
        if not blob.exists():
            _collect(url, blob, about.size)
        # 4. its name in the cache
        path = Path(hf_hub_download(file.repo, name))
    except DownloadError:
        raise
    except Exception as exc:  # of one of two HTTP libraries, by version; they share no base
        raise DownloadError(f'cannot fetch {file}: {_reason(exc)}') from exc
    if path.resolve() != blob.resolve() and not _intact(path):
        _remove(path)
        raise DownloadError(f'cannot fetch {file}: it changed on the hub meanwhile; try again')
    return path


def _only_match(file: File, names: list[str]) -> str:
    # as Path.glob: * stays within one folder
    pattern = re.compile('[^/]*'.join(re.escape(part) for part in file.path.split('*')))
    found = [name for name in names if pattern.fullmatch(name)]
    if len(found) != 1:
        raise DownloadError(
            f'{file}: {len(found)} files of the repository fit: {", ".join(found) or "none"}; '
            f'name one in {user_file()}, or give files in model_file_name and llm_model_name'
        )
    return found[0]


def _collect(url: str, blob: Path, size: int | None) -> None:
    """Fetch the bytes of a file, check them, and put them where the cache keeps content."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + '.incomplete')
    with partial.open('ab+') as data:
        fcntl.flock(data, fcntl.LOCK_EX)  # another process may fetch the same file
        if blob.exists():
            return
        logger.info('fetching %s', url)
        reached = have = data.seek(0, os.SEEK_END)
        _check_space(blob.parent, (size or 0) - have)
        while have != size:
            if size is not None and have > size:  # of a server that does not know ranges
                have = data.truncate(0)
            try:
                http_get(
                    url,
                    data,
                    resume_size=have,
                    headers={**build_hf_headers(), 'Accept-Encoding': 'identity'},
                    expected_size=size,
                    displayed_filename=url.rsplit('/', 1)[-1],
                )
                break
            except Exception:
                have = data.seek(0, os.SEEK_END)
                if have <= reached:
                    raise
                reached = have  # some of it came, so it is worth going on
        data.flush()
        os.fsync(data.fileno())
        digest = _digest(data, blob.name)
        if digest != blob.name:
            partial.unlink()
            raise DownloadError(
                f'{url}: what arrived has the checksum {digest}, the hub says {blob.name}; it was '
                'thrown away. Try again, with another HF_ENDPOINT if it stays so'
            )
        os.replace(partial, blob)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f'{folder} needs {needed / 1e6:.0f} MB and has {free / 1e6:.0f} MB: '
            'make room, or set HF_HOME to a folder on a larger disk'
        )


def _digest(data: BinaryIO, etag: str) -> str:
    """Compute the checksum of the kind that the hub gives: SHA-256, or git's for small files."""
    size = data.seek(0, os.SEEK_END)
    if re.fullmatch('[0-9a-f]{64}', etag):
        digest = hashlib.sha256()
    elif re.fullmatch('[0-9a-f]{40}', etag):
        digest = hashlib.sha1(f'blob {size}\0'.encode())
    else:
        return etag  # no checksum of the content
    data.seek(0)
    while part := data.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


def _intact(path: Path) -> bool:
    """Compare a file of the cache with the checksum that is the name of its content there."""
    with path.open('rb') as data:
        name = path.resolve().name
        return _digest(data, name) == name


def _remove(path: Path) -> None:
    """Take a file out of the cache."""
    path.resolve().unlink()
    path.unlink(missing_ok=True)


def _reason(exc: Exception) -> str:
    """Say why a download failed, and what to do."""
    from huggingface_hub import errors

    if isinstance(exc, errors.OfflineModeIsEnabled):
        return (
            'HF_HUB_OFFLINE is set; unset it, or copy the cache of huggingface_hub from a '
            'machine that has the file'
        )
    if isinstance(exc, errors.GatedRepoError):
        return 'the repository wants its licence accepted on the web page, then `hf auth login`'
    if isinstance(exc, errors.RepositoryNotFoundError):
        return (
            'there is no such repository on the hub, or it is private; check the name, or run '
            '`hf auth login`'
        )
    if isinstance(exc, errors.EntryNotFoundError):
        return 'the repository holds no such file; check the name'
    if isinstance(exc, errors.HfHubHTTPError) and exc.response is not None:
        return (
            f'the server answered {exc.response.status_code}; try again later, or set '
            'HF_ENDPOINT to a mirror'
        )
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return 'the disk is full; make room, or set HF_HOME to a folder on a larger disk'
    if isinstance(exc, OSError) and exc.filename:
        return f'{exc.strerror}: {exc.filename}; HF_HOME chooses another folder'
    words = (str(exc).strip() or type(exc).__name__).splitlines()[0]
    return (
        f'{words}; check the network, or set HF_ENDPOINT to a mirror. What has arrived is '
        'kept: the same command goes on from there'
    )
