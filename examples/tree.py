"""
A behaviour tree that branches on what the camera shows: ``pip install py_trees``, then this.

``Ask`` is a behaviour that any tree can use: it succeeds where the node finds the first of two
answers likely enough, fails where not, and runs meanwhile, so that the tree goes on ticking.
"""

from __future__ import annotations

import json
from uuid import uuid4

import py_trees
from py_trees.common import Status
import rclpy
from rclpy.node import Node
from std_msgs.msg import String


class Ask(py_trees.behaviour.Behaviour):
    """
    Asks one question, by way of ``~/request``.

    :param choices: the answers to choose between; the first one succeeds
    :param least: probability of the first from which on it does
    """

    def __init__(
        self,
        node: Node,
        question: str,
        choices: tuple[str, ...] = ('yes', 'no'),
        least: float = 0.7,
    ):
        super().__init__(question)
        self._question, self._choices, self._least = question, choices, least
        self._requests = node.create_publisher(String, '/hobot_vlm/request', 10)
        node.create_subscription(String, '/hobot_vlm/reply', self._heard, 10)
        self._id, self._reply = '', None

    def _heard(self, message: String) -> None:
        reply = json.loads(message.data)
        if reply.get('id') == self._id:
            self._reply = reply

    def _send(self, **fields: object) -> None:
        self._requests.publish(String(data=json.dumps(fields)))

    def initialise(self) -> None:
        """Ask; the answer is waited for in ``update``."""
        self._id, self._reply = uuid4().hex, None
        self._send(id=self._id, prompt=self._question, choices=self._choices, timeout=10.0)

    def update(self) -> Status:
        """Succeed, fail, or run on."""
        if self._reply is None:
            return Status.RUNNING
        share = self._reply.get('choices', {}).get(self._choices[0], 0.0)
        self.feedback_message = self._reply['error'] or f'{self._choices[0]}: {share:.2f}'
        return Status.SUCCESS if share >= self._least else Status.FAILURE

    def terminate(self, new_status: Status) -> None:
        """Do not wait for an answer that nobody wants any more."""
        if self._id and self._reply is None:
            self._send(cancel=self._id)


class Say(py_trees.behaviour.Behaviour):
    """Stands for what a robot would do."""

    def update(self) -> Status:
        """Print the name."""
        print(self.name, flush=True)
        return Status.SUCCESS


def main() -> None:
    """Tick the tree until it has come to a decision."""
    rclpy.init()
    node = rclpy.create_node('tree')
    greet = py_trees.composites.Sequence('greet', memory=True)
    greet.add_children([Ask(node, 'Is there a dog?'), Say('There is a dog: say hello')])
    root = py_trees.composites.Selector('what to do', memory=True)
    root.add_children([greet, Say('There is no dog: go on')])
    while not (
        node.count_subscribers('/hobot_vlm/request') and node.count_publishers('/hobot_vlm/reply')
    ):
        rclpy.spin_once(node, timeout_sec=0.1)
    while root.status not in (Status.SUCCESS, Status.FAILURE):
        root.tick_once()
        rclpy.spin_once(node, timeout_sec=0.1)
    print(py_trees.display.unicode_tree(root, show_status=True))


if __name__ == '__main__':
    main()
