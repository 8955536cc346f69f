"""
Files of the Hugging Face hub: which are on this machine, and fetching those that are not.

They lie in the cache of huggingface_hub, where its other users find them too; it also knows
addresses and tokens. The bytes are collected by ``transfer.py``, so that a broken download goes
on. The hub is not trusted with any bound: not with sizes, lists, checksums or the time that it
takes. Knows nothing of catalogues and models.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
import errno
import fcntl
import json
import logging
import os
from pathlib import Path, PurePosixPath
import re
import shutil
import threading
from typing import TypeVar
import urllib.error

from .encoders.onnx_weights import external_paths, outside_paths
from .errors import BackendMissing, DownloadError, ModelFileError
from .llama.gguf import PART, part_name, parts
from .net import Connection, reason
from .transfer import collect, digest

logger = logging.getLogger('hobot_vlm')

T = TypeVar('T')

#: Seconds for an answer without content, redirects and looking up names included.
ANSWER_SECONDS = 60.0

#: Files beside an ONNX file: exporters write one, or one for each of some hundred tensors.
MOST_BESIDE = 1000

#: Bytes of one page of a list of files, and pages: a hundred thousand files.
MOST_LIST_BYTES, MOST_PAGES = 16 << 20, 100

BLOCK = 1 << 20
COMMIT = re.compile('[0-9a-f]{40}')
CHECKSUM = re.compile('[0-9a-f]{40}|[0-9a-f]{64}')


# -- on this machine --------------------------------------------------------------------------


def whole(path: Path) -> bool:
    """Say whether a file is there, and all that belongs to it: parts of a split, or weights."""
    try:
        return all(part.is_file() for part in _files(path))
    except ModelFileError:
        return False


def _files(path: Path) -> list[Path]:
    """
    Give a file and all that belongs to it: the parts of a split, or weights beside an ONNX file.

    :raises ModelFileError: a part of a split is missing
    """
    return [*parts(path), *(path.parent / name for name in _weights(path))]


def _weights(path: Path) -> list[str]:
    """Give the names of the files beside it that an ONNX file takes weights from."""
    try:
        if path.suffix.lower() == '.onnx' and not outside_paths(path):
            return external_paths(path)
    except (OSError, ValueError):  # it is not there, or damaged, which opening it says
        pass
    return []


def local(repo: str, pattern: str) -> Path | None:
    """
    Give a whole file of a repository from the cache; of a split the first part.

    :param pattern: its path, in which ``*`` stands for any characters
    """
    folder = _cache(repo)
    try:
        commit = (folder / 'refs' / 'main').read_text().strip()
    except (OSError, ValueError):
        return None
    if not COMMIT.fullmatch(commit):
        return None
    snapshot = folder / 'snapshots' / commit
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.glob(pattern)]
    found = [snapshot / name for name in _without_later_parts(names) if whole(snapshot / name)]
    return found[0] if len(found) == 1 else None


def all_intact(path: Path) -> bool:
    """Compare a file of the cache, and its other parts, with their checksums; remove damaged."""
    damaged = [part for part in _files(path) if not _intact(part)]
    for part in damaged:
        logger.warning('%s is damaged and is fetched again', part)
        part.resolve().unlink()
        part.unlink(missing_ok=True)
    return not damaged


def remove(repo: str, pattern: str) -> int:
    """
    Take a file of a repository out of the cache, of a split all parts; what has half arrived too.

    :return: how many bytes that frees
    """
    path, folder = local(repo, pattern), _cache(repo)
    freed = 0
    for part in _files(path) if path else []:
        blob, size = part.resolve(), part.stat().st_size
        part.unlink()
        links = (folder / 'snapshots').glob('*/**/*')  # of other revisions of the repository
        if not any(link.is_symlink() and link.resolve() == blob for link in links):
            freed += size
            blob.unlink(missing_ok=True)
    for partial in (folder / 'blobs').glob('*.incomplete'):
        with partial.open('rb') as data, suppress(BlockingIOError):  # somebody is fetching it
            fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
            freed += partial.stat().st_size
            partial.unlink()
    return freed


def _intact(path: Path) -> bool:
    """Compare a file of the cache with the checksum that is the name of its content there."""
    with path.open('rb') as data:
        name = path.resolve().name
        return digest(data, name) == name


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


def _without_later_parts(names: list[str]) -> list[str]:
    """Leave one name of each split: its first part's."""
    found: dict[str, None] = {}
    for name in names:
        folder, _, last = name.rpartition('/')
        if split := PART.fullmatch(last):
            last = part_name(split[1], 1, int(split[3]))
        found[f'{folder}/{last}' if folder else last] = None
    return list(found)


