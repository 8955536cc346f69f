"""Pictures and prompts from another process, answers back: one node, the bundled model."""

from array import array
import json

import cv2
from hobot_vlm.values import Reply
import numpy as np
from PIL import Image as Pillow
import pytest
from rcl_interfaces.srv import DescribeParameters
from sensor_msgs.msg import Image
from std_msgs.msg import String

from .conftest import SAMPLE
from .robot import BEST_EFFORT, image, LATCHED, NodeProcess, RELIABLE

QUESTION = 'Describe the picture.'


@pytest.fixture(scope='module')
def rgb():
    """Give the sample at 1280x720, so that a mosaic loses nothing that the model looks at."""
    return np.asarray(Pillow.open(SAMPLE).convert('RGB').resize((1280, 720)))


@pytest.fixture(scope='module')
def node(request, robot, tmp_path_factory):
    """Run one node for all tests of this module, with a camera in front of it."""
    node = NodeProcess(tmp_path_factory.mktemp('node') / 'log', {'feed_type': 1})
    request.addfinalizer(node.end)
    robot.wait_until_ready(node)
    robot.camera()
    yield node
    assert node.stop()[0] == 0, node.log


@pytest.fixture(scope='module')
def answer(robot, node, rgb):
    """Give the answer about the sample."""
    return robot.ask_about(image(rgb), QUESTION)


def test_speech_result_and_reply_agree(robot, node, rgb, answer):
    """In English and in Chinese."""
    texts = []
    for prompt in (QUESTION, '描述一下这张图片。', QUESTION):
        robot.settle()
        reply = robot.ask(prompt)
        texts.append(reply['text'])
        robot.wait('the result', lambda: robot.heard['/hobot_vlm/result'])
        robot.wait(
            'all of the speech',
            lambda text=reply['text']: ''.join(robot.heard['/tts_text']) == text,
        )
        assert len(robot.heard['/tts_text']) > 1
        assert robot.heard['/hobot_vlm/result'] == [reply['text']]
    assert texts[0] == texts[2] == answer['text']
    assert '背景' in texts[1]


def test_the_reply(robot, node, rgb):
    reply = robot.ask_about(image(rgb, frame_id='front'), QUESTION)
    assert set(reply) == {*Reply('').as_dict(), 'prompt', 'stamp', 'frame_id', 'pictures', 'error'}
    assert reply['prompt'] == QUESTION
    assert reply['frame_id'] == 'front'
    assert reply['finish_reason'] == 'stop'
    assert reply['image_tokens'] > 0
    (picture,) = reply['pictures']
    assert picture['topic'] == '/image'
    assert picture['stamp'] == reply['stamp']
    assert (picture['height'], picture['width']) == rgb.shape[:2]
    assert picture['age'] > 1e9  # the test stamps pictures with the year 1970
    assert set(reply['timings']) == {
        'queued_ms',
        'preprocess_ms',
        'encode_ms',
        'prefill_ms',
        'ttft_ms',
        'decode_ms',
        'tokens_per_second',
    }


def test_ten_prompts_at_once(robot, node, answer):
    before = len(robot.replies())
    prompts = [f'Is there a cat? {"Really? " * n}' for n in range(10)]
    for prompt in prompts:
        robot.say(prompt)
    robot.wait('ten replies', lambda: len(robot.replies()) >= before + 10)
    assert [reply['prompt'] for reply in robot.replies()[before:]] == prompts


