"""
The entries of the programs: signals have their meaning before anything is loaded.

Imports as little as it can; loading rclpy and llama.cpp takes a second, and Ctrl-C may come in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
import signal
import sys


def leave_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process at once; there is nothing yet to be undone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))


@contextmanager
def with_ros(program: str) -> Iterator[None]:
    """Say what is missing where there is no ROS; exit status 1, as for all that stops a start."""
    try:
        yield
    except ModuleNotFoundError as exc:
        name = (exc.name or '').partition('.')[0]
        if name in ('', 'hobot_vlm'):
            raise
        sys.exit(
            f'{program}: Python finds no {name}. Source a ROS 2 installation (source '
            '/opt/ros/humble/setup.bash, /opt/tros/humble/setup.bash on an RDK board), and use '
            'its Python; `vlm` needs no ROS.'
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the node."""
    leave_on_signals()
    with with_ros('hobot_vlm'):
        from .process import run

    run(sys.argv if arguments is None else arguments)


def encode(arguments: list[str] | None = None) -> None:
    """Run the node that encodes pictures for a language model elsewhere."""
    leave_on_signals()
    from .encode_node import EncodeNode
    from .process import run

    example = '-p model_file_name:=vision.onnx -p model_type:=0'
    run(sys.argv if arguments is None else arguments, EncodeNode, example)


def play_images(arguments: list[str] | None = None) -> None:
    """Run the publisher that takes a camera's place."""
    leave_on_signals()
    with with_ros('play_images'):
        from .play import run

    sys.exit(run(sys.argv if arguments is None else arguments))


if __name__ == '__main__':
    main()
