"""``serve`` of a real node: API and page on its model, and the live picture of its topic."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import threading
import urllib.error
import urllib.request

import numpy as np
from PIL import Image as Pillow
import pytest

from .conftest import SAMPLE
from .robot import image

QUESTION = 'Describe the picture.'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


def get(url, body=None, key=''):
    """Ask the node's server; give status and answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {'Authorization': f'Bearer {key}'})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()


def first_picture(url):
    """Read one picture of the stream, and what was found in it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        data = b''
        while b'\r\n\r\n' not in data:
            data += answer.read1(65536)
        head, _, body = data.partition(b'\r\n\r\n')
        size = int(head.split(b'Content-Length: ')[1].split()[0])
        while len(body) < size:
            body += answer.read1(65536)
    found = json.loads(head.decode().split('X-Found: ')[1])
    return found, np.asarray(Pillow.open(io.BytesIO(body[:size])))


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        return taken.getsockname()[1]


@pytest.fixture
def rgb():
    return np.asarray(Pillow.open(SAMPLE).convert('RGB'))


def test_topics_and_clients_share_the_model(start, robot, rgb):
    port = free_port()
    node = start(feed_type=1, serve=port)
    url = f'http://127.0.0.1:{port}'
    robot.camera()
    assert json.loads(get(f'{url}/live')[1])['picture'] is True
    said = robot.ask_about(image(rgb), QUESTION)['text']
    # 1. the live picture is the one of the topic
    found, pixels = first_picture(f'{url}/live.mjpeg?rate=10')
    assert found['topic'] == '/image' and (found['height'], found['width']) == rgb.shape[:2]
    assert np.abs(pixels.astype(int) - rgb).mean() < 5
    # 2. clients get the answers that topics get, at the same time
    picture = 'data:image/png;base64,' + base64.b64encode(SAMPLE.read_bytes()).decode()
    parts = [{'type': 'image_url', 'image_url': {'url': picture}},
             {'type': 'text', 'text': QUESTION}]  # fmt: skip
    body = {'messages': [{'role': 'user', 'content': parts}]}
    answers = []
    clients = [
        threading.Thread(target=lambda: answers.append(get(f'{url}/v1/chat/completions', body)))
        for _ in range(4)
    ]
    for client in clients:
        client.start()
    assert robot.ask(QUESTION)['text'] == said
    for client in clients:
        client.join()
    texts = [json.loads(text)['choices'][0]['message']['content'] for _, text in answers]
    assert texts == [said] * 4
    # 3. the server ends with the node
    assert node.stop()[0] == 0, node.log
    with pytest.raises(urllib.error.URLError):
        get(f'{url}/health')


def test_a_key_lets_other_machines_in(start):
    port = free_port()
    start(feed_type=2, serve=port, env={'HOBOT_VLM_API_KEY': 'sesame'})
    with socket.create_connection((socket.gethostname(), port), 5) as reached:
        assert reached.getpeername()
    assert get(f'http://127.0.0.1:{port}/v1/models')[0] == 401
    assert get(f'http://127.0.0.1:{port}/v1/models', key='sesame')[0] == 200
    assert b'"picture":false' in get(f'http://127.0.0.1:{port}/live', key='sesame')[1]


def test_a_port_that_is_taken_is_said(start):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        node = start(ready=False, feed_type=2, serve=taken.getsockname()[1])
        assert node.wait() == 1
    assert 'cannot listen on 127.0.0.1' in node.log


@pytest.mark.skipif(not CHROMIUM, reason='Chromium is not installed: apt install chromium')
def test_the_page_shows_what_the_robot_sees(start, robot, rgb):
    api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    port = free_port()
    start(feed_type=1, serve=port)
    camera = robot.camera()
    over = threading.Event()

    def publish():
        while not over.wait(0.1):
            camera.publish(image(rgb))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        with api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
            page = browser.new_page(locale='en-US')
            page.goto(f'http://127.0.0.1:{port}')
            page.wait_for_selector('#source:has-text("/image")')
            page.fill('#question', QUESTION)
            page.press('#question', 'Enter')
            page.wait_for_selector('article.model .again')
            assert 'dog' in page.inner_text('article.model .text')
            assert page.locator('article.user img').count() == 1
            browser.close()
    finally:
        over.set()
        thread.join()
