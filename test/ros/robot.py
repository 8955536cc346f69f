"""
The other side of the node's topics and services, and the node as a process of its own.

Nothing here sleeps for a fixed time: it waits for what it wants to see, up to a limit.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from functools import partial
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

LIMIT = 90.0  # seconds; generous, because the machine may be busy
#: seconds in which a node that ended is gone from the graph: one that was only dropped is seen 20
GONE = 15.0
RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
#: for what comes in bursts, such as the pieces of answers
EVERYTHING = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)

SAID = ('/tts_text', '/hobot_vlm/result', '/hobot_vlm/reply')

SERVICES = {
    'cancel': Trigger,
    'reset': Trigger,
    'set_parameters': SetParameters,
    'get_parameters': GetParameters,
    'describe_parameters': DescribeParameters,
    'change_state': ChangeState,
    'get_state': GetState,
}


def spelled(value):
    """Write a value as it stands on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class NodeProcess:
    """
    The node, started as `ros2 run` starts it.

    :param program: what runs it instead, with its arguments
    """

    def __init__(self, log: Path, parameters, env=None, program=('-m', 'hobot_vlm.ros.main')):
        command = [sys.executable, *program, '--ros-args']
        # threads that wait for each other are slow on a machine that does other things too
        for name, value in ({'llm_threads': 1, 'encoder_threads': 1} | parameters).items():
            command += ['-p', f'{name}:={spelled(value)}']
        self._out, self._err = log.with_suffix('.out'), log.with_suffix('.err')
        with open(self._out, 'w') as out, open(self._err, 'w') as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env=os.environ | (env or {})
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def log(self) -> str:
        return self._err.read_text()

    def wait(self, limit=LIMIT) -> int:
        return self.process.wait(limit)

    def stop(self, number=signal.SIGINT) -> tuple[int, float]:
        """Send a signal: (exit status, seconds until the end)."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(LIMIT), time.monotonic() - began

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        """End it as a user would; a process that is killed is still seen for a while."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f'/proc/{self.process.pid}/statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE')


