"""
Any vision encoder that libmtmd of llama-cpp-python knows.

libmtmd cuts a picture, encodes the parts, and says which tokens stand around them and which
positions they have; nothing else is asked of it. It runs no language model, and knows no prompt.
"""

from __future__ import annotations

from contextlib import ExitStack
import ctypes
from functools import partial
import os
from pathlib import Path
import threading
from typing import Any
import weakref

import numpy as np
import numpy.typing as npt

from . import EncoderOptions, PictureEncoder, PicturePart
from .libmtmd import mtmd
from ..errors import InferenceError, ModelFileError, ModelMismatch, PictureError
from ..llama.backend import last_errors, offloads, on_log
from ..llama.embedding_table import F32
from ..llama.gguf import read_gguf
from ..llama.model import Model
from ..machine import usable_cores
from ..values import Pixels, Placing, Tokens

#: projector types of clip-impl.h in llama-cpp-python 0.3.36 that read pictures, for messages: what
#: a later libmtmd knows besides works too
KNOWN = (
    'adapter cogvlm deepseekocr deepseekocr2 dots3note_v dots_ocr exaone4_5 gemma3 gemma3nv '
    'gemma4uv gemma4v glm4v glm5v granite4_vision idefics3 internvl janus_pro kimik25 kimivl ldp '
    'ldpv2 lfm2 lightonocr ling3vl llama4 mimovl minicpmv4_6 minimax_m3 mlp muse-glimmer '
    'nemotron_v2_vl paddleocr phi4 pixtral qwen2.5o qwen2.5vl_merger qwen2vl_merger '
    'qwen3vl_merger resampler step3vl yasa2 youtuvl'
).split()

#: those that make of a picture what depends on all that stands before it
NEEDS_PROMPT = ('deepseek4v', 'hunyuanvl')


