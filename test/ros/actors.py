"""
Processes around the node that a test can kill: a camera, somebody who asks, the node watched.

python actors.py camera RATE                 publishes a new picture RATE times a second
python actors.py asker COUNT                 publishes prompts; prints a line once all of them are
                                             acknowledged, and goes on publishing
python actors.py talk COUNT                  asks that many prompts in a row; prints the replies
python actors.py slow FILE --ros-args ...    the node, whose model is loaded once FILE is there
python actors.py endless --ros-args ...      the node; an answer that may be longer than LONG has
                                             SOME tokens, and lasts until it is cancelled
python actors.py node FILE --ros-args ...    the node; FILE gets a line of JSON for each callback:
                                             its seconds, or a prompt and the picture before it
"""

from __future__ import annotations

from array import array
import json
import os
from pathlib import Path
import struct
import sys
from time import perf_counter, sleep

from hobot_vlm.engine.scheduler import Scheduler
from hobot_vlm.ros import assembly, main
from hobot_vlm.ros.inbox import Inbox
from hobot_vlm.vlm import read_image
import rclpy
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

SAMPLE = Path(__file__).parents[2] / 'hobot_vlm' / 'demo' / 'sample.png'
#: with best effort, Fast DDS loses half of the pictures of this size
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
#: tokens of an answer that is to last, and how many of them are made
LONG, SOME = 1000, 200


def camera(rate: float) -> None:
    """Publish the bundled sample at 640 x 480; one pixel counts, so no two are the same."""
    rclpy.init()
    node = rclpy.create_node('camera')
    publisher = node.create_publisher(Image, '/image', NEWEST)
    rgb = read_image(SAMPLE)
    rows = [i * rgb.shape[0] // 480 for i in range(480)]
    columns = [i * rgb.shape[1] // 640 for i in range(640)]
    message = Image(height=480, width=640, encoding='rgb8', step=3 * 640)
    message.header.frame_id = 'camera'
    message.data = array('B', rgb[rows][:, columns].tobytes())
    count = 0

    def show() -> None:
        nonlocal count
        count += 1
        message.data[:3] = array('B', count.to_bytes(3, 'big'))
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)

    node.create_timer(1 / rate, show)
    rclpy.spin(node)


def asker(count: int) -> None:
    """Publish prompts; at most every three seconds the middleware says which have arrived."""
    rclpy.init()
    node = rclpy.create_node('asker')
    publisher = node.create_publisher(String, '/prompt_text', RELIABLE)
    while not publisher.get_subscription_count():
        sleep(0.01)
    for number in range(count + 10):  # and then it waits to be killed
        publisher.publish(String(data=f'Question {number}'))
        if number == count - 1:
            print(publisher.wait_for_all_acked(Duration(seconds=30)), flush=True)
        sleep(0.01)
    sleep(600)


def talk(count: int) -> None:
    """Ask, wait for the reply, and ask again."""
    rclpy.init()
    node = rclpy.create_node('talk')
    publisher = node.create_publisher(String, '/prompt_text', RELIABLE)
    replies = []

    def heard(message: String) -> None:
        replies.append(message.data)
        print(message.data, flush=True)
        if len(replies) < count:
            publisher.publish(String(data=f'Question {len(replies)}'))

    node.create_subscription(String, '/hobot_vlm/reply', heard, RELIABLE)
    while not (publisher.get_subscription_count() and node.count_publishers('/hobot_vlm/reply')):
        sleep(0.01)
    publisher.publish(String(data='Question 0'))
    while len(replies) < count:
        rclpy.spin_once(node, timeout_sec=0.1)


def watched_node(path: str) -> None:
    """Run the node, and note how long its callbacks take and what they meet."""
    lines = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    put_frame, on_prompt = Inbox.put_frame, assembly.Assembly._on_prompt
    newest = (0, 0)

    def note(**what: object) -> None:
        os.write(lines, (json.dumps(what) + '\n').encode())

    def watched_picture(self, camera, frame) -> None:
        nonlocal newest
        began = perf_counter()
        put_frame(self, camera, frame)
        seconds = perf_counter() - began
        newest = struct.unpack_from('<iI', frame.data, 4)  # the stamp comes first
        note(seconds=seconds)

    def watched_prompt(self, message) -> None:
        note(prompt=message.data, newest=newest)
        on_prompt(self, message)

    Inbox.put_frame = watched_picture
    assembly.Assembly._on_prompt = watched_prompt
    main.main(['hobot_vlm', *sys.argv[3:]])


def slow_node(path: str) -> None:
    """Run the node with a model that takes as long to load as the test wants."""
    load = assembly.VLM

    def load_later(config):
        while not Path(path).exists():
            sleep(0.01)
        return load(config)

    assembly.VLM = load_later
    main.main(['hobot_vlm', *sys.argv[3:]])


def endless_node() -> None:
    """Run the node; so no answer is over before a test gets there, however slow the test is."""
    step = Scheduler._step

    def step_of_others(self, planned):
        going = [
            (sequence, run)
            for sequence, run in planned
            if sequence.config.n_predict <= LONG or len(sequence.tokens) < SOME
        ]
        if planned and not going:
            sleep(0.002)
        step(self, going)

    Scheduler._step = step_of_others
    main.main(['hobot_vlm', *sys.argv[2:]])


if __name__ == '__main__':
    if sys.argv[1] == 'camera':
        camera(float(sys.argv[2]))
    elif sys.argv[1] == 'asker':
        asker(int(sys.argv[2]))
    elif sys.argv[1] == 'talk':
        talk(int(sys.argv[2]))
    elif sys.argv[1] == 'slow':
        slow_node(sys.argv[2])
    elif sys.argv[1] == 'endless':
        endless_node()
    else:
        watched_node(sys.argv[2])
