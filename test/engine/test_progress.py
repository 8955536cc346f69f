"""How far the encoding of pictures is, tile by tile; and what encodes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import io
import logging
import threading
from time import monotonic, sleep

from core import parts
import cv2
from folders import MODELS
from hobot_vlm import Progress, VLM
from hobot_vlm.cli.ask import encoding
from hobot_vlm.encoders import onnx as onnx_encoder
from hobot_vlm.engine import image_encoder
import numpy as np
import onnx
from onnx import helper, numpy_helper
from pictures import picture
import pytest

FILES = {
    'model_file_name': str(MODELS / 'internvl' / 'vision.onnx'),
    'llm_model_name': str(MODELS / 'internvl' / 'decoder.gguf'),
}
#: four tiles and the overview
OPTIONS = {'max_tiles': 4, 'n_predict': 2}


def shown(seed):
    return picture(90, 90, seed)


@pytest.fixture
def vlm():
    with VLM.load(**FILES, llm_threads=1, encoder_threads=1) as opened:
        yield opened


class Gate(threading.Semaphore):
    """Counts who came."""

    came = 0

    def acquire(self):
        self.came += 1
        return super().acquire()


@contextmanager
def tile_by_tile(vlm) -> Iterator[Gate]:
    """Let the encoder run once for each release."""
    encoder, encode, go = parts(vlm).encoder, parts(vlm).encoder.encode, Gate(0)
    encoder.encode = lambda tiles: (go.acquire(), encode(tiles))[1]
    try:
        yield go
    finally:
        go.release(100)
        del encoder.encode


def wait_for(what):
    end = monotonic() + 20
    while not what():
        assert monotonic() < end
        sleep(0.005)


def test_tiles_are_counted_as_they_are_encoded(vlm, monkeypatch):
    now = 100.0
    monkeypatch.setattr(image_encoder, 'perf_counter', lambda: now)
    with tile_by_tile(vlm) as go:
        stream = vlm.stream('Why?', shown(1), **OPTIONS)
        wait_for(lambda: stream.progress.total == 5)
        assert stream.progress == Progress(0, 5, 0.0)  # nothing was timed yet
        assert encoding(stream) == 'encoding tile 1 of 5'
        wait_for(lambda: go.came == 1)
        now += 0.2
        for done in range(1, 5):
            go.release()
            wait_for(lambda done=done: stream.progress.done == done)
            assert stream.progress.total == 5
        assert vlm.status().encoding == 1
        go.release()
        assert stream.wait().timings.encode_ms >= 200
    assert (stream.progress.done, stream.progress.total) == (5, 5)
    assert stream.progress.seconds_left == vlm.status().encoding_s == 0
    assert encoding(stream) == ''


def test_the_time_left_is_that_of_the_last_tile_for_each(vlm, monkeypatch):
    now = 100.0
    monkeypatch.setattr(image_encoder, 'perf_counter', lambda: now)
    with tile_by_tile(vlm) as go:
        stream = vlm.stream('Why?', shown(2), **OPTIONS)
        wait_for(lambda: stream.progress.total == 5)
        wait_for(lambda: go.came == 1)
        now += 2.0
        go.release()
        wait_for(lambda: stream.progress.done == 1)
        assert stream.progress.seconds_left == vlm.status().encoding_s == 8.0
        wait_for(lambda: go.came == 2)
        now += 0.5
        assert stream.progress.seconds_left == 7.5
        assert encoding(stream).startswith('encoding tile 2 of 5')
    assert stream.wait().image_tokens


def test_each_request_has_its_own(vlm):
    vlm.ask('Why?', shown(3), **OPTIONS)
    known = vlm.stream('What?', shown(3), **OPTIONS)
    known.wait()
    assert known.progress == Progress()
    text = vlm.stream('What?', n_predict=2)
    assert text.progress == Progress()
    text.wait()
    with tile_by_tile(vlm) as go:
        one = vlm.stream('Why?', shown(4), **OPTIONS)
        wait_for(lambda: one.progress.total == 5)
        two = vlm.stream('Why?', shown(5), **{**OPTIONS, 'max_tiles': 1})
        wait_for(lambda: two.progress.total == 1)
        go.release()
        wait_for(lambda: one.progress.done == 1)
        assert two.progress.done == 0
    one.wait()
    two.wait()


def test_the_runtime_has_a_name(vlm, caplog):
    assert vlm.runtime == parts(vlm).encoder.runtime
    assert 'onnxruntime' in vlm.runtime
    with caplog.at_level(logging.INFO, 'hobot_vlm'), VLM.load(**FILES):
        assert f'(on {vlm.runtime})' in caplog.text
    with VLM.load(llm_model_name=FILES['llm_model_name']) as text:
        assert text.runtime == ''


# -- what nobody wants any more -------------------------------------------------------------------


def endless_on_white(path):
    """Write an encoder that never ends on a picture with a white pixel."""
    model = onnx.load(FILES['model_file_name'])
    (output,), nodes = model.graph.output, model.graph.node
    for node in nodes:
        node.output[:] = ['found' if name == output.name else name for name in node.output]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node('Identity', [a], [b]) for a, b in (('on', 'still_on'), ('x', 'y'))],
        'body',
        [info('i', 7, []), info('on', 9, []), info('x', 1, [])],
        [info('still_on', 9, []), info('y', 1, [])],
    )

    def constant(name, value, kind):
        return numpy_helper.from_array(np.array(value, kind), name)

    model.graph.initializer.extend(
        [
            constant('white', 2.2, np.float32),  # 1, normalised as ImageNet's makers do
            constant('once', 1, np.int64),
            constant('always', 2**62, np.int64),
            constant('true', True, bool),
            constant('one', 1, np.float32),
        ]
    )
    nodes.extend(
        [
            helper.make_node('ReduceMax', ['pixel_values'], ['most'], keepdims=0),
            helper.make_node('Greater', ['most', 'white'], ['is_white']),
            helper.make_node('Where', ['is_white', 'always', 'once'], ['times']),
            helper.make_node('Loop', ['times', 'true', 'one'], ['factor'], body=body),
            helper.make_node('Mul', ['found', 'factor'], [output.name]),
        ]
    )
    onnx.save(model, path)
    return str(path)


def test_a_tile_that_nobody_wants_leaves_the_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_encoder, 'RUN_SECONDS', 600.0)  # nothing else is to end it
    files = {**FILES, 'model_file_name': endless_on_white(tmp_path / 'vision.onnx')}
    white, black = np.full((56, 56, 3), 255, np.uint8), np.zeros((56, 56, 3), np.uint8)
    with VLM.load(**files, n_predict=2, encoder_device='cpu') as vlm:
        encoder = parts(vlm).encoder
        for _ in range(2):  # and once more: what was stopped is not remembered as an error
            first, second = vlm.stream('Why?', white), vlm.stream('Who?', white)
            wait_for(lambda: encoder._running is not None)
            wait_for(lambda second=second: second.progress.total == 1)
            run = encoder._running
            waiting = vlm.stream('Why?', black)
            first.cancel()
            assert first.result().finish_reason == 'cancelled'
            assert encoder._running is run and not run.terminate  # the second one wants it
            second.cancel()
            assert waiting.result().image_tokens
        left = vlm.stream('Why?', white)
        wait_for(lambda: encoder._running is not None)
        del left  # nobody reads it
        assert vlm.ask('Why?', black).image_tokens


class Pipe(io.BytesIO):
    """A file whose first byte comes when somebody lets it."""

    def __init__(self, data):
        super().__init__(data)
        self.asked, self.go = threading.Event(), threading.Event()

    def read(self, *size):
        self.asked.set()
        assert self.go.wait(20)
        return super().read(*size)


def test_the_oldest_job_is_encoded_first_whichever_is_read_first(vlm):
    order, encoder, encode = [], parts(vlm).encoder, parts(vlm).encoder.encode
    pixels = [np.full((40, 40, 3), shade, np.uint8) for shade in (10, 120, 230)]
    with tile_by_tile(vlm) as go:
        held = encoder.encode
        encoder.encode = lambda tiles: (order.append(int(tiles.pixels.max())), held(tiles))[1]
        first = vlm.stream('Why?', pixels[0], max_tiles=1, n_predict=2)
        wait_for(lambda: go.came == 1)  # it is in the encoder
        pipe = Pipe(cv2.imencode('.png', pixels[1])[1].tobytes())
        second = vlm.stream('Why?', pipe, max_tiles=1, n_predict=2)
        assert pipe.asked.wait(20)
        third = vlm.stream('Why?', pixels[2], max_tiles=1, n_predict=2)
        wait_for(lambda: vlm.status().encoding == 2)
        pipe.go.set()
        wait_for(lambda: vlm.status().encoding == 3)
        go.release(10)
        for stream in (first, second, third):
            assert stream.wait().image_tokens
    assert order == [10, 120, 230] and encoder.encode == encode
