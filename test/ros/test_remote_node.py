"""The node with a model elsewhere: the same topics, a fallback, and many nodes at one server."""

from __future__ import annotations

from contextlib import contextmanager
import json
import os
import socket
import time

from hobot_vlm.server.guard import Settings
from hobot_vlm.server.http import create_app, HttpServer
import pytest
from std_msgs.msg import String

from .conftest import SAMPLE
from .robot import RELIABLE

pytest.importorskip('httpx')

#: seconds of the test with many nodes, which two cores need quiet for; two minutes for a release
SECONDS = float(os.environ.get('HOBOT_VLM_NODE_SECONDS', '0'))
NODES = 10


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


@contextmanager
def serving(vlm, port):
    app, service = create_app(vlm, Settings())
    with HttpServer(app, service, '127.0.0.1', port):
        yield


def ask(robot, text):
    """Publish a prompt, and wait for its own reply: the node asks one by itself, too."""
    robot.say(text)
    return robot.wait(
        f'a reply to {text}', lambda: [r for r in robot.replies() if r['prompt'] == text]
    )[0]


def test_the_server_goes_and_the_fallback_answers(robot, start, demo):
    port = free_port()
    url = f'http://127.0.0.1:{port}/v1'
    expected = demo.ask('Describe the picture.', str(SAMPLE)).text
    with serving(demo, port):
        node = start(feed_type=0, stay_alive=True, model=url, fallback='demo')
        reply = ask(robot, 'What is on the left?')
        assert reply['text'] == 'There is a dog on the left.' and not reply['error']
        assert reply['model'] == f'demo@{url}'
        robot.wait('the result', lambda: reply['text'] in robot.heard['/hobot_vlm/result'])
        assert expected in node.out  # the first answer, about the local picture
        schema = {'type': 'boolean'}
        robot.request({'id': 'a', 'prompt': 'Is there a dog?', 'json_schema': schema})
        reply = robot.reply_to('a')
        assert reply['text'] in ('true', 'false') and reply['model'] == f'demo@{url}'
        endless = {'grammar': 'root ::= "x" root', 'n_predict': 100000}
        robot.request({'id': 'b', 'prompt': 'Hello', 'images': 'none', **endless})
        robot.wait('a piece of it', lambda: robot.heard['/hobot_vlm/chunk'])
        robot.request({'cancel': 'b'})
        assert robot.reply_to('b')['finish_reason'] == 'cancelled'
    reply = ask(robot, 'What is on the right?')
    assert (reply['text'], reply['model']) == ('There is a sunflower on the right.', 'demo')
    robot.wait(
        'a warning',
        lambda: (
            robot.status()
            and f'{url} is away' in robot.status().message
            and robot.values().get('last model') == 'demo'
        ),
    )
    assert node.stop()[0] == 0, node.log
    assert 'Traceback' not in node.log


@pytest.mark.skipif(not SECONDS, reason='set HOBOT_VLM_NODE_SECONDS, to 120 for example')
@pytest.mark.timeout(3 * SECONDS + 120)
def test_ten_nodes_at_one_server(robot, start, demo):
    """No prompt is lost, and each reply reaches its own asker."""
    port = free_port()
    asked: dict[str, str] = {}
    with serving(demo, port):
        ask = {}
        for n in range(NODES):
            name = ('-r', f'__ns:=/robot{n}')
            start(
                ready=False, feed_type=2, model=f'http://127.0.0.1:{port}/v1', remote_timeout=60,
                program=('-m', 'hobot_vlm.ros.main', '--ros-args', *name),
            )  # fmt: skip
            robot.listen(f'/robot{n}/hobot_vlm/reply', String)
            ask[n] = robot.node.create_publisher(String, f'/robot{n}/hobot_vlm/request', RELIABLE)
        robot.wait(
            'all nodes', lambda: all(each.get_subscription_count() for each in ask.values()), 120
        )
        end = time.monotonic() + SECONDS
        count = 0
        while time.monotonic() < end:
            for n, publisher in ask.items():
                number = f'{n} asks {count}'
                asked[number] = f'/robot{n}/hobot_vlm/reply'
                fields = {'id': number, 'prompt': 'Hello', 'grammar': f'root ::= "{number}"'}
                publisher.publish(String(data=json.dumps(fields)))
            count += 1
            if count % 5 == 0:  # some wait, and not ever more
                robot.wait('replies', lambda: heard(robot) >= len(asked) - 3 * NODES, 60)
        robot.wait('all replies', lambda: heard(robot) == len(asked), 60)
    for number, topic in asked.items():
        found = [json.loads(text) for text in robot.heard[topic]]
        (reply,) = [each for each in found if each['id'] == number]
        assert (reply['text'], reply['error']) == (number, '')
    print(f'{len(asked)} requests of {NODES} nodes in {SECONDS:g} s')


def heard(robot):
    return sum(len(robot.heard[f'/robot{n}/hobot_vlm/reply']) for n in range(NODES))
