"""The live picture and the standing questions over HTTP, as any client reads them."""

from __future__ import annotations

import io
import itertools
import json
import time

from hobot_vlm.errors import ConfigError
from hobot_vlm.server.live import BOUNDARY, Live, LivePicture, LONGEST, StandingQuestion
from hobot_vlm.values import Box
import httpx
import numpy as np
from PIL import Image
import pytest

from .conftest import serving


def parts(client, rate, count):
    """Read some pictures of the stream: what was found in each, and its pixels."""
    found = []
    with client.stream('GET', f'/live.mjpeg?rate={rate}') as answer:
        kind = answer.headers['content-type']
        assert kind == f'multipart/x-mixed-replace; boundary={BOUNDARY}'
        data = b''
        for chunk in answer.iter_raw():
            data += chunk
            while data.count(f'--{BOUNDARY}\r\n'.encode()) > 1:
                _, part, rest = data.split(f'--{BOUNDARY}\r\n'.encode(), 2)
                data = f'--{BOUNDARY}\r\n'.encode() + rest
                head, _, body = part.partition(b'\r\n\r\n')
                fields = dict(line.split(': ', 1) for line in head.decode().split('\r\n'))
                assert int(fields['Content-Length']) == len(body) - 2
                image = Image.open(io.BytesIO(body))
                found.append((json.loads(fields['X-Found']), np.asarray(image)))
            if len(found) >= count:
                return found
    raise AssertionError('the stream ended')


def test_pictures_come_with_what_was_found(demo):
    shades = itertools.count(40, 40)
    boxes = (Box('Hund "links"\n', 1.5, 2, 30, 40), Box('狗', 0, 0, 5, 5))

    def picture():
        image = np.full((90, 1920, 3), next(shades) % 256, np.uint8)
        return LivePicture(image, boxes, (('x', 3.0, 4.0),), '/left/image')

    with serving(demo, live=Live(picture)) as server:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
            assert client.get('/live').json() == {
                'picture': True,
                'questions': [],
                'changeable': False,
            }
            found = parts(client, 30, 3)
            for said, pixels in found:
                assert (said['width'], said['height']) == (1920, 90)
                assert said['topic'] == '/left/image'
                assert [box['label'] for box in said['boxes']] == [box.label for box in boxes]
                assert said['points'] == [{'label': 'x', 'x': 3.0, 'y': 4.0}]
                assert pixels.shape == (90 * LONGEST // 1920, LONGEST, 3)
            steps = [int(pixels[0, 0, 0]) for _, pixels in found]
            assert [b - a for a, b in itertools.pairwise(steps)] == pytest.approx([40, 40], abs=4)
            for rate in ('0', 'fast', '1e9', '-1'):
                assert client.get(f'/live.mjpeg?rate={rate}').status_code == 400


def test_an_old_picture_is_sent_once(demo):
    calls = []
    only = LivePicture(np.zeros((8, 8, 3), np.uint8))

    def picture():
        calls.append(1)
        return only if len(calls) > 2 else None  # none yet

    with serving(demo, live=Live(picture)) as server:
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            with client.stream('GET', '/live.mjpeg?rate=30') as answer:
                pieces = answer.iter_raw()  # which closes the connection when it is dropped
                data = next(pieces)
                while len(calls) < 8:
                    time.sleep(0.01)
            assert data.count(BOUNDARY.encode()) == 1
            made = [0, len(calls)]
            while made[-1] != made[-2]:  # the client has gone, so nobody looks any more
                time.sleep(0.2)
                made.append(len(calls))
            assert len(made) < 20


def test_standing_questions_change(demo):
    changes = []

    def change(name, question):
        if name == 'no':
            raise ConfigError('no such name', 'watch')
        changes.append((name, question))

    with serving(demo, live=Live(None, list, change)) as server:
        url = f'{server.url}/live/questions'
        for body in ({'name': 'a', 'question': 'Is it?'}, {'name': 'a', 'question': ''}):
            assert httpx.post(url, json=body, trust_env=False).json()['changeable']
        for body in ({'name': 'no'}, {'question': 'Is it?'}, {'name': 3}, {'name': 'a', 'b': 1}):
            assert httpx.post(url, json=body, trust_env=False).status_code == 400
    assert changes == [('a', 'Is it?'), ('a', '')]
    with serving(demo) as server:
        url = f'{server.url}/live/questions'
        assert httpx.post(url, json={'name': 'a'}, trust_env=False).status_code == 404


def test_standing_questions(demo):
    asked = [StandingQuestion('door', 'Is it open?', 'no', 12.5)]
    with serving(demo, live=Live(None, lambda: asked)) as server:
        answer = httpx.get(f'{server.url}/live', trust_env=False).json()
    assert answer == {
        'picture': False,
        'questions': [
            {
                'name': 'door',
                'question': 'Is it open?',
                'answer': 'no',
                'stamp': 12.5,
                'probability': None,
                'stale': False,
                'error': '',
            }
        ],
        'changeable': False,
    }  # fmt: skip
