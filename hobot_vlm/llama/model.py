"""
A GGUF language model: its weights, its vocabulary, and what its file says.

Text to tokens and tokens to bytes; running it is the business of ``context.py``. Safe from any
thread once it is loaded.
"""

from __future__ import annotations

from contextlib import ExitStack
import ctypes
import os
from pathlib import Path
import threading
import unicodedata

from llama_cpp import llama_cpp as lib

from .backend import check_gguf, last_errors, start_backend
from .gpu import ON_CPU, Sharing
from ..errors import InferenceError, ModelFileError, ModelMismatch

#: bits of llama_token_attr in llama.h
ATTR_UNKNOWN, ATTR_CONTROL, ATTR_USER_DEFINED = 1, 8, 16

#: kinds of positions that a picture counts in rows and columns
SEVERAL_PARTS = (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE, lib.LLAMA_ROPE_TYPE_VISION)


class Model:
    """
    A llama.cpp model.

    ``controls`` are the control tokens by their texts, ``marks`` those of them that llama.cpp
    would find in plain text too; ``n_embd`` is the width of an embedding, ``n_vocab`` the number
    of tokens.

    :param gpus: where its layers lie
    :param mmap: map the file instead of reading it
    :raises ModelFileError: missing, cut short or no language model
    """

    def __init__(self, path: str | Path, *, gpus: Sharing = ON_CPU, mmap: bool = True):
        self.path = Path(path)
        self._on_close = ExitStack()
        self._lock = threading.Lock()  # nobody tokenises while the model is freed, or later
        self._closed = False
        check_gguf(self.path)
        start_backend()
        last_errors.clear()
        params = lib.llama_model_default_params()
        kept = gpus.apply(params)
        if not mmap:
            params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        self.handle = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        del kept
        if not self.handle:
            why = '; '.join(last_errors) or 'llama.cpp gave no reason'
            raise ModelFileError(
                self.path,
                f'llama.cpp cannot load it ({why}); expected a whole '
                'GGUF language model: fetch it again, or give the decoder and '
                'not the mmproj',
            )
        self._on_close.callback(lib.llama_model_free, self.handle)
        if not lib.llama_model_has_decoder(self.handle):
            self.close()
            raise ModelFileError(self.path, 'it has no decoder; expected a language model')
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.n_embd = int(lib.llama_model_n_embd_inp(self.handle))
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))
        #: whether a position has several parts, as in M-RoPE
        self.has_several_positions = lib.llama_model_rope_type(self.handle) in SEVERAL_PARTS
        self.n_ctx_train = int(lib.llama_model_n_ctx_train(self.handle))
        self._pieces: dict[int, bytes] = {}
        self.controls, self.marks = self._read_controls()
        # Qwen's own tokenizer composes accents first (its normalizer is NFC); llama.cpp does not
        self._composes = self.metadata('tokenizer.ggml.pre') == 'qwen2'

    # -- tokens ------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[int]:
        """
        Tokenise as plain text: what looks like a control token is just characters.

        Safe from any thread.

        :raises InferenceError: the model is closed
        """
        if self._composes:
            text = unicodedata.normalize('NFC', text)
        data = text.encode('utf-8', 'replace')
        room = len(data) + 8
        tokens = (lib.llama_token * room)()
        with self._lock:
            if self._closed:
                raise InferenceError('the model is closed: load it again to tokenise a text')
            n = lib.llama_tokenize(self.vocab, data, len(data), tokens, room, False, False)
        if n < 0:
            raise InferenceError(f'llama.cpp cannot tokenise {len(data)} bytes of text')
        return tokens[:n]

    def piece(self, token: int) -> bytes:
        """Give the bytes of a token; control tokens have none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token)
        return known

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            size = -n  # what it needs

    def is_end(self, token: int) -> bool:
        """Say whether a token ends the answer."""
        return bool(lib.llama_vocab_is_eog(self.vocab, token))

    def end(self) -> int:
        """
        Give a token that ends the answer.

        :raises ModelMismatch: there is none
        """
        usual = (lib.llama_vocab_eos(self.vocab), lib.llama_vocab_eot(self.vocab))
        for token in (*usual, *self.controls.values()):
            if token >= 0 and self.is_end(token):
                return int(token)
        raise ModelMismatch(
            f'{self.path} has no token that ends an answer: expected one that its file names as '
            'tokenizer.ggml.eos_token_id'
        )

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
        size = lib.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, size + 1)
        return buffer.value.decode('utf-8', 'replace')

    def chat_template(self) -> str | None:
        """Give the file's Jinja chat template."""
        template = lib.llama_model_chat_template(self.handle, None)
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

    def close(self) -> None:
        """Free the model; twice is harmless."""
        with self._lock:
            self._closed = True
            self._on_close.close()
