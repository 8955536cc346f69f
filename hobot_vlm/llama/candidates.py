"""Tokens and their logits in llama.cpp's form, for samplers that are applied by hand."""

from __future__ import annotations

import ctypes
from typing import Any

from llama_cpp import llama_cpp as lib
import numpy as np
import numpy.typing as npt

#: struct llama_token_data of llama.h
_CANDIDATE = np.dtype([('id', np.int32), ('logit', np.float32), ('p', np.float32)])


class Candidates:
    """
    Tokens to choose from.

    :param logits: float32 (tokens,)
    :param tokens: their ids; all of the vocabulary where they are left out
    """

    def __init__(
        self, logits: npt.NDArray[np.float32], tokens: npt.NDArray[np.int32] | None = None
    ):
        self._table = np.zeros(len(logits), _CANDIDATE)  # llama.cpp works in this memory
        self._table['id'] = np.arange(len(logits)) if tokens is None else tokens
        self._table['logit'] = logits
        self._array = lib.llama_token_data_array(
            data=self._table.ctypes.data_as(lib.llama_token_data_p),
            size=len(self._table),
            selected=-1,
            sorted=False,
        )

    def apply(self, sampler: Any) -> None:
        """Let a sampler of llama.cpp filter, or choose."""
        lib.llama_sampler_apply(sampler, ctypes.byref(self._array))

    @property
    def chosen(self) -> int:
        """The token that a sampler chose."""
        return int(self._array.data[self._array.selected].id)

    @property
    def left(self) -> list[int]:
        """The tokens that may be chosen."""
        table = self._table[: self._array.size]
        return [int(token) for token in table['id'][np.isfinite(table['logit'])]]

    @property
    def possible(self) -> bool:
        """Whether there is a token to choose."""
        return bool(np.isfinite(self._table['logit'][: self._array.size]).any())
