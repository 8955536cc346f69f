"""Answers as ai_msgs and vision_msgs: what they hold, and that they arrive with their picture."""

from io import BytesIO
import json

from hobot_vlm.ros.annotated import COLOURS
from hobot_vlm.ros.images import to_rgb
from hobot_vlm.ros.inbox import Prompt, Stamp
from hobot_vlm.ros.outcome import ImageInfo, Outcome
from hobot_vlm.values import Box, Point, Reply, Timings
import numpy as np
from PIL import Image as Pillow
import pytest

from .conftest import SAMPLE
from .robot import image, NodeProcess

PHASES = ['preprocess', 'vision', 'prefill', 'decode']
DOG = 'dog[[100, 200, 300, 400]]'


def outcome(*boxes, timings=None, text='There is a dog.'):
    """Make what became of a prompt about one picture of 640x480."""
    reply = Reply(text, boxes=boxes, timings=timings or Timings(0, 1.5, 20.25, 30, 60, 40, 7))
    images = (ImageInfo('/image', Stamp(12, 34), 'front', 0.1, 640, 480),)
    return Outcome(Prompt('dog', Stamp(99, 0)), reply, images, started=Stamp(100, 999_000_000))


# -- the messages ---------------------------------------------------------------------------------


@pytest.mark.usefixtures('messages')
def test_an_answer_as_perception_targets():
    from hobot_vlm.ros.perception import perception_targets

    message = perception_targets(outcome(), detection=False)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (12, 34)
    assert message.header.frame_id == 'front'
    assert message.fps == 11  # one in 91.75 ms
    assert not message.disappeared_targets
    (target,) = message.targets
    assert (target.type, target.track_id, len(target.rois)) == ('There is a dog.', 0, 0)
    # one phase after the other, beginning when the model was asked
    assert [perf.type for perf in message.perfs] == PHASES
    assert [perf.time_ms_duration for perf in message.perfs] == [1.5, 20.25, 30, 40]
    end = 100_999_000_000
    for perf in message.perfs:
        assert nanoseconds(perf.stamp_start) == end
        end = nanoseconds(perf.stamp_end)
        assert end - nanoseconds(perf.stamp_start) == perf.time_ms_duration * 1e6
    assert message.perfs[0].stamp_end.sec == 101


def nanoseconds(stamp):
    return stamp.sec * 10**9 + stamp.nanosec


@pytest.mark.usefixtures('messages')
def test_a_pace_that_fits_the_message():
    """Frames per second is a whole number of 16 bits."""
    from hobot_vlm.ros.perception import perception_targets

    for timings, fps in [
        (Timings(), 0),
        (Timings(decode_ms=5000.0), 0),
        (Timings(decode_ms=0.001), 32767),
    ]:
        assert perception_targets(outcome(timings=timings), detection=False).fps == fps


@pytest.mark.usefixtures('messages')
def test_boxes_as_perception_targets():
    """A target for each, with the pixels that it touches."""
    from hobot_vlm.ros.perception import perception_targets

    boxes = [
        Box('狗', 10, 20, 30.2, 40.8),
        Box('cat', 0.4, 0.6, 640, 480),
        Box('ant', 7.5, 7.5, 7.6, 7.6),
    ]
    message = perception_targets(outcome(*boxes), detection=True)
    assert [target.type for target in message.targets] == ['狗', 'cat', 'ant']
    rois = [roi for target in message.targets for roi in target.rois]
    assert [roi.type for roi in rois] == ['狗', 'cat', 'ant']
    assert [roi.confidence for roi in rois] == [1.0] * 3
    assert [
        (roi.rect.x_offset, roi.rect.y_offset, roi.rect.width, roi.rect.height) for roi in rois
    ] == [(10, 20, 21, 21), (0, 0, 640, 480), (7, 7, 1, 1)]
    assert not perception_targets(outcome(), detection=True).targets


@pytest.mark.usefixtures('messages')
def test_boxes_as_detections():
    from hobot_vlm.ros.perception import detections

    message = detections(outcome(Box('狗', 10, 20, 30.5, 40)))
    (found,) = message.detections
    for header in (message.header, found.header):
        assert (header.stamp.sec, header.stamp.nanosec, header.frame_id) == (12, 34, 'front')
    (result,) = found.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ('狗', 1.0)
    centre = found.bbox.center
    assert (centre.position.x, centre.position.y, centre.theta) == (20.25, 30, 0)
    assert (found.bbox.size_x, found.bbox.size_y) == (20.5, 20)
    assert len(detections(outcome()).detections) == 0


