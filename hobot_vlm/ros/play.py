"""
A camera for desks: publishes the pictures of a folder, one after the other.

It stands in for a camera driver in ``local.launch.py`` and knows nothing of models or prompts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
import signal
import threading
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import Image

from . import arguments as command_line
from .parameters import as_text, check_topic
from .process import check_arguments, end_ros, start_ros
from .topics import IMAGE, in_namespace
from ..errors import ConfigError, PictureError, VlmError
from ..vlm import read_image

NAME = 'play_images'
BUNDLED = Path(__file__).parent.parent / 'demo'
#: pictures a second
SLOWEST, FASTEST = 0.01, 1000.0
SUFFIXES = frozenset('.avif .bmp .gif .jp2 .jpeg .jpg .png .ppm .tif .tiff .webp'.split())


class PicturePlayer(Node):
    """
    Publishes a picture at every tick.

    ``done`` is fulfilled after the last picture of a round that is not to be repeated.
    """

    def __init__(self, typed: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        """
        Begin to play.

        :param typed: what stands on the command line for each parameter
        :raises ConfigError: a parameter with a value that it cannot have
        """
        super().__init__(NAME, **kwargs)
        self._typed = typed
        try:
            folder = self._text('folder', '', 'folder of the pictures; empty: the bundled sample')
            self._folder = Path(folder or BUNDLED).expanduser()
            self._frame_id = self._text('frame_id', 'camera', 'frame_id of every picture')
            self._loop = self._loops()
            rate = self._rate()
            named = in_namespace(IMAGE.name, self.get_namespace())
            topic = self._text('topic', named, 'where the pictures go')
            check_topic(self, 'topic', topic)
            self._round = iter(self._pictures())
        except VlmError:
            self.destroy_node()
            raise
        self._left_out: set[Path] = set()
        self._publisher = self.create_publisher(
            Image, topic, QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        )
        self.done: Future = Future()
        # by a steady clock: that of the node may stand still (use_sim_time without /clock)
        self.create_timer(1.0 / rate, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.get_logger().info(
            f'playing {self._folder} on {self._publisher.topic_name}, {rate:g} a second'
        )

    def _option(self, name: str, default: Any, doc: str) -> Any:
        descriptor = ParameterDescriptor(description=doc, read_only=True, dynamic_typing=True)
        return self.declare_parameter(name, default, descriptor).value

    def _text(self, name: str, default: str, doc: str) -> str:
        value = as_text(self._option(name, default, doc), self._typed.get(name, ()))
        if not isinstance(value, str):
            raise ConfigError(f'{name} is {str(value)[:80]}: expected text', name)
        return value

    def _loops(self) -> bool:
        doc = 'begin again after the last picture; if not, wait for a subscriber, play once, exit'
        value = self._option('loop', True, doc)
        if value not in (True, False):
            raise ConfigError(f'loop is {str(value)[:80]!r}: expected true or false', 'loop')
        return bool(value)

    def _rate(self) -> float:
        value = self._option('rate', 1.0, 'pictures a second')
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not SLOWEST <= value <= FASTEST:
            raise ConfigError(
                f'rate is {str(value)[:80]!r}: expected a number from {SLOWEST:g} to {FASTEST:g}',
                'rate',
            )
        return float(value)

    def _pictures(self) -> list[Path]:
        """List the folder, which may have changed since the last round."""
        try:
            paths = sorted(p for p in self._folder.iterdir() if p.suffix.lower() in SUFFIXES)
        except OSError as exc:
            raise ConfigError(
                f'folder: cannot read {self._folder}: {exc.strerror}', 'folder'
            ) from exc
        if not paths:
            raise ConfigError(f'folder: there is no picture in {self._folder}', 'folder')
        return paths

    def _tick(self) -> None:
        if not self._loop:
            if not self._publisher.get_subscription_count():
                return
            # Each picture comes once, so the last must be there before it is replaced.
            self._publisher.wait_for_all_acked(Duration(seconds=5))
        try:
            message = self._next()
        except VlmError as exc:
            self.done.set_exception(exc)
            return
        if message is None:
            self.done.set_result(None)
            return
        message.header.stamp = self.get_clock().now().to_msg()
        message.header.frame_id = self._frame_id
        self._publisher.publish(message)

    def _next(self) -> Image | None:
        """Give the next picture that can be read, or None after the last."""
        message = self._first_readable(self._round)
        if message is None and self._loop:
            self._round = iter(self._pictures())
            message = self._first_readable(self._round)
            if message is None:
                raise PictureError(f'folder: no picture in {self._folder} can be read')
        return message

    def _first_readable(self, paths: Iterator[Path]) -> Image | None:
        for path in paths:
            try:
                return to_message(path)
            except PictureError as exc:
                if path not in self._left_out:
                    self._left_out.add(path)
                    self.get_logger().warning(f'left out: {exc}')
        return None


def to_message(path: Path) -> Image:
    """
    Read a picture as an rgb8 message without stamp.

    :raises PictureError: it cannot be read
    """
    rgb = read_image(path)
    height, width, _ = rgb.shape
    # An array is taken over as it is; bytes would be checked one by one.
    return Image(
        height=height, width=width, encoding='rgb8', step=3 * width, data=array('B', rgb.tobytes())
    )


def run(arguments: list[str]) -> int:
    """Play until interrupted, or to the end of the folder; give the exit status."""
    check_arguments(arguments, NAME, '-p folder:=$HOME/Pictures -p rate:=2')
    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    start_ros(arguments, NAME)
    try:
        player = PicturePlayer(command_line.as_typed(arguments))
        while not (interrupted.is_set() or player.done.done()):
            rclpy.spin_once(player, timeout_sec=0.1)
        player.destroy_node()
        if player.done.done():
            player.done.result()
    except VlmError as exc:
        rclpy.logging.get_logger(NAME).fatal(str(exc))
        return 1
    finally:
        end_ros()
    return 0
