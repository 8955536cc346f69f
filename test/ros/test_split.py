"""
Eyes and words as two processes: the encode node, and the main node that reads what it publishes.

HOBOT_VLM_LONG=1 asks 100 questions about 300 pictures while each is killed, and tries every model.
"""

from __future__ import annotations

from array import array
import json
import os
from pathlib import Path

from hobot_vlm import ConfigError, EncodedImage, Vision, VLM
from hobot_vlm.config import ENCODE_OPTIONS, EncodeConfig
from hobot_vlm.ros.cameras import message_reader
from hobot_vlm.ros.encode_node import EncodeNode
from hobot_vlm.ros.frames import FrameReader, Pictures
from hobot_vlm.ros.inbox import Frame
from hobot_vlm.ros.node import VlmNode
import numpy as np
from PIL import Image as Pillow
import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.clock import Clock
from rclpy.context import Context
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from .conftest import MODELS, SAMPLE
from .robot import image, LATCHED, NodeProcess, RELIABLE

LONG = 'HOBOT_VLM_LONG' in os.environ
QUESTION = 'Describe the picture.'
ENCODE = ('-c', 'from hobot_vlm.ros.main import encode; encode()')
EMBEDDINGS = '/encode/embedding'
LANGUAGE = {'feed_type': 1, 'image_transport': 'embedding', 'n_predict': 24}
EYES = str(MODELS / 'internvl' / 'vision.onnx')
PICTURE = np.asarray(Pillow.open(SAMPLE).convert('RGB'))


def halves(name):
    """Give the options of a whole model, and the parameters of its eyes and of its words."""
    if name == 'demo':
        return {}, {}, {}
    decoder = {'llm_model_name': str(MODELS / name / 'decoder.gguf')}
    encoder = {'model_file_name': str(MODELS / name / 'vision.onnx')}
    return encoder | decoder, encoder | {'model_type': int(name == 'smolvlm')}, decoder


def message_of(encoded, stamp=(7, 8), dtype='float16'):
    """Make the message of an embedding, as the encode node does."""
    header, data = encoded.pack(dtype)
    message = CompressedImage(format=header, data=array('B', data))
    message.header.frame_id = 'camera'
    message.header.stamp.sec, message.header.stamp.nanosec = stamp
    return message


@pytest.fixture(scope='module')
def sample():
    """Give the bundled picture, encoded by the demo model."""
    with Vision.load('demo') as vision:
        return vision.encode_image(SAMPLE)


@pytest.fixture
def run(tmp_path):
    """Give a function that starts a node that may be killed; it is stopped after the test."""
    running = []

    def run(program, **parameters):
        running.append(NodeProcess(tmp_path / f'node{len(running)}', parameters, program=program))
        return running[-1]

    yield run
    for node in running:
        node.end()


class Talk:
    """Prompts and replies of a node under another name: its ghost is not in others' way."""

    def __init__(self, robot, name):
        self.robot = robot
        self.asked = []
        self.name = f'words_{name}'
        self.program = ('-m', 'hobot_vlm.ros.main', '--ros-args', '-r', f'__node:={self.name}')
        self.parameters = LANGUAGE | {
            'ros_string_sub_topic_name': f'/{self.name}/prompt',
            'text_msg_pub_topic_name': f'/{self.name}/tts',
            'result_pub_topic_name': f'/{self.name}/result',
        }
        self.prompts = robot.node.create_publisher(String, f'/{self.name}/prompt', RELIABLE)
        robot.listen(f'/{self.name}/reply', String)

    @property
    def replies(self):
        return [json.loads(text) for text in self.robot.heard[f'/{self.name}/reply']]

    def wait_for(self, node, count=1):
        """Wait until a node hears and is heard; one that was killed is seen for a while."""

        def there():
            assert node.process.poll() is None, node.log
            return (
                'ready' in node.log
                and self.prompts.get_subscription_count() >= count
                and self.robot.node.count_publishers(f'/{self.name}/reply') >= count
            )

        self.robot.wait('the language node', there)

    def ask(self, text=''):
        self.asked.append(text or f'Question {len(self.asked)}')
        self.prompts.publish(String(data=self.asked[-1]))
        self.robot.wait('a reply', lambda: len(self.replies) == len(self.asked))
        assert self.replies[-1]['error'] == '' and self.replies[-1]['image_tokens']
        return self.replies[-1]

    def stamp(self):
        stamp = self.replies[-1]['stamp']
        return stamp['sec'], stamp['nanosec']

    def ask_until_new(self, count):
        """Ask, and go on until another picture is seen."""
        before = self.stamp()
        for _ in range(count):
            self.ask()
        self.robot.wait('another picture', lambda: self.ask() and self.stamp() > before)


