"""
What a configured encode node consists of: encoder, pictures in, embeddings out.

A callback stores what comes and returns; one thread encodes the newest. Knows no language model,
no lifecycle and no process.
"""

from __future__ import annotations

from array import array
from contextlib import ExitStack
from dataclasses import dataclass
import logging
import math
import threading
from time import perf_counter

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.timer import Timer
from sensor_msgs.msg import CompressedImage
from std_srvs.srv import Trigger

from . import parameters, topics
from .assembly import FLUSH_SECONDS, MATCH_PERIOD
from .cameras import Cameras, possible_kinds
from .diagnostics import Statistics
from .frames import FrameReader, Pictures
from .inbox import Frames, Inbox, Prompt
from .similar import similar, Thumbnails, thumbnails
from ..encoded import EncodedImage
from ..errors import ConfigError, VlmError
from ..node_config import EncodeConfig
from ..vision import Vision

log = logging.getLogger('hobot_vlm.node')

#: a late joiner gets the last one
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


@dataclass
class EncodeStatistics(Statistics):
    """
    Counts since the node started, and times of the last picture.

    :param encoded: pictures that were published
    :param equal: pictures that were not, since they were that of before
    :param encode_ms: from the arrival of the last one to its publication
    :param published_bytes: of the last one
    """

    encoded: int = 0
    equal: int = 0
    encode_ms: float = 0.0
    published_bytes: int = 0

    def values(self) -> dict[str, object]:
        """Give everything worth knowing, by name."""
        return {
            'encoded': self.encoded,
            'equal pictures skipped': self.equal,
            'similar pictures skipped': self.similar,
            'failed': self.failed,
            'last error': self.error,
            'last encode_ms': round(self.encode_ms, 3),
            'last bytes': self.published_bytes,
        }