class MtmdEncoder(PictureEncoder):
    """
    The vision half of a model, run by libmtmd.

    :param projector: its projector type, as the file has it
    :param model: the other half, whose tokens stand around pictures; must outlive this
    :raises ModelFileError: missing, damaged, or no vision encoder
    :raises ModelMismatch: of a type that libmtmd does not know, or of another model
    """

    runtime = 'libmtmd'

    def __init__(
        self, path: str | Path, projector: str, model: Model, options: EncoderOptions
    ) -> None:
        self.path = Path(path)
        self.n_embd = model.n_embd
        self.elsewhere = options.gpu and offloads()
        if projector in NEEDS_PROMPT:
            raise ModelMismatch(
                f'{path} is of the projector type {projector}, whose embeddings depend on what '
                f'stands before a picture, which is not known here; expected {_or(KNOWN)}'
            )
        self._line_end = _read_line_end(self.path)
        self._on_close = ExitStack()
        self._cutting = threading.Lock()  # several threads prepare pictures
        mtmd.mtmd_log_set(on_log, ctypes.c_void_p(0))
        last_errors.clear()
        params = mtmd.mtmd_context_params_default()
        params.print_timings = params.warmup = False
        params.n_threads = options.threads or usable_cores()
        params.use_gpu = options.gpu
        self._context = mtmd.mtmd_init_from_file(os.fsencode(self.path), model.handle, params)
        if not self._context:
            raise self._refused(projector, model)
        self._on_close.callback(mtmd.mtmd_free, self._context)
        try:
            if not mtmd.mtmd_support_vision(self._context):
                raise ModelFileError(path, 'it has no vision encoder; give the mmproj of a model')
            self._several = mtmd.mtmd_decode_use_mrope(self._context)
            # a grey picture shows whether the vocabulary has what stands around one
            parts = self.cut(np.full((64, 64, 3), 128, np.uint8))
            placings = [part.placing for part in parts if isinstance(part, PicturePart)]
            self.places = any(placings)
            self.whole = any(placing and not placing.causal for placing in placings)
        except BaseException:
            self.close()
            raise

    def cut(self, rgb: Pixels) -> list[Tokens | PicturePart]:
        pixels = np.ascontiguousarray(rgb)
        height, width = pixels.shape[:2]
        with self._cutting, ExitStack() as stack:
            last_errors.clear()
            bitmap = mtmd.mtmd_bitmap_init(
                width, height, ctypes.cast(pixels.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
            )
            stack.callback(mtmd.mtmd_bitmap_free, bitmap)
            chunks = _Chunks()
            part = mtmd.mtmd_input_part(None, bitmap)
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            if mtmd.mtmd_tokenize_from_parts(self._context, chunks.handle, parts, 1, False):
                why = '; '.join(last_errors) or 'it gave no reason'
                raise PictureError(
                    f'libmtmd cannot cut a picture of {width} x {height} for {self.path} ({why}): '
                    'show one that is less narrow'
                )
        found: list[Tokens | PicturePart] = []
        for i in range(mtmd.mtmd_input_chunks_size(chunks.handle)):
            chunk = mtmd.mtmd_input_chunks_get(chunks.handle, i)
            kind = mtmd.mtmd_input_chunk_get_type(chunk)
            if kind == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                found.append(self._tokens(chunk))
                continue
            tokens = int(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
            found.append(
                PicturePart(
                    tokens,
                    self._placing(chunk, tokens),
                    partial(self._encode, chunks, chunk, tokens),
                )
            )
        return found

    def _tokens(self, chunk: int) -> Tokens:
        """Give the ids of a chunk of text."""
        count = ctypes.c_size_t()
        ids = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        tokens = tuple(ids[: count.value])
        if min(tokens, default=0) < 0:
            raise ModelMismatch(
                f'the vocabulary of the language model lacks a token that {self.path} puts '
                'around pictures: give the encoder and the decoder of one model'
            )
        return Tokens(tokens)

    def _placing(self, chunk: int, tokens: int) -> Placing | None:
        """Say where the embeddings of a chunk stand, if not as text does."""
        causal = not mtmd.mtmd_decode_use_non_causal(self._context, chunk)
        length = int(mtmd.mtmd_input_chunk_get_n_pos(chunk))
        if not self._several:
            return None if causal else Placing(None, length, causal)
        image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        here, next_door = (np.empty((tokens, 4), np.uint32) for _ in range(2))
        for start, parts in enumerate((here, next_door)):
            mtmd.mtmd_helper_image_get_decoder_pos(
                image, start, ctypes.cast(parts.ctypes.data, _POSITIONS)
            )
        moves = next_door - here
        if not (moves[:, :3] == 1).all() or here[0, 0] or (here[:, 3] * (moves[:, 3] == 0)).any():
            raise ModelMismatch(
                f'{self.path}: this version of llama-cpp-python places pictures in a way that is '
                'not known here; take another version, or another model'
            )
        # libmtmd counts time, column, row; llama.cpp's batches have time, row, column
        order = [0, 2, 1, 3] if moves[:, 3].all() else [0, 2, 1]
        return Placing(np.ascontiguousarray(here[:, order].T, np.int32), length, causal)

    def _encode(self, chunks: _Chunks, chunk: int, tokens: int) -> npt.NDArray[np.float32]:
        """
        Encode one of some chunks.

        :return: float32 (tokens, n_embd)
        :raises InferenceError: libmtmd failed
        """
        last_errors.clear()
        if mtmd.mtmd_encode_chunk(self._context, chunk):
            raise self._failed('encode a picture')
        output = mtmd.mtmd_get_output_embd(self._context)
        data = np.array(np.ctypeslib.as_array(output, (tokens, self.n_embd)), np.float32)
        return data if self._line_end is None else _with_line_ends(data, self._line_end)

    def close(self) -> None:
        self._on_close.close()

    def _failed(self, what: str) -> InferenceError:
        why = '; '.join(last_errors) or 'it gave no reason'
        return InferenceError(f'libmtmd failed to {what} with {self.path}: {why}')

    def _refused(self, projector: str, model: Model) -> Exception:
        why = '; '.join(last_errors) or 'it gave no reason'
        if projector not in KNOWN:
            return ModelMismatch(
                f'{self.path} is of the projector type {projector[:40]!r}, which libmtmd of this '
                f'llama-cpp-python does not know ({why}); it knows {", ".join(KNOWN)}: take a '
                'newer llama-cpp-python, or another model'
            )
        if 'mismatch between text model' in why:
            return ModelMismatch(
                f'{self.path} and {model.path} do not belong together ({why}): give the encoder '
                'and the decoder of one model'
            )
        return ModelFileError(
            self.path, f'libmtmd cannot load it ({why}); fetch it again, or convert it anew'
        )


class _Chunks:
    """What libmtmd makes of a picture, as long as somebody may want to encode it."""

    def __init__(self) -> None:
        self.handle: Any = mtmd.mtmd_input_chunks_init()
        free = weakref.finalize(self, mtmd.mtmd_input_chunks_free, self.handle)
        free.atexit = False  # by then the process frees all


def _read_line_end(path: Path) -> npt.NDArray[np.float32] | None:
    """Read what Pixtral puts at the end of each row of a picture; None for others."""
    info = read_gguf(path).tensors.get('v.token_embd.img_break')
    if info is None or info.kind != F32:
        return None
    return np.fromfile(info.path, '<f4', info.size // 4, offset=info.offset).astype(np.float32)


def _with_line_ends(
    data: npt.NDArray[np.float32], line_end: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """
    Mend the ends of rows.

    libmtmd makes one as zero times memory that nobody has written, plus what it is (seen in
    llama-cpp-python 0.3.36): where that memory holds no number, it is none.
    """
    wrong = ~np.isfinite(data)
    mended = np.where(wrong, line_end, data)
    ends = (mended == line_end).all(axis=1) & wrong.any(axis=1)
    data[ends] = line_end
    return data


_POSITIONS = ctypes.POINTER(mtmd.mtmd_decoder_pos)


def _or(names: list[str]) -> str:
    return ', '.join(names[:-1]) + f' or {names[-1]}'
