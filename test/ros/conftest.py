"""What the tests through ROS share: a domain of their own, the node as a process, and a robot."""

from __future__ import annotations

import os
from pathlib import Path
import random

# before rclpy starts: a domain that nobody else is on, and transports that carry big pictures
os.environ['ROS_DOMAIN_ID'] = str(random.randrange(1, 100))
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ['FASTDDS_BUILTIN_TRANSPORTS'] = 'LARGE_DATA'
os.environ['RCUTILS_COLORIZED_OUTPUT'] = '0'

import pytest

from .robot import NodeProcess, Robot

MODELS = Path(__file__).parents[1] / 'models'
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


@pytest.fixture
def start(request, robot, tmp_path):
    """Give a function that starts the node; it is stopped after the test."""
    running = []

    def start(*, ready=True, env=None, **parameters):
        node = NodeProcess(tmp_path / f'log{len(running)}', parameters, env)
        running.append(node)
        if ready:
            robot.wait_until_ready(node)
        return node

    yield start
    for node in running:
        node.kill()
