"""
A GGUF language model and its context, with owned lifetimes.

``Decoder`` turns text into tokens and tokens into bytes, and runs batches. What is in the KV
cache is the business of ``session.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
import ctypes
from enum import Enum
from functools import cache
import logging
import os
from pathlib import Path
import struct
from typing import Any
import unicodedata

from llama_cpp import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from ..errors import InferenceError, ModelFileError, ModelMismatch
from ..machine import usable_cores

logger = logging.getLogger('hobot_vlm.llama')

#: bits of llama_token_attr in llama.h
ATTR_UNKNOWN, ATTR_CONTROL, ATTR_USER_DEFINED = 1, 8, 16

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

#: tokens per computed step while a prompt is read; llama.cpp's own default
MAX_UBATCH = 512

last_errors: list[str] = []


def _log(level: int, text: bytes, _: Any) -> None:
    """Pass llama.cpp's words to logging; keep its errors for our own messages."""
    line = text.decode('utf-8', 'replace').strip()
    if level == 4 and line:
        last_errors.append(line)
        del last_errors[:-3]
    if line:
        # an error of llama.cpp ends in an exception of ours, which says it better
        logger.debug('%s', line)


on_log = lib.llama_log_callback(_log)  # kept: llama.cpp calls it as long as it runs


@cache
def start_backend() -> None:
    lib.llama_log_set(on_log, ctypes.c_void_p(0))
    lib.llama_backend_init()


def check_gguf(path: Path) -> None:
    """
    Check that a file is there and starts like a GGUF file.

    :raises ModelFileError: it is not
    """
    if not path.is_file():
        raise ModelFileError(
            path,
            'there is no such file; give the path of the language model '
            '(.gguf) in llm_model_name, or a name that `vlm models` lists in '
            'model',
        )
    with path.open('rb') as file:
        head = file.read(8)
    if head[:4] != b'GGUF':
        raise ModelFileError(
            path,
            f'it starts with {head[:4]!r} instead of GGUF, so it is no '
            'model of llama.cpp; give a .gguf file',
        )
    if len(head) < 8 or not 2 <= struct.unpack('<I', head[4:])[0] <= 16:
        raise ModelFileError(
            path,
            'its GGUF version is unknown; expected 2 or 3. Fetch the file '
            'again or convert the model anew',
        )


class Outcome(Enum):
    """How a batch ended."""

    DONE = 'done'
    STOPPED = 'stopped'  # cells may have been written
    NO_ROOM = 'no room'  # nothing was written