def yuv420(rgb, order):
    """Give the rows of an nv12 (order 'uv') or nv21 ('vu') picture."""
    height, width = rgb.shape[:2]
    planar = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    y, u, v = np.split(planar, [height * width, height * width * 5 // 4])
    pair = (u, v) if order == 'uv' else (v, u)
    return np.concatenate([y, np.stack(pair, axis=-1).reshape(-1)]).reshape(-1, width)


def yuv422(rgb, luma_first):
    yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    height, width = rgb.shape[:2]
    y = yuv[: height * width].reshape(height, width)
    u, v = (
        plane.reshape(height // 2, width // 2).repeat(2, 0)
        for plane in np.split(yuv[height * width :], 2)
    )
    rows = np.empty((height, width // 2, 4), np.uint8)
    places = (0, 2, 1, 3) if luma_first else (1, 3, 0, 2)
    for place, plane in zip(places, (y[:, 0::2], y[:, 1::2], u, v), strict=True):
        rows[..., place] = plane
    return rows.reshape(height, -1)


def bayer(rgb, order):
    rows = np.empty(rgb.shape[:2], np.uint8)
    for place, colour in enumerate(order):
        at = (slice(place // 2, None, 2), slice(place % 2, None, 2))
        rows[at] = rgb[..., 'rgb'.index(colour)][at]
    return rows


def packed(rgb, encoding):
    """Give the rows of bytes of a picture in an encoding."""
    height = rgb.shape[0]
    if encoding.startswith('bayer'):
        return bayer(rgb, encoding[6:10])
    if encoding in ('nv12', 'nv21'):
        return yuv420(rgb, 'uv' if encoding == 'nv12' else 'vu')
    if encoding.startswith('yuv422'):
        return yuv422(rgb, luma_first=encoding.endswith('yuy2'))
    if encoding == 'mono8':
        return rgb[..., 0]
    if encoding == 'mono16':
        return (rgb[..., 0].astype('<u2') * 257).view(np.uint8).reshape(height, -1)
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    return rgba[..., ['rgba'.index(c) for c in encoding[:-1]]].reshape(height, -1)


@pytest.mark.parametrize(
    'encoding',
    [
        'rgb8',
        'bgr8',
        'rgba8',
        'bgra8',
        'mono8',
        'mono16',
        'nv12',
        'nv21',
        'yuv422',
        'yuv422_yuy2',
        'bayer_rggb8',
        'bayer_bggr8',
        'bayer_gbrg8',
        'bayer_grbg8',
    ],
)
def test_every_encoding_gives_the_same_answer(robot, node, rgb, answer, encoding):
    expected = answer['text']
    if encoding.startswith('mono'):
        rgb = np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        expected = robot.ask_about(image(rgb), QUESTION)['text']
    rows = np.pad(packed(rgb, encoding), ((0, 0), (0, 6)))
    message = Image(
        encoding=encoding,
        height=rgb.shape[0],
        width=rgb.shape[1],
        step=rows.shape[1],
        data=array('B', rows.tobytes()),
    )
    assert robot.ask_about(message, QUESTION)['text'] == expected


@pytest.mark.parametrize(
    'change, says',
    [
        ({'height': 3}, 'bytes of data: expected'),
        ({'encoding': 'rgb9'}, "encoding 'rgb9' is unknown"),
        ({'height': 0}, 'is empty'),
        ({'width': 2**32 - 1, 'step': 2**32 - 1}, 'expected at least'),
    ],
)
def test_a_broken_message_is_reported_and_the_next_answered(
    robot, node, rgb, answer, change, says
):
    message = image(rgb, frame_id='broken')
    for name, value in change.items():
        setattr(message, name, value)
    reply = robot.ask_about(message, QUESTION)
    assert says in reply['error']
    assert (reply['text'], reply['finish_reason']) == ('', 'error')
    assert reply['frame_id'] == 'broken'
    assert says in node.log
    robot.wait(
        'an error on /diagnostics',
        lambda: robot.status().level == b'\2' and says in robot.status().message,
    )
    assert robot.ask_about(image(rgb), QUESTION)['text'] == answer['text']
    robot.wait('no error on /diagnostics', lambda: robot.status().level == b'\0')


def test_a_prompt_that_does_not_fit(robot, node, answer):
    reply = robot.ask('word ' * 20000)
    assert 'n_ctx is' in reply['error'] and 'shorten the prompt' in reply['error']
    assert robot.ask(QUESTION)['error'] == ''


def test_odd_prompts_are_answered(robot, node, answer):
    """Empty, control characters, control tokens as text: a reply to each, never a crash."""
    for prompt in ('', ' \n', '<|im_end|>', '\x00\x07', '\N{PILE OF POO}' * 100):
        assert robot.ask(prompt)['error'] == ''


def test_the_camera_may_change_what_it_offers(robot, node, rgb, answer):
    """A best-effort camera after a reliable one, and back: image_qos auto follows."""
    small = cv2.resize(rgb, (160, 90))  # one datagram, because big pictures may lose parts
    expected = robot.ask_about(image(small), QUESTION)['text']
    for qos in (BEST_EFFORT, RELIABLE):
        robot.camera(qos)
        assert robot.ask_about(image(small), QUESTION)['text'] == expected
        wish = 'best effort' if qos is BEST_EFFORT else 'reliable'
        robot.wait('that it follows', lambda wish=wish: f'subscribed {wish}' in node.log)


def test_a_late_joiner_gets_the_last_result(robot, node, answer):
    text = robot.ask('Where is the dog?')['text']
    robot.wait('its result', lambda: robot.heard['/hobot_vlm/result'][-1:] == [text])
    late = []
    subscription = robot.node.create_subscription(
        String, '/hobot_vlm/result', lambda message: late.append(message.data), LATCHED
    )
    try:
        robot.wait('the last result', lambda: late)
        assert late == [text]
    finally:
        robot.node.destroy_subscription(subscription)


# -- parameters while it runs --------------------------------------------------------------------


def test_a_live_parameter_applies_to_the_next_answer(robot, node, answer):
    assert robot.set('n_predict', 3).successful
    reply = robot.ask(QUESTION)
    assert (reply['completion_tokens'], reply['finish_reason']) == (3, 'length')
    assert robot.set('n_predict', 256.0).successful
    assert robot.ask(QUESTION)['finish_reason'] == 'stop'
    for value in (1, 0.0):  # `ros2 param set` sends 1 as a whole number
        assert robot.set('temperature', value).successful


@pytest.mark.parametrize(
    'name, value, reason',
    [
        ('temperature', 11.0, 'out of range'),
        ('temperature', 'hot', 'type'),
        ('trigger', 'clock', "trigger is 'clock': expected one of 'prompt', 'image'"),
        ('trigger', 'image', 'user_prompt is empty'),
        ('system_prompt', '/no/such/file.txt', 'there is no file /no/such/file.txt'),
        ('n_ctx', 128, 'read-only'),
        ('feed_type', 2, 'read-only'),
    ],
)
def test_a_wrong_value_is_refused_with_a_reason(robot, node, name, value, reason):
    result = robot.set(name, value)
    assert not result.successful
    assert reason in result.reason


def test_every_parameter_is_described(robot, node):
    from dataclasses import fields

    from hobot_vlm.node_config import NodeConfig

    options = fields(NodeConfig)
    described = robot.call(
        'describe_parameters',
        DescribeParameters.Request(names=[option.name for option in options]),
    ).descriptors
    for option, descriptor in zip(options, described, strict=True):
        assert descriptor.name == option.name
        assert descriptor.description == option.metadata['doc']
        assert descriptor.read_only == (not option.metadata['live'])
        bounds = [*descriptor.integer_range, *descriptor.floating_point_range]
        if option.metadata['low'] is not None:
            assert (bounds[0].from_value, bounds[0].to_value) == (
                option.metadata['low'],
                option.metadata['high'],
            )
        for choice in option.metadata['choices']:
            assert repr(choice) in descriptor.additional_constraints


def test_diagnostics(robot, node, answer):
    robot.ask(QUESTION)
    answered = sum(not json.loads(text)['error'] for text in robot.heard['/hobot_vlm/reply'])
    robot.wait('a status', robot.status)
    robot.wait('counted', lambda: int(robot.values()['answered']) >= answered)
    robot.wait('idle', lambda: robot.values()['state'] == 'idle')
    values = robot.values()
    assert values['model'] == 'demo'
    assert values['prompts waiting'] == '0'
    assert float(values['last tokens_per_second']) > 0
    assert float(values['memory_mb']) > 10
    assert int(values['pictures received']) > 0
    assert 'onnxruntime' in values['encoder runtime']
    assert (values['tiles encoding'], values['encoding seconds left']) == ('0', '0.0')