@pytest.mark.parametrize('name', ['internvl', 'demo', 'smolvlm'] if LONG else ['internvl'])
def test_two_processes_answer_as_one(robot, run, act, name):
    """The header travels; each is killed and comes back; and both end as they should."""
    prompts, rate = (100, 30) if LONG else (12, 10)
    whole, eyes, words = halves(name)
    eyes['max_rate'] = 0
    talk = Talk(robot, name)
    robot.wait('nobody else', lambda: not robot.node.count_subscribers('/image'))
    words = talk.parameters | words
    vision, language = run(ENCODE, **eyes), run(talk.program, **words)
    with VLM.load(**whole, n_predict=24, llm_threads=1) as vlm:
        expected = vlm.ask(QUESTION, SAMPLE)
    talk.wait_for(language)
    robot.listen(EMBEDDINGS, CompressedImage, RELIABLE)
    camera = robot.camera()
    camera.publish(image(PICTURE, frame_id='left eye', stamp=(12, 34)))
    # 1. as one process
    reply = talk.ask(QUESTION)
    assert reply['text'] == expected.text
    for field in ('prompt_tokens', 'image_tokens', 'completion_tokens', 'finish_reason'):
        assert reply[field] == getattr(expected, field)
    assert (talk.stamp(), reply['frame_id']) == ((12, 34), 'left eye')
    (shown,) = reply['pictures']
    size = PICTURE.shape[1], PICTURE.shape[0]
    assert (shown['topic'], shown['width'], shown['height']) == (EMBEDDINGS, *size)
    # 2. with pictures that come and go
    act('camera', rate)
    talk.ask_until_new(prompts // 4)
    vision.kill()
    for _ in range(prompts // 4):
        talk.ask()  # about the last one
    vision = run(ENCODE, **eyes)
    talk.ask_until_new(prompts // 4)
    # 3. with another one to talk to
    language.kill()
    language = run(talk.program, **words)
    talk.wait_for(language, 2)
    talk.ask_until_new(prompts // 4)
    assert [reply['prompt'] for reply in talk.replies] == talk.asked
    assert len(talk.asked) > prompts
    if LONG:
        robot.wait('300 pictures', lambda: len(robot.heard[EMBEDDINGS]) >= 300, 60)
    for node in (vision, language):
        node.end()
        assert node.process.returncode == 0 and 'Traceback' not in node.log, node.log


def test_what_cannot_be_read_is_said_and_the_next_prompt_answered(robot, start, sample):
    """Other versions, families and widths; pictures; nonsense; and what is too old."""
    start(**LANGUAGE, max_image_age=100, old_images='refuse')
    robot.clear()
    camera = robot.camera(LATCHED, EMBEDDINGS, CompressedImage)
    header, data = sample.pack()
    fields = json.loads(header)

    def error_of(message):
        camera.publish(message)
        found = []

        def heard():
            reply = robot.ask(QUESTION)
            found.append(reply)
            return reply['stamp'] == {
                'sec': message.header.stamp.sec,
                'nanosec': message.header.stamp.nanosec,
            }

        robot.wait('the picture', heard)
        return found[-1]['error'] or found[-1]['text']

    now = Clock().now().nanoseconds // 10**9
    good = message_of(sample, (now, 1))
    camera.publish(good)
    answer = error_of(good)
    with VLM.load('demo', n_predict=24) as vlm:
        assert answer == vlm.ask(QUESTION, SAMPLE).text
    for number, (change, says) in enumerate(
        [
            ({'hobot_vlm': 9}, 'is of version 9, and this hobot_vlm reads version 1'),
            ({'family': 'internvl'}, 'vision.onnx'),
            ({'tokens': [fields['tokens'][0] // 2], 'n_embd': 2 * fields['n_embd']}, 'width'),
            ({'tokens': [1]}, 'bytes of numbers'),
        ],
        2,
    ):
        bad = CompressedImage(data=array('B', data))
        bad.format = json.dumps(fields | change, separators=(',', ':'))
        bad.header.stamp.sec, bad.header.stamp.nanosec = now, number
        assert says in error_of(bad)
    jpeg = CompressedImage(format='png', data=array('B', Path(SAMPLE).read_bytes()))
    jpeg.header.stamp.sec = now
    assert 'the vision encoder of this model is elsewhere' in error_of(jpeg)
    assert 'is 1' in error_of(message_of(sample, (now - 1000, 0)))
    assert error_of(good) == answer


def test_the_encode_node(robot, run, sample):
    """What it publishes, when, to whom; its parameters, service and diagnostics."""
    renamed = (*ENCODE, '--ros-args', '-r', '__node:=eyes')
    node = run(renamed, max_rate=0, on_demand=True, max_tiles=1)
    camera = robot.camera()
    trigger = robot.node.create_client(Trigger, '/eyes/encode')
    settings = robot.node.create_client(SetParameters, '/eyes/set_parameters')

    def heard():
        return robot.heard['/eyes/embedding'][:]

    def call(client, request):
        robot.wait('the service', client.service_is_ready)
        future = client.call_async(request)
        robot.wait('its answer', future.done)
        return future.result()

    def set_to(name, value):
        parameter = Parameter(name, value=value).to_parameter_msg()
        return call(settings, SetParameters.Request(parameters=[parameter])).results[0]

    robot.wait('ready', lambda: 'ready' in node.log)
    assert not call(trigger, Trigger.Request()).success
    robot.clear()
    camera.publish(image(PICTURE, stamp=(5, 6)))
    robot.wait('the picture', lambda: call(trigger, Trigger.Request()).success)
    robot.listen('/eyes/embedding', CompressedImage, LATCHED)
    message = robot.wait('the embedding', heard)[-1]
    assert (message.header.stamp.sec, message.header.frame_id) == (5, 'camera')
    came = EncodedImage.unpack(message.format, message.data)
    assert came == EncodedImage.unpack(*sample.pack()) and came.key == sample.key
    assert all(each.format == message.format for each in heard())
    # a new picture is not encoded by itself, until that is wanted
    other = PICTURE[::-1]
    camera.publish(image(other, stamp=(6, 6)))
    assert not set_to('embedding_dtype', 'float64').successful
    assert not set_to('model_type', 0).successful
    assert set_to('embedding_dtype', 'bfloat16').successful
    known = len(heard())
    assert set_to('on_demand', False).successful
    robot.wait('the next', lambda: len(heard()) > known)
    assert '"bfloat16"' in heard()[-1].format
    # the same again is passed over, unless somebody asks
    camera.publish(image(other, stamp=(7, 6)))
    values = {}

    def counted():
        for array_ in robot.heard['/diagnostics']:
            if array_.status[0].name == 'eyes: embeddings':
                values.update({each.key: each.value for each in array_.status[0].values})
        return values.get('equal pictures skipped') == '1'

    robot.wait('that it was seen', counted)
    assert (values['encoded'], values['state'], values['family']) == (
        str(known + 1),
        'idle',
        'smolvlm',
    )
    assert int(values['last bytes']) == len(message.data)
    assert call(trigger, Trigger.Request()).success
    robot.wait('the same', lambda: heard()[-1].header.stamp.sec == 7)
    # what cannot be read is said
    camera.publish(Image(encoding='rgb8', width=2, height=2))
    robot.wait('an error', lambda: 'no embedding: ' in node.log)
    assert node.stop()[0] == 0 and 'Traceback' not in node.log


@pytest.mark.parametrize(
    'kind, parameters, says',
    [
        (EncodeNode, {'model_file_name': EYES}, 'model_type is -1'),
        (EncodeNode, {'ros_img_sub_topic_name': '/a,/b'}, 'one encode node for each'),
        (EncodeNode, {'image_transport': 'embedding'}, "one of 'auto', 'raw', 'compressed'"),
        (EncodeNode, {'encoder_device': 'elsewhere'}, 'encoder_device is elsewhere'),
        (VlmNode, {'image_transport': 'embedding', 'feed_type': 2}, 'come with feed_type 1'),
        (VlmNode, {'encoder_device': 'elsewhere', 'feed_type': 1}, 'set image_transport to'),
    ],
)
def test_a_start_that_cannot_be(kind, parameters, says):
    context = Context()
    context.init()
    given = [Parameter(name, value=value) for name, value in parameters.items()]
    try:
        node = kind(context=context, parameter_overrides=given)
    except ConfigError as exc:
        assert says in str(exc)
    else:
        assert node.trigger_configure() != TransitionCallbackReturn.SUCCESS
        assert says in node.statistics.error
        node.destroy_node()
    context.try_shutdown()


def test_the_parameters_of_the_encode_node_are_described():
    """And are those about pictures; what the main node alone has, it has not."""
    context = Context()
    context.init()
    node = EncodeNode(context=context)
    assert isinstance(node.config, EncodeConfig)
    for name in ENCODE_OPTIONS:
        described = node.describe_parameter(name)
        assert described.description and described.type
    assert node.describe_parameter('max_rate').floating_point_range[0].to_value == 1000
    assert not any(map(node.has_parameter, ('temperature', 'user_prompt', 'feed_type')))
    assert not node.set_parameters_atomically([Parameter('max_rate', value=-1.0)]).successful
    assert node.set_parameters_atomically([Parameter('max_rate', value=1)]).successful
    node.destroy_node()
    context.try_shutdown()


def test_a_bag_keeps_it(tmp_path, sample):
    """Recorded and replayed as any message; what reads pictures reads it from there."""
    rosbag2 = pytest.importorskip('rosbags.rosbag2')
    from rosbags.typesys import get_typestore, Stores

    message = message_of(sample)
    store = get_typestore(Stores.ROS2_HUMBLE)
    with rosbag2.Writer(tmp_path / 'bag', version=8) as bag:
        connection = bag.add_connection(
            EMBEDDINGS, 'sensor_msgs/msg/CompressedImage', typestore=store
        )
        bag.write(connection, 1, serialize_message(message))
    with rosbag2.Reader(tmp_path / 'bag') as bag:
        ((_, _, data),) = bag.messages()
    pictures = Pictures()
    frame = Frame(EMBEDDINGS, data, message_reader(CompressedImage))
    FrameReader(Clock()).read((frame,), pictures)
    assert pictures.rgb == [EncodedImage.unpack(*sample.pack())]
    (info,) = pictures.info
    assert (info.stamp, info.frame_id) == ((7, 8), 'camera')
    assert (info.width, info.height) == sample.size
