"""Requests as JSON: answered side by side, each with its id, its options and its pictures."""

from __future__ import annotations

import base64
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
import json
from pathlib import Path
import re
import threading

from hobot_vlm.errors import PictureError, VlmError
from hobot_vlm.node_config import NodeConfig
from hobot_vlm.ros.frames import Pictures
from hobot_vlm.ros.request_json import check, FIELDS, from_data_url, ID_LENGTH, OWN, read
import numpy as np
from PIL import Image as Pillow
import pytest

from .conftest import ENDLESS_NODE, MODELS, SAMPLE
from .robot import image, NodeProcess

QUESTION = 'Describe the picture.'
PLAIN = str(MODELS / 'plain' / 'decoder.gguf')


def data_url(path=SAMPLE):
    return 'data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode()


# -- what a request may hold ----------------------------------------------------------------------


def checked(text, feed_type=1, **options):
    _, fields = read(text if isinstance(text, str) else json.dumps(text))
    return check(fields, NodeConfig(feed_type=feed_type, **options))


def test_a_prompt_and_its_options():
    question = checked(
        {'id': 'a', 'prompt': 'Hi', 'temperature': 0.5, 'timeout': 3, 'priority': 1}
    )
    assert (question.id, question.prompt, question.text) == ('a', 'Hi', 'Hi')
    assert question.images == 'newest'
    assert question.more == {'temperature': 0.5, 'timeout': 3, 'priority': 1}
    assert checked({'id': 'a', 'prompt': ''}, feed_type=2).images == []
    assert checked({'id': 'a', 'prompt': '', 'images': 'none'}).images == []
    assert (
        checked({'id': 'a', 'prompt': '', 'images': [data_url()] * 2}).images
        == [SAMPLE.read_bytes()] * 2
    )
    schema = checked({'id': 'a', 'prompt': '', 'json_schema': {'type': 'string'}})
    assert schema.more['json_schema'] == '{"type": "string"}'


def test_the_fields_are_described():
    text = (Path(__file__).parents[2] / 'docs' / 'requests.md').read_text(encoding='utf-8')
    described = set(re.findall(r'^\| `(\w+)` \|', text, re.MULTILINE))
    assert described == {*OWN, *FIELDS} - {'cancel'}
    assert '{"cancel": "all"}' in text


def test_messages():
    messages = [
        {'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': [
            {'type': 'image_url', 'image_url': {'url': data_url()}},
            {'type': 'text', 'text': 'What is this?'},
        ]},
    ]  # fmt: skip
    question = checked({'id': 'a', 'messages': messages})
    assert question.text == 'What is this?'
    assert question.images == []
    prompt, images = question.with_pictures(Pictures())
    assert images is None
    assert prompt[1]['content'][0] == {'type': 'image', 'image': SAMPLE.read_bytes()}
    # the newest picture belongs to the last message
    rgb = np.zeros((2, 2, 3), np.uint8)
    question = checked({'id': 'a', 'images': 'newest', 'messages': [
        {'role': 'user', 'content': 'What is this?'}
    ]})  # fmt: skip
    prompt, images = question.with_pictures(Pictures([rgb]))
    assert images is None
    assert prompt[0]['content'][0]['image'] is rgb
    assert prompt[0]['content'][1] == {'type': 'text', 'text': 'What is this?'}


