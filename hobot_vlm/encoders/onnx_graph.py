"""
Writes ONNX models: nodes, constants, inputs and outputs, as bytes.

This file knows as much of protobuf, the format of ONNX files, as that takes, so that the package
`onnx` is not needed where a model is run. It knows no encoder and no runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

#: number formats by ONNX's numbers (TensorProto.DataType)
TYPES = {'float32': 1, 'uint8': 2, 'int8': 3, 'int32': 6, 'int64': 7, 'float16': 10}

#: Version of the file's format: that of ONNX 1.12, which ONNX Runtime reads since 1.12.
IR_VERSION = 8

#: bytes of a constant that may lie outside the graph; the small ones shape the graph
LARGE = 4096

#: operators of ONNX 1.12 (LayerNormalization came with it), and ONNX Runtime's own
OPSET, CONTRIB = 17, 'com.microsoft'


class OnnxGraph:
    """
    A graph that grows node by node; each node's output is named by the graph.

    ``constants`` may be changed until ``model`` is called.
    """

    def __init__(self) -> None:
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self._nodes: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare an input; a size that is a word is left open."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare an output that gives a value."""
        self.add('Identity', value, outputs=(name,))
        self._outputs.append(_value(name, dtype, shape))

    def constant(self, value: Any, name: str = '') -> str:
        """Keep an array; give its name."""
        array = np.asarray(value)
        name = name or f'constant_{len(self.constants)}'
        self.constants[name] = array
        return name

    def add(
        self,
        op: str,
        *inputs: str,
        domain: str = '',
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """
        Add a node; an input that is empty is left out.

        :param outputs: names of the outputs; default: one, named by the node's number
        :return: the name of the first output
        """
        outputs = outputs or (f'{op.lower()}_{len(self._nodes)}',)
        parts = [_text(1, name) for name in inputs]
        parts += [_text(2, name) for name in outputs]
        parts += [_text(4, op)]
        parts += [_bytes(5, _attribute(key, value)) for key, value in attributes.items()]
        parts += [_text(7, domain)] if domain else []
        self._nodes.append(b''.join(parts))
        return outputs[0]

    def large(self) -> dict[str, npt.NDArray[Any]]:
        """Give the constants that ``model`` can leave out."""
        return {name: array for name, array in self.constants.items() if array.nbytes >= LARGE}

    def model(self, without_large: bool = False) -> bytes:
        """
        Give the whole as the bytes of an ONNX file.

        :param without_large: say of large constants that they lie elsewhere: whoever loads the
            graph brings them, and no copy is made of them here
        """
        graph = [_bytes(1, node) for node in self._nodes]
        graph.append(_text(2, 'graph'))
        for name, array in self.constants.items():
            graph += _tensor(5, name, array, without_large and array.nbytes >= LARGE)
        graph += [_bytes(11, value) for value in self._inputs]
        graph += [_bytes(12, value) for value in self._outputs]
        size = sum(map(len, graph))
        opsets = [
            _bytes(8, _text(1, domain) + _number(2, version))
            for domain, version in (('', OPSET), (CONTRIB, 1))
        ]
        return b''.join(
            [
                _number(1, IR_VERSION),
                _text(2, 'hobot_vlm'),
                _key(7, 2) + _varint(size),
                *graph,
                *opsets,
            ]
        )


def _varint(value: int) -> bytes:
    """Write a number with seven bits to the byte; a negative one as 64 bits."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def _float(field: int, value: float) -> bytes:
    return _key(field, 5) + struct.pack('<f', value)


def _attribute(name: str, value: Any) -> bytes:
    """Write an AttributeProto: a number, a text, or a list of whole numbers."""
    if isinstance(value, float):
        return _text(1, name) + _float(2, value) + _number(20, 1)
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, 2)
    if isinstance(value, str):
        return _text(1, name) + _text(4, value) + _number(20, 3)
    return _text(1, name) + b''.join(_number(8, item) for item in value) + _number(20, 7)


def _tensor(field: int, name: str, array: npt.NDArray[Any], elsewhere: bool) -> list[bytes]:
    """Write a TensorProto as pieces, so that large arrays are copied once."""
    head = b''.join(_number(1, size) for size in array.shape)
    head += _number(2, TYPES[array.dtype.name]) + _text(8, name)
    if elsewhere:  # the place must be named, and is never looked at
        head += _bytes(13, _text(1, 'location') + _text(2, 'memory')) + _number(14, 1)
        return [_bytes(field, head)]
    head += _key(9, 2) + _varint(array.nbytes)
    data = np.ascontiguousarray(array).tobytes()
    return [_key(field, 2) + _varint(len(head) + len(data)) + head, data]


def _value(name: str, dtype: str, shape: Sequence[int | str]) -> bytes:
    """Write a ValueInfoProto."""
    sizes = b''.join(
        _bytes(1, _text(2, size) if isinstance(size, str) else _number(1, size)) for size in shape
    )
    tensor = _number(1, TYPES[dtype]) + _bytes(2, sizes)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))
