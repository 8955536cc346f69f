"""
Subscriptions to pictures.

Knows message types, topics and quality of service; a picture is handed on as it came, still
serialised, because most are replaced before anybody asks about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from time import perf_counter
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

from .inbox import Frame, Inbox
from .offers import unheard
from .parameters import topics_of
from .topics import COMPRESSED_IMAGE, EMBEDDINGS, HBM_IMAGE, IMAGE, in_namespace, Topic
from ..errors import BackendMissing, PictureError
from ..node_config import EMBEDDING, NodeConfig

#: seconds without a picture after which a camera is reported, when others go on or its publisher
#: is gone; slow ones send one in five
SILENCE = 10.0

#: checks for which a subscription stays beside its successor: publishers find that within a tenth
#: of a second, on a busy machine within one or two
OVERLAP = 8

READABLE = (IMAGE.interface, COMPRESSED_IMAGE.interface)


def possible_kinds(config: NodeConfig) -> tuple[Topic, ...]:
    """
    Give the message types that a camera may publish, the preferred one first.

    :raises BackendMissing: the package of one is not on this machine
    """
    if config.is_shared_mem_sub:
        kinds: tuple[Topic, ...] = (HBM_IMAGE,)
    else:
        kinds = {
            'raw': (IMAGE,),
            'compressed': (COMPRESSED_IMAGE,),
            'auto': (IMAGE, COMPRESSED_IMAGE),
            EMBEDDING: (EMBEDDINGS,),
        }[config.image_transport]
    for kind in kinds:
        try:
            kind.message_class()
        except ImportError as exc:
            package = kind.kind.split('/')[0]
            raise BackendMissing(
                f'is_shared_mem_sub is {config.is_shared_mem_sub}, and the package {package} is '
                f'not here ({exc})',
                f'install it (apt install tros-humble-{package.replace("_", "-")} on '
                'an RDK board) and source its setup.bash, or set is_shared_mem_sub to 0',
            ) from exc
    return kinds


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


@cache
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
    """
    One topic of pictures, subscribed as its publishers offer it.

    Before there are any it is subscribed reliably: a camera that waits for somebody, and then
    sends one picture, is heard.
    """

    def __init__(self, node: Node, number: int, topic: str, config: NodeConfig, inbox: Inbox):
        """
        Subscribe.

        :param number: place among the cameras
        """
        self.topic = node.resolve_topic_name(topic)
        self._node = node
        self._number = number
        self._inbox = inbox
        self._kinds = possible_kinds(config)
        self._kind = self._kinds[0]
        override = f'qos_overrides.{self.topic}.subscription.reliability'
        self._auto = config.image_qos == 'auto' and override not in node._parameter_overrides
        self._reliable = config.image_qos != 'best_effort'
        # an encoder has the last picture for who comes late; cameras have a new one in a moment
        self._encoded = config.image_transport == EMBEDDING
        self._latched = False
        self._last: bytes = b''
        self._checks = 0  # since the newest subscription
        self._subscriptions: list[Subscription] = []
        self._choose()
        self._subscribe()

    def _publishers(self) -> list[TopicEndpointInfo]:
        publishers: list[TopicEndpointInfo] = self._node.get_publishers_info_by_topic(self.topic)
        return publishers

    def _choose(self) -> bool:
        """Choose message type and reliability by what is offered; whether that is another type."""
        publishers = self._publishers()
        offered = {info.topic_type for info in publishers}
        kind = next((kind for kind in self._kinds if kind.interface in offered), self._kind)
        changed, self._kind = kind is not self._kind, kind
        offers = [info.qos_profile for info in publishers if info.topic_type == kind.interface]
        if self._auto:
            self._reliable = all(
                offer.reliability == ReliabilityPolicy.RELIABLE for offer in offers
            )
        self._latched = self._encoded and all(
            offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers
        )
        return changed

    def _subscribe(self) -> None:
        wish = ReliabilityPolicy.RELIABLE if self._reliable else ReliabilityPolicy.BEST_EFFORT
        keep = DurabilityPolicy.TRANSIENT_LOCAL if self._latched else DurabilityPolicy.VOLATILE
        kinds = [QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH]
        if not self._auto:
            kinds.append(QoSPolicyKind.RELIABILITY)
        message = self._kind.message_class()
        parse = message_reader(message)
        subscription = self._node.create_subscription(
            message,
            self.topic,
            lambda data: self._received(data, parse),
            QoSProfile(
                depth=1, history=HistoryPolicy.KEEP_LAST, reliability=wish, durability=keep
            ),
            qos_overriding_options=QoSOverridingOptions(kinds),
            raw=True,
            # rclpy warns of publishers that do not fit; with auto they will in a moment
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=not self._auto),
        )
        self._subscriptions.append(subscription)

    def _received(self, data: bytes, parse: Callable[[bytes], Any]) -> None:
        if len(self._subscriptions) > 1:  # between two of them a picture may come twice
            if data == self._last:
                return
            self._last = data
        self._inbox.put_frame(self._number, Frame(self.topic, data, parse))

    def match(self) -> None:
        """Subscribe anew where the publishers that came and went offer something else now."""
        self._checks += 1
        if self._checks > OVERLAP:  # the newer one has been found meanwhile
            while len(self._subscriptions) > 1:
                self._node.destroy_subscription(self._subscriptions.pop(0))
        before = self._reliable, self._latched
        if self._choose():
            self.close()  # a topic has one type within a process, so the other comes next time
            self._node.get_logger().info(
                f'{self.topic}: subscribing to {self._kind.kind}, as its publishers offer it'
            )
        elif not self._subscriptions:
            try:
                self._subscribe()
            except RuntimeError as exc:  # the one before has not ended yet
                self._node.get_logger().debug(str(exc))
        elif before != (self._reliable, self._latched):
            self._last, self._checks = b'', 0
            self._subscribe()
            self._node.get_logger().info(
                f'{self.topic}: subscribed {"reliable" if self._reliable else "best effort"}, as '
                'its publishers offer it'
            )

    def describe(self) -> str:
        """Say what is known of the topic, for someone who waits for a picture."""
        publishers = self._publishers()
        count = f'{len(publishers)} publisher{"" if len(publishers) == 1 else "s"}'
        others = sorted({info.topic_type for info in publishers} - {self._kind.interface})
        if others and len(others) == len({info.topic_type for info in publishers}):
            cure = 'image_transport to auto' if others[0] in READABLE else 'its topic'
            return (
                f'{self.topic} ({count} of {", ".join(others)}, where {self._kind.kind} is '
                f'expected: set {cure})'
            )
        if not publishers:
            return f'{self.topic} ({count}{self._elsewhere()})'
        said = [unheard(self._node, each, self._kind.interface) for each in self._subscriptions]
        if not self._auto and any(said):
            return f'{self.topic} ({count}; {said[0]}, or set image_qos to auto)'
        return f'{self.topic} ({count})'

    def _elsewhere(self) -> str:
        """Say where pictures are, while there are none here."""
        shared = in_namespace(HBM_IMAGE.name, self._node.get_namespace())
        plain = in_namespace(IMAGE.name, self._node.get_namespace())
        for name, cure in (
            (f'{self.topic}/compressed', 'set ros_img_sub_topic_name to that'),
            (shared, 'set is_shared_mem_sub to 1'),
            (plain, 'set ros_img_sub_topic_name to that, and is_shared_mem_sub to 0'),
        ):
            topic = self._node.resolve_topic_name(name)
            if topic != self.topic and self._node.count_publishers(topic):
                return f', but pictures on {topic}: {cure}'
        return ''

    def trouble(self, newest: float | None, limit: float) -> str:
        """
        Say what keeps pictures away; empty where they come.

        :param newest: when the newest picture of any camera came; None: there is none
        :param limit: seconds after which a picture is too old; 0: never
        """
        arrival = self._inbox.arrival(self._number)
        if arrival is None or newest is None:
            return f'no picture yet on {self.describe()}'
        age = perf_counter() - arrival
        if (
            (limit and age > limit)
            or newest - arrival > SILENCE
            or (age > SILENCE and not self._publishers())
        ):
            return f'the last picture came {age:.0f} s ago on {self.describe()}'
        return ''

    def close(self) -> None:
        """Unsubscribe; twice is harmless."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())