@pytest.mark.parametrize(
    'request_, says',
    [
        ('{"id": ', 'no JSON'),
        ('[' * 100_000, 'no JSON'),
        ('{"id": "\\ud800", "prompt": "Hi"}', 'no JSON'),
        ('{"id": "a", "prompt": "\\udc00"}', 'no JSON'),
        ('[]', 'no JSON object'),
        ('7', 'no JSON object'),
        ('', 'no JSON'),
        ({'prompt': 'Hi'}, 'id: expected'),
        ({'id': 7, 'prompt': 'Hi'}, 'id: expected'),
        ({'id': '', 'prompt': 'Hi'}, 'id: expected'),
        ({'id': 'x' * (ID_LENGTH + 1), 'prompt': 'Hi'}, 'id: expected'),
        ({'id': 'a'}, 'either prompt or messages'),
        ({'id': 'a', 'prompt': 'Hi', 'messages': []}, 'either prompt or messages'),
        ({'id': 'a', 'prompt': 7}, 'prompt: expected a text'),
        ({'id': 'a', 'prompt': None}, 'prompt: expected a text'),
        ({'id': 'a', 'messages': 'Hi'}, 'messages: expected a list'),
        ({'id': 'a', 'messages': [7]}, 'messages: expected objects'),
        ({'id': 'a', 'messages': [{'role': 'user', 'content': 7}]}, 'messages: expected content'),
        ({'id': 'a', 'messages': [{'role': 'user', 'content': [7]}]}, 'messages: expected parts'),
        ({'id': 'a', 'messages': [{'role': 'user', 'content': [{'type': 'x'}]}]}, 'of type text'),
        ({'id': 'a', 'prompt': 'Hi', 'colour': 1}, "no field 'colour'"),
        ({'id': 'a', 'prompt': 'Hi', 'n_ctx': 100}, "no field 'n_ctx'"),
        ({'id': 'a', 'prompt': 'Hi', 'images': 7}, 'images: expected "newest"'),
        ({'id': 'a', 'prompt': 'Hi', 'images': '/etc/passwd'}, "given as '/etc/passwd'"),
        ({'id': 'a', 'prompt': 'Hi', 'images': ['http://x/a.png']}, "given as 'http://x/a.png'"),
        ({'id': 'a', 'prompt': 'Hi', 'images': ['file:///a.png']}, "given as 'file:///a.png'"),
        ({'id': 'a', 'prompt': 'Hi', 'images': [7]}, 'given as int'),
        ({'id': 'a', 'prompt': 'Hi', 'images': ['data:image/png;base64,?']}, 'no base64'),
        ({'id': 'a', 'prompt': 'Hi', 'images': ['data:text/html;base64,AA==']}, "'data:text/html"),
        ({'id': 'a', 'prompt': 'Hi', 'system_prompt': '/etc/hosts'}, 'system_prompt names a file'),
        ({'id': 'a', 'prompt': 'Hi', 'json_schema': '/etc/passwd'}, 'json_schema names a file'),
        ({'id': 'a', 'prompt': 'Hi', 'grammar': '~'}, 'grammar names a file'),
        ({'id': 'a', 'messages': [{'role': 'user', 'content': [
            {'type': 'image_url', 'image_url': {'url': 'http://x/a.png'}}]}]}, "'http://x/a.png'"),
    ],
)  # fmt: skip
def test_what_is_no_request(request_, says):
    with pytest.raises(VlmError, match='.') as caught:
        checked(request_)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_request_for_pictures_where_there_are_none():
    with pytest.raises(VlmError, match='feed_type is 2'):
        checked({'id': 'a', 'prompt': 'Hi', 'images': 'newest'}, feed_type=2)


def test_addresses_only_where_they_are_allowed():
    url = 'https://x/a.png'
    asked = {'id': 'a', 'prompt': 'Hi', 'images': [url, data_url()]}
    assert checked(asked, allow_urls=True).images == [url, SAMPLE.read_bytes()]
    said = {'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': url}}]}
    messages = {'id': 'a', 'messages': [said]}
    (message,) = checked(messages, allow_urls=True).prompt
    assert message['content'] == [{'type': 'image', 'image': url}]
    for request in (asked, messages):
        with pytest.raises(
            PictureError, match=f"given as '{url}': start the node with allow_urls"
        ):
            checked(request)
    for bad in ('file:///etc/hosts', '/etc/hosts', 'ftp://x/a.png', 'http:/etc/hosts'):
        with pytest.raises(PictureError, match='data:image'):
            checked({'id': 'a', 'prompt': 'Hi', 'images': bad}, allow_urls=True)


