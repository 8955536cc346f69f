"""
Lets velocities pass while a standing question is answered with no, and stops otherwise.

THIS IS NO SAFETY FUNCTION. The model says things that are wrong, and is late by as much as it
takes to look. It may keep a robot from driving into a scene that it should not be in; it must not
be what keeps people from harm. That takes certified sensors and a stop that needs no software.

    ros2 run hobot_vlm hobot_vlm --ros-args -p feed_type:=1 \
      -p watch:='["person: Is there a person?"]' -p watch_rate:=5.0 -p max_image_age:=1.0
    python3 stop_on_watch.py --ros-args -p watch:=person -r cmd_vel_in:=/teleop/cmd_vel

Whatever is not known stops: an answer that is stale or has not come yet, and a node that says
nothing on /diagnostics any more.
"""

from __future__ import annotations

import json
from time import monotonic

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import Twist
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Bool, String

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
#: seconds without /diagnostics, which come once a second, after which the node counts as gone
SILENCE = 3.0


class StopOnWatch(Node):
    """Stands between whoever drives (``cmd_vel_in``) and the robot (``cmd_vel``)."""

    def __init__(self) -> None:
        super().__init__('stop_on_watch')
        self._name = self.declare_parameter('watch', 'person').value
        self._answer: bool | None = None
        self._alive = 0.0
        self._out = self.create_publisher(Twist, 'cmd_vel', 10)
        self.create_subscription(Bool, f'/hobot_vlm/watch/{self._name}', self._value, LATCHED)
        self.create_subscription(String, '/hobot_vlm/watch_events', self._event, 10)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._diagnostics, 10)
        self.create_subscription(Twist, 'cmd_vel_in', self._drive, 10)
        self.create_timer(0.1, self._hold)

    @property
    def free(self) -> bool:
        """Whether the robot may move."""
        return self._answer is False and monotonic() - self._alive < SILENCE

    def _value(self, message: Bool) -> None:
        self._answer = message.data
        self._hold()

    def _event(self, message: String) -> None:
        event = json.loads(message.data)
        if event['name'] == self._name:
            self._answer = event['value']  # null: stale
            self._hold()

    def _diagnostics(self, message: DiagnosticArray) -> None:
        if any(status.name == 'hobot_vlm: answers' for status in message.status):
            self._alive = monotonic()

    def _drive(self, message: Twist) -> None:
        self._out.publish(message if self.free else Twist())

    def _hold(self) -> None:
        if not self.free:
            self._out.publish(Twist())


def main() -> None:
    """Run until the end of ROS."""
    rclpy.init()
    try:
        rclpy.spin(StopOnWatch())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


if __name__ == '__main__':
    main()
