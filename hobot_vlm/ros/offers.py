"""
What the publishers of a topic offer, where a subscription does not hear it.

Such a topic looks alive in the graph, and nothing comes. Knows topics; nothing of what they carry.
"""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import qos_check_compatible, QoSCompatibility
from rclpy.subscription import Subscription


def unheard(node: Node, subscription: Subscription, interface: str) -> str:
    """
    Say what is published on a topic and not heard; empty where all is.

    :param interface: the type of its messages, as the graph spells it
    """
    topic = subscription.topic_name
    for publisher in node.get_publishers_info_by_topic(topic):
        who = f'{topic} is published by {publisher.node_name}'
        if publisher.topic_type != interface:
            return f'{who} as {publisher.topic_type}, where {interface} is expected'
        fits, why = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
        if fits == QoSCompatibility.ERROR:
            return (
                f'{who} with a QoS that is not heard ({why.strip(" ;")[:200]}): change it there, '
                f'or here with qos_overrides.{topic}.subscription'
            )
    return ''
