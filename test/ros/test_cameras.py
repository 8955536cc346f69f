"""Cameras: what they publish, when they come and stop, what their clocks say."""

from __future__ import annotations

from array import array
from functools import partial
from io import BytesIO

from hobot_vlm.node_config import NodeConfig
from hobot_vlm.ros.cameras import Cameras
from hobot_vlm.ros.inbox import Inbox
from hobot_vlm.ros.offers import unheard
import numpy as np
from PIL import Image as Pillow
import pytest
import rclpy
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Int32, String

from .conftest import SAMPLE
from .robot import BEST_EFFORT, image, RELIABLE

QUESTION = 'Describe the picture.'
OK, WARN = b'\0', b'\1'
RELY, BEST = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
KEEP, FORGET = DurabilityPolicy.TRANSIENT_LOCAL, DurabilityPolicy.VOLATILE


@pytest.fixture(scope='module')
def rgb():
    return np.asarray(Pillow.open(SAMPLE).convert('RGB').resize((640, 480)))


@pytest.fixture
def stranger(ros):
    """Give a function that makes a publisher as of another process: there a type is another."""
    nodes = []

    def publisher(kind, topic='/image', qos=RELIABLE):
        context = Context()
        rclpy.init(context=context)
        nodes.append(rclpy.create_node('stranger', context=context))
        return nodes[-1], nodes[-1].create_publisher(kind, topic, qos)

    yield publisher
    for node in nodes:
        node.destroy_node()
        node.context.shutdown()


@pytest.fixture
def publish(robot):
    """Give a function that makes a publisher; it ends with the test."""
    made = []

    def publisher(kind, topic, qos=RELIABLE):
        made.append(robot.node.create_publisher(kind, topic, qos))
        return made[-1]

    yield publisher
    for one in made:
        robot.node.destroy_publisher(one)


def compressed(rgb):
    file = BytesIO()
    Pillow.fromarray(rgb).save(file, 'PNG')
    return CompressedImage(format='png', data=array('B', file.getvalue()))


def warned(robot, *words):
    """Wait for a warning on /diagnostics that holds these words."""

    def said():
        status = robot.status()
        return status and status.level == WARN and all(word in status.message for word in words)

    robot.wait(f'a warning of {words}', said)
    return robot.status().message


def fine(robot):
    robot.wait('no warning', lambda: robot.status() and robot.status().level == OK)


def test_a_camera_that_compresses_is_found(robot, start, stranger, rgb):
    """The type is seen in the graph; and back to plain pictures."""
    node = start(feed_type=1)
    robot.clear()
    warned(robot, 'no picture yet on /image (0 publishers)')
    for kind, message in ((CompressedImage, compressed(rgb)), (Image, image(rgb))):
        other, camera = stranger(kind)
        robot.wait('a subscriber', camera.get_subscription_count)
        robot.clear()
        robot.request({'id': kind.__name__, 'prompt': QUESTION})
        robot.wait('a reply', lambda c=camera, m=message: c.publish(m) or robot.replies())
        assert 'dog' in robot.replies()[0]['text']
        assert robot.replies()[0]['pictures'][0]['width'] == 640
        fine(robot)
        other.destroy_node()
    assert 'subscribing to sensor_msgs/CompressedImage' in node.log
    assert 'subscribing to sensor_msgs/Image' in node.log


@pytest.mark.parametrize(
    'transport, kind, cure',
    [
        ('raw', CompressedImage, 'set image_transport to auto'),
        ('compressed', Image, 'set image_transport to auto'),
        ('auto', Int32, 'set its topic'),
    ],
)
def test_a_camera_of_another_type_is_reported(robot, start, stranger, transport, kind, cure):
    """On /diagnostics, and in the log of a prompt that waits."""
    robot.clear()
    stranger(kind)
    node = start(feed_type=1, image_transport=transport)
    said = warned(robot, '/image (1 publisher of ', f'/msg/{kind.__name__}', cure)
    robot.say(QUESTION)
    robot.wait('it says that it waits', lambda: 'a prompt waits for the first picture' in node.log)
    assert said.partition('/image')[2] in node.log
    assert robot.status().level == WARN  # a node that waits is not healthy
    assert robot.call('cancel').success


@pytest.mark.parametrize(
    'topic, kind, cure',
    [
        ('/image/compressed', CompressedImage, 'set ros_img_sub_topic_name to that'),
        ('/hbmem_img', Int32, 'set is_shared_mem_sub to 1'),
    ],
)
def test_a_camera_on_another_topic_is_found(robot, start, publish, topic, kind, cure):
    robot.clear()
    publish(kind, topic)
    start(feed_type=1)
    warned(robot, f'/image (0 publishers, but pictures on {topic}: {cure})')


def test_prompts_of_another_type_are_reported(robot, start, stranger):
    robot.clear()
    start(feed_type=2)
    robot.wait('it is fine', lambda: robot.status() and robot.status().message == 'idle')
    other, _ = stranger(Int32, '/prompt_text')
    warned(robot, '/prompt_text', 'std_msgs/msg/Int32', 'std_msgs/msg/String is expected')
    other.destroy_node()
    fine(robot)


