"""
The entries of the programs: signals have their meaning before anything is loaded.

Imports as little as it can; loading rclpy and llama.cpp takes a second, and Ctrl-C may come in it.
"""

from __future__ import annotations

import os
import signal
import sys


def leave_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process at once; there is nothing yet to be undone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))


def main(arguments: list[str] | None = None) -> None:
    """Run the node."""
    leave_on_signals()
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
    from .play import run

    sys.exit(run(sys.argv if arguments is None else arguments))


if __name__ == '__main__':
    main()
