"""
What a llama.cpp ``mmproj-*.gguf`` of InternVL or SmolVLM holds: its shape and its tensors.

This file knows the names that llama.cpp's converter gives; it knows no runtime.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendMissing, ModelFileError, ModelMismatch
from ..llama.gguf import read_gguf

INTERNVL, IDEFICS3 = 'internvl', 'idefics3'

#: Most layers, and the widest one, that a file may claim; InternViT-6B has 48 layers of 3200 with
#: 12800 inside, the largest published encoder of these families.
MOST_LAYERS, WIDEST = 256, 65536

#: tensor types of GGUF that hold plain numbers -> numpy's name; the others come in blocks
PLAIN = {0: '<f4', 1: '<f2'}
BF16, Q8_0 = 30, 8

#: tensor type -> ggml's function that widens it
WIDEN = {
    2: 'dequantize_row_q4_0',
    3: 'dequantize_row_q4_1',
    6: 'dequantize_row_q5_0',
    7: 'dequantize_row_q5_1',
    8: 'dequantize_row_q8_0',
    10: 'dequantize_row_q2_K',
    11: 'dequantize_row_q3_K',
    12: 'dequantize_row_q4_K',
    13: 'dequantize_row_q5_K',
    14: 'dequantize_row_q6_K',
}

#: weights that share a scale in Q8_0, and bytes that they take with it
BLOCK, BLOCK_BYTES = 32, 34


class MmprojFile:
    """
    The vision half of a model: what its header says, and its tensors on demand.

    :ivar projector: ``internvl`` or ``idefics3``
    :ivar tile_size: side of a tile in pixels
    :ivar patches: patches on the edge of a tile
    :ivar merge: patches on the edge of the square that becomes one embedding
    :raises ModelFileError: missing, damaged, or no vision encoder
    :raises ModelMismatch: an encoder of another family
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_gguf(self.path)
        metadata = self.header.metadata
        architecture = metadata.get('general.architecture')
        if architecture != 'clip':
            raise ModelFileError(
                path,
                f'its architecture is {str(architecture)[:40]!r}, expected '
                "'clip': give the mmproj file as the encoder and the language "
                'model as llm_model_name',
            )
        if not metadata.get('clip.has_vision_encoder'):
            raise ModelFileError(
                path, 'it has no vision encoder; give the mmproj file of a model that sees'
            )
        self.projector = metadata.get('clip.projector_type') or metadata.get(
            'clip.vision.projector_type'
        )
        if self.projector not in (INTERNVL, IDEFICS3):
            raise ModelMismatch(
                f'{path} is an encoder of type {str(self.projector)[:40]!r}; '
                "expected 'internvl' (InternVL) or 'idefics3' (SmolVLM)"
            )
        # 1. numbers that must fit each other
        self.tile_size = self.number('clip.vision.image_size')
        self.patch = self.number('clip.vision.patch_size')
        self.merge = self.number('clip.vision.projector.scale_factor')
        self.width = self.number('clip.vision.embedding_length')
        self.heads = self.number('clip.vision.attention.head_count')
        self.inner = self.number('clip.vision.feed_forward_length')
        self.layers = self.number('clip.vision.block_count')
        if self.layers > MOST_LAYERS or max(self.width, self.inner, self.tile_size) > WIDEST:
            raise ModelFileError(
                path,
                f'it claims {self.layers} layers, {self.width} wide with {self.inner} inside, and '
                f'tiles of {self.tile_size} pixels: it is damaged; fetch it again',
            )
        # Pixels beyond the last whole patch are cut off, as llama.cpp and the makers do.
        self.patches = self.tile_size // self.patch
        if not self.patches or self.patches % self.merge or self.width % self.heads:
            raise ModelFileError(
                path,
                f'tiles of {self.tile_size} pixels have {self.patches} x {self.patches} patches, '
                f'which do not divide into squares of {self.merge}, or width {self.width} not '
                f'into {self.heads} heads: convert the model anew',
            )
        self.tokens = (self.patches // self.merge) ** 2
        # 2. tensors; libmtmd counts most as optional and crashes when it needs one
        last = 'mm.model.mlp.3.weight' if self.projector == INTERNVL else 'mm.model.fc.weight'
        self.n_embd, self._hidden = self._shape(last, 2)
        for name, size in self._sizes().items():
            shape = self._shape(name)
            if np.prod(shape, dtype=object) != size:
                raise ModelFileError(
                    path, f'{name} is {shape}, which is not {size} numbers: convert the model anew'
                )

    def _sizes(self) -> dict[str, int]:
        """Give the tensors that must be there, and how many numbers each has."""
        width, inner, patches = self.width, self.inner, self.patches**2
        merged = width * self.merge**2
        sizes = {'v.patch_embd.weight': width * 3 * self.patch**2}
        for i in range(self.layers):
            block = f'v.blk.{i}.'
            sizes.update(
                {
                    f'{block}ln1.weight': width,
                    f'{block}ln2.weight': width,
                    f'{block}attn_out.weight': width**2,
                    f'{block}ffn_up.weight': width * inner,
                    f'{block}ffn_down.weight': width * inner,
                }
            )
            if f'{block}attn_qkv.weight' in self.header.tensors:
                sizes[f'{block}attn_qkv.weight'] = 3 * width**2
            else:
                sizes.update({f'{block}attn_{which}.weight': width**2 for which in 'qkv'})
        if self.projector == INTERNVL:
            sizes.update(
                {
                    'v.class_embd': width,
                    'v.position_embd.weight': (patches + 1) * width,
                    'mm.model.mlp.0.weight': merged,
                    'mm.model.mlp.1.weight': self._hidden * merged,
                }
            )
        else:
            sizes['v.position_embd.weight'] = patches * width
            sizes['mm.model.fc.weight'] = self.n_embd * merged
        return sizes

    def number(self, key: str) -> int:
        """Give a positive number of the metadata."""
        value = self.header.metadata.get(key)
        if type(value) is not int or value < 1:
            raise ModelFileError(
                self.path,
                f'{key} is {str(value)[:40]}, expected a positive number: convert the model anew',
            )
        return value

    def epsilon(self) -> float:
        """Give what is added to the variance in norms."""
        key = 'clip.vision.attention.layer_norm_epsilon'
        value = self.header.metadata.get(key)
        if not isinstance(value, float) or not 0 < value < 1:
            raise ModelFileError(
                self.path,
                f'{key} is {str(value)[:40]}, expected a small number such as 1e-6: '
                'convert the model anew',
            )
        return value

    def colours(self, what: str) -> npt.NDArray[np.float64]:
        """Give ``mean`` or ``std`` of the three colours, of pixels scaled to 0..1."""
        key = f'clip.vision.image_{what}'
        value = self.header.metadata.get(key)
        good = (
            isinstance(value, list)
            and len(value) == 3
            and all(isinstance(n, float) and 0 <= n <= 1 and (n or what == 'mean') for n in value)
        )
        if not good:
            raise ModelFileError(
                self.path,
                f'{key} is {str(value)[:60]}, expected three numbers from 0 to 1: '
                'convert the model anew',
            )
        return np.array(value, np.float64)

    def has(self, name: str) -> bool:
        """Tell whether a tensor is there."""
        return name in self.header.tensors

    def is_quantised(self, name: str) -> bool:
        """Tell whether a matrix is stored in blocks of few bits."""
        return self.header.tensors[name].kind not in (*PLAIN, BF16)

    def in_blocks(self) -> bool:
        """Tell whether any matrix of the layers is."""
        return any(
            name.startswith('v.blk.') and self.is_quantised(name) for name in self.header.tensors
        )

    def floats(self, name: str, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.float32]:
        """
        Read a tensor, widened to float32.

        :param shape: expected; one size may be -1; default: the file's
        :raises ModelFileError: of an unknown type or another size, or with numbers that are none
        """
        data = self._data(name)
        info = self.header.tensors[name]
        if info.kind in PLAIN:
            numbers = data.view(PLAIN[info.kind]).astype(np.float32)
        elif info.kind == BF16:
            numbers = (data.view('<u2').astype(np.uint32) << 16).view(np.float32)
        else:
            numbers = np.empty(int(np.prod(info.shape)), np.float32)
            _widen(WIDEN[info.kind])(data.ctypes.data, numbers.ctypes.data, numbers.size)
        if not np.isfinite(numbers).all():
            raise ModelFileError(
                self.path,
                f'it is damaged: {name} holds numbers that are not finite; fetch it again',
            )
        try:
            return numbers.reshape(info.shape if shape is None else shape)
        except ValueError:
            raise ModelFileError(
                self.path, f'{name} is {info.shape}, expected {shape}: convert the model anew'
            ) from None

    def blocks(self, name: str) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """
        Read a quantised matrix as 8-bit weights with a scale for each 32 of them.

        Q8_0 is stored that way and is given as it is; other kinds are widened and rounded.

        :return: int8 (rows, columns), float32 (rows, columns / 32)
        """
        rows, columns = self._shape(name, 2)
        if columns % BLOCK:
            raise ModelFileError(
                self.path, f'{name} has {columns} columns, expected whole blocks of {BLOCK}'
            )
        if self.header.tensors[name].kind != Q8_0:
            return in_blocks_of_8_bits(self.floats(name))
        stored = self._data(name).reshape(-1, BLOCK_BYTES)
        scales = np.ascontiguousarray(stored[:, :2]).view('<f2').astype(np.float32)
        if not np.isfinite(scales).all():
            raise ModelFileError(
                self.path,
                f'it is damaged: {name} holds scales that are not finite; fetch it again',
            )
        weights = np.ascontiguousarray(stored[:, 2:]).view(np.int8)
        return weights.reshape(rows, columns), scales.reshape(rows, columns // BLOCK)

    def _shape(self, name: str, axes: int = 0) -> tuple[int, ...]:
        info = self.header.tensors.get(name)
        if info is None or axes and len(info.shape) != axes:
            raise ModelFileError(self.path, f'it has no tensor {name}: convert the model anew')
        return info.shape

    def _data(self, name: str) -> npt.NDArray[np.uint8]:
        """Read the bytes of a tensor."""
        self._shape(name)
        info = self.header.tensors[name]
        if info.kind not in (*PLAIN, BF16, *WIDEN):
            raise ModelMismatch(
                f'{self.path}: {name} is stored in a way not read here (type {info.kind}); '
                'expected float32, float16, Q8_0 or a k-quant'
            )
        try:
            data = np.fromfile(self.path, np.uint8, info.size, offset=info.offset)
        except OSError as exc:
            raise ModelFileError(self.path, f'it cannot be read ({exc.strerror})') from exc
        if data.size != info.size:
            raise ModelFileError(self.path, 'it became shorter while it was read; fetch it again')
        return data


def in_blocks_of_8_bits(
    numbers: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """
    Round a matrix to 8 bits with a scale for each 32 weights of an output.

    :return: int8 (rows, columns), float32 (rows, columns / 32)
    """
    rows, columns = numbers.shape
    blocks = numbers.reshape(rows, columns // BLOCK, BLOCK)
    scales = np.abs(blocks).max(-1) / np.float32(127)
    weights = np.rint(blocks / np.where(scales, scales, 1)[..., None]).astype(np.int8)
    return weights.reshape(rows, columns), scales


def _widen(name: str) -> Any:
    """Find a function of ggml that turns blocks into float32."""
    try:
        from llama_cpp import mtmd_cpp

        return mtmd_cpp.ctypes_function(
            name, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        )(lambda: None)
    except (ImportError, OSError, AttributeError) as exc:
        raise BackendMissing(
            f'this llama-cpp-python has no {name}',
            'install llama-cpp-python 0.3.36 or later, or use a Q8_0 file',
        ) from exc
