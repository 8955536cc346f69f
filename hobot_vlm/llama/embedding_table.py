"""
The table of token embeddings in a decoder's file, read row by row.

With it, text and pictures go to llama.cpp in one batch, which holds either tokens or embeddings.
Rows are widened by ggml's own function, so they are the numbers that llama.cpp looks up itself.
Whether a model reads embeddings in place of tokens without further ado is for ``context.py`` to
try; nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
import ctypes
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from .gguf import BLOCKS, read_gguf
from ..errors import ModelFileError

NAME = 'token_embd.weight'
F32 = 0


class _TypeTraits(ctypes.Structure):
    """The head of struct ggml_type_traits of ggml.h."""

    _fields_ = [
        ('type_name', ctypes.c_char_p),
        ('blck_size', ctypes.c_int64),
        ('blck_size_interleave', ctypes.c_int64),
        ('type_size', ctypes.c_size_t),
        ('is_quantized', ctypes.c_bool),
        ('to_float', ctypes.c_void_p),
    ]


_ToFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class EmbeddingTable:
    """Maps token ids to embeddings."""

    def __init__(self, path: Path, n_embd: int, n_vocab: int):
        """
        Map the table of a file.

        :raises ModelFileError: the file holds none of this shape, or of a type unknown here
        """
        info = read_gguf(path).tensors.get(NAME)
        if info is None or info.shape != (n_vocab, n_embd) or info.kind not in BLOCKS:
            raise ModelFileError(path, f'it has no {NAME} of {n_vocab} x {n_embd} that is known')
        self.n_embd = n_embd
        self._rows = np.memmap(
            info.path, np.uint8, 'r', info.offset, (n_vocab, info.size // n_vocab)
        )
        self._to_float = None if info.kind == F32 else _to_float(info.kind, path)

    def look_up(self, tokens: Sequence[int], out: npt.NDArray[np.float32]) -> None:
        """
        Write the embeddings of tokens.

        :param tokens: ids, 0 to ``n_vocab`` - 1
        :param out: float32 (tokens, n_embd), C order
        """
        rows = np.ascontiguousarray(self._rows[np.asarray(tokens, np.intp)])
        if self._to_float is None:
            out[:] = rows.view(np.float32)
        else:
            self._to_float(rows.ctypes.data, out.ctypes.data, out.size)


def _to_float(kind: int, path: Path) -> Any:
    """Give ggml's function that widens numbers of a type."""
    get = lib._lib.ggml_get_type_traits  # libllama brings libggml-base with it
    get.restype, get.argtypes = ctypes.POINTER(_TypeTraits), [ctypes.c_int]
    address = get(kind).contents.to_float
    if not address:
        raise ModelFileError(path, f'ggml cannot widen numbers of type {kind}')
    return _ToFloat(address)