class Cameras:
    """All cameras of a node; each answer is about the newest picture of each."""

    def __init__(self, node: Node, config: NodeConfig, inbox: Inbox):
        """
        Subscribe to every camera of the configuration.

        :raises BackendMissing: the package of the message type is not here
        """
        names = topics_of(config)
        if config.is_shared_mem_sub:
            names = [in_namespace(HBM_IMAGE.name, node.get_namespace())]
        self._inbox = inbox
        self._cameras = [
            Camera(node, number, name, config, inbox) for number, name in enumerate(names)
        ]

    def match(self) -> None:
        """Follow what the publishers offer."""
        for camera in self._cameras:
            camera.match()

    def describe(self, numbers: Iterable[int]) -> str:
        """Say what is known of some of the topics."""
        return ', '.join(self._cameras[number].describe() for number in numbers)

    def troubles(self, limit: float) -> list[str]:
        """
        Say what keeps pictures away.

        :param limit: seconds after which a picture is too old; 0: never
        """
        arrivals = [self._inbox.arrival(number) for number in range(len(self._cameras))]
        newest = max((time for time in arrivals if time is not None), default=None)
        said = (camera.trouble(newest, limit) for camera in self._cameras)
        return [text for text in said if text]

    def close(self) -> None:
        """Unsubscribe; twice is harmless."""
        for camera in self._cameras:
            camera.close()
