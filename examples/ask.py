"""Asks the node about what its camera sees: ``python3 ask.py "Is there a dog?"``."""

import json
import sys

import rclpy
from std_msgs.msg import String

rclpy.init()
node, replies = rclpy.create_node('asker'), []
node.create_subscription(
    String, '/hobot_vlm/reply', lambda m: replies.append(json.loads(m.data)), 10
)
requests = node.create_publisher(String, '/hobot_vlm/request', 10)
while not (requests.get_subscription_count() and node.count_publishers('/hobot_vlm/reply')):
    rclpy.spin_once(node, timeout_sec=0.1)
requests.publish(String(data=json.dumps({'id': 'ask.py', 'prompt': sys.argv[1]})))
while not (mine := [reply for reply in replies if reply.get('id') == 'ask.py']):
    rclpy.spin_once(node)
print(mine[0]['error'] or mine[0]['text'])
