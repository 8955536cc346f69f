"""
The process around the node: its arguments, its threads, its signals and its end.

Knows nothing of what the node does.
"""

from __future__ import annotations

from contextlib import suppress
import io
import logging
import os
import queue
import signal
import sys
import threading
from typing import NoReturn

import rclpy
from rclpy.executors import MultiThreadedExecutor
from rclpy.logging import LoggingSeverity, set_logger_level
from rclpy.signals import SignalHandlerOptions

from . import arguments as command_line
from .node import NAME, VlmNode
from ..errors import VlmError
from ..machine import share_one_heap, take

#: a transition, which may load the model, and beside it what else is called: pictures and prompts,
#: services, diagnostics
THREADS = 4
#: seconds that the model has to come to its end when the process is asked to stop
STOP_SECONDS = 1.0
#: seconds that a callback has for that
CALLBACK_SECONDS = 0.5
#: seconds that all of the end may take: with a reader that was killed, Fast DDS has been seen to
#: take more than ten
END_SECONDS = 5.0


def run(
    arguments: list[str], make: type[VlmNode] = VlmNode, example: str = '-p feed_type:=1'
) -> NoReturn:
    """
    Run a node until it is done or is told to stop.

    The main thread only waits, so that it meets a signal at once, whatever the model does.

    :param make: its class
    :param example: arguments that it is called with, for the help
    """
    name = make.default_name
    share_one_heap()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # an answer may hold any letter
    check_arguments(arguments, name, example)
    # 1. from here on a signal is an exit status like any other
    finished: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: finished.put(0))
    # 2. the node
    start_ros(arguments, name)
    try:
        node = make(finished, command_line.as_typed(arguments))
    except VlmError as exc:
        rclpy.logging.get_logger(name).fatal(str(exc))
        end_ros()
        sys.exit(1)
    # 3. its callbacks, and its start, which may take long
    stopping = threading.Event()
    thread = threading.Thread(target=spin, args=(node, stopping), name='ros', daemon=True)
    thread.start()
    if node.config.autostart:
        threading.Thread(target=node.start, name='start', daemon=True).start()
    # 4. the end
    status = take(finished)
    last = threading.Timer(END_SECONDS, os._exit, (status,))
    last.daemon = True
    last.start()
    ended = node.stop(STOP_SECONDS)
    stopping.set()
    thread.join(CALLBACK_SECONDS)
    node.destroy_node(wait=ended)
    end_ros()
    # What is left is either deep in a library, in a step that cannot be interrupted, or only the
    # end of the interpreter, which takes seconds on a busy board.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def check_arguments(arguments: list[str], program: str, example: str) -> None:
    """Answer --help; end the process where there is something that nobody reads."""
    own = command_line.before_ros(arguments[1:])
    if '--help' in own or '-h' in own:
        print(command_line.usage(program, example))
        sys.exit(0)
    complaint = command_line.complaint(arguments[1:])
    if complaint:
        print(f'{program}: {complaint}', file=sys.stderr)
        print(command_line.usage(program, example), file=sys.stderr)
        sys.exit(2)


def start_ros(arguments: list[str], program: str) -> None:
    """Start rclpy; end the process in one line where it does not take the arguments."""
    # rcl would say that it failed, and not at what
    set_logger_level('rcl', LoggingSeverity.FATAL)
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as exc:  # its classes differ from release to release
        print(f'{program}: {command_line.explained(arguments, exc)}', file=sys.stderr)
        sys.exit(2)
    set_logger_level('rcl', LoggingSeverity.UNSET)


def end_ros() -> None:
    """Leave the graph at once: a context that is only shut down is seen for 20 seconds."""
    context = rclpy.utilities.get_default_context()
    rclpy.try_shutdown()
    context.destroy()


def spin(node: VlmNode, stopping: threading.Event) -> None:
    """Serve the node's callbacks."""
    executor = MultiThreadedExecutor(THREADS)
    executor.add_node(node)
    while rclpy.ok() and not stopping.is_set():
        try:
            executor.spin_once(timeout_sec=0.2)
        except Exception:  # of one callback; the others go on
            logging.getLogger(NAME).exception('a callback has failed')
    executor.shutdown(timeout_sec=CALLBACK_SECONDS)
