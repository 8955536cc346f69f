"""Servers for the tests of models elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hobot_vlm import VLM
from hobot_vlm.server.guard import Settings
from hobot_vlm.server.http import create_app, HttpServer
import pytest

from .odd_server import odd_server, OddServer


@contextmanager
def serving(vlm: VLM, **settings: object) -> Iterator[str]:
    """Serve a model on a free port, as `vlm serve` does; gives the address."""
    app, service = create_app(vlm, Settings(**settings))
    with HttpServer(app, service, '127.0.0.1', 0) as server:
        yield f'{server.url}/v1'


@contextmanager
def remote(url: str, fallback: VLM | None = None, **options: object) -> Iterator[VLM]:
    """Give a model elsewhere; several may share one fallback."""
    with VLM.load(url, **options) as vlm:
        vlm.local = fallback
        try:
            yield vlm
        finally:
            vlm.local = None


@pytest.fixture(scope='session')
def address(demo: VLM) -> Iterator[str]:
    """Give the address of a server with the demo model."""
    with serving(demo) as url:
        yield url


@pytest.fixture(scope='session')
def far(address: str) -> Iterator[VLM]:
    """Give the demo model, elsewhere."""
    with VLM.load(address) as vlm:
        yield vlm


@pytest.fixture(scope='module')
def odd() -> Iterator[OddServer]:
    """Give a server that misbehaves."""
    with odd_server() as server:
        yield server