class Robot:
    """Publishes pictures and prompts, and keeps everything that the node publishes."""

    def __init__(self, name='robot'):
        self.node = rclpy.create_node(name)
        self.heard = defaultdict(list)
        self._changed = threading.Condition()
        self._prompts = self.node.create_publisher(String, '/prompt_text', RELIABLE)
        self._requests = self.node.create_publisher(String, '/hobot_vlm/request', RELIABLE)
        self._images = None
        self._stamp = 0
        for topic in SAID:
            self.listen(topic, String)
        self.listen('/hobot_vlm/chunk', String)
        self.listen('/diagnostics', DiagnosticArray)
        self._clients = {
            name: self.node.create_client(kind, f'/hobot_vlm/{name}')
            for name, kind in SERVICES.items()
        }
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._running = True
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        while self._running:
            self._executor.spin_once(timeout_sec=0.05)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._running = False
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()

    # -- listening ---------------------------------------------------------------------------

    def listen(self, topic, kind, qos=EVERYTHING):
        """Keep what comes on a topic; text as such, everything else as the message."""

        def keep(message):
            with self._changed:
                self.heard[topic].append(message.data if kind is String else message)
                self._changed.notify_all()

        return self.node.create_subscription(kind, topic, keep, qos)

    def wait(self, what, condition, limit=LIMIT):
        """Wait until a condition gives something true; asks again when anything is heard."""
        end = time.monotonic() + limit
        with self._changed:
            while True:
                found = condition()
                if found:
                    return found
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f'{what}: not within {limit} s')
                self._changed.wait(min(left, 0.05))

    def listen_for(self, seconds, condition):
        """Wait for a condition for some time; whether it came true."""
        try:
            return self.wait('', condition, seconds)
        except TimeoutError:
            return False

    def wait_until_alone(self):
        """Wait until nothing is seen of the node before: what it would hear, the next misses."""
        self.wait(
            'nobody else',
            lambda: (
                not (
                    self._prompts.get_subscription_count()
                    or self._requests.get_subscription_count()
                    or any(map(self.node.count_publishers, SAID))
                )
            ),
        )

    def wait_until_ready(self, node):
        """Wait until the node listens, and everything that it says is heard."""

        def ready():
            assert node.process.poll() is None, node.log
            return (
                'ready' in node.log
                and self._prompts.get_subscription_count()
                and all(map(self.node.count_publishers, SAID))
            )

        self.wait('ready', ready)

    def replies(self):
        """Give every reply so far."""
        return [json.loads(text) for text in self.heard['/hobot_vlm/reply']]

    def status(self):
        """Give the node's latest status."""
        arrays = self.heard['/diagnostics']
        return arrays[-1].status[0] if arrays else None

    def values(self):
        """Give the values of the latest status, by name."""
        return {value.key: value.value for value in self.status().values}

    def settle(self):
        """Wait until every answer has been heard on every topic, and forget them."""
        self.wait(
            'as many results as answers',
            lambda: (
                len(self.heard['/hobot_vlm/result'])
                == sum(not reply['error'] for reply in self.replies())
            ),
        )
        self.wait(
            'speech of every answer',
            lambda: ''.join(self.heard['/tts_text']) == ''.join(self.heard['/hobot_vlm/result']),
        )
        with self._changed:
            self.heard.clear()

    def clear(self):
        """Forget what was heard."""
        with self._changed:
            self.heard.clear()

    # -- acting ------------------------------------------------------------------------------

    def say(self, text):
        """Publish a prompt."""
        self._prompts.publish(String(data=text))

    def request(self, fields):
        """Publish a request; text goes as it is."""
        text = fields if isinstance(fields, str) else json.dumps(fields)
        self.wait('requests are read', self._requests.get_subscription_count)
        self._requests.publish(String(data=text))

    def reply_to(self, number, limit=LIMIT):
        """Wait for the reply to the request with this id."""

        def found():
            return [reply for reply in self.replies() if reply.get('id') == number]

        return self.wait(f'a reply to request {number!r}', found, limit)[0]

    def ask(self, text, limit=LIMIT):
        """Publish a prompt and wait for its reply."""
        before = len(self.heard['/hobot_vlm/reply'])
        self.say(text)
        self.wait(
            f'a reply to {text[:60]!r}',
            lambda: len(self.heard['/hobot_vlm/reply']) > before,
            limit,
        )
        return json.loads(self.heard['/hobot_vlm/reply'][before])

    def camera(self, qos=RELIABLE, topic='/image', kind=Image):
        """Become a camera, in place of the one before; gives the publisher once it is matched."""
        if self._images is not None:
            self.node.destroy_publisher(self._images)
        self._images = self.node.create_publisher(kind, topic, qos)
        self.wait('a subscriber of pictures', self._images.get_subscription_count)
        return self._images

    def ask_about(self, message, text, limit=LIMIT):
        """
        Show a picture and ask about it.

        Like a camera, publishes until the reply has come, and asks again if that is about another
        picture.
        """
        self._stamp += 1
        message.header.stamp.sec = self._stamp
        end = time.monotonic() + limit
        while True:
            before = len(self.heard['/hobot_vlm/reply'])
            self.say(text)
            while len(self.heard['/hobot_vlm/reply']) == before:
                if time.monotonic() > end:
                    raise TimeoutError(f'no reply about the picture within {limit} s')
                self._images.publish(message)
                self.listen_for(0.2, partial(self._has_replies, before + 1))
            reply = json.loads(self.heard['/hobot_vlm/reply'][before])
            if reply['stamp']['sec'] == self._stamp:
                return reply

    def _has_replies(self, count):
        return len(self.heard['/hobot_vlm/reply']) >= count

    def call(self, service, request=None):
        """Call one of the node's services."""
        client = self._clients[service]
        self.wait(f'service {service}', client.service_is_ready)
        future = client.call_async(request or SERVICES[service].Request())
        self.wait(f'an answer of {service}', future.done)
        return future.result()

    def set(self, name, value):
        """Set one of the node's parameters; gives what the node says to it."""
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        (result,) = self.call('set_parameters', request).results
        return result


def image(rgb, encoding='rgb8', frame_id='camera', stamp=(0, 0)):
    """Make a message of an RGB array."""
    height, width = rgb.shape[:2]
    message = Image(encoding=encoding, height=height, width=width, step=3 * width)
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = stamp
    message.data = array('B', np.ascontiguousarray(rgb).tobytes())
    return message