# -- fetching ---------------------------------------------------------------------------------


def fetch(repo: str, pattern: str) -> Path:
    """
    Bring a file of the hub into the cache, whole and checked; and all that belongs to it.

    :param pattern: its path in the repository, in which ``*`` stands for any characters
    :return: the file in the cache; of a split the first part
    :raises DownloadError: it could not be fetched, or is not what the hub says it is
    """
    _cache(repo)
    what = f'{repo}:{pattern}'
    try:
        _check_online()
        name = _only_match(what, repo, pattern) if '*' in pattern else pattern
        names = [path.as_posix() for path in _part_names(Path(name))]
        fetched = [_fetch_one(repo, each) for each in names][0]
        beside = _weights(fetched)
        if len(beside) > MOST_BESIDE:
            raise DownloadError(
                f'{what} takes weights from {len(beside)} files: expected at most {MOST_BESIDE}'
            )
        for each in beside:
            _fetch_one(repo, (PurePosixPath(name).parent / each).as_posix())
        return fetched
    except DownloadError:
        raise
    except Exception as exc:  # of one of three HTTP libraries; they share no base
        raise DownloadError(f'cannot fetch {what}: {_reason(exc)}') from exc


def _part_names(path: Path) -> list[Path]:
    split = PART.fullmatch(path.name)
    if not split:
        return [path]
    count = min(int(split[3]), 1000)
    return [path.with_name(part_name(split[1], i + 1, count)) for i in range(count)]


def _check_online() -> None:
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        raise errors.OfflineModeIsEnabled('HF_HUB_OFFLINE is set')