@pytest.mark.usefixtures('messages')
def test_points_as_messages():
    """As points of a target, and as boxes without any size."""
    from hobot_vlm.ros.perception import detections, perception_targets

    images = (ImageInfo('/image', Stamp(12, 34), 'front', 0.1, 640, 480),)
    reply = Reply('', boxes=(Box('dog', 1, 2, 3, 4),), points=(Point('狗', 10.5, 20),))
    made = Outcome(Prompt('dog', Stamp(99, 0)), reply, images)
    box, point = perception_targets(made, detection=True).targets
    assert (box.type, len(box.rois), len(box.points)) == ('dog', 1, 0)
    assert (point.type, len(point.rois), point.points[0].type) == ('狗', 0, '狗')
    (place,) = point.points[0].point
    assert (place.x, place.y, list(point.points[0].confidence)) == (10.5, 20, [1.0])
    _, spot = detections(made).detections
    assert (spot.bbox.center.position.x, spot.bbox.center.position.y) == (10.5, 20)
    assert (spot.bbox.size_x, spot.bbox.size_y) == (0, 0)
    assert spot.results[0].hypothesis.class_id == '狗'
    assert json.loads(made.as_json())['points'] == [{'label': '狗', 'x': 10.5, 'y': 20}]


def test_the_reply_names_the_boxes():
    reply = json.loads(outcome(Box('狗', 10, 20, 30.5, 40)).as_json())
    assert reply['boxes'] == [{'label': '狗', 'x1': 10, 'y1': 20, 'x2': 30.5, 'y2': 40}]
    assert 'boxes' not in json.loads(outcome().as_json())


# -- between processes ----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def rgb():
    return np.asarray(Pillow.open(SAMPLE).convert('RGB').resize((640, 360)))


def nv12(rgb):
    """Give the planes of a picture as an HbmMsg1080P carries them."""
    import cv2

    height, width = rgb.shape[:2]
    planes = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    size = height * width
    chroma = planes[size:].reshape(2, -1).T.reshape(-1)  # u, v, u, v ...
    return np.concatenate([planes[:size], chroma])


def test_shared_memory_pictures_and_answers_in_words(robot, messages, start, rgb):
    """The picture of an HbmMsg1080P, its stamp on every output, and the text as a target."""
    from ai_msgs.msg import PerceptionTargets
    from hbm_img_msgs.msg import HbmMsg1080P

    topic = '/another/topic'
    planes = nv12(rgb)
    data = np.zeros(6220800, np.uint8)
    data[: planes.size] = planes
    picture = HbmMsg1080P(
        height=rgb.shape[0],
        width=rgb.shape[1],
        step=rgb.shape[1],
        data_size=planes.size,
        encoding=np.frombuffer(b'nv12'.ljust(12, b'\0'), np.uint8),
        data=data,
    )
    picture.time_stamp.sec, picture.time_stamp.nanosec = 4, 5
    robot.clear()
    node = start(feed_type=1, is_shared_mem_sub=1, ai_msg_pub_topic_name=topic, env=messages)
    listening = robot.listen(topic, PerceptionTargets)
    camera = robot.camera(topic='/hbmem_img', kind=HbmMsg1080P)
    try:
        robot.say('Describe the picture.')
        robot.wait('a reply', lambda: camera.publish(picture) or robot.replies())
        (reply,) = robot.replies()
        assert reply['error'] == '', node.log
        assert 'dog' in reply['text']
        assert reply['stamp'] == {'sec': 4, 'nanosec': 5}
        (shown,) = reply['pictures']
        assert (shown['topic'], shown['width'], shown['height']) == ('/hbmem_img', 640, 360)
        message = heard(robot, topic, reply['stamp'])
        assert [target.type for target in message.targets] == [reply['text']]
    finally:
        robot.node.destroy_subscription(listening)
    assert 'is not installed' not in node.log


def test_a_missing_package_is_said_once(robot, start):
    node = start(feed_type=1, parser_mode=1, ai_msg_pub_topic_name='/elsewhere')
    said = [
        'ai_msgs is not installed: nothing on /elsewhere',
        'vision_msgs is not installed: nothing on /hobot_vlm/detections',
    ]
    for line in said:
        assert node.log.count(line) == 1, node.log


# -- a node that looks for things; the last here, because there can be only one node -------------


@pytest.fixture(scope='module')
def detector(request, robot, messages, tmp_path_factory):
    """Run a node that looks for things; a grammar says what its model answers."""
    from ai_msgs.msg import PerceptionTargets
    from vision_msgs.msg import Detection2DArray

    robot.wait_until_alone()
    log = tmp_path_factory.mktemp('detector') / 'log'
    parameters = {'feed_type': 1, 'parser_mode': 1, 'grammar': grammar(DOG)}
    node = NodeProcess(log, parameters, messages)
    request.addfinalizer(node.end)
    robot.wait_until_ready(node)
    listening = [
        robot.listen('/llama_cpp_node', PerceptionTargets),
        robot.listen('/hobot_vlm/detections', Detection2DArray),
    ]
    robot.camera()
    yield node
    assert node.stop()[0] == 0, node.log
    for subscription in listening:
        robot.node.destroy_subscription(subscription)


def grammar(text):
    """Write a grammar with one answer."""
    return f'root ::= {json.dumps(text, ensure_ascii=False)}'


