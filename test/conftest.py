"""What the tests share: the bundled model, loaded once, and the bundled picture."""

from __future__ import annotations

from collections.abc import Iterator
import os

from folders import DEMO
from hobot_vlm import VLM
from hypothesis import settings
import pytest


def pytest_configure() -> None:
    """
    Give each of the processes that pytest-xdist tests with a core of its own.

    llama.cpp's threads wait for each other by spinning, and would hold up those of the other.
    """
    worker = os.environ.get('PYTEST_XDIST_WORKER')  # gw0, gw1 …
    if worker:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})


settings.register_profile('here', deadline=None)  # the machine may be busy
settings.load_profile('here')


@pytest.fixture
def all_cores() -> Iterator[None]:
    """Let a test that is about threads have every core, which a process of xdist has not."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    yield
    os.sched_setaffinity(0, own)


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what is noted of files and runtimes apart from what this user's programs note."""
    os.environ['XDG_CACHE_HOME'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='session')
def demo() -> Iterator[VLM]:
    """Give the demo model; tests that count what is decoded load their own."""
    with VLM.load('demo') as vlm:
        yield vlm


@pytest.fixture
def fresh() -> Iterator[VLM]:
    """Give a demo model that nobody has asked yet."""
    with VLM.load('demo') as vlm:
        yield vlm


@pytest.fixture(scope='session')
def sample() -> str:
    """Give the path of the bundled picture."""
    return str(DEMO / 'sample.png')
