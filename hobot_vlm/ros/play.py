"""
A camera for desks: publishes the pictures of a folder, one after the other.

It stands in for a camera driver in ``local.launch.py`` and knows nothing of models or prompts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
import sys
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
import rclpy
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import Image

from .topics import IMAGE
from ..errors import ConfigError, PictureError, VlmError
from ..image import load_rgb

BUNDLED = Path(__file__).parent.parent / 'demo'
SUFFIXES = frozenset('.avif .bmp .gif .jp2 .jpeg .jpg .png .ppm .tif .tiff .webp'.split())


class PicturePlayer(Node):
    """
    Publishes a picture at every tick.

    ``done`` is fulfilled after the last picture of a round that is not to be repeated.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__('play_images', **kwargs)
        folder = self._option('folder', '', 'folder of the pictures; empty: the bundled sample')
        self._folder = Path(folder or BUNDLED).expanduser()
        self._frame_id = self._option('frame_id', 'camera', 'frame_id of every picture')
        self._loop = self._option(
            'loop',
            True,
            'begin again after the last picture; if not, wait '
            'for a subscriber, play once and exit',
        )
        rate = self._option('rate', 1.0, 'pictures a second', (0.01, 1000.0))
        topic = self._option('topic', IMAGE.name, 'where the pictures go')
        self._round = iter(self._pictures())
        self._left_out: set[Path] = set()
        self._publisher = self.create_publisher(
            Image, topic, QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
        )
        self.done: Future = Future()
        self.create_timer(1.0 / rate, self._tick)
        self.get_logger().info(
            f'playing {self._folder} on {self._publisher.topic_name}, {rate:g} a second'
        )

    def _option(
        self, name: str, default: Any, doc: str, limits: tuple[float, float] | None = None
    ) -> Any:
        descriptor = ParameterDescriptor(description=doc, read_only=True)
        if limits:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=limits[0], to_value=limits[1])
            ]
        return self.declare_parameter(name, default, descriptor).value

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
    rgb = load_rgb(path)
    height, width, _ = rgb.shape
    # An array is taken over as it is; bytes would be checked one by one.
    return Image(
        height=height, width=width, encoding='rgb8', step=3 * width, data=array('B', rgb.tobytes())
    )


def main(args: list[str] | None = None) -> int:
    """Play until interrupted, or to the end of the folder; give the exit status."""
    rclpy.init(args=args)
    player = None
    try:
        player = PicturePlayer()
        rclpy.spin_until_future_complete(player, player.done)
        if player.done.done():
            player.done.result()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except (VlmError, ParameterException) as exc:
        rclpy.logging.get_logger('play_images').fatal(str(exc))
        return 1
    finally:
        if player is not None:
            player.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
