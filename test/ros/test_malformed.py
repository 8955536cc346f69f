"""A thousand messages that make no sense, from another process: the node goes on answering."""

from array import array
from io import BytesIO
import random

from hobot_vlm.ros.images import LAYOUTS
import numpy as np
from PIL import Image as Pillow
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from .robot import image

NUMBERS = (0, 1, 2, 3, 5, 7, 8, 9, 12, 255, 4096, 65536, 2**31 - 1, 2**31, 2**32 - 1)
#: what each kind of message gets of the thousand; shared ones have 6 MB each
IMAGES, COMPRESSED, SHARED, PROMPTS = 460, 350, 30, 160


@pytest.fixture
def chance(request):
    """Give random numbers, other ones for each test and the same ones each time."""
    return random.Random(request.node.name)


def damaged(chance, data: bytes) -> bytes:
    """Cut a few bytes off, or change a few."""
    data = bytearray(data)
    if chance.random() < 0.4:
        return bytes(data[: chance.randrange(4, len(data))])
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(4, min(len(data), 400))] = chance.randrange(256)
    return bytes(data)


def some_image(chance):
    encoding = chance.choice([*LAYOUTS, 'rgb9', '', '\0', 'x' * 1000, '图片'])
    message = Image(encoding=encoding, height=6, width=8, step=24)
    for name in chance.sample(('height', 'width', 'step'), chance.randrange(3)):
        setattr(message, name, chance.choice(NUMBERS))
    message.is_bigendian = chance.randrange(256)
    message.header.stamp.sec = chance.randrange(-(2**31), 2**31)
    message.header.stamp.nanosec = chance.choice(NUMBERS)
    message.data = array('B', chance.randbytes(chance.choice((0, 1, 143, 144, 145, 1000))))
    return message


def some_compressed_image(chance):
    file = BytesIO()
    Pillow.new('RGB', (40, 30), 'red').save(file, chance.choice(('JPEG', 'PNG', 'GIF', 'TIFF')))
    whole = file.getvalue()
    data = chance.choice((b'', whole[:50], damaged(chance, whole), chance.randbytes(100)))
    message = CompressedImage(format=chance.choice(('jpeg', 'png', '', '\0', 'x' * 1000, '图片')))
    message.data = array('B', data)
    return message


def some_shared_image(chance):
    from hbm_img_msgs.msg import HbmMsg1080P

    message = HbmMsg1080P(height=6, width=8, step=8, data_size=72)
    name = chance.choice((b'nv12', b'NV12', b'nv21', b'jpeg', b'', b'\xff' * 12))
    message.encoding = np.frombuffer(name.ljust(12, b'\0'), np.uint8)
    for name in chance.sample(('height', 'width', 'step', 'data_size', 'index'), 3):
        setattr(message, name, min(chance.choice(NUMBERS), 2**31 - 1))
    message.time_stamp.nanosec = chance.choice(NUMBERS)
    return message


def some_prompt(chance):
    letters = 'a 7\n\0\x07\x1b<|im_end|>é中\N{PILE OF POO}\u202e\ue000\ue001\ufffd{{}}%s[]'
    return String(data=''.join(chance.choices(letters, k=chance.randrange(20))))


def watched(robot, good, **where):
    """Become a camera that the node listens to; gives it."""
    camera = robot.camera(**where)
    robot.clear()
    stamp = good.header.stamp if hasattr(good, 'header') else good.time_stamp
    stamp.sec = 0

    def show():
        stamp.sec += 1
        camera.publish(good)
        return robot.listen_for(0.5, robot.replies)

    robot.wait('a reply', show)
    robot.wait('the last reply', lambda: robot.replies()[-1]['stamp']['sec'] == stamp.sec)
    robot.clear()
    return camera


def show_each(robot, camera, messages):
    """Show pictures one after the other; each has a reply, with its text or its error."""
    for message in messages:
        before = len(robot.replies())
        camera.publish(message)
        robot.wait(
            f'a reply about {str(message)[:300]}',
            lambda before=before: len(robot.heard['/hobot_vlm/reply']) > before,
        )
    replies = robot.replies()
    assert all(bool(reply['error']) == (reply['finish_reason'] == 'error') for reply in replies)
    return replies


def mixed(chance, make, count):
    """Give messages; of every third only damaged bytes."""
    messages = [make(chance) for _ in range(count)]
    return [
        damaged(chance, serialize_message(message)) if i % 3 == 0 else message
        for i, message in enumerate(messages)
    ]


#: looks at every picture, and says one word about it
LOOKS = {
    'feed_type': 1,
    'trigger': 'image',
    'user_prompt': 'Describe the picture.',
    'n_predict': 1,
}


def test_images_and_prompts(robot, start, chance):
    node = start(**LOOKS)
    good = image(np.zeros((90, 160, 3), np.uint8))
    camera = watched(robot, good)
    replies = show_each(robot, camera, mixed(chance, some_image, IMAGES))
    assert sum(bool(reply['error']) for reply in replies) > IMAGES / 2
    # prompts about a good picture; those that are no text at all never reach the node
    assert show_each(robot, camera, [good])[-1]['error'] == ''
    for message in mixed(chance, some_prompt, PROMPTS):
        robot._prompts.publish(message)
    assert ask_last(robot)['error'] == ''
    assert node.stop()[0] == 0, node.log
    assert 'Traceback' not in node.log


def ask_last(robot):
    """Ask, after all that was asked before, and give the reply."""
    robot.say('the last')
    return robot.wait(
        'the last reply',
        lambda: [reply for reply in robot.replies() if reply['prompt'] == 'the last'],
        60,
    )[0]


def test_compressed_images(robot, start, chance):
    topic = '/image/compressed'
    node = start(**LOOKS, image_transport='compressed', ros_img_sub_topic_name=topic)
    file = BytesIO()
    Pillow.new('RGB', (40, 30), 'red').save(file, 'PNG')
    good = CompressedImage(format='png', data=array('B', file.getvalue()))
    camera = watched(robot, good, topic=topic, kind=CompressedImage)
    replies = show_each(robot, camera, mixed(chance, some_compressed_image, COMPRESSED))
    assert sum(bool(reply['error']) for reply in replies) > COMPRESSED / 2
    assert show_each(robot, camera, [good])[-1]['error'] == ''
    assert node.stop()[0] == 0, node.log


def test_shared_memory_images(robot, messages, start, chance):
    from hbm_img_msgs.msg import HbmMsg1080P

    node = start(**LOOKS, is_shared_mem_sub=1, env=messages)
    good = HbmMsg1080P(height=6, width=8, step=8, data_size=72)
    good.encoding = np.frombuffer(b'nv12'.ljust(12, b'\0'), np.uint8)
    camera = watched(robot, good, topic='/hbmem_img', kind=HbmMsg1080P)
    shown = (some_shared_image(chance) for _ in range(SHARED))
    replies = show_each(robot, camera, shown)
    assert sum(bool(reply['error']) for reply in replies) > SHARED / 2
    assert show_each(robot, camera, [good])[-1]['error'] == ''
    assert node.stop()[0] == 0, node.log