class EncodeAssembly:
    """Encodes what a camera shows, while it is active."""

    def __init__(self, node: Node, config: EncodeConfig, statistics: EncodeStatistics):
        """
        Load the encoder.

        :raises VlmError: it cannot be, or the configuration is not for it
        """
        self._node = node
        self._config = config
        self._statistics = statistics
        self._reader = FrameReader(node.get_clock())
        self._guard = threading.Lock()  # of the next two, which a timer uses
        self._cameras: Cameras | None = None
        self._match: Timer | None = None
        self._thread: threading.Thread | None = None
        self._last: EncodedImage | None = None
        self._last_thumbnails: Thumbnails | None = None
        self._last_time = -math.inf
        possible_kinds(config)
        if len(parameters.topics_of(config)) > 1:
            raise ConfigError(
                f'{parameters.PICTURES} names several topics: start one encode node for each, '
                'under a name of its own',
                parameters.PICTURES,
            )
        self.inbox = Inbox(1)
        with ExitStack() as undo:
            self._publisher = node.create_publisher(
                CompressedImage,
                topics.EMBEDDING.name,
                LATCHED,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            undo.callback(node.destroy_publisher, self._publisher)
            self.vision = Vision(config)
            undo.callback(self.vision.close)
            self._service = node.create_service(Trigger, topics.ENCODE.name, self._on_encode)
            undo.pop_all()

    def _settings(self) -> EncodeConfig:
        return parameters.current(self._node, self._config)

    # -- states ------------------------------------------------------------------------------

    def activate(self) -> None:
        """Let come pictures, and encode them."""
        self.inbox.open()
        self._cameras = Cameras(self._node, self._config, self.inbox)
        # by a steady clock: that of the node may stand still (use_sim_time without /clock)
        self._match = self._node.create_timer(
            MATCH_PERIOD,
            self._on_match,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._thread = threading.Thread(target=self._run, name='encode', daemon=True)
        self._thread.start()

    def deactivate(self, seconds: float | None = None) -> bool:
        """
        Stop; the last embedding stays for who comes late. Twice is harmless.

        :return: False when the encoder does not come to its end in time
        """
        with self._guard:
            if self._match is not None:
                self._node.destroy_timer(self._match)
                self._match = None
            if self._cameras is not None:
                self._cameras.close()
                self._cameras = None
        self.inbox.close()
        self.inbox.drain()
        self.vision.stop()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def close(self) -> None:
        """Free everything."""
        self.deactivate()
        self.vision.close()
        self._publisher.wait_for_all_acked(Duration(nanoseconds=int(FLUSH_SECONDS * 1e9)))
        self._node.destroy_service(self._service)
        self._node.destroy_publisher(self._publisher)

    # -- what comes in -----------------------------------------------------------------------

    def _on_match(self) -> None:
        """Follow what the camera publishes."""
        with self._guard:
            if self._cameras is not None:
                self._cameras.match()

    def _on_encode(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Have the newest picture encoded; the answer does not wait for that."""
        response.success = bool(self.inbox.newest()) and self.inbox.put(
            Prompt('', self._reader.now())
        )
        response.message = (
            'the newest picture is on its way' if response.success else 'there is no picture yet'
        )
        return response

    # -- encoding ----------------------------------------------------------------------------

    def _run(self) -> None:
        while (work := self.inbox.get(self._due)) is not None:
            asked = isinstance(work, Prompt)
            frames = work if isinstance(work, tuple) else self.inbox.newest()
            try:
                if frames:
                    self._encode(frames, asked, self._settings())
                    self._statistics.error = ''
            except VlmError as exc:
                self._failed(str(exc))
            except Exception as exc:  # whatever happens, the next picture is encoded
                log.debug('', exc_info=exc)
                self._failed(f'{type(exc).__name__}: {exc}')

    def _failed(self, why: str) -> None:
        if self.inbox.closed:  # it was stopped
            return
        self._statistics.failed += 1
        if why != self._statistics.error:  # once, and not for each picture of a broken camera
            self._statistics.error = why
            log.error('no embedding: %s', why)

    def _due(self) -> float:
        """Seconds until a fresh picture is wanted although nobody asks."""
        settings = self._settings()
        if settings.on_demand:
            return math.inf
        gap = 1 / settings.max_rate if settings.max_rate else 0.0
        return max(0.0, self._last_time + gap - perf_counter())

    def _encode(self, frames: Frames, asked: bool, settings: EncodeConfig) -> None:
        """
        Encode a picture and publish it.

        :param asked: whether somebody asked for it; else one like the last is passed over
        """
        pictures = Pictures()
        self._reader.read(frames, pictures)
        (rgb,), (info,) = pictures.rgb, pictures.info
        if isinstance(rgb, EncodedImage):
            raise ConfigError(f'{info.topic} carries pictures that are encoded already')
        small = thumbnails([rgb])
        if settings.skip_similar and not asked:
            if similar(small, self._last_thumbnails):
                self._statistics.similar += 1
                return
        self._last_time = perf_counter()
        encoded = self.vision.encode_image(rgb)
        if not asked and self._last is not None and encoded.key == self._last.key:
            self._statistics.equal += 1
            return
        header, data = encoded.pack(settings.embedding_dtype)
        message = CompressedImage(format=header)
        message.data = array('B', data)
        message.header.stamp.sec, message.header.stamp.nanosec = info.stamp
        message.header.frame_id = info.frame_id
        self._publisher.publish(message)
        self._last, self._last_thumbnails = encoded, small
        self._statistics.encoded += 1
        self._statistics.published_bytes = len(data)
        self._statistics.encode_ms = 1e3 * (perf_counter() - pictures.arrived)

    # -- what there is to say ----------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a picture that was asked for is being encoded."""
        return self.inbox.running is not None

    def troubles(self) -> list[str]:
        """Say what keeps an active node from encoding."""
        return self._cameras.troubles(0.0) if self._cameras is not None else []

    def values(self) -> dict[str, object]:
        """Give counts, by name."""
        return {
            'encoder runtime': self.vision.runtime,
            'family': self.vision.family,
            'listeners': self._publisher.get_subscription_count(),
            'pictures received': self.inbox.received,
            'pictures dropped': self.inbox.dropped,
        }
