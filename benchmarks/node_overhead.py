"""
Time what the node adds to the model, for a 1920 x 1080 rgb8 image; prints one JSON object.

The node runs in this process, its camera and its prompts in another, so that everything goes
through the middleware. The medians, in milliseconds:

input_ms      the newest of image and prompt has arrived -> the model is called
publish_ms    the model gave its last text -> the answer is published
callback_ms   how long the image callback takes; callback_p99_ms is its 99th percentile
"""

from __future__ import annotations

import argparse
from array import array
import json
import os
import random
from statistics import median, quantiles
import subprocess
import sys
from time import monotonic, perf_counter, sleep

os.environ.setdefault('FASTDDS_BUILTIN_TRANSPORTS', 'LARGE_DATA')
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

from hobot_vlm.ros.inbox import Frame
from hobot_vlm.ros.node import VlmNode
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

HEIGHT, WIDTH = 1080, 1920
RATE = 10.0
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)


def play() -> None:
    """Be the camera, and whoever asks: a new picture, and a question when the last is answered."""
    rclpy.init()
    node = rclpy.create_node('bench_camera')
    images = node.create_publisher(Image, '/image', RELIABLE)
    prompts = node.create_publisher(String, '/prompt_text', RELIABLE)
    message = Image(height=HEIGHT, width=WIDTH, encoding='rgb8', step=3 * WIDTH)
    message.data = array('B', random.Random(0).randbytes(HEIGHT * WIDTH * 3))

    def show() -> None:
        message.data[0] = (message.data[0] + 1) % 256
        images.publish(message)

    def ask(answer: String | None = None) -> None:
        prompts.publish(String(data='Describe the picture.'))

    node.create_subscription(String, '/hobot_vlm/result', ask, RELIABLE)
    node.create_timer(1 / RATE, show)
    while not (prompts.get_subscription_count() and node.count_publishers('/hobot_vlm/result')):
        sleep(0.05)
    ask()
    rclpy.spin(node)


class TimedNode(VlmNode):
    """Keeps the times of every answer and of every image callback."""

    def __init__(self) -> None:
        super().__init__(
            parameter_overrides=[Parameter('feed_type', value=1), Parameter('n_predict', value=4)]
        )
        self.input_ms: list[float] = []
        self.publish_ms: list[float] = []
        self.callback_ms: list[float] = []

    def watch(self) -> None:
        """Time what the cameras call with each picture."""
        assert self.assembly is not None
        put_frame = self.assembly.inbox.put_frame

        def timed(camera: int, frame: Frame) -> None:
            began = perf_counter()
            put_frame(camera, frame)
            self.callback_ms.append(1e3 * (perf_counter() - began))
            if self.statistics.answered > len(self.input_ms):
                self.input_ms.append(self.statistics.input_ms)
                self.publish_ms.append(self.statistics.publish_ms)

        self.assembly.inbox.put_frame = timed  # type: ignore[method-assign]


def measure(answers: int, limit: float) -> dict[str, float]:
    """Run the node until so many prompts have been answered."""
    rclpy.init(args=['--ros-args', '--log-level', 'warn'])
    node = TimedNode()
    node.start()
    node.watch()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    player = subprocess.Popen([sys.executable, __file__, '--play'])
    end = monotonic() + limit
    try:
        while len(node.input_ms) < answers + 3:
            if monotonic() > end or player.poll() is not None:
                raise SystemExit(f'only {len(node.input_ms)} answers in {limit:.0f} s')
            executor.spin_once(timeout_sec=0.2)
    finally:
        player.kill()
        player.wait()
        node.stop(10)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    inputs, outputs = node.input_ms[3:], node.publish_ms[3:]  # the first ones warm up
    return {
        'input_ms': round(median(inputs), 3),
        'publish_ms': round(median(outputs), 3),
        'overhead_ms': round(median(inputs) + median(outputs), 3),
        'callback_ms': round(median(node.callback_ms), 3),
        'callback_p99_ms': round(quantiles(node.callback_ms, n=100)[98], 3),
        'answers': len(inputs),
        'images': len(node.callback_ms),
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--answers', type=int, default=60)
    parser.add_argument('--limit', type=float, default=120.0, help='seconds')
    parser.add_argument('--play', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play()
    os.environ.setdefault('ROS_DOMAIN_ID', str(random.randrange(1, 100)))
    print(json.dumps(measure(options.answers, options.limit)))


if __name__ == '__main__':
    main()
