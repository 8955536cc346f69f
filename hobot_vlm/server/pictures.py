"""
What the URL of a picture stands for: bytes in the URL itself or in a folder, or an address.

Only data URLs are always allowed. Knows nothing of what a picture is, and fetches none.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
import urllib.parse

from .fields import shortened
from ..errors import ConfigError, PictureError

#: bytes of a picture in a folder: as many as a body may have by default
LARGEST = 32 << 20


class Pictures:
    """
    Gives pictures by their URLs.

    :param web: whether http and https are allowed
    :param folder: below which ``file:`` URLs are allowed; none where it is empty
    """

    def __init__(self, web: bool = False, folder: str = '') -> None:
        self._web = web
        self._folder = Path(folder).expanduser().resolve() if folder else None
        if self._folder and not self._folder.is_dir():
            raise ConfigError(f'--media-path {folder}: expected a folder', 'media_path')

    def get(self, url: str, where: str) -> bytes | str:
        """
        Give the bytes of a picture, or an address that the model may fetch it from.

        :param where: the field that holds the URL, for messages
        :raises ConfigError: a URL that is not allowed, or none
        :raises PictureError: nothing there
        """
        scheme = url[:8].partition(':')[0].lower()
        if scheme == 'data':
            return _decoded(url, where)
        if scheme in ('http', 'https'):
            if not self._web:
                raise ConfigError(
                    f'{where}: pictures of the web are not fetched; send a data URL, or start '
                    'the server with --allow-urls, the node with allow_urls',
                    where,
                )
            return url
        if scheme == 'file':
            return self._read(url, where)
        raise ConfigError(
            f'{where} starts with {shortened(url[:16])!r}: expected data:image/…;base64,…', where
        )

    def _read(self, url: str, where: str) -> bytes:
        if self._folder is None:
            raise ConfigError(
                f'{where}: files are not read; send a data URL, or start the server with '
                '--media-path FOLDER',
                where,
            )
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
        try:
            path = (self._folder / name.lstrip('/')).resolve()
            whole = Path(name).resolve()
            if whole.is_relative_to(self._folder):  # the whole path, as file: URLs have it
                path = whole
            if not path.is_relative_to(self._folder) or not path.is_file():
                raise FileNotFoundError
            if path.stat().st_size > LARGEST:
                raise PictureError(f'{where}: the picture has more than {LARGEST >> 20} MiB')
            return path.read_bytes()
        except (OSError, ValueError) as exc:  # ValueError: a zero byte in the name
            raise PictureError(
                f'{where}: there is no such picture below the folder of --media-path'
            ) from exc


def _decoded(url: str, where: str) -> bytes:
    """Give what a data URL holds."""
    head, comma, body = url.partition(',')
    if not comma or not head.lower().endswith(';base64'):
        raise ConfigError(f'{where} is no data URL: expected data:image/…;base64,…', where)
    try:
        text = ''.join(urllib.parse.unquote(body).split()) if '%' in body else body
        return base64.b64decode(''.join(text.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ConfigError(f'{where}: what follows base64, is not base64', where) from exc
