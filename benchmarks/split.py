"""
Time answers about new pictures: eyes and words in two processes, and in one; prints JSON.

The encoder takes as long as the language model, and nothing of this machine's time, as one on
another machine does. Pictures come from a third process, all goes through the middleware.

python split.py ENCODER DECODER
"""

from __future__ import annotations

from array import array
import json
import os
from pathlib import Path
import random
import subprocess
import sys
import threading
from time import monotonic, sleep

os.environ.setdefault('FASTDDS_BUILTIN_TRANSPORTS', 'LARGE_DATA')
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

from hobot_vlm.ros.encode_node import EncodeNode
from hobot_vlm.ros.node import VlmNode
import rclpy
from rclpy.executors import MultiThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from report import Report
from scheduling import slow_down
from sensor_msgs.msg import Image

HEIGHT = WIDTH = 448
RATE = 20.0
#: answers that are timed, after some that are not
ANSWERS, BEFORE = 8, 2
RELIABLE = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
#: seconds after which something is wrong
LIMIT = 240.0


def camera() -> None:
    """Publish pictures, none of them twice."""
    rclpy.init()
    node = rclpy.create_node('bench_camera')
    images = node.create_publisher(Image, '/image', RELIABLE)
    message = Image(height=HEIGHT, width=WIDTH, encoding='rgb8', step=3 * WIDTH)
    message.data = array('B', random.Random(0).randbytes(HEIGHT * WIDTH * 3))
    count = 0

    def show() -> None:
        nonlocal count
        count += 1
        message.data[:3] = array('B', count.to_bytes(3, 'big'))
        images.publish(message)

    node.create_timer(1 / RATE, show)
    rclpy.spin(node)


def started(node: VlmNode) -> VlmNode:
    """Serve a node's callbacks, and bring it to where it answers or encodes."""
    executor = MultiThreadedExecutor(4)
    executor.add_node(node)
    threading.Thread(target=executor.spin, daemon=True).start()
    node.trigger_configure()
    return node


def encode(encoder: str, seconds: float) -> None:
    """Be the other machine."""
    rclpy.init()
    options = {'model_file_name': encoder, 'model_type': 0, 'max_tiles': 1, 'max_rate': 0.0}
    node = EncodeNode(parameter_overrides=[Parameter(k, value=v) for k, v in options.items()])
    started(node)
    slow_down(node.assembly.vision, seconds)
    node.trigger_activate()
    threading.Event().wait()


def answers_per_second(node: VlmNode) -> float:
    """Let a node answer about each picture, and count."""
    node.trigger_activate()
    end = monotonic() + LIMIT
    times: list[float] = []
    while len(times) < BEFORE + ANSWERS and monotonic() < end:
        if node.statistics.answered > len(times):
            times.append(monotonic())
        sleep(0.002)
    if node.statistics.failed or len(times) < BEFORE + ANSWERS:
        raise RuntimeError(f'{len(times)} answers, {node.statistics.error or "and no error"}')
    return ANSWERS / (times[-1] - times[BEFORE - 1])


def measure(encoder: str, decoder: str) -> dict[str, float]:
    """Give answers per second of both arrangements, and the seconds of one answer's words."""
    rclpy.init()
    words = {
        **{'llm_model_name': decoder, 'feed_type': 1, 'n_predict': 16, 'trigger': 'image'},
        **{'user_prompt': 'What is this?', 'max_tiles': 1},
    }

    def node(**more: object) -> VlmNode:
        given = [Parameter(k, value=v) for k, v in {**words, **more}.items()]
        return started(VlmNode(parameter_overrides=given))

    def other(*arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, *map(str, arguments)])

    running = [other('camera')]
    try:
        whole = node(model_file_name=encoder, model_type=0)
        # what the language model takes for one picture that is encoded elsewhere
        picture = whole.vlm.encode_image(Path(__file__).parents[1] / 'hobot_vlm/demo/sample.png')
        whole.vlm.ask('Hello', n_predict=4)
        timings = whole.vlm.ask('What is this?', picture).timings
        seconds = (timings.prefill_ms + timings.decode_ms) / 1000
        slow_down(whole.vlm, seconds)
        one = answers_per_second(whole)
        whole.destroy_node()
        running.append(other('encode', encoder, seconds))
        half = node(image_transport='embedding')
        two = answers_per_second(half)
        half.destroy_node()
    finally:
        for process in running:
            process.kill()
            process.wait()
    return {'seconds': seconds, 'one': one, 'two': two}


def bench_split(report: Report, encoder: Path, decoder: Path) -> None:
    """Run this file, and report."""
    done = subprocess.run(
        [sys.executable, __file__, encoder, decoder], check=True, capture_output=True, text=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    section = 'Eyes and words in two processes, an encoder as slow as the words'
    report.add(section, 'words of one answer, s', figures['seconds'])
    report.add(section, 'one process, answers/s', figures['one'])
    report.add(section, 'two processes, answers/s', figures['two'])
    report.add(section, 'two processes, times faster', figures['two'] / figures['one'])


if __name__ == '__main__':
    if sys.argv[1] == 'camera':
        camera()
    elif sys.argv[1] == 'encode':
        encode(sys.argv[2], float(sys.argv[3]))
    else:
        print(json.dumps(measure(*sys.argv[1:])), flush=True)
        os._exit(0)  # rclpy's own threads need not end
