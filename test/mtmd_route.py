"""
The same questions by libmtmd's own way, for tests.

That is ``mtmd_tokenize`` and ``mtmd_helper_eval_chunks``, and the likeliest token each time.
Nothing of this package takes part but the binding; the context is one of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, ExitStack
import ctypes
from dataclasses import dataclass, field
import os
from pathlib import Path

from hobot_vlm.llama.backend import on_log, start_backend
from llama_cpp import llama_cpp as lib
from llama_cpp import mtmd_cpp as mtmd
import numpy as np
import numpy.typing as npt

MARKER = '<__media__>'

#: of mallopt: what fresh memory is filled with
M_PERTURB = -6


@contextmanager
def memory_of(byte: int) -> Iterator[None]:
    """
    Fill all memory from malloc with a byte.

    libmtmd reads memory that nobody has written where it makes the ends of Pixtral's rows.
    """
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(M_PERTURB, byte ^ 0x1FF)
    try:
        yield
    finally:
        mallopt(M_PERTURB, 0)


@dataclass
class Answer:
    """
    What came of a text with pictures.

    :param ids: of the prompt; -1 for an embedding
    :param places: int64 (4, entries): time, row, column and one more of each
    :param position: of what follows the prompt
    :param logits: of its last entry
    :param tokens: the likeliest ones that follow
    :param margin: least difference between the likeliest logit and the next one
    """

    ids: list[int]
    places: npt.NDArray[np.int64]
    position: int
    logits: npt.NDArray[np.float32]
    tokens: list[int] = field(default_factory=list)
    margin: float = float('inf')


class Route:
    """A model and its context; each ``ask`` goes on where the last one ended."""

    def __init__(self, folder: Path, n_ctx: int = 2048, n_batch: int = 512):
        start_backend()
        mtmd.mtmd_log_set(on_log, ctypes.c_void_p(0))
        mtmd.mtmd_helper_log_set(on_log, ctypes.c_void_p(0))
        self._on_close = ExitStack()
        self.model = lib.llama_model_load_from_file(
            os.fsencode(folder / 'decoder.gguf'), lib.llama_model_default_params()
        )
        self._on_close.callback(lib.llama_model_free, self.model)
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = n_ctx, n_batch, n_batch
        settings.n_threads = settings.n_threads_batch = 1
        settings.flash_attn_type = 0
        self.context = lib.llama_init_from_model(self.model, settings)
        self._on_close.callback(lib.llama_free, self.context)
        params = mtmd.mtmd_context_params_default()
        params.print_timings = params.warmup = False
        params.n_threads = 1
        self.vision = mtmd.mtmd_init_from_file(
            os.fsencode(folder / 'mmproj.gguf'), self.model, params
        )
        self._on_close.callback(mtmd.mtmd_free, self.vision)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self._n_batch, self._past, self._last = n_batch, 0, -1

    def close(self) -> None:
        """Free all."""
        self._on_close.close()

    def reset(self) -> None:
        """Forget what was asked."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        self._past, self._last = 0, -1

    def ask(self, text: str, pictures: Sequence[npt.NDArray[np.uint8]], most: int) -> Answer:
        """
        Read a text in which ``MARKER`` stands for each picture, and write at most some tokens.

        :param pictures: uint8 (height, width, 3)
        """
        if self._last >= 0:  # the answer before ends with a token that nobody has read
            self._read(self._last)
        with ExitStack() as stack:
            chunks = mtmd.mtmd_input_chunks_init()
            stack.callback(mtmd.mtmd_input_chunks_free, chunks)
            bitmaps = (ctypes.c_void_p * len(pictures))()
            for i, picture in enumerate(pictures):
                height, width = picture.shape[:2]
                data = ctypes.cast(picture.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
                bitmaps[i] = mtmd.mtmd_bitmap_init(width, height, data)
                stack.callback(mtmd.mtmd_bitmap_free, bitmaps[i])
            data = text.encode()
            given = mtmd.mtmd_input_text(data, len(data), self._past == 0, True)
            assert not mtmd.mtmd_tokenize(
                self.vision, chunks, ctypes.byref(given), bitmaps, len(pictures)
            )
            ids, places = self._describe(chunks)
            position = ctypes.c_int32()
            assert not mtmd.mtmd_helper_eval_chunks(
                *(self.vision, self.context, chunks, self._past, 0, self._n_batch, True),
                ctypes.byref(position),
            )
        self._past = position.value
        answer = Answer(ids, places, self._past, self._logits())
        while len(answer.tokens) < most:
            first, second = np.sort(self._logits())[-1:-3:-1]
            answer.margin = min(answer.margin, float(first - second))
            self._last = int(self._logits().argmax())
            if lib.llama_vocab_is_eog(self.vocab, self._last):
                self._last = -1
                break
            answer.tokens.append(self._last)
            if len(answer.tokens) < most:
                self._read(self._last)
        return answer

    def _describe(self, chunks: int) -> tuple[list[int], npt.NDArray[np.int64]]:
        """Give the ids and the places of what will be read."""
        ids: list[int] = []
        places: list[tuple[int, ...]] = []
        at = self._past
        for i in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, i)
            count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                size = ctypes.c_size_t()
                ids += mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(size))[:count]
                places += [(at + i,) * 3 + (0,) for i in range(count)]
            else:
                ids += [-1] * count
                image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
                for i in range(count):
                    where = mtmd.mtmd_image_tokens_get_decoder_pos(image, at, i)
                    places.append((where.t, where.y, where.x, where.z))
            at += mtmd.mtmd_input_chunk_get_n_pos(chunk)
        return ids, np.array(places, np.int64).T

    def _read(self, token: int) -> None:
        batch = lib.llama_batch_init(1, 0, 1)
        batch.n_tokens, batch.token[0], batch.pos[0], batch.logits[0] = 1, token, self._past, True
        batch.n_seq_id[0], batch.seq_id[0][0] = 1, 0
        assert not lib.llama_decode(self.context, batch)
        lib.llama_batch_free(batch)
        self._past += 1

    def _logits(self) -> npt.NDArray[np.float32]:
        pointer = lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, (lib.llama_vocab_n_tokens(self.vocab),)).copy()
