"""
What ``model`` says of a model elsewhere: the kind of server, the model's name, the addresses.

``[KIND/][NAME@]http://HOST:PORT/v1[,http://…]``. Reads text alone; connects to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
from urllib.parse import urlsplit

from .dialect import DIALECTS
from ..config import Config
from ..errors import ConfigError

FORM = 'http://HOST:PORT/v1, several with , between them, or KIND/NAME@http://HOST:PORT/v1'
#: the path of OpenAI's API where an address has none
USUAL_PATH = '/v1'


@dataclass(frozen=True)
class Address:
    """
    Where a model is.

    :param kind: of the servers, one of ``DIALECTS``; empty: as they say themselves
    :param name: of the model; empty: the first that a server lists
    :param urls: of the servers, each up to and with ``/v1``
    """

    kind: str
    name: str
    urls: tuple[str, ...]


def read_address(config: Config) -> Address:
    """
    Read ``model`` and ``remote_model``.

    :raises ConfigError: they cannot be understood, or say two things
    """
    for name in ('model_file_name', 'llm_model_name'):
        if getattr(config, name):
            raise ConfigError(
                f'model is an address, and {name} is a file: give one of them; fallback names a '
                'model of the catalogue that is on this machine',
                name,
            )
    first, *others = (part.strip() for part in config.model.split(','))
    name, at, url = first.rpartition('@') if _has_name(first) else ('', '', first)
    kind, slash, rest = name.partition('/')
    if slash and kind.lower() in DIALECTS:
        kind, name = kind.lower(), rest
    else:
        kind = ''
    if at and not name:
        raise _wrong(config.model, 'there is no name before the @')
    if name and config.remote_model and name != config.remote_model:
        raise ConfigError(
            f'model names {name[:80]!r} and remote_model {config.remote_model[:80]!r}: give one',
            'remote_model',
        )
    urls = tuple(dict.fromkeys(_url(part, config.model) for part in (url, *others)))
    return Address(kind, name or config.remote_model, urls)


def _has_name(text: str) -> bool:
    """Tell ``name@http://host`` from ``http://user@host``."""
    return '@' in text.partition('://')[0]


def _url(text: str, whole: str) -> str:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  (raises where it is no number)
    except ValueError as exc:
        raise _wrong(whole, str(exc)) from exc
    if parts.scheme not in ('http', 'https') or not parts.hostname:
        raise _wrong(whole, 'each address begins with http:// or https:// and has a host')
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            'model holds an address with a name, a password or a query: anybody may read '
            'parameters, so give the key in the environment as HOBOT_VLM_REMOTE_KEY',
            'model',
        )
    if re.search(r'[\s\\]', text):
        raise _wrong(whole, 'an address has no spaces')
    return f'{parts.scheme}://{parts.netloc}{parts.path.rstrip("/") or USUAL_PATH}'


def _wrong(whole: str, why: str) -> ConfigError:
    return ConfigError(f'model is {whole[:200]!r} ({why[:200]}): expected {FORM}', 'model')