class Decoder:
    """
    A llama.cpp model with one context, whose cells several sequences share.

    :param n_ctx: cells of the KV cache; at most what the model was trained for
    :param threads: 0: one per usable core
    :param cache_type: one of ``CACHE_TYPES``
    :param flash_attention: one of ``FLASH_ATTENTION``
    :param mmap: map the file instead of reading it
    :raises ModelFileError: missing, cut short or no language model
    """

    def __init__(
        self,
        path: str | Path,
        *,
        n_ctx: int = 4096,
        n_batch: int = 512,
        n_gpu_layers: int = 0,
        threads: int = 0,
        cache_type: str = 'f16',
        flash_attention: str = 'auto',
        mmap: bool = True,
    ):
        self.path = Path(path)
        self._on_close = ExitStack()
        check_gguf(self.path)
        start_backend()
        last_errors.clear()
        # 1. the model
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        if not mmap:
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        self.model = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if not self.model:
            why = '; '.join(last_errors) or 'llama.cpp gave no reason'
            raise ModelFileError(
                self.path,
                f'llama.cpp cannot load it ({why}); expected a whole '
                'GGUF language model: fetch it again, or give the decoder and '
                'not the mmproj',
            )
        self._on_close.callback(lib.llama_model_free, self.model)
        if not lib.llama_model_has_decoder(self.model):
            self.close()
            raise ModelFileError(self.path, 'it has no decoder; expected a language model')
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_embd = int(lib.llama_model_n_embd_inp(self.model))
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))
        trained = int(lib.llama_model_n_ctx_train(self.model))
        if 0 < trained < n_ctx:
            logger.info('n_ctx is %d: the model was trained for no more', trained)
            n_ctx = trained
        self.n_ctx = n_ctx
        self.n_batch = max(min(n_batch, n_ctx), MAX_SEQUENCES)
        # 2. its context
        settings = lib.llama_context_default_params()
        settings.n_ctx = n_ctx
        settings.n_batch = self.n_batch
        settings.n_ubatch = min(self.n_batch, MAX_UBATCH)
        settings.n_seq_max = MAX_SEQUENCES
        settings.kv_unified = True  # any sequence may use any cell
        settings.type_k, settings.type_v = CACHE_TYPES[cache_type]
        settings.flash_attn_type = FLASH_ATTENTION[flash_attention]
        settings.n_threads = settings.n_threads_batch = threads or usable_cores()
        settings.no_perf = False
        self.context = lib.llama_init_from_model(self.model, settings)
        if not self.context:
            why = '; '.join(last_errors) or 'llama.cpp gave no reason'
            self.close()
            raise ModelFileError(
                self.path,
                f'llama.cpp makes no context of {n_ctx} cells for it '
                f'({why}); lower n_ctx or free memory',
            )
        self._on_close.callback(lib.llama_free, self.context)
        self.memory = lib.llama_get_memory(self.context)
        # 3. the way to stop it
        self._stop = ctypes.create_string_buffer(2)
        self._install_stop()
        # 4. buffers that every batch uses; token and embd point elsewhere each time
        self._batch = lib.llama_batch_init(self.n_batch, 0, 1)
        self._on_close.callback(self._free_batch)
        self._batch_token = ctypes.cast(self._batch.token, ctypes.POINTER(lib.llama_token))
        self._pos = np.ctypeslib.as_array(self._batch.pos, (self.n_batch,))
        self._logits = np.ctypeslib.as_array(self._batch.logits, (self.n_batch,))
        self._tokens = np.ctypeslib.as_array(self._batch.token, (self.n_batch,))
        for i in range(self.n_batch):
            self._batch.n_seq_id[i] = 1
        self._piece = ctypes.create_string_buffer(256)
        self.controls, self.marks = self._read_controls()
        # Qwen's own tokenizer composes accents first (its normalizer is NFC); llama.cpp does not
        self._composes = self.metadata('tokenizer.ggml.pre') == 'qwen2'

    def add_lora(self, path: str | Path, scale: float) -> None:
        """
        Apply a LoRA adapter to all that follows.

        :raises ModelFileError: it cannot be read, or is made for another model
        """
        check_gguf(Path(path))
        last_errors.clear()
        adapter = lib.llama_adapter_lora_init(self.model, os.fsencode(path))
        if not adapter:
            raise ModelFileError(
                path,
                f'llama.cpp cannot load it ({"; ".join(last_errors)}); '
                f'expected a LoRA adapter made for {self.path}',
            )
        # the model owns the adapter and frees it
        lib.llama_set_adapters_lora(
            self.context,
            (lib.llama_adapter_lora_p_ctypes * 1)(adapter),
            1,
            (ctypes.c_float * 1)(scale),
        )

    def warm_up(self) -> None:
        """Run one token, so that the weights are in memory before the first question."""
        token = max(0, int(lib.llama_vocab_bos(self.vocab)))
        self.run_rows([(token, 0, 0, True)])
        lib.llama_memory_clear(self.memory, True)

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
            self.context, self._stop_callback, ctypes.addressof(self._stop)
        )

    def stop(self) -> None:
        """Make the running batch, or the next one, end early; callable from any thread."""
        self._stop[0] = b'\x01'

    def allow(self) -> None:
        """Undo ``stop``."""
        self._stop[0] = b'\x00'

    # -- running -----------------------------------------------------------------------------

    def run_tokens(self, tokens: npt.NDArray[np.int32], position: int, seq: int) -> Outcome:
        """
        Decode tokens at consecutive positions; nobody wants their logits.

        :param tokens: at most ``n_batch``
        """
        n = len(tokens)
        self._tokens[:n] = tokens
        self._batch.token, self._batch.embd = self._batch_token, None
        return self._run_consecutive(n, position, seq)

    def run_embeddings(self, data: npt.NDArray[np.float32], position: int, seq: int) -> Outcome:
        """
        Put embeddings, float32 (n, n_embd), at consecutive positions; as ``run_tokens``.

        llama.cpp reads them where they lie; they are not copied here.
        """
        assert data.dtype == np.float32 and data.flags.c_contiguous
        assert data.shape[1] == self.n_embd
        self._batch.token = None
        self._batch.embd = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        return self._run_consecutive(len(data), position, seq)

    def run_rows(self, rows: Sequence[tuple[int, int, int, bool]]) -> Outcome:
        """
        Decode tokens of several sequences.

        :param rows: (token, position, sequence, whether its logits are wanted), at most
            ``n_batch``
        """
        batch = self._batch
        batch.token, batch.embd = self._batch_token, None
        for i, (token, position, seq, logits) in enumerate(rows):
            self._tokens[i], self._pos[i], batch.seq_id[i][0] = token, position, seq
            self._logits[i] = logits
        return self._run(len(rows))

    def _run_consecutive(self, n: int, position: int, seq: int) -> Outcome:
        batch = self._batch
        self._pos[:n] = np.arange(position, position + n, dtype=np.int32)
        self._logits[:n] = 0
        for i in range(n):
            batch.seq_id[i][0] = seq
        return self._run(n)

    def _run(self, n: int) -> Outcome:
        self._batch.n_tokens = n
        status = lib.llama_decode(self.context, self._batch)
        if status == 0:
            return Outcome.DONE
        if status == 1:
            return Outcome.NO_ROOM
        if status == 2:
            return Outcome.STOPPED
        raise InferenceError(
            f'llama.cpp failed on a batch of {n}: status {status} ' + '; '.join(last_errors)
        )

    def logits(self, row: int = -1) -> npt.NDArray[np.float32]:
        """Give the logits of a row of the last batch: float32 (n_vocab,), a view."""
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, row), (self.n_vocab,))

    # -- tokens ------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[int]:
        """Tokenise as plain text: what looks like a control token is just characters."""
        if self._composes:
            text = unicodedata.normalize('NFC', text)
        data = text.encode('utf-8', 'replace')
        room = len(data) + 8
        tokens = (lib.llama_token * room)()
        n = lib.llama_tokenize(self.vocab, data, len(data), tokens, room, False, False)
        if n < 0:
            raise InferenceError(f'llama.cpp cannot tokenise {len(data)} bytes of text')
        return tokens[:n]

    def piece(self, token: int) -> bytes:
        """Give the bytes of a token; control tokens have none."""
        n = lib.llama_token_to_piece(self.vocab, token, self._piece, len(self._piece), 0, False)
        if n < 0:  # a token longer than any seen: take what it needs
            self._piece = ctypes.create_string_buffer(-n)
            n = lib.llama_token_to_piece(self.vocab, token, self._piece, -n, 0, False)
        return self._piece.raw[:n]

    def is_end(self, token: int) -> bool:
        """Say whether a token ends the answer."""
        return bool(lib.llama_vocab_is_eog(self.vocab, token))

    def _read_controls(self) -> tuple[dict[str, int], list[str]]:
        """
        Give the tokens that a chat template may use as marks.

        :return: text -> id of all; and those that llama.cpp would find in plain text too
        """
        vocab, attribute = self.vocab, lib.llama_vocab_get_attr
        wanted = ATTR_CONTROL | ATTR_USER_DEFINED | ATTR_UNKNOWN
        found = [i for i in range(self.n_vocab) if attribute(vocab, i) & wanted]
        named = {lib.llama_vocab_get_text(vocab, i).decode('utf-8', 'replace'): i for i in found}
        marks = [
            text
            for text, i in named.items()
            if len(text) > 1
            and text[0] in '<['
            and text[-1] in '>]'
            and not attribute(vocab, i) & ATTR_CONTROL
        ]
        return named, marks

    def bos(self) -> int | None:
        """Give the token that this model wants first, if it wants one."""
        if not lib.llama_vocab_get_add_bos(self.vocab):
            return None
        token = int(lib.llama_vocab_bos(self.vocab))
        return token if token >= 0 else None

    def bos_and_eos(self) -> tuple[str, str]:
        """Give the texts of both tokens, for chat templates; empty where there is none."""
        tokens = lib.llama_vocab_bos(self.vocab), lib.llama_vocab_eos(self.vocab)
        bos, eos = (
            '' if t < 0 else lib.llama_vocab_get_text(self.vocab, t).decode('utf-8', 'replace')
            for t in tokens
        )
        return bos, eos

    # -- what the file says ------------------------------------------------------------------

    def metadata(self, key: str) -> str | None:
        """Give a metadata value of the GGUF file as text."""
        size = lib.llama_model_meta_val_str(self.model, key.encode(), self._piece, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        lib.llama_model_meta_val_str(self.model, key.encode(), buffer, size + 1)
        return buffer.value.decode('utf-8', 'replace')

    def chat_template(self) -> str | None:
        """Give the file's Jinja chat template."""
        template = lib.llama_model_chat_template(self.model, None)
        return template.decode('utf-8', 'replace') if template else None

    def check_embedding_width(self, width: int, encoder: object) -> None:
        """
        Check that an encoder belongs to this decoder.

        :raises ModelMismatch: its embeddings have another width
        """
        if width != self.n_embd:
            raise ModelMismatch(
                f'{encoder} gives embeddings of width {width}, and {self.path} reads width '
                f'{self.n_embd}: give the encoder and the decoder of one model'
            )

    # -- the end -----------------------------------------------------------------------------

    def _free_batch(self) -> None:
        self._batch.token, self._batch.embd = self._batch_token, None
        lib.llama_batch_free(self._batch)

    def close(self) -> None:
        """Free the context, then the model; twice is harmless."""
        self._on_close.close()