def test_the_message_about_a_data_url_does_not_hold_it():
    with pytest.raises(VlmError) as caught:
        from_data_url('data:image/png;base64,' + 'A' * 100_000 + '?')
    assert len(str(caught.value)) < 200


# -- about pictures; the first here, because there can be only one node ---------------------------


@pytest.fixture
def web():
    """Give the address of a server that has the bundled picture."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(SAMPLE.parent))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_requests_about_pictures(robot, start, web):
    """The newest of the camera, one of their own, or none; the first may still have to come."""
    start(feed_type=1, allow_urls=True)
    robot.clear()
    camera = robot.camera()
    robot.request({'id': 'waits', 'prompt': QUESTION})
    robot.request({'id': 'gives up', 'prompt': QUESTION, 'timeout': 0.2})
    robot.request({'id': 'stopped', 'prompt': QUESTION})
    robot.request({'id': 'own', 'prompt': QUESTION, 'images': [data_url()]})
    own = robot.reply_to('own')
    assert (own['error'], own['pictures']) == ('', [])
    assert 'dog' in own['text']
    robot.request({'id': 'web', 'prompt': QUESTION, 'images': [f'{web}/{SAMPLE.name}']})
    assert robot.reply_to('web')['text'] == own['text']
    robot.request({'id': 'lost', 'prompt': QUESTION, 'images': [f'{web}/lost.png']})
    assert 'the server answers 404' in robot.reply_to('lost')['error']
    assert robot.reply_to('gives up')['finish_reason'] == 'timeout'
    robot.request({'cancel': 'stopped'})
    assert robot.reply_to('stopped')['finish_reason'] == 'cancelled'
    rgb = np.asarray(Pillow.open(SAMPLE).convert('RGB'))
    message = image(rgb, frame_id='front', stamp=(12, 34))
    robot.wait(
        'a reply',
        lambda: camera.publish(message) or [r for r in robot.replies() if r['id'] == 'waits'],
    )
    waited = robot.reply_to('waits')
    assert (waited['text'], waited['frame_id']) == (own['text'], 'front')
    assert waited['stamp'] == {'sec': 12, 'nanosec': 34}
    (picture,) = waited['pictures']
    assert (picture['height'], picture['width']) == rgb.shape[:2]
    # many about one picture
    for number in range(6):
        robot.request({'id': f'{number}', 'prompt': QUESTION})
    assert {robot.reply_to(f'{number}')['text'] for number in range(6)} == {own['text']}
    robot.request({'id': 'none', 'prompt': 'Hello', 'images': 'none'})
    assert robot.reply_to('none')['image_tokens'] == 0
    file = BytesIO()
    Pillow.new('RGB', (2, 2)).save(file, 'PNG')
    bad = base64.b64encode(file.getvalue()[:40]).decode()
    robot.request({'id': 'bad', 'prompt': QUESTION, 'images': [f'data:image/png;base64,{bad}']})
    assert 'picture' in robot.reply_to('bad')['error']


# -- through the node -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def talker(request, robot, tmp_path_factory):
    """Run a node without pictures."""
    robot.wait_until_alone()
    options = {'feed_type': 2, 'llm_model_name': PLAIN, 'n_predict': 12}
    log = tmp_path_factory.mktemp('talker') / 'log'
    node = NodeProcess(log, options, program=ENDLESS_NODE)
    request.addfinalizer(node.end)
    robot.wait_until_ready(node)
    yield node
    assert node.stop()[0] == 0, node.log
    assert 'Traceback' not in node.log


@pytest.fixture
def heard(robot, talker):
    robot.clear()
    return robot


def pieces(robot, number):
    """Join the chunks of a request."""
    chunks = map(json.loads, robot.heard['/hobot_vlm/chunk'])
    return ''.join(chunk['text'] for chunk in chunks if chunk['id'] == number)


def test_requests_side_by_side(heard):
    """Each with its own options; pieces and reply carry the id, and speech says nothing."""
    numbers = [f'{i}' for i in range(8)]
    for i, number in enumerate(numbers):
        heard.request({'id': number, 'prompt': f'Question {i}', 'n_predict': 5 + i})
    for i, number in enumerate(numbers):
        reply = heard.reply_to(number)
        assert (reply['error'], reply['finish_reason']) == ('', 'length')
        assert reply['completion_tokens'] == 5 + i
        assert reply['prompt'] == f'Question {i}'
        heard.wait('its pieces', lambda n=number, r=reply: pieces(heard, n) == r['text'])
    assert not heard.heard['/tts_text']
    assert not heard.heard['/hobot_vlm/result']
    # alone, each says the same
    for i, number in enumerate(numbers[:3]):
        heard.request({'id': f'again {number}', 'prompt': f'Question {i}', 'n_predict': 5 + i})
        assert heard.reply_to(f'again {number}')['text'] == heard.reply_to(number)['text']


def test_choosing(heard):
    """The likeliest is the text, in one piece; how likely each is stands beside it."""
    heard.request(
        {'id': 'sure', 'prompt': 'Is it open?', 'images': 'none', 'choices': ['yes', 'no']}
    )
    reply = heard.reply_to('sure')
    assert set(reply['choices']) == {'yes', 'no'} and sum(reply['choices'].values()) > 0.999
    assert reply['text'] == max(reply['choices'], key=reply['choices'].get)
    heard.request({'id': 'unsure', 'prompt': 'Is it open?', 'images': 'none', 'choices': ['yes']})
    assert 'expected 2 to 32' in heard.reply_to('unsure')['error']


def test_requests_go_on_beside_prompts(heard):
    """A prompt that takes long holds up no request, and has its turn before the next prompt."""
    heard.request({'id': 'long', 'prompt': 'Go on', 'n_predict': 100000})
    heard.say('one')
    heard.say('two')
    heard.request({'id': 'short', 'prompt': 'Hello', 'n_predict': 3})
    assert heard.reply_to('short')['completion_tokens'] == 3
    heard.wait('both prompts', lambda: sum('id' not in r for r in heard.replies()) == 2)
    assert [r['prompt'] for r in heard.replies() if 'id' not in r] == ['one', 'two']
    assert not [r for r in heard.replies() if r.get('id') == 'long']
    heard.request({'cancel': 'long'})
    reply = heard.reply_to('long')
    assert (reply['finish_reason'], reply['error']) == ('cancelled', '')
    assert reply['completion_tokens'] > 0
    heard.wait('its pieces', lambda: pieces(heard, 'long') == reply['text'])


def test_an_answer_that_is_cut_before_it_has_its_form(heard):
    form = {'json_schema': {'enum': ['a long answer', 'a longer answer']}, 'n_predict': 3}
    heard.request({'id': 'cut', 'prompt': 'Hello', **form})
    reply = heard.reply_to('cut')
    assert (reply['finish_reason'], reply['completion_tokens']) == ('length', 3)
    assert 'does not follow json_schema: raise n_predict' in reply['error']
    heard.wait('its pieces', lambda: pieces(heard, 'cut') == reply['text'] != '')


def test_a_timeout(heard):
    heard.request({'id': 'slow', 'prompt': 'Go on', 'n_predict': 100000, 'timeout': 0.3})
    assert heard.reply_to('slow')['finish_reason'] == 'timeout'


@pytest.mark.parametrize('which', [0, 2, 4])
def test_one_of_many_is_cancelled(heard, which):
    """The first, one in the middle or the last; the service is for prompts, and says so."""
    numbers = [f'{number}' for number in range(5)]
    for number in numbers:
        lasting = number == numbers[which]
        heard.request({'id': number, 'prompt': 'Go on', 'n_predict': 100000 if lasting else 400})
    stopped = heard.call('cancel')
    assert not stopped.success and 'publish {"cancel": "ID"} on ~/request' in stopped.message
    heard.request({'cancel': numbers[which]})
    heard.wait('all replies', lambda: len(heard.replies()) == 5)
    for number in numbers:
        expected = 'cancelled' if number == numbers[which] else 'length'
        assert heard.reply_to(number)['finish_reason'] == expected


def test_an_id_that_is_open(heard):
    heard.request({'id': 'twice', 'prompt': 'Go on', 'n_predict': 100000})
    heard.request({'id': 'twice', 'prompt': 'Go on'})
    assert "a request 'twice' is being answered" in heard.reply_to('twice')['error']
    heard.request({'cancel': 'twice'})
    heard.wait('the other', lambda: len(heard.replies()) == 2)
    assert heard.replies()[1]['finish_reason'] == 'cancelled'
    heard.request({'cancel': 'twice'})  # nothing is open any more: no harm
    heard.request({'id': 'twice', 'prompt': 'Hello', 'n_predict': 2})
    heard.wait('again', lambda: len(heard.replies()) == 3)
    assert heard.replies()[2]['completion_tokens'] == 2


@pytest.mark.parametrize(
    'fields, says',
    [
        ('no JSON', 'no JSON'),
        ({'id': 'b', 'prompt': 'Hi', 'colour': 1}, "no field 'colour'"),
        ({'id': 'b', 'prompt': 'Hi', 'temperature': 'hot'}, "temperature is 'hot'"),
        ({'id': 'b', 'prompt': 'Hi', 'n_predict': 0}, 'n_predict is 0'),
        ({'id': 'b', 'prompt': 'Hi', 'timeout': 'soon'}, 'timeout'),
        ({'id': 'b', 'prompt': 'Hi', 'stop': 7}, 'stop'),
        ({'id': 'b', 'prompt': 'Hi', 'images': 'newest'}, 'feed_type is 2'),
        ({'id': 'b', 'prompt': 'word ' * 9000}, 'n_ctx is 4096'),
        ({'id': 'b', 'messages': [{'role': 'pope', 'content': 'Hi'}]}, 'role'),
        ({'cancel': 7}, 'cancel: expected'),
        ({'id': 'all', 'prompt': 'Hi'}, "id: 'all' is what cancels every request"),
        ({'id': 'b', 'prompt': 'Hi', 'priority': 1e300}, 'priority'),
        ({'id': 'b', 'prompt': 'Hi', 'seed': 10**30}, 'seed'),
        ({'id': 'b', 'prompt': 'Hi', 'timeout': -1}, 'timeout'),
        ({'cancel': 'a', 'prompt': 'Hi'}, 'cancel: expected'),
        ({'id': 'b', 'prompt': 'Hi', 'images': [data_url()]}, ''),
    ],
)
def test_a_request_that_fails_has_a_reply(heard, fields, says):
    heard.request(fields)
    number = fields.get('id', '') if isinstance(fields, dict) else ''
    reply = heard.reply_to(number)
    assert reply['error'] and says in reply['error']
    assert reply['finish_reason'] == 'error'
    assert len(reply['error']) < 700 and len(reply['prompt']) <= 1000
    # and the next is answered
    heard.request({'id': 'next', 'prompt': 'Hello', 'n_predict': 2})
    assert heard.reply_to('next')['error'] == ''


def test_a_conversation_as_messages(heard):
    messages = [{'role': 'user', 'content': 'Hello'}]
    heard.request({'id': '1', 'messages': messages})
    first = heard.reply_to('1')
    heard.request({'id': '2', 'prompt': 'Hello'})
    assert heard.reply_to('2')['text'] == first['text']
    messages += [
        {'role': 'assistant', 'content': first['text']},
        {'role': 'user', 'content': 'And?'},
    ]
    heard.request({'id': '3', 'messages': messages})
    reply = heard.reply_to('3')
    assert (reply['error'], reply['prompt']) == ('', 'And?')
    assert reply['prompt_tokens'] > first['prompt_tokens']
