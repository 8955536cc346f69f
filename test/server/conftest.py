"""A server on a free port with the bundled model, and what clients need to talk to it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import subprocess
import sys

from hobot_vlm.server.guard import Settings
from hobot_vlm.server.http import create_app, HttpServer
import httpx
import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / 'build' / 'clients'
QUESTION = 'Describe the picture.'
#: lets an answer never end by itself
ENDLESS = {'grammar': 'root ::= "x" root', 'max_tokens': 100000}


@contextmanager
def serving(source, settings=None, live=None) -> Iterator[HttpServer]:
    """Run a server on a free port."""
    app, service = create_app(source, settings or Settings(), live)
    with HttpServer(app, service, '127.0.0.1', 0) as server:
        yield server


@pytest.fixture(scope='session')
def server(demo) -> Iterator[HttpServer]:
    """Give the server that most tests share."""
    with serving(demo) as server:
        yield server


@pytest.fixture(scope='session')
def http(server) -> Iterator[httpx.Client]:
    """Give a client without any manners of its own."""
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope='session')
def picture(sample) -> str:
    """Give the bundled picture as a data URL."""
    return data_url(Path(sample).read_bytes())


def data_url(data: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(data).decode()


def asked(picture: str, question: str = QUESTION) -> list[dict]:
    """Give messages that ask about a picture."""
    parts = [
        {'type': 'image_url', 'image_url': {'url': picture}},
        {'type': 'text', 'text': question},
    ]
    return [{'role': 'user', 'content': parts}]


def installed(*packages: str) -> Path:
    """Give a folder with packages of certain versions, fetched once; skip where pip cannot."""
    target = BUILD / '+'.join(packages).replace('==', '-').replace('<', '-before-')
    if not (target / '.whole').exists():
        command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--target', str(target)]
        done = subprocess.run(
            [*command, '--disable-pip-version-check', *packages], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f'pip cannot fetch {" ".join(packages)}: {done.stderr.strip()[-200:]}')
        (target / '.whole').touch()
    return target
