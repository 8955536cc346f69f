"""
A context of llama.cpp: it runs batches, and can be stopped from another thread.

It knows tokens, embeddings and positions. What the KV cache holds for whom is the business of
``kv_cache.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
import ctypes
from dataclasses import dataclass
from enum import Enum
import logging
import os
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from .backend import check_gguf, last_errors
from .embedding_table import EmbeddingTable
from .model import Model
from ..errors import InferenceError, ModelFileError
from ..machine import usable_cores

logger = logging.getLogger('hobot_vlm.llama')

#: sequences that can share the cells; a sequence without cells costs nothing
MAX_SEQUENCES = 32

#: ggml types of keys and of values in the KV cache. On a CPU, llama.cpp has one kernel for long
#: prompts, one for single rows and one for all else, and they round differently; where keys and
#: values are of two types, or quantised, it has the last one only. Its result for a row depends on
#: nothing but the cells of that row's sequence and their order.
CACHE_TYPES = {
    'f16': (lib.GGML_TYPE_F16, lib.GGML_TYPE_F16),
    'q8_0/f16': (lib.GGML_TYPE_Q8_0, lib.GGML_TYPE_F16),
    'q8_0': (lib.GGML_TYPE_Q8_0, lib.GGML_TYPE_Q8_0),
    'q4_0': (lib.GGML_TYPE_Q4_0, lib.GGML_TYPE_Q4_0),
}
FLASH_ATTENTION = {'auto': -1, 'off': 0, 'on': 1}  # llama_flash_attn_type

#: most tokens per computed step, however long a batch is; llama.cpp's own default
MAX_UBATCH = 512

#: embeddings of the largest picture of a model that needs it whole: Gemma 4's limit in clip.cpp
LARGEST_PICTURE = 1120

#: share of the largest logit by which a token and its embedding may differ in their results
SAME_LOGITS = 1e-3


class Outcome(Enum):
    """How a batch ended."""

    DONE = 'done'
    STOPPED = 'stopped'  # cells may have been written
    NO_ROOM = 'no room'  # nothing was written


@dataclass(frozen=True, eq=False)
class Placed:
    """
    Embeddings that say themselves where they stand, or how they see each other.

    :param data: float32 (entries, n_embd)
    :param positions: int32 (3 or 4, entries): the parts of each position as llama.cpp has them,
        the last one 0 if it is missing; None: one after the other
    :param causal: whether each sees only those before it; if not, they are decoded alone
    """

    data: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int32] | None
    causal: bool

    def __len__(self) -> int:
        return len(self.data)


#: what is decoded in a row: token ids, or embeddings, float32 (entries, n_embd)
Entries = Sequence[int] | npt.NDArray[np.float32] | Placed


def is_embedded(entries: Entries) -> bool:
    """Say whether entries are embeddings."""
    return isinstance(entries, (np.ndarray, Placed))


def alone(entries: Entries) -> bool:
    """Say whether entries must be a batch of their own."""
    return isinstance(entries, Placed) and not entries.causal


@dataclass
class Run:
    """
    Consecutive entries of one sequence in a batch.

    :param seq: llama.cpp's number of the sequence
    :param position: of the first entry, unless the entries say it themselves
    :param logits: whether those of the last entry are wanted
    """

    seq: int
    position: int
    entries: Entries
    logits: bool = False

    @property
    def embedded(self) -> bool:
        """Whether the entries are embeddings."""
        return is_embedded(self.entries)


class Context:
    """
    One context, whose cells several sequences share.

    :param n_ctx: cells of the KV cache; at most what the model was trained for
    :param n_batch: most entries of a batch
    :param threads: 0: one per usable core
    :param cache_type: one of ``CACHE_TYPES``
    :param flash_attention: one of ``FLASH_ATTENTION``
    :param whole_pictures: some pictures must be decoded at once, however small ``n_batch`` is
    :raises ModelFileError: there is no memory for it
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 4096,
        n_batch: int = 256,
        threads: int = 0,
        cache_type: str = 'f16',
        flash_attention: str = 'auto',
        whole_pictures: bool = False,
    ):
        self.model = model
        self._on_close = ExitStack()
        if 0 < model.n_ctx_train < n_ctx:
            logger.info('n_ctx is %d: the model was trained for no more', model.n_ctx_train)
            n_ctx = model.n_ctx_train
        self.n_ctx = n_ctx
        self.n_batch = max(min(n_batch, n_ctx), MAX_SEQUENCES)
        last_errors.clear()
        # 1. the context
        settings = lib.llama_context_default_params()
        settings.n_ctx = n_ctx
        room = max(self.n_batch, min(n_ctx, LARGEST_PICTURE)) if whole_pictures else self.n_batch
        settings.n_batch = room
        self._n_step = room if whole_pictures else min(room, MAX_UBATCH)
        settings.n_ubatch = self._n_step
        settings.n_seq_max = MAX_SEQUENCES
        settings.kv_unified = True  # any sequence may use any cell
        settings.type_k, settings.type_v = CACHE_TYPES[cache_type]
        settings.flash_attn_type = FLASH_ATTENTION[flash_attention]
        settings.n_threads = settings.n_threads_batch = threads or usable_cores()
        settings.no_perf = False
        self.handle = lib.llama_init_from_model(model.handle, settings)
        if not self.handle:
            why = '; '.join(last_errors) or 'llama.cpp gave no reason'
            cure = 'lower n_ctx or free memory'
            if 'flash_attn' in why:
                cure = 'set flash_attention to auto, or cache_type to f16'
            raise ModelFileError(
                model.path, f'llama.cpp makes no context of {n_ctx} cells for it ({why}); {cure}'
            )
        self._on_close.callback(lib.llama_free, self.handle)
        self.memory = lib.llama_get_memory(self.handle)
        #: whether a sequence can forget its end, which a recurrent model cannot
        self.rewinds = not (
            lib.llama_model_is_recurrent(model.handle) or lib.llama_model_is_hybrid(model.handle)
        )
        # 2. the way to stop it
        self._stop = ctypes.create_string_buffer(2)
        self._install_stop()
        # 3. the arrays that every batch points into; llama.cpp reads them where they lie
        n = room
        self._tokens = np.zeros(n, np.int32)
        self._parts = 4 if model.has_several_positions else 1  # of the position of an embedding
        self._placed = np.zeros((self._parts, n), np.int32)  # and as a batch has them:
        self._positions = np.zeros(self._parts * n, np.int32)
        self._seqs, self._logits = np.zeros(n, np.int32), np.zeros(n, np.int8)
        self._one = np.ones(n, np.int32)
        self._seq_pointers = self._seqs.ctypes.data + 4 * np.arange(n, dtype=np.uint64)
        self._embeddings = np.empty((n, model.n_embd), np.float32)
        self._token_pointer = _pointer(self._tokens, ctypes.c_int32)
        self._embedding_pointer = _pointer(self._embeddings, ctypes.c_float)
        self._batch = lib.llama_batch(
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._one, ctypes.c_int32),
            seq_id=_pointer(self._seq_pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._logits, ctypes.c_int8),
        )
        # 4. tokens as embeddings, for batches that hold both; known once ``mix`` was called
        self._table: EmbeddingTable | None = None

    def add_lora(self, path: str | Path, scale: float) -> None:
        """
        Apply a LoRA adapter to all that follows.

        :raises ModelFileError: it cannot be read, or is made for another model
        """
        check_gguf(Path(path), 'lora')
        last_errors.clear()
        adapter = lib.llama_adapter_lora_init(self.model.handle, os.fsencode(path))
        if not adapter:
            raise ModelFileError(
                path,
                f'llama.cpp cannot load it ({"; ".join(last_errors)}); '
                f'expected a LoRA adapter made for {self.model.path}',
            )
        # the model owns the adapter and frees it
        lib.llama_set_adapters_lora(
            self.handle,
            (lib.llama_adapter_lora_p_ctypes * 1)(adapter),
            1,
            (ctypes.c_float * 1)(scale),
        )

    # -- stopping ----------------------------------------------------------------------------

    def _install_stop(self) -> None:
        """
        Let another thread stop a running llama_decode.

        llama.cpp asks a callback before each step of its graph, thousands of times a token, so
        the callback must not be Python. C's strlen is one already: it takes a pointer, and gives
        0 (go on) for an empty string and 1 (stop) for a string of one character.
        """
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
        assert strlen
        self._stop_callback = lib.ggml_abort_callback(strlen)
        lib.llama_set_abort_callback(
            self.handle, self._stop_callback, ctypes.addressof(self._stop)
        )

    def stop(self) -> None:
        """Make the running batch, or the next one, end early; callable from any thread."""
        self._stop[0] = b'\x01'

    def allow(self) -> None:
        """Undo ``stop``."""
        self._stop[0] = b'\x00'

    def warm_up(self) -> None:
        """Run one token, so that the weights are in memory before the first question."""
        token = max(0, int(lib.llama_vocab_bos(self.model.vocab)))
        self.run([Run(0, 0, [token], logits=True)])
        lib.llama_memory_clear(self.memory, True)

    # -- running -----------------------------------------------------------------------------

    def mix(self) -> bool:
        """
        Make batches of tokens and embeddings possible, where this model allows it.

        It does where an embedding from the table of its file is read as its token is; some models
        scale or widen them on the way. Uses cell 0 of sequence 0, which must be free.
        """
        if self._parts > 1:  # a token has one part of a position, and an embedding four
            return False
        try:
            table = EmbeddingTable(self.model.path, self.model.n_embd, self.model.n_vocab)
        except ModelFileError as exc:
            logger.info('text and pictures are decoded in batches of their own: %s', exc)
            return False
        token = min(17, self.model.n_vocab - 1)
        embedding = np.empty((1, self.model.n_embd), np.float32)
        table.look_up([token], embedding)
        results = []
        for entries in ([token], embedding):
            if self.run([Run(0, 0, entries, logits=True)]) is not Outcome.DONE:
                return False
            results.append(self.logits().copy())
            lib.llama_memory_clear(self.memory, True)
        error = np.abs(results[0] - results[1]).max()
        if not error <= SAME_LOGITS * np.abs(results[0]).max():
            logger.info('text and pictures are decoded in batches of their own, as they differ')
            return False
        self._table = table
        return True

    @property
    def mixes(self) -> bool:
        """Whether one batch may hold tokens and embeddings."""
        return self._table is not None

    def run(self, runs: Sequence[Run]) -> Outcome:
        """
        Decode one batch.

        :param runs: at most ``n_batch`` entries in all; tokens and embeddings only where ``mixes``
        :raises InferenceError: llama.cpp failed
        """
        as_embeddings = any(run.embedded for run in runs)
        sees_all = any(alone(run.entries) for run in runs)
        n = sum(len(run.entries) for run in runs)
        if sees_all and n > self._n_step:
            raise InferenceError(
                f'a picture of {n} embeddings must be decoded at once, and there is room for '
                f'{self._n_step}: set n_batch to {n} or more, and n_ctx no lower'
            )
        n = 0
        for run in runs:
            entries, end = run.entries, n + len(run.entries)
            self._placed[:, n:end] = np.arange(run.position, run.position + end - n)
            self._seqs[n:end] = run.seq
            self._logits[n:end] = 0
            self._logits[end - 1] = run.logits
            if isinstance(entries, Placed):
                self._embeddings[n:end] = entries.data
                if entries.positions is not None:
                    self._placed[:, n:end] = 0
                    self._placed[: len(entries.positions), n:end] = entries.positions
            elif not as_embeddings:
                self._tokens[n:end] = entries
            elif isinstance(entries, np.ndarray):
                self._embeddings[n:end] = entries
            else:
                assert self._table is not None
                self._table.look_up(entries, self._embeddings[n:end])
            n = end
        self._positions[: self._parts * n] = self._placed[:, :n].reshape(-1)
        batch = self._batch
        batch.n_tokens = n
        pointers: tuple[Any, Any] = (self._token_pointer, None)
        if as_embeddings:
            pointers = (None, self._embedding_pointer)
        batch.token, batch.embd = pointers
        if sees_all:
            lib.llama_set_causal_attn(self.handle, False)
        status = lib.llama_decode(self.handle, batch)
        if sees_all:
            lib.llama_set_causal_attn(self.handle, True)
        if status == 0:
            return Outcome.DONE
        if status == 1:
            return Outcome.NO_ROOM
        if status == 2:
            return Outcome.STOPPED
        raise InferenceError(
            f'llama.cpp failed on a batch of {n}: status {status} ' + '; '.join(last_errors)
        )

    def logits(self, entry: int = -1) -> npt.NDArray[np.float32]:
        """Give the logits of an entry of the last batch: float32 (n_vocab,), a view."""
        pointer = lib.llama_get_logits_ith(self.handle, entry)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    # -- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Free the context; twice is harmless."""
        self._on_close.close()


def _pointer(array: npt.NDArray[Any], kind: type[Any]) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Give the natural logarithm of the probability of each token: float64 (n_vocab,)."""
    exact = logits.astype(np.float64)
    exact -= exact.max()
    exact -= np.log(np.exp(exact).sum())
    return exact