def _fetch_one(repo: str, name: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    # 1. what the hub says of it
    url = hf_hub_url(repo, name)
    about = _within(lambda: get_hf_file_metadata(url), url)
    etag, commit, size = about.etag or '', about.commit_hash or '', about.size
    if not CHECKSUM.fullmatch(etag) or not COMMIT.fullmatch(commit) or size is None:
        raise DownloadError(
            f'{url}: the server gives no checksum and size, so it is no Hugging Face hub; correct '
            'HF_ENDPOINT'
        )
    # 2. the bytes, on from where an earlier try broke off
    folder = _cache(repo)
    blob = folder / 'blobs' / etag
    if not blob.exists():
        collect(url, blob, size, _headers())
    # 3. its name in the cache, as huggingface_hub writes it
    path = folder / 'snapshots' / commit / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.unlink(missing_ok=True)
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except FileExistsError:
            pass  # another process was quicker
        except OSError:  # a file system without links
            shutil.copyfile(blob, path)
    (folder / 'refs').mkdir(exist_ok=True)
    (folder / 'refs' / 'main').write_text(commit)
    return path


def _within(call: Callable[[], T], what: str) -> T:
    """
    Have something done within ``ANSWER_SECONDS``, on a thread that is left alone after that.

    :raises DownloadError: it takes longer
    """
    results: list[T] = []
    problems: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as exc:
            problems.append(exc)

    thread = threading.Thread(target=run, daemon=True, name='hub')
    thread.start()
    thread.join(ANSWER_SECONDS)
    if problems:
        raise problems[0]
    if not results:
        raise DownloadError(
            f'{what}: no answer after {ANSWER_SECONDS:.0f} s; check the network, or set '
            'HF_ENDPOINT to a mirror'
        )
    return results[0]


def _only_match(what: str, repo: str, pattern: str) -> str:
    # as Path.glob: * stays within one folder
    fits = re.compile('[^/]*'.join(re.escape(part) for part in pattern.split('*')))
    found = _without_later_parts([name for name in _list(repo) if fits.fullmatch(name)])
    if len(found) != 1:
        shown = ', '.join(found[:8]) + (', ...' if len(found) > 8 else '')
        raise DownloadError(
            f'{what}: {len(found)} files of the repository fit: {shown[:500] or "none"}; '
            'name one in your models.yaml, or give files in model_file_name and llm_model_name'
        )
    return found[0]


def _list(repo: str) -> list[str]:
    """Give the paths of all files of a repository."""
    from huggingface_hub import constants

    url = f'{constants.ENDPOINT}/api/models/{repo}/tree/main?recursive=true'
    names: list[str] = []
    for _ in range(MOST_PAGES):
        text, url = _page(url)
        try:
            names += [str(entry['path']) for entry in json.loads(text) if entry['type'] == 'file']
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            raise DownloadError(
                f'{url or repo}: the list of its files cannot be read; correct HF_ENDPOINT'
            ) from exc
        if not url:
            return names
    raise DownloadError(f'{repo}: its list of files does not end after {MOST_PAGES} pages')


def _page(url: str) -> tuple[bytes, str]:
    """Give a page of a list, and the address of the next."""
    connection = Connection()

    def read() -> tuple[bytes, str]:
        with connection.open(url, _headers()) as response:
            text = bytearray()
            while part := response.read1(BLOCK):
                text += part
                if len(text) > MOST_LIST_BYTES:
                    raise DownloadError(
                        f'{url}: a list of more than {MOST_LIST_BYTES >> 20} MB; correct '
                        'HF_ENDPOINT, or name the file without *'
                    )
            link = re.search(r'<([^>]+)>;\s*rel="next"', response.headers.get('Link') or '')
            return bytes(text), link[1] if link else ''

    try:
        return _within(read, url)
    finally:
        connection.stop()


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return {**build_hf_headers(), 'Accept-Encoding': 'identity'}


def _reason(exc: Exception) -> str:
    """Say why a download failed, and what to do."""
    from huggingface_hub import errors

    code = getattr(exc, 'code', None)
    told = exc.headers.get('X-Error-Code') if isinstance(exc, urllib.error.HTTPError) else ''
    if isinstance(exc, errors.OfflineModeIsEnabled):
        return (
            'HF_HUB_OFFLINE is set; unset it, or copy the cache of huggingface_hub from a '
            'machine that has the file'
        )
    if isinstance(exc, errors.GatedRepoError) or told == 'GatedRepo':
        return 'the repository wants its licence accepted on the web page, then `hf auth login`'
    if isinstance(exc, errors.RepositoryNotFoundError) or told == 'RepoNotFound' or code == 401:
        return (
            'there is no such repository on the hub, or it is private; check the name, or run '
            '`hf auth login`'
        )
    if isinstance(exc, errors.EntryNotFoundError) or told == 'EntryNotFound':
        return 'the repository holds no such file; check the name'
    if isinstance(exc, errors.HfHubHTTPError) and exc.response is not None:
        code = exc.response.status_code
    if code is not None:
        return f'the server answered {code}; try again later, or set HF_ENDPOINT to a mirror'
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return 'the disk is full; make room, or set HF_HOME to a folder on a larger disk'
    if isinstance(exc, OSError) and exc.filename:
        return f'{exc.strerror}: {exc.filename}; HF_HOME chooses another folder'
    words = (reason(exc).strip() or type(exc).__name__).splitlines()[0]
    return (
        f'{words}; check the network, or set HF_ENDPOINT to a mirror. What has arrived is '
        'kept: the same command goes on from there'
    )
