"""The HTTP API of the node: the same model as its topics, while it is active."""

from __future__ import annotations

import json
import socket
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image as Pillow
import pytest

from .conftest import SAMPLE
from .robot import image

pytest.importorskip('uvicorn')
pytest.importorskip('starlette')
pytest.importorskip('prometheus_client')


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def test_http_beside_topics(robot, start):
    port = free_port()
    node = start(feed_type=1, serve=port)
    url = f'http://127.0.0.1:{port}'
    assert f'listening on {url}' in node.log
    with urlopen(f'{url}/health', timeout=30) as answer:
        assert answer.status == 200
    messages = [{'role': 'user', 'content': 'Hello'}]
    body = json.dumps({'model': 'demo', 'messages': messages}).encode()
    question = Request(f'{url}/v1/chat/completions', body, {'Content-Type': 'application/json'})
    with urlopen(question, timeout=30) as answer:
        assert json.load(answer)['choices'][0]['message']['content']
    # the camera's picture is on the page, and the topics are answered
    robot.camera()
    rgb = np.asarray(Pillow.open(SAMPLE).convert('RGB'))
    assert robot.ask_about(image(rgb), 'Describe the picture.')['error'] == ''
    with urlopen(f'{url}/live.mjpeg', timeout=30) as stream:
        assert b'image/jpeg' in stream.read(200)
    # with what the newest answer found in it
    schema = {'const': {'bbox_2d': [500, 500, 750, 1000], 'label': 'dog'}}
    robot.request({'id': 'box', 'prompt': 'Where is it?', 'json_schema': schema})
    (box,) = robot.reply_to('box')['boxes']
    height, width = rgb.shape[:2]
    assert (box['label'], box['x2'], box['y2']) == ('dog', 0.75 * width, height)
    with urlopen(f'{url}/live.mjpeg', timeout=30) as stream:
        assert json.dumps({'boxes': [box]})[1:-1] in stream.read(500).decode('latin-1')
    assert node.stop()[0] == 0, node.log
    assert 'Traceback' not in node.log


def test_a_port_that_is_taken_and_an_address_that_lets_others_in(start, robot):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        node = start(ready=False, feed_type=2, serve=port)
        assert node.wait() == 1
        assert f'serve is {port}, and 127.0.0.1 cannot be listened on' in node.log
    node = start(ready=False, feed_type=2, serve=free_port(), serve_host='0.0.0.0')
    assert node.wait() == 1
    assert "serve_host is '0.0.0.0'" in node.log and 'HOBOT_VLM_API_KEY' in node.log
