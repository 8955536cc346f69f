"""What the tests through ROS share: a domain of their own, the node as a process, and a robot."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
import random
import subprocess
import sys

# before rclpy starts: a domain that nobody else is on, and transports that carry big pictures
os.environ['ROS_DOMAIN_ID'] = str(random.randrange(1, 100))
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'LARGE_DATA'
os.environ['RCUTILS_COLORIZED_OUTPUT'] = '0'

import pytest

from .messages import make
from .robot import NodeProcess, Robot

MODELS = Path(__file__).parents[1] / 'models'
ACTORS = Path(__file__).with_name('actors.py')
#: what runs the node so that a long answer lasts until it is cancelled
ENDLESS_NODE = (str(ACTORS), 'endless')
SAMPLE = Path(__file__).parents[2] / 'hobot_vlm' / 'demo' / 'sample.png'


def pytest_configure(config):
    """Let pass what rclpy and what it imports say of themselves."""
    for message in ("module 'sre_", 'Deprecated in favor of'):
        config.addinivalue_line('filterwarnings', f'ignore:{message}:DeprecationWarning')


@pytest.fixture(scope='session')
def ros():
    """Start rclpy for the tests' own process."""
    import rclpy

    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope='module')
def robot(ros):
    """Give the other side of every topic and service."""
    with Robot() as robot:
        yield robot


@pytest.fixture(scope='module')
def messages():
    """
    Let the tests of a module import the message packages that PyPI lacks.

    Gives the environment of a process that has them too.
    """
    if make.missing():
        pytest.skip(make.missing())
    environment = make.make()
    with pytest.MonkeyPatch.context() as patch:
        if environment:
            packages, libraries = (
                environment[name].split(':')[0] for name in ('PYTHONPATH', 'LD_LIBRARY_PATH')
            )
            patch.setattr(sys, 'path', [packages, *sys.path])
            # for this process it is too late to be told of a folder
            for library in Path(libraries).glob('*fastrtps_c.so'):
                ctypes.CDLL(str(library))
        yield environment
    for name in list(sys.modules) if environment else ():
        if name.split('.')[0] in make.PACKAGES:
            del sys.modules[name]


@pytest.fixture
def act():
    """Give a function that starts an actor of ``actors.py``; it is killed after the test."""
    running = []

    def act(*arguments):
        command = [sys.executable, str(ACTORS), *map(str, arguments)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield act
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def start(request, robot, tmp_path):
    """Give a function that starts the node; it is stopped after the test."""
    running = []

    def start(*, ready=True, env=None, program=None, **parameters):
        robot.wait_until_alone()
        more = {'program': program} if program else {}
        node = NodeProcess(tmp_path / f'log{len(running)}', parameters, env, **more)
        running.append(node)
        if ready:
            robot.wait_until_ready(node)
        return node

    yield start
    for node in running:
        node.end()
