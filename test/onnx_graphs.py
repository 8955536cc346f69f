"""
Tiny vision encoders as real ONNX files, and the same arithmetic in numpy.

An encoder here is one convolution over patches and a tanh: small enough to be checked by hand,
real enough that a wrong layout, normalisation, mask or order of tiles changes its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, TensorProto

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TYPES = {
    'float32': TensorProto.FLOAT,
    'float16': TensorProto.FLOAT16,
    'uint8': TensorProto.UINT8,
    'int8': TensorProto.INT8,
    'int64': TensorProto.INT64,
    'bool': TensorProto.BOOL,
}
OPSET = [helper.make_opsetid('', 17)]


@dataclass
class TinyEncoder:
    """
    A recipe for an encoder.

    :param lead: axes before the picture; two of them make the input of SmolVLM
    :param sizes: height and width in the graph; None: both are ``side``
    :param masks: name -> (type, axes)
    :param output: ``tiles``, ``one`` (no axis of tiles), ``images`` (two axes of tiles), ``open``
        (a shape that the graph does not tell)
    :param count: add the number of tiles in the run to every number that comes out
    :param spoil: give NaN when a picture has a white pixel
    """

    side: int = 16
    patch: int = 8
    n_embd: int = 12
    lead: tuple[Any, ...] = ('tiles',)
    sizes: tuple[Any, Any] | None = None
    channels_first: bool = True
    channels: Any = 3
    dtype: str = 'float32'
    masks: dict[str, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)
    output: str = 'tiles'
    output_name: str = 'image_features'
    extra_output: str = ''
    count: bool = False
    spoil: bool = False
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        fan = 3 * self.patch**2
        self.weight = rng.normal(
            0, 1.5 / np.sqrt(fan), (self.n_embd, 3, self.patch, self.patch)
        ).astype(np.float32)
        self.bias = rng.normal(0, 0.3, self.n_embd).astype(np.float32)

    @property
    def tokens(self) -> int:
        """Embeddings per tile."""
        return (self.side // self.patch) ** 2

    def expect(self, pixels: np.ndarray) -> np.ndarray:
        """Give the embeddings of normalised pixels (tiles, 3, side, side), by numpy alone."""
        n, grid, p = len(pixels), self.side // self.patch, self.patch
        patches = pixels.reshape(n, 3, grid, p, grid, p).transpose(0, 2, 4, 1, 3, 5)
        out = patches.reshape(n, grid * grid, -1) @ self.weight.reshape(self.n_embd, -1).T
        return np.tanh(out + self.bias)

    def bytes(self) -> bytes:
        """Give the ONNX file."""
        model = self._model()
        for key, value in self.metadata.items():
            model.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data

    def write(self, path: Path) -> Path:
        """Write the ONNX file."""
        path.write_bytes(self.bytes())
        return path

    def _model(self) -> onnx.ModelProto:
        sizes = self.sizes or (self.side, self.side)
        picture = (self.channels, *sizes) if self.channels_first else (*sizes, self.channels)
        nodes, constants = [], []
        last = 'pixel_values'

        def constant(name: str, value: Any, dtype: Any) -> str:
            constants.append(onnx.numpy_helper.from_array(np.array(value, dtype), name))
            return name

        def node(op: str, *inputs: str, **attributes: Any) -> str:
            name = f'{op.lower()}_{len(nodes)}'
            nodes.append(helper.make_node(op, inputs, [name], **attributes))
            return name

        # 1) whatever comes in -> normalised float32 (tiles, 3, side, side)
        for name, (_, axes) in self.masks.items():
            # Masks are multiplied before the axes are joined, so that their shape matters.
            missing = len(self.lead) + 3 - len(axes)
            at = len(self.lead) if len(axes) > 2 else 2
            mask = node('Cast', name, to=TensorProto.FLOAT)
            if missing:
                mask = node(
                    'Unsqueeze', mask, constant(f'{name}_axes', range(at, at + missing), np.int64)
                )
            last = node('Mul', last, mask)
        if len(self.lead) > 1:
            last = node('Reshape', last, constant('flat', (-1, 3, self.side, self.side), np.int64))
        if not self.channels_first:
            last = node('Transpose', last, perm=[0, 3, 1, 2])
        if self.dtype != 'float32':
            last = node('Cast', last, to=TensorProto.FLOAT)
        if self.dtype == 'uint8':
            scale = 255 * np.array(STD)
            last = node(
                'Div',
                node('Sub', last, constant('mean', 255 * np.reshape(MEAN, (3, 1, 1)), np.float32)),
                constant('std', scale.reshape(3, 1, 1), np.float32),
            )
        # 2) the encoder
        normalised = last
        constants.append(onnx.numpy_helper.from_array(self.weight, 'weight'))
        constants.append(onnx.numpy_helper.from_array(self.bias, 'bias'))
        last = node(
            'Conv', last, 'weight', 'bias', kernel_shape=[self.patch] * 2, strides=[self.patch] * 2
        )
        last = node('Reshape', last, constant('rows', (0, self.n_embd, -1), np.int64))
        last = node('Tanh', node('Transpose', last, perm=[0, 2, 1]))
        if self.count:
            tiles = node('Gather', node('Shape', last), constant('first', 0, np.int64), axis=0)
            last = node('Add', last, node('Cast', tiles, to=TensorProto.FLOAT))
        if self.spoil:
            white = node('Greater', normalised, constant('two', 2.0, np.float32))
            nan = node(
                'Where',
                white,
                constant('nan', np.nan, np.float32),
                constant('zero', 0, np.float32),
            )
            last = node('Add', last, node('ReduceSum', nan, keepdims=0))
        # 3) the shape that the recipe asks for
        tiles_out = self.lead[-1] if len(self.lead) == 1 else 'all_images'
        shape: tuple[Any, ...] | None = (tiles_out, self.tokens, self.n_embd)
        if self.output == 'one':
            shape = (self.tokens, self.n_embd)
            last = node('Reshape', last, constant('out', shape, np.int64))
        elif self.output == 'images':
            shape = (1, tiles_out, self.tokens, self.n_embd)
            last = node('Unsqueeze', last, constant('axis', (0,), np.int64))
        elif self.output == 'open':
            shape = ('a', 'b', 'c')
            # a shape that is computed hides the sizes from ONNX Runtime
            last = node(
                'Reshape',
                last,
                node('Add', node('Shape', last), constant('none', (0, 0, 0), np.int64)),
            )
        kind = TYPES['float16' if self.dtype == 'float16' else 'float32']
        if self.dtype == 'float16':
            last = node('Cast', last, to=TensorProto.FLOAT16)
        nodes.append(helper.make_node('Identity', [last], [self.output_name]))
        outputs = [helper.make_tensor_value_info(self.output_name, kind, shape)]
        if self.extra_output:
            nodes.append(helper.make_node('Identity', [normalised], [self.extra_output]))
            outputs.append(
                helper.make_tensor_value_info(
                    self.extra_output, TensorProto.FLOAT, (tiles_out, 3, self.side, self.side)
                )
            )
        inputs = [
            helper.make_tensor_value_info(
                'pixel_values', TYPES[self.dtype], (*self.lead, *picture)
            )
        ]
        inputs += [
            helper.make_tensor_value_info(name, TYPES[kind], axes)
            for name, (kind, axes) in self.masks.items()
        ]
        graph = helper.make_graph(nodes, 'tiny', inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=OPSET, ir_version=8)


def normalise(tiles: np.ndarray, mean: Any = MEAN, std: Any = STD) -> np.ndarray:
    """Normalise RGB tiles (tiles, side, side, 3) -> float64 (tiles, 3, side, side)."""
    return ((tiles / 255.0 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)


def any_graph(
    inputs: dict[str, tuple[str, Any]],
    outputs: dict[str, tuple[str, Any]],
    nodes: list[Any],
    domains: tuple[str, ...] = (),
) -> bytes:
    """Make an ONNX file out of anything, unchecked."""
    graph = helper.make_graph(
        nodes,
        'any',
        [helper.make_tensor_value_info(n, TYPES[k], s) for n, (k, s) in inputs.items()],
        [helper.make_tensor_value_info(n, TYPES[k], s) for n, (k, s) in outputs.items()],
    )
    opsets = OPSET + [helper.make_opsetid(domain, 1) for domain in domains]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data
