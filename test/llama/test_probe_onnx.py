"""ONNX files that would run for ever or take any memory are found out in a child, and stopped."""

from __future__ import annotations

from pathlib import Path
import threading

from hobot_vlm.encoders import EncoderOptions, open_encoder
from hobot_vlm.encoders import onnx as module
from hobot_vlm.errors import InferenceError, ModelFileError
from hobot_vlm.llama import probe
from hobot_vlm.llama.probe import check_loads
from hobot_vlm.values import ImageTiles
import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import pytest

DECODER = Path(__file__).parents[1] / 'models' / 'plain' / 'decoder.gguf'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def constant(name, value, kind=np.int64):
    return helper.make_node(
        'Constant', [], [name], value=numpy_helper.from_array(np.array(value, kind))
    )


def encoder(path, nodes):
    """Write an encoder of 8 x 8 pixels, whose embeddings are multiplied with ``factor``."""
    rest = [
        constant('shape', [-1, 4, 48]),
        constant('a', [0]),
        constant('b', [16]),
        constant('d', [2]),
        helper.make_node('Reshape', ['pixel_values', 'shape'], ['flat']),
        helper.make_node('Slice', ['flat', 'a', 'b', 'd'], ['cut']),
        helper.make_node('Mul', ['cut', 'factor'], ['image_features']),
    ]
    graph = helper.make_graph(
        [*nodes, *rest],
        'g',
        [helper.make_tensor_value_info('pixel_values', TensorProto.FLOAT, [None, 3, 8, 8])],
        [helper.make_tensor_value_info('image_features', TensorProto.FLOAT, [None, 4, 16])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.save(model, path)
    return path


def endless_loop(path):
    body = helper.make_graph(
        [
            helper.make_node('Identity', ['on'], ['still_on']),
            helper.make_node('Add', ['x', 'x'], ['y']),
        ],
        'body',
        [
            helper.make_tensor_value_info('i', TensorProto.INT64, []),
            helper.make_tensor_value_info('on', TensorProto.BOOL, []),
            helper.make_tensor_value_info('x', TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info('still_on', TensorProto.BOOL, []),
            helper.make_tensor_value_info('y', TensorProto.FLOAT, []),
        ],
    )
    loop = helper.make_node('Loop', ['most', 'true', 'one'], ['factor'], body=body)
    numbers = [
        constant('most', 2**62),
        constant('true', True, bool),
        constant('one', 1, np.float32),
    ]
    return encoder(path, [*numbers, loop])


def large_constant(path, side=10**9):
    return encoder(
        path,
        [
            constant('size', [side]),
            helper.make_node('ConstantOfShape', ['size'], ['large']),
            helper.make_node('ReduceSum', ['large'], ['factor'], keepdims=0),
        ],
    )


def large_at_run_time(path):
    return encoder(
        path,
        [
            constant('side', [10**9]),
            helper.make_node('Shape', ['pixel_values'], ['tiles'], start=0, end=1),
            helper.make_node('Mul', ['tiles', 'side'], ['size']),
            helper.make_node('ConstantOfShape', ['size'], ['large']),
            helper.make_node('ReduceSum', ['large'], ['factor'], keepdims=0),
        ],
    )


def large_product(path):
    return encoder(
        path,
        [
            constant('size', [40000, 40000]),
            helper.make_node('ConstantOfShape', ['size'], ['large']),
            helper.make_node('MatMul', ['large', 'large'], ['product']),
            helper.make_node('ReduceSum', ['product'], ['factor'], keepdims=0),
        ],
    )


@pytest.mark.parametrize('make', [large_constant, large_at_run_time, large_product])
def test_a_small_graph_that_wants_much_memory(make, tmp_path):
    path = make(tmp_path / 'vision.onnx')
    assert path.stat().st_size < 1000
    with pytest.raises(ModelFileError, match='vision.onnx: running it takes more memory than'):
        check_loads(DECODER, onnx=path)


def test_a_graph_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, 'ONNX_SECONDS', 3.0)
    path = endless_loop(tmp_path / 'vision.onnx')
    with pytest.raises(ModelFileError, match='vision.onnx: .* had not ended after 3 s'):
        check_loads(DECODER, onnx=path)


def test_a_run_ends_by_time_and_by_hand(tmp_path, monkeypatch):
    path = endless_loop(tmp_path / 'vision.onnx')
    half = (0.5, 0.5, 0.5)
    tiles = ImageTiles(np.zeros((1, 8, 8, 3), np.uint8), 0, 0, True, half, half)
    monkeypatch.setattr(module, 'RUN_SECONDS', 0.3)
    with open_encoder(path, EncoderOptions(device='cpu')) as opened:
        with pytest.raises(InferenceError, match='had not ended after 0 s on 1 tiles'):
            opened.encode(tiles)
    monkeypatch.setattr(module, 'RUN_SECONDS', 60.0)
    with open_encoder(path, EncoderOptions(device='cpu')) as opened:
        threading.Timer(0.3, opened.stop).start()
        with pytest.raises(InferenceError, match='was stopped'):
            opened.encode(tiles)