@pytest.mark.parametrize(
    ('wanted', 'offered', 'says'),
    [
        ({'reliability': RELY}, {'reliability': BEST}, 'Best effort publisher'),
        ({'durability': KEEP}, {'durability': FORGET}, 'Volatile publisher'),
        ({'deadline': Duration(seconds=1)}, {}, 'deadline'),
        ({'reliability': BEST, 'durability': FORGET}, {'reliability': RELY}, ''),
    ],
    ids=['reliability', 'durability', 'deadline', 'fits'],
)
def test_a_publisher_that_is_not_heard_is_named(robot, publish, wanted, offered, says):
    """A topic of prompts, as the node looks at it; the graph alone shows nothing wrong."""
    quiet = SubscriptionEventCallbacks(use_default_callbacks=False)
    subscription = robot.node.create_subscription(
        String, '/unheard', print, QoSProfile(depth=1, **wanted), event_callbacks=quiet
    )
    try:
        publish(String, '/unheard', QoSProfile(depth=1, **offered))
        robot.wait('it is seen', lambda: robot.node.count_publishers('/unheard'))
        said = unheard(robot.node, subscription, 'std_msgs/msg/String')
    finally:
        robot.node.destroy_subscription(subscription)
    assert bool(said) == bool(says)
    if says:
        assert says.lower() in said.lower() and 'qos_overrides./unheard.subscription' in said
        assert said.startswith('/unheard is published by robot with a QoS that is not heard')


@pytest.mark.parametrize('qos', ['auto', 'best_effort', 'reliable'])
def test_a_camera_whose_reliability_is_another_is_reported(robot, publish, qos):
    """Only where it was set by hand: else it is followed."""
    topic = f'/{qos}'
    config = NodeConfig(image_qos=qos, ros_img_sub_topic_name=topic)
    cameras = Cameras(robot.node, config, Inbox(1))
    try:
        publish(Image, topic, BEST_EFFORT)
        robot.wait('it is seen', lambda: robot.node.count_publishers(topic))
        (said,) = cameras.troubles(0.0)
    finally:
        cameras.close()
    assert ('set image_qos to auto' in said) == (qos == 'reliable')
    assert said.startswith(f'no picture yet on {topic} (1 publisher')


def test_one_of_two_cameras_is_dead(robot, start, publish, rgb):
    """It never came, or it stopped: the other one's pictures do not hide that."""
    robot.clear()
    start(feed_type=1, ros_img_sub_topic_name='/left,/right')
    left, right = publish(Image, '/left'), publish(Image, '/right')
    timer = robot.node.create_timer(0.2, lambda: left.publish(image(rgb[::4, ::4])))
    try:
        warned(robot, '/right')
        robot.wait('left', lambda: int(robot.values().get('pictures received', 0)) > 2)
        assert '/left' not in warned(robot, 'no picture yet on /right (1 publisher)')
        robot.wait('right', lambda: right.get_subscription_count())
        right.publish(image(rgb))
        fine(robot)
        assert '/left' not in warned(robot, 'the last picture came', 's ago on /right')
    finally:
        robot.node.destroy_timer(timer)


def test_a_publisher_that_waits_for_somebody_and_sends_one_picture(robot, start, rgb):
    """
    Twenty of them, some of them best effort: each is answered, and none that came once twice.

    What is sent with best effort before the reader, too, has found its writer is lost in the
    middleware, so such a publisher goes on until it is heard.
    """
    small = np.ascontiguousarray(rgb[::4, ::4])  # one datagram, for the sake of best effort
    robot.clear()
    start(feed_type=1, trigger='image', user_prompt=QUESTION, n_predict=1)
    for number in range(1, 21):
        effort = number % 4 == 0
        publisher = robot.node.create_publisher(
            Image, '/image', BEST_EFFORT if effort else RELIABLE
        )
        send = partial(publisher.publish, image(small + np.uint8(number), stamp=(number, 0)))
        timer = robot.node.create_timer(1.0, send) if effort else None
        try:
            robot.wait('a subscriber', publisher.get_subscription_count)
            send()
            robot.wait(f'picture {number}', lambda n=number: n in stamps(robot))
        finally:
            if timer is not None:
                robot.node.destroy_timer(timer)
            robot.node.destroy_publisher(publisher)
    answered = stamps(robot)
    assert set(answered) == set(range(1, 21))
    assert [n for n in answered if n % 4] == [n for n in range(1, 21) if n % 4]


def stamps(robot):
    return [reply['stamp']['sec'] for reply in robot.replies()]


def test_a_camera_whose_clock_is_ahead(robot, start, rgb):
    """Its picture gets old all the same: its age is counted from its arrival too."""
    start(feed_type=1, max_image_age=1.0, old_images='refuse')
    robot.clear()
    camera = robot.camera()
    robot.wait('somebody', camera.get_subscription_count)
    now = robot.node.get_clock().now().seconds_nanoseconds()[0]
    camera.publish(image(rgb, stamp=(now + 60, 0)))
    first = robot.ask(QUESTION)
    assert all(picture['age'] >= 0 for picture in first['pictures'])

    def refused():
        reply = robot.ask(QUESTION)
        return 's old, and max_image_age is 1' in reply['error']

    robot.wait('a refusal', refused)
    robot.wait('an error', lambda: robot.status().level > OK)


def test_simulated_time_without_a_clock(robot, start, rgb):
    """Diagnostics are published, and the camera's reliability is followed."""
    robot.clear()
    node = start(feed_type=1, use_sim_time=True)
    warned(robot, 'no picture yet on /image')
    robot.camera(BEST_EFFORT)
    small = np.ascontiguousarray(rgb[::4, ::4])
    assert robot.ask_about(image(small), QUESTION)['error'] == ''
    robot.wait('that it follows', lambda: 'subscribed best effort' in node.log)
    fine(robot)
