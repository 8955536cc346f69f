"""
The bytes of one file of a hub: on from where an earlier try broke off, bounded and checked.

Knows sizes, checksums and when a transfer has stopped; nothing of repositories and caches.
"""

from __future__ import annotations

from collections.abc import Mapping
import fcntl
import hashlib
import logging
import os
from pathlib import Path
import shutil
import threading
import time
from typing import Any, BinaryIO

from .errors import DownloadError
from .net import Connection, ERRORS

logger = logging.getLogger('hobot_vlm')

#: Seconds in which a transfer begins, redirects and looking up names included.
START_SECONDS = 60.0

#: A transfer that brings less than this in so many seconds has stopped. The slowest mobile
#: networks have ten times as much.
LEAST_BYTES, LEAST_SECONDS = 60_000, 60.0

#: Tries that bring nothing before it is given up, and seconds between them.
TRIES, PAUSE = 3, 0.5

BLOCK = 1 << 20


def collect(url: str, blob: Path, size: int, headers: Mapping[str, str]) -> None:
    """
    Fetch the bytes of a file, check them, and put them where the cache keeps content.

    :param blob: named after the checksum that the hub gives
    :param size: that the hub promises, in bytes
    :param headers: for the hub, with the token that it may want
    :raises DownloadError: they are not what the hub says, or there is no room for them
    :raises OSError, HTTPException, ValueError: they do not come (``net.ERRORS``)
    """
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + '.incomplete')
    with partial.open('ab+') as data:
        fcntl.flock(data, fcntl.LOCK_EX)  # another process may fetch the same file
        if blob.exists():
            return
        logger.info('fetching %s', url)
        reached = data.seek(0, os.SEEK_END)
        if reached > size:
            reached = data.truncate(0)
        _check_space(blob.parent, size - reached)
        name = url.rsplit('/', 1)[-1]
        with tqdm(  # type: ignore[no-untyped-call]
            desc=name, total=size, initial=reached, unit='B', unit_scale=True, name='hobot_vlm.hub'
        ) as bar:
            tries = 0
            while reached < size:
                try:
                    _receive(url, data, reached, size, headers, bar)
                except ERRORS:
                    data.flush()
                    have = data.seek(0, os.SEEK_END)
                    tries = tries + 1 if have <= reached else 0
                    if tries >= TRIES:
                        raise
                    time.sleep(PAUSE * tries)
                reached = data.seek(0, os.SEEK_END)
        data.flush()
        os.fsync(data.fileno())
        found = digest(data, blob.name)
        if found != blob.name:
            partial.unlink()
            raise DownloadError(
                f'{url}: what arrived has the checksum {found}, the hub says {blob.name}; it was '
                'thrown away. Try again, with another HF_ENDPOINT if it stays so'
            )
        os.replace(partial, blob)


def _receive(
    url: str, data: BinaryIO, start: int, size: int, headers: Mapping[str, str], bar: Any
) -> None:
    """
    Append what a server sends, from ``start`` on.

    :raises OSError: it breaks off, or comes too slowly
    :raises DownloadError: there is more than the hub promised
    """
    if start:
        headers = {**headers, 'Range': f'bytes={start}-'}
    connection = Connection()
    # looking up the name and the heads of answers count as well
    clock = threading.Timer(START_SECONDS, connection.stop)
    clock.daemon = True
    clock.start()
    try:
        response = connection.open(url, headers)
    finally:
        clock.cancel()
    with response:
        if start and response.status != 206:  # of a server that does not know ranges
            data.truncate(0)
            bar.update(-start)
            start = 0
        have = counted = start
        end = time.monotonic() + LEAST_SECONDS
        while part := response.read1(BLOCK):
            have += len(part)
            if have > size:
                data.truncate(0)
                raise DownloadError(
                    f'{url}: more than the {size} bytes came that the hub promised; they were '
                    'thrown away. Try again, with another HF_ENDPOINT if it stays so'
                )
            data.write(part)
            bar.update(len(part))
            if time.monotonic() > end:
                if have - counted < LEAST_BYTES:
                    raise TimeoutError(
                        f'less than {LEAST_BYTES // 1000} kB came in {LEAST_SECONDS:.0f} s'
                    )
                counted, end = have, time.monotonic() + LEAST_SECONDS
    if have < size:
        raise ConnectionError(f'the connection broke off after {have} of {size} bytes')


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f'{folder} needs {needed / 1e6:.0f} MB and has {free / 1e6:.0f} MB: '
            'make room, or set HF_HOME to a folder on a larger disk'
        )


def digest(data: BinaryIO, etag: str) -> str:
    """Compute the checksum of the kind that the hub gives: SHA-256, or git's for small files."""
    size = data.seek(0, os.SEEK_END)
    if len(etag) == 64:
        made = hashlib.sha256()
    elif len(etag) == 40:
        made = hashlib.sha1(f'blob {size}\0'.encode())
    else:
        return etag  # no checksum of the content
    data.seek(0)
    while part := data.read(BLOCK):
        made.update(part)
    return made.hexdigest()