def answer_with(robot, text):
    result = robot.set('grammar', grammar(text))
    assert result.successful, result.reason


def heard(robot, topic, stamp):
    """Give what came on a topic about the picture with this stamp."""

    def about_it():
        return [
            message
            for message in robot.heard[topic]
            if message.header.stamp.sec == stamp['sec']
            and message.header.stamp.nanosec == stamp['nanosec']
        ]

    return robot.wait(f'a message on {topic}', about_it)[-1]


def test_what_is_found_is_published_everywhere(robot, detector, rgb):
    reply = robot.ask_about(image(rgb, frame_id='front'), 'dog')
    assert (reply['text'], reply['prompt'], reply['error']) == (DOG, 'dog', '')
    assert reply['boxes'] == [{'label': 'dog', 'x1': 64, 'y1': 72, 'x2': 192, 'y2': 144}]
    targets = heard(robot, '/llama_cpp_node', reply['stamp'])
    assert targets.header.frame_id == 'front'
    assert [perf.type for perf in targets.perfs] == PHASES
    durations = [perf.time_ms_duration for perf in targets.perfs]
    assert durations == [
        reply['timings'][name]
        for name in ('preprocess_ms', 'encode_ms', 'prefill_ms', 'decode_ms')
    ]
    (target,) = targets.targets
    (roi,) = target.rois
    assert (target.type, roi.type) == ('dog', 'dog')
    rect = roi.rect
    assert (rect.x_offset, rect.y_offset, rect.width, rect.height) == (64, 72, 128, 72)
    found = heard(robot, '/hobot_vlm/detections', reply['stamp'])
    assert found.header.frame_id == 'front'
    (detection,) = found.detections
    assert detection.results[0].hypothesis.class_id == 'dog'
    assert (detection.bbox.center.position.x, detection.bbox.center.position.y) == (128, 108)
    assert (detection.bbox.size_x, detection.bbox.size_y) == (128, 72)


def test_a_part_of_an_answer_with_a_form_has_an_error(robot, detector, rgb):
    answer_with(robot, DOG)
    assert robot.set('n_predict', 2).successful
    reply = robot.ask_about(image(rgb), 'dog')
    assert robot.set('n_predict', 256).successful
    assert 'does not follow grammar: raise n_predict' in reply['error']
    assert (reply['finish_reason'], reply['completion_tokens']) == ('length', 2)
    assert reply['text'] and DOG.startswith(reply['text'])


def test_a_task_and_the_picture_with_its_answer(robot, detector, rgb):
    """Points, as JSON; and the picture, plain and compressed, while somebody listens."""
    from sensor_msgs.msg import CompressedImage, Image

    said = '[{"point_2d": [500, 500], "label": "the dog"}]'
    answer_with(robot, said)
    topics = {'/hobot_vlm/annotated': Image, '/hobot_vlm/annotated/compressed': CompressedImage}
    listening = [robot.listen(topic, kind) for topic, kind in topics.items()]
    robot.wait('them', lambda: all(s.get_publisher_count() for s in listening))
    reply = robot.ask_about(image(rgb, frame_id='front'), '/point dog')
    assert reply['points'] == [{'label': 'the dog', 'x': 320, 'y': 180}]
    (target,) = heard(robot, '/llama_cpp_node', reply['stamp']).targets
    assert (target.points[0].point[0].x, target.points[0].point[0].y) == (320, 180)
    plain, compressed = (heard(robot, topic, reply['stamp']) for topic in topics)
    assert plain.header.frame_id == compressed.header.frame_id == 'front'
    shown = to_rgb(plain.encoding, plain.height, plain.width, plain.step, plain.data)
    assert shown.shape == rgb.shape
    assert (shown[180, 320] == COLOURS[0]).all()  # the point
    assert np.abs(shown[:100].astype(int) - rgb[:100]).max() == 0
    jpeg = np.asarray(Pillow.open(BytesIO(bytes(compressed.data))))
    assert np.abs(jpeg.astype(int) - shown).mean() < 5
    for subscription in listening:
        robot.node.destroy_subscription(subscription)


@pytest.mark.parametrize(
    'answer, labels',
    [
        ('<ref>左边的狗</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>', ['左边的狗'] * 2),
        ('[[900, 900, 100, 2000]]', ['thing']),
        ('<ref>dog</ref><box>[[1, 2, 3', []),
        ('[[[[]]]]', []),
        ('no', []),
    ],
)
def test_whatever_the_model_says_there_is_a_message(robot, detector, rgb, answer, labels):
    answer_with(robot, answer)
    reply = robot.ask_about(image(rgb), 'thing')
    assert (reply['text'], reply['error']) == (answer, '')
    assert [box['label'] for box in reply.get('boxes', [])] == labels
    targets = heard(robot, '/llama_cpp_node', reply['stamp'])
    assert [target.type for target in targets.targets] == labels
    found = heard(robot, '/hobot_vlm/detections', reply['stamp'])
    assert [d.results[0].hypothesis.class_id for d in found.detections] == labels
