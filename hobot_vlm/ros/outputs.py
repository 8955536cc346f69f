"""
From answers to messages: speech, result, reply.

Knows topics, message types and the schema of the reply; docs/ros.md describes the latter. What is
published here has been decided elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
import json
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import String

from .inbox import Prompt, Stamp
from ..config import NodeConfig
from ..values import Reply

REPLY_TOPIC = '/hobot_vlm/reply'

SPOKEN = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
#: a late joiner gets the last one
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


@dataclass(frozen=True)
class Shown:
    """
    A picture that a question was asked about.

    :param age: seconds from when it was taken to when the question's turn came
    :param width: in pixels; 0 where it could not be read
    """

    topic: str
    stamp: Stamp
    frame_id: str
    age: float
    width: int = 0
    height: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Give the fields by name, for JSON."""
        return {
            'topic': self.topic,
            'stamp': self.stamp._asdict(),
            'frame_id': self.frame_id,
            'width': self.width,
            'height': self.height,
            'age': round(self.age, 3),
        }


@dataclass(frozen=True)
class Outcome:
    """
    What became of a prompt.

    :param shown: the pictures it was about
    :param error: why there is no whole answer; empty where there is
    """

    prompt: Prompt
    reply: Reply
    shown: tuple[Shown, ...] = ()
    error: str = ''

    @property
    def stamp(self) -> Stamp:
        """When the first picture was taken; without one, when the prompt came."""
        return self.shown[0].stamp if self.shown else self.prompt.stamp

    def as_json(self) -> str:
        """Write the reply as it is published."""
        return json.dumps(
            {
                **self.reply.as_dict(),
                'prompt': self.prompt.text,
                'stamp': self.stamp._asdict(),
                'frame_id': self.shown[0].frame_id if self.shown else '',
                'pictures': [shown.as_dict() for shown in self.shown],
                'error': self.error,
            },
            ensure_ascii=False,
        )


class Outputs:
    """The publishers of a configured node."""

    def __init__(self, node: Node, config: NodeConfig):
        self._node = node
        self._publishers: list[Publisher] = []
        self._speech = self._publisher(String, config.text_msg_pub_topic_name, SPOKEN)
        self._result = self._publisher(String, config.result_pub_topic_name, LATCHED)
        self._reply = self._publisher(String, REPLY_TOPIC, SPOKEN)

    def _publisher(self, kind: type, topic: str, qos: QoSProfile) -> Publisher:
        publisher = self._node.create_publisher(
            kind, topic, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies()
        )
        self._publishers.append(publisher)
        return publisher

    def speak(self, text: str) -> None:
        """Publish a piece of an answer for speech."""
        self._speech.publish(String(data=text))

    def finish(self, outcome: Outcome) -> None:
        """Publish what became of a prompt; a failed one has a reply, but no result."""
        self._reply.publish(String(data=outcome.as_json()))
        if not outcome.error:
            self._result.publish(String(data=outcome.reply.text))

    def flush(self, seconds: float) -> None:
        """Wait until everyone who listens has got everything."""
        for publisher in self._publishers:
            publisher.wait_for_all_acked(Duration(nanoseconds=int(seconds * 1e9)))

    def close(self) -> None:
        """Stop publishing."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
