"""
The publishers of answers: speech, result, reply, perception, boxes, pieces of requests, watches.

Knows topics and quality of service. What is published here has been decided elsewhere;
docs/reply.md describes the reply.
"""

from __future__ import annotations

from collections.abc import Callable
import json
from time import monotonic, sleep

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Bool, String

from . import topics
from .annotated import Annotated
from .outcome import Outcome
from .perception import detections, perception_targets
from ..config import NodeConfig

#: deep enough for a burst: pieces of some hundred answers side by side
SPOKEN = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
PIECES = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
#: a late joiner gets the last one
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


class WatchPublishers:
    """The publishers of the standing questions; used by one thread at a time."""

    def __init__(self, node: Node):
        self._node = node
        self._values: dict[str, Publisher] = {}
        self._events = node.create_publisher(String, topics.WATCH_EVENTS.name, SPOKEN)

    def open(self, name: str) -> None:
        """Let there be the topic of a question."""
        topic = topics.WATCH.name.replace('<name>', name)
        self._values[name] = self._node.create_publisher(Bool, topic, LATCHED)

    def close(self, name: str) -> None:
        """End the topic of a question, and with it the value that late joiners get."""
        self._node.destroy_publisher(self._values.pop(name))

    def value(self, name: str, value: bool) -> None:
        """Publish the answer to a question."""
        self._values[name].publish(Bool(data=value))

    def event(self, text: str) -> None:
        """Publish what became of a question."""
        self._events.publish(String(data=text))

    def close_all(self) -> None:
        """End all topics."""
        for name in list(self._values):
            self.close(name)
        self._node.destroy_publisher(self._events)


class Publishers:
    """The publishers of a configured node."""

    def __init__(
        self, node: Node, config: NodeConfig, on_reply: Callable[[Outcome], None] = lambda _: None
    ):
        """
        Begin to publish.

        :param on_reply: given what became of a prompt or a request, once that is published
        """
        self._node = node
        self._on_reply = on_reply
        self._annotated = Annotated(node)  # for which no first answer waits
        self._publishers: list[Publisher] = []
        self._began = monotonic()
        self._speech = self._publisher(String, config.text_msg_pub_topic_name, SPOKEN)
        self._result = self._publisher(String, config.result_pub_topic_name, LATCHED)
        self._reply = self._publisher(String, topics.REPLY.name, SPOKEN)
        self._chunk = self._publisher(String, topics.CHUNK.name, PIECES)
        self._detection = bool(config.parser_mode)
        self._targets = self._optional(topics.TARGETS, config.ai_msg_pub_topic_name)
        self._detections: Publisher | None = None
        if self._detection:
            self._detections = self._optional(topics.DETECTIONS, topics.DETECTIONS.name)

    def _publisher(self, kind: type, topic: str, qos: QoSProfile) -> Publisher:
        publisher = self._node.create_publisher(
            kind, topic, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )
        self._publishers.append(publisher)
        return publisher

    def _optional(self, topic: topics.Topic, name: str) -> Publisher | None:
        """Make a publisher of messages whose package need not be installed."""
        try:
            kind = topic.message_class()
        except ImportError:
            package, name = topic.kind.split('/')[0], self._node.resolve_topic_name(name)
            self._node.get_logger().info(f'{package} is not installed: nothing on {name}')
            return None
        return self._publisher(kind, name, SPOKEN)

    def speak(self, text: str) -> None:
        """Publish a piece of an answer for speech."""
        self._speech.publish(String(data=text))

    def finish(self, outcome: Outcome) -> None:
        """Publish what became of a prompt; a failed one has a reply, but no result."""
        self.reply(outcome)
        if outcome.error:
            return
        self._result.publish(String(data=outcome.reply.text))
        if self._targets is not None:
            self._targets.publish(perception_targets(outcome, self._detection))
        if self._detections is not None:
            self._detections.publish(detections(outcome))
        self.annotate(outcome)

    def reply(self, outcome: Outcome) -> None:
        """Publish the reply to a prompt or a request."""
        self._reply.publish(String(data=outcome.as_json()))
        self._on_reply(outcome)

    def annotate(self, outcome: Outcome) -> None:
        """Publish the picture with the answer on it; that takes a while where somebody listens."""
        self._annotated.publish(outcome)

    def chunk(self, number: str, text: str) -> None:
        """Publish a piece of the answer to the request with this id."""
        data = json.dumps({'id': number, 'text': text}, ensure_ascii=False)
        self._chunk.publish(String(data=data))

    def wait_for_listeners(self, seconds: float) -> None:
        """
        Wait until each topic has a subscriber, but no longer than some time after the beginning.

        Nobody may listen, and who does is not found at once: what is published before is lost.
        """
        end = self._began + seconds
        while monotonic() < end and not all(p.get_subscription_count() for p in self._publishers):
            sleep(0.01)

    def flush(self, seconds: float) -> None:
        """Wait until everyone who listens has got everything."""
        for publisher in self._publishers:
            publisher.wait_for_all_acked(Duration(nanoseconds=int(seconds * 1e9)))

    def close(self) -> None:
        """Stop publishing."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
        self._annotated.close()
