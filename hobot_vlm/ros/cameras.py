"""
Subscriptions to pictures.

Knows message types, topics and quality of service; a picture is handed on as it came, still
serialised, because most are replaced before anybody asks about them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from .parameters import topics_of
from .topics import COMPRESSED_IMAGE, HBM_IMAGE, IMAGE
from ..config import NodeConfig
from ..errors import BackendMissing, PictureError

OnPicture = Callable[[int, str, bytes], None]


def message_type(config: NodeConfig) -> Any:
    """
    Give the class of the messages that the cameras publish.

    :raises BackendMissing: its package is not on this machine
    """
    topic = HBM_IMAGE if config.is_shared_mem_sub else IMAGE
    if topic is IMAGE and config.image_transport == 'compressed':
        topic = COMPRESSED_IMAGE
    try:
        return topic.message_class()
    except ImportError as exc:
        package = topic.kind.split('/')[0]
        raise BackendMissing(
            f'is_shared_mem_sub is {config.is_shared_mem_sub}, and the package {package} is not '
            f'here ({exc})',
            f'install it (apt install tros-humble-{package.replace("_", "-")} on '
            'an RDK board) and source its setup.bash, or set is_shared_mem_sub to 0',
        ) from exc


def message_reader(kind: Any) -> Callable[[bytes], Any]:
    """
    Give a function that reads serialised messages.

    rosbags, which rosbags-image brings along, does it without copying the pixels one by one; its
    messages have the same fields. Where it is missing, or does not know the message, rclpy reads.
    The function raises PictureError for what is no such message.
    """
    name = f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}'
    decode = decoder(name) or (lambda data: deserialize_message(data, kind))

    def read(data: bytes) -> Any:
        try:
            return decode(data)
        except Exception as exc:  # each library has its own errors
            raise PictureError(f'{len(data)} bytes that are no {name}: {exc}') from exc

    return read


def decoder(name: str) -> Callable[[bytes], Any] | None:
    """Give rosbags' function for messages of this name, where it has one."""
    try:
        from rosbags.typesys import get_typestore, Stores
    except ImportError:
        return None
    store = get_typestore(Stores.ROS2_HUMBLE)  # pictures are the same in all releases
    if name not in store.types:
        return None
    return lambda data: store.deserialize_cdr(data, name)


class Camera:
    """One topic of pictures, subscribed with the reliability that its publishers offer."""

    def __init__(
        self, node: Node, number: int, topic: str, kind: Any, qos: str, on_picture: OnPicture
    ):
        """
        Subscribe.

        :param number: place among the cameras; handed to ``on_picture`` with topic and message
        :param qos: ``auto``, ``best_effort`` or ``reliable``
        """
        self.topic = node.resolve_topic_name(topic)
        self._node = node
        self._number = number
        self._kind = kind
        self._on_picture = on_picture
        override = f'qos_overrides.{self.topic}.subscription.reliability'
        self._auto = qos == 'auto' and override not in node._parameter_overrides
        self._reliable = self._offered() if self._auto else qos == 'reliable'
        self._subscription: Subscription | None = self._subscribe()

    def _offered(self) -> bool:
        """Whether every publisher is reliable, and there is one."""
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        return bool(publishers) and all(
            info.qos_profile.reliability == ReliabilityPolicy.RELIABLE for info in publishers
        )

    def _subscribe(self) -> Subscription:
        wish = ReliabilityPolicy.RELIABLE if self._reliable else ReliabilityPolicy.BEST_EFFORT
        kinds = [QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH]
        if not self._auto:
            kinds.append(QoSPolicyKind.RELIABILITY)
        return self._node.create_subscription(
            self._kind,
            self.topic,
            self._received,
            QoSProfile(depth=1, history=HistoryPolicy.KEEP_LAST, reliability=wish),
            qos_overriding_options=QoSOverridingOptions(kinds),
            raw=True,
            # rclpy warns of publishers that do not fit; with auto they will in a moment
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=not self._auto),
        )

    def _received(self, data: bytes) -> None:
        self._on_picture(self._number, self.topic, data)

    def match(self) -> None:
        """Subscribe anew where the publishers that came and went offer something else now."""
        if self._auto and self._offered() != self._reliable:
            self._reliable = not self._reliable
            self.close()
            self._subscription = self._subscribe()
            self._node.get_logger().info(
                f'{self.topic}: subscribed {"reliable" if self._reliable else "best effort"}, as '
                'its publishers offer it'
            )

    def describe(self) -> str:
        """Say what is known of the topic, for someone who waits for a picture."""
        publishers = self._node.count_publishers(self.topic)
        return f'{self.topic} ({publishers} publisher{"" if publishers == 1 else "s"})'

    def close(self) -> None:
        """Unsubscribe; twice is harmless."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None


def open_cameras(node: Node, config: NodeConfig, on_picture: OnPicture) -> list[Camera]:
    """
    Subscribe to every camera of the configuration.

    :raises BackendMissing: the package of the message type is not here
    """
    kind = message_type(config)
    topics = [HBM_IMAGE.name] if config.is_shared_mem_sub else topics_of(config)
    return [
        Camera(node, number, topic, kind, config.image_qos, on_picture)
        for number, topic in enumerate(topics)
    ]
