"""
The vision encoder of an mmproj file as an ONNX graph, made from the file's tensors.

Raw pixels go in, uint8 (tiles, side, side, 3); embeddings come out, float32 (tiles, tokens,
n_embd). The arithmetic is that of the models' makers: a patch has its own position, GELU is exact
in InternVL and the one with tanh in SmolVLM. The graph knows no runtime, but is written in a form
that suits one, see ``Form``.

Three things are arranged so that they cost nothing: normalisation of pixels is part of the patch
embedding; the patches that become one embedding stand together from the start, so that pixel
shuffle is a change of shape; layer scales are part of the matrices before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .mmproj_file import BLOCK, in_blocks_of_8_bits, INTERNVL, MmprojFile
from .onnx_graph import CONTRIB, OnnxGraph, TYPES
from ..errors import ModelFileError

Array = npt.NDArray[np.float32]

#: what PyTorch adds to the variance unless told otherwise, as InternVL's projector does
PROJECTOR_EPSILON = 1e-5

QKV = ('attn_q', 'attn_k', 'attn_v')

#: The matrices that ``rows`` means: most of the work. Values and the matrix behind attention are
#: small and would lose most: without them 1 - cosine is 2.8e-4 instead of 4.1e-4 in SigLIP's
#: shape.
IN_ROWS = ('attn_q', 'attn_k', 'ffn_up', 'ffn_down')

#: The matrices whose inputs stay float32 in ``blocks``: a tenth of the work, and half of what is
#: lost (1 - cosine goes from 1.4e-4 to 6e-5 in InternViT-300M's shape), for nothing stands behind
#: a projector that would even it out.
FLOAT_INPUTS = ('attn_out', 'mlp.1', 'mlp.3', 'model.fc')

#: accuracy levels of MatMulNBits: compute in float32, or in 8 bits with a scale to 32 inputs
FLOAT_COMPUTE, INT8_COMPUTE = 1, 4


@dataclass(frozen=True)
class Form:
    """
    How a graph is written.

    :param fused: with ONNX Runtime's own operators; otherwise with those of ONNX alone
    :param quantised: what a quantised matrix becomes: ``float32``; ``float16``, which the runtime
        widens; ``blocks``, as it is stored, 32 weights to a scale; ``rows``, the large ones with
        one scale to each output: the fastest, and less exact
    """

    fused: bool
    quantised: str


EXACT = Form(True, 'float32')
BLOCKS = Form(True, 'blocks')
ROWS = Form(True, 'rows')
PLAIN = Form(False, 'float32')
PLAIN_HALF = Form(False, 'float16')


def build(file: MmprojFile, form: Form) -> OnnxGraph:
    """
    Write the graph.

    :raises ModelFileError: the file lacks a tensor, or holds numbers that are none
    :raises ModelMismatch: it holds a tensor that changes the arithmetic in an unknown way
    """
    return _Builder(file, form).build()


def fits(file: MmprojFile) -> str:
    """Give why this file cannot become a graph; empty if it can."""
    known = {'v.class_embd', 'v.position_embd.weight'}
    pairs = ['v.patch_embd', 'v.post_ln', 'mm.model.fc', *(f'mm.model.mlp.{i}' for i in (0, 1, 3))]
    inner = (*QKV, 'attn_qkv', 'attn_out', 'ffn_up', 'ffn_down', 'ln1', 'ln2', 'ls1', 'ls2')
    pairs += [f'v.blk.{i}.{part}' for i in range(file.layers) for part in inner]
    known |= {f'{name}.{part}' for name in pairs for part in ('weight', 'bias')}
    for name in file.header.tensors:
        if name.startswith(('v.', 'mm.')) and name not in known:
            return f'what its tensor {name[:60]} is for is not known here'
    if not file.has('v.blk.0.ln1.bias'):
        return 'its norms have no bias, as those of InternViT-6B (RMS norm)'
    return ''


class _Builder:
    def __init__(self, file: MmprojFile, form: Form) -> None:
        self.file, self.form = file, form
        self.graph = OnnxGraph()
        self.epsilon = file.epsilon()
        self.exact_gelu = file.projector == INTERNVL

    def build(self) -> OnnxGraph:
        file, graph = self.file, self.graph
        # 1. patches at their positions
        x = self.embed_patches()
        # 2. layers; each one ends in the norm of the next
        h = self.norm(x, 'v.blk.0.ln1')
        for i in range(file.layers):
            block = f'v.blk.{i}.'
            attended = self.linear(
                self.attention(h, block), f'{block}attn_out', self.scale(f'{block}ls1')
            )
            x, h = self.add_and_norm(x, attended, f'{block}ln2')
            up = self.gelu(self.linear(h, f'{block}ffn_up', gain=f'{block}ln2'))
            down = self.linear(up, f'{block}ffn_down', self.scale(f'{block}ls2'))
            if i + 1 < file.layers:
                x, h = self.add_and_norm(x, down, f'v.blk.{i + 1}.ln1')
        if file.has('v.post_ln.weight'):
            _, x = self.add_and_norm(x, down, 'v.post_ln')
        else:
            x = graph.add('Add', x, down)
        # 3. projector
        if file.projector == INTERNVL:  # the class token stands last
            x = graph.add('Slice', x, *map(self.numbers, ([0], [file.patches**2], [1])))
        x = graph.add('Reshape', x, self.numbers([0, file.tokens, file.merge**2 * file.width]))
        if file.projector == INTERNVL:
            x = self.norm(x, 'mm.model.mlp.0', PROJECTOR_EPSILON)
            x = self.gelu(self.linear(x, 'mm.model.mlp.1'))
            x = self.linear(x, 'mm.model.mlp.3')
        else:
            x = self.linear(x, 'mm.model.fc')
        graph.output(x, 'image_features', 'float32', ('tiles', file.tokens, file.n_embd))
        return graph

    def embed_patches(self) -> str:
        """Turn pixels into patches: (tiles, patches + class token, width)."""
        file, graph = self.file, self.graph
        size, merge, edge = file.patch, file.merge, file.patches // file.merge
        patches = file.patches**2
        side = file.tile_size
        x = graph.input('pixels', 'uint8', ('tiles', side, side, 3))
        used = file.patches * size
        if used != side:
            x = graph.add('Slice', x, *map(self.numbers, ([0, 0], [used, used], [1, 2])))
        # 1. the pixels of a patch, and the patches of an embedding, side by side
        x = graph.add('Reshape', x, self.numbers([-1, edge, merge, size, edge, merge, size * 3]))
        x = graph.add('Transpose', x, perm=[0, 1, 4, 2, 5, 3, 6])
        x = graph.add('Reshape', x, self.numbers([-1, patches, size * size * 3]))
        x = graph.add('Cast', x, to=TYPES['float32'])
        # 2. W ((x / 255 - mean) / std) + b = (W / 255 std) x + (b - W mean / std)
        mean, std = file.colours('mean'), file.colours('std')
        weight = file.floats('v.patch_embd.weight', (file.width, 3, size, size))
        weight = weight.transpose(0, 2, 3, 1).astype(np.float64)
        bias = self.vector('v.patch_embd.bias', file.width) - (weight * (mean / std)).sum(
            (1, 2, 3)
        )
        weight = (weight / (255 * std)).reshape(file.width, -1)
        x = graph.add('MatMul', x, self.floats(weight.T))
        # 3. positions, in the order of the patches; the class token's comes first in the file
        leading = int(file.projector == INTERNVL)
        table = file.floats('v.position_embd.weight', (patches + leading, file.width))
        grid = table[leading:].reshape(edge, merge, edge, merge, file.width)
        grid = grid.transpose(0, 2, 1, 3, 4).reshape(1, patches, file.width)
        x = graph.add('Add', x, self.floats(grid + bias))
        if not leading:
            return x
        token = self.vector('v.class_embd', file.width) + table[0]
        tiles = graph.add('Slice', graph.add('Shape', x), self.numbers([0]), self.numbers([1]))
        shape = graph.add('Concat', tiles, self.numbers([1, file.width]), axis=0)
        token = graph.add('Expand', self.floats(token.reshape(1, 1, -1)), shape)
        return graph.add('Concat', x, token, axis=1)

    def attention(self, h: str, block: str) -> str:
        """Let every patch look at every other."""
        graph, heads = self.graph, self.file.heads
        q, k, v = (self.linear(h, f'{block}attn_{which}', gain=f'{block}ln1') for which in 'qkv')
        if self.form.fused:
            return graph.add('MultiHeadAttention', q, k, v, domain=CONTRIB, num_heads=heads)
        size = self.file.width // heads
        apart = self.numbers([0, 0, heads, size])
        q, k, v = (
            graph.add('Transpose', graph.add('Reshape', x, apart), perm=perm)
            for x, perm in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )
        scores = graph.add('MatMul', graph.add('Mul', q, self.floats(size**-0.5)), k)
        x = graph.add('MatMul', graph.add('Softmax', scores, axis=-1), v)
        x = graph.add('Transpose', x, perm=[0, 2, 1, 3])
        return graph.add('Reshape', x, self.numbers([0, 0, self.file.width]))

    def norm(self, x: str, name: str, epsilon: float = 0.0) -> str:
        return self.graph.add(
            'LayerNormalization', x, *self.gains(name), axis=-1, epsilon=epsilon or self.epsilon
        )

    def add_and_norm(self, x: str, more: str, name: str) -> tuple[str, str]:
        """Give the sum and its norm."""
        if not self.form.fused:
            x = self.graph.add('Add', x, more)
            return x, self.norm(x, name)
        outputs = (f'{name}.norm', '', '', f'{name}.sum')
        self.graph.add(
            'SkipLayerNormalization',
            *(x, more, *self.gains(name)),
            domain=CONTRIB,
            outputs=outputs,
            epsilon=self.epsilon,
        )
        return outputs[3], outputs[0]

    def gelu(self, x: str) -> str:
        graph = self.graph
        if self.form.fused:
            return graph.add('Gelu' if self.exact_gelu else 'FastGelu', x, domain=CONTRIB)
        if self.exact_gelu:
            bent = graph.add('Erf', graph.add('Mul', x, self.floats(0.5**0.5)))
        else:
            cube = graph.add('Mul', graph.add('Mul', x, x), x)
            inner = graph.add('Add', x, graph.add('Mul', cube, self.floats(0.044715)))
            bent = graph.add('Tanh', graph.add('Mul', inner, self.floats((2 / np.pi) ** 0.5)))
        half = graph.add('Mul', x, self.floats(0.5))
        return graph.add('Mul', half, graph.add('Add', bent, self.floats(1.0)))

    # matrices

    def linear(self, x: str, name: str, scale: Array | None = None, gain: str = '') -> str:
        """
        Multiply by a matrix and add its bias.

        :param scale: factor of each output
        :param gain: the norm that the input comes from
        """
        form, file, (matrix, rows) = self.form, self.file, self.find(name)
        bias = self.bias(name, matrix, scale)
        quantised = file.is_quantised(matrix)
        in_blocks = quantised and form.quantised in ('blocks', 'rows')
        as_rows = in_blocks and form.quantised == 'rows' and name.endswith(IN_ROWS)
        taken = form.quantised == 'rows' and gain
        if in_blocks and not taken and not as_rows:
            weights, scales = file.blocks(matrix)
            weights, scales = weights[rows], scales[rows]
            if scale is not None:
                scales = scales * scale[:, None]
            return self.blocks(x, name, weights, scales, bias)
        numbers = file.floats(matrix)[rows]
        if scale is not None:
            numbers = numbers * scale[:, None]
        if taken:  # what the norm left to this matrix
            shift = numbers @ self.vector(f'{gain}.bias', numbers.shape[1])
            bias = shift if bias is None else bias + shift
            numbers = numbers * self.smoothing(gain)
        if as_rows:
            return self.rows(x, numbers, bias)
        if in_blocks:
            return self.blocks(x, name, *in_blocks_of_8_bits(numbers), bias)
        return self.product(x, numbers, bias, quantised and form.quantised == 'float16')

    def product(self, x: str, numbers: Array, bias: Array | None, half: bool) -> str:
        """Multiply by a matrix of floats (outputs, inputs)."""
        graph = self.graph
        if half:
            table = graph.constant(np.ascontiguousarray(numbers.T, np.float16))
            table = graph.add('Cast', table, to=TYPES['float32'])
        else:
            table = self.floats(numbers.T)
        y = graph.add('MatMul', x, table)
        return y if bias is None else graph.add('Add', y, self.floats(bias))

    def blocks(
        self, x: str, name: str, weights: npt.NDArray[np.int8], scales: Array, bias: Array | None
    ) -> str:
        """Multiply by a matrix as Q8_0 stores it."""
        graph = self.graph
        rows, columns = weights.shape
        stored = weights.view(np.uint8) ^ 128  # the operator's zero is 128
        inputs = [
            x,
            graph.constant(stored.reshape(rows, columns // BLOCK, BLOCK)),
            self.floats(scales.reshape(-1)),
        ]
        if bias is not None:
            inputs += ['', '', self.floats(bias)]
        return graph.add(
            'MatMulNBits',
            *inputs,
            domain=CONTRIB,
            K=columns,
            N=rows,
            bits=8,
            block_size=BLOCK,
            accuracy_level=FLOAT_COMPUTE if name.endswith(FLOAT_INPUTS) else INT8_COMPUTE,
        )

    def rows(self, x: str, numbers: Array, bias: Array | None) -> str:
        """Multiply by a matrix with one scale to each output, both sides in 8 bits."""
        graph = self.graph
        largest = np.abs(numbers).max(1) / 127
        scale = np.where(largest, largest, 1).astype(np.float32)
        weights = np.rint(numbers / scale[:, None]).astype(np.int8)
        inputs = [
            x,
            graph.constant(np.ascontiguousarray(weights.T)),
            graph.constant(scale),
            graph.constant(np.zeros(len(scale), np.int8)),
        ]
        if bias is not None:
            inputs.append(self.floats(bias))
        return graph.add('DynamicQuantizeMatMul', *inputs, domain=CONTRIB)

    # what the file holds

    def smoothing(self, norm: str) -> Array:
        """
        Give the part of a norm's gain that the matrices behind it take over.

        Its square root: where all numbers that come in share one scale, and all weights of an
        output another one, the gain spoils both least when it is shared by both.
        """
        gain = np.abs(self.vector(f'{norm}.weight', self.file.width))
        return np.sqrt(np.where(gain, gain, 1)).astype(np.float32)

    def gains(self, name: str) -> tuple[str, str]:
        """Give gain and bias of a norm."""
        size = self.file.width * (self.file.merge**2 if name.startswith('mm.') else 1)
        gain, bias = (self.vector(f'{name}.{part}', size) for part in ('weight', 'bias'))
        if self.form.quantised == 'rows' and name.endswith(('.ln1', '.ln2')):
            return self.floats(gain / self.smoothing(name)), self.floats(np.zeros_like(gain))
        return self.floats(gain), self.floats(bias)

    def find(self, name: str) -> tuple[str, slice]:
        """Give the matrix, and the rows of it, that a name stands for."""
        block, _, which = name.rpartition('.')
        joint = f'{block}.attn_qkv'
        width = self.file.width
        if which in QKV and self.file.has(f'{joint}.weight'):
            at = QKV.index(which) * width
            return f'{joint}.weight', slice(at, at + width)
        return f'{name}.weight', slice(None)

    def bias(self, name: str, matrix: str, scale: Array | None) -> Array | None:
        """Give the bias of a matrix; None where it has none."""
        _, rows = self.find(name)
        stored = f'{matrix.removesuffix(".weight")}.bias'
        if not self.file.has(stored):
            return None
        bias = self.file.floats(stored)
        outputs = self.file.header.tensors[matrix].shape[0]
        if bias.shape != (outputs,):
            raise ModelFileError(
                self.file.path,
                f'{stored} is {bias.shape}, expected ({outputs},): convert the model anew',
            )
        bias = bias[rows]
        return bias if scale is None else bias * scale

    def scale(self, name: str) -> Array | None:
        """Give a layer scale; None where there is none."""
        if not self.file.has(f'{name}.weight'):
            return None
        return self.vector(f'{name}.weight', self.file.width)

    def vector(self, name: str, size: int) -> Array:
        return self.file.floats(name, (size,))

    # constants

    def floats(self, numbers: npt.ArrayLike) -> str:
        return self.graph.constant(
            np.ascontiguousarray(numbers, np.float32).reshape(np.shape(numbers))
        )

    def numbers(self, values: list[int]) -> str:
        return self.graph.constant(np.array(values, np.int64))
