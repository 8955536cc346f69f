"""
Encoder on a llama.cpp ``mmproj-*.gguf``, through libmtmd of llama-cpp-python.

libmtmd is made to cut pictures and to write prompts itself. Here both are done elsewhere, so tiles
are handed to it in a form that it leaves as it is, and only the embeddings are taken.
"""

from __future__ import annotations

from contextlib import ExitStack
import ctypes
import os
from pathlib import Path
import struct
import tempfile
from typing import Any

from llama_cpp import llama_cpp as lib
import numpy as np
import numpy.typing as npt

from . import EncoderOptions, VisionEncoder
from .libmtmd import mtmd
from .mmproj_file import IDEFICS3, INTERNVL, MmprojFile
from .pixels import check_embeddings, check_tiles
from ..errors import InferenceError, ModelFileError, ModelMismatch
from ..llama.backend import last_errors, offloads, on_log, start_backend
from ..machine import usable_cores
from ..values import ImageTiles

#: the node of the graph where positions have just been added to the patches
POSITIONS_NODE = b'pos_embed'


def _bind(name: str, result: Any, *arguments: Any) -> Any:
    """Find a function of ggml, which libmtmd brings with it."""
    return mtmd.ctypes_function(name, list(arguments), result)(lambda: None)


_name = _bind('ggml_get_name', ctypes.c_char_p, ctypes.c_void_p)
_get, _set = (
    _bind(name, None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    for name in ('ggml_backend_tensor_get', 'ggml_backend_tensor_set')
)


class MmprojEncoder(VisionEncoder):
    """
    The vision half of an InternVL or SmolVLM model as llama.cpp converts it.

    :raises ModelFileError: missing, damaged, or no vision encoder
    :raises ModelMismatch: an encoder of another family
    """

    runtime = 'libmtmd'

    def __init__(self, path: str | Path, options: EncoderOptions) -> None:
        self.path = Path(path)
        # 1. what the file says; libmtmd ends the process on some files that are not right
        facts = MmprojFile(self.path)
        _check_for_ggml(facts)
        self.tile_size, self.tokens, self.n_embd = facts.tile_size, facts.tokens, facts.n_embd
        self._per_strip = _tiles_per_strip(facts)
        # SmolVLM's pictures are followed by an overview, which nobody asks for
        self._images_per_strip = self._per_strip + (facts.projector == IDEFICS3)
        self._positions = _Positions(facts) if facts.projector == INTERNVL else None
        with ExitStack() as stack:
            # 2. libmtmd, with a vocabulary for the text that it puts around pictures
            start_backend()
            mtmd.mtmd_log_set(on_log, ctypes.c_void_p(0))
            last_errors.clear()
            vocabulary = _load_vocabulary()
            stack.callback(lib.llama_model_free, vocabulary)
            params = mtmd.mtmd_context_params_default()
            params.print_timings = False
            params.warmup = False
            params.n_threads = options.threads or usable_cores()
            params.use_gpu = options.gpu
            if self._positions:
                params.cb_eval = self._positions.callback
            self._context = mtmd.mtmd_init_from_file(os.fsencode(self.path), vocabulary, params)
            if not self._context:
                why = '; '.join(last_errors) or 'llama.cpp gave no reason'
                raise ModelFileError(
                    self.path,
                    f'llama.cpp cannot load it ({why}); fetch it again, or convert the model anew',
                )
            stack.callback(mtmd.mtmd_free, self._context)
            # 3. whether this libmtmd puts patches at their positions
            if self._positions:
                grey = np.full((1, self.tile_size, self.tile_size, 3), 128, np.uint8)
                self._encode_strip(grey, np.empty((1, self.tokens, self.n_embd), np.float32))
                self._positions.learn()
            self.elsewhere = options.gpu and offloads()
            self._on_close = stack.pop_all()

    def encode(self, tiles: ImageTiles) -> npt.NDArray[np.float32]:
        check_tiles(tiles, self.tile_size)
        found = np.empty((len(tiles.pixels), self.tokens, self.n_embd), np.float32)
        for start in range(0, len(found), self._per_strip):
            self._encode_strip(
                tiles.pixels[start : start + self._per_strip],
                found[start : start + self._per_strip],
            )
        check_embeddings(found, str(self.path), 'fetch the file again')
        return found

    def close(self) -> None:
        self._on_close.close()

    def _encode_strip(
        self, pixels: npt.NDArray[np.uint8], target: npt.NDArray[np.float32]
    ) -> None:
        """Encode at most ``_per_strip`` tiles, side by side in one picture."""
        strip = np.zeros((self.tile_size, self._per_strip, self.tile_size, 3), np.uint8)
        strip[:, : len(pixels)] = pixels.swapaxes(0, 1)
        last_errors.clear()
        with ExitStack() as stack:
            width, data = self._per_strip * self.tile_size, strip.ctypes.data
            bitmap = mtmd.mtmd_bitmap_init(
                width, self.tile_size, ctypes.cast(data, ctypes.POINTER(ctypes.c_uint8))
            )
            stack.callback(mtmd.mtmd_bitmap_free, bitmap)
            chunks = mtmd.mtmd_input_chunks_init()
            stack.callback(mtmd.mtmd_input_chunks_free, chunks)
            part = mtmd.mtmd_input_part(None, bitmap)
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            if mtmd.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False):
                raise self._failed('take a tile')
            images = [
                chunk
                for i in range(mtmd.mtmd_input_chunks_size(chunks))
                if mtmd.mtmd_input_chunk_get_type(chunk := mtmd.mtmd_input_chunks_get(chunks, i))
                == 1
            ]
            if len(images) != self._images_per_strip:
                raise self._failed(f'leave {self._per_strip} tiles as they are')
            for chunk, place in zip(images, target, strict=False):
                if mtmd.mtmd_input_chunk_get_n_tokens(chunk) != self.tokens:
                    raise self._failed(f'make {self.tokens} embeddings of a tile')
                if mtmd.mtmd_encode_chunk(self._context, chunk):
                    raise self._failed('encode a tile')
                place[:] = np.ctypeslib.as_array(
                    mtmd.mtmd_get_output_embd(self._context), place.shape
                )

    def _failed(self, what: str) -> InferenceError:
        why = '; '.join(last_errors) or 'it gave no reason'
        return InferenceError(f'llama.cpp failed to {what} with {self.path}: {why}')


def _tiles_per_strip(file: MmprojFile) -> int:
    """
    Count the tiles of the widest picture that libmtmd cuts into just these tiles.

    For InternVL that is one tile. For SmolVLM it brings the longest edge to a length that stands
    in the file and then cuts; a row of tiles of that length it leaves as it is.
    """
    if file.projector == INTERNVL:
        return 1
    key = 'clip.vision.preproc_image_size'  # older files have none
    longest = file.number(key) if key in file.header.metadata else file.tile_size
    if longest % file.tile_size or file.tile_size % 2:
        raise ModelMismatch(
            f'{file.path}: preproc_image_size {longest} is no multiple '
            f'of the tile, {file.tile_size} pixels, so llama.cpp cannot be given '
            'tiles; use encoder_device cpu (ONNX Runtime)'
        )
    return longest // file.tile_size


def _check_for_ggml(file: MmprojFile) -> None:
    """
    Refuse what makes ggml end the process: it adds only float32 to what is computed.

    :raises ModelFileError: a bias, a norm or the positions are stored in another format
    """
    for name, info in file.header.tensors.items():
        added = len(info.shape) == 1 or name == 'v.position_embd.weight'
        if name.startswith(('v.', 'mm.')) and added and info.kind != 0:
            raise ModelFileError(
                file.path,
                f'{name} is of type {info.kind}, and libmtmd needs float32 (0) there: use '
                'encoder_device cpu (ONNX Runtime), or convert the model anew',
            )


class _Positions:
    """
    Puts InternVL's patches at their own positions.

    The table of positions starts with the class token's, and libmtmd appends that token to the
    patches, so that each patch gets the position of its neighbour (seen up to llama-cpp-python
    0.3.36). This looks at one grey tile, whose patches differ by their positions alone, and adds
    what is missing to every later one. A libmtmd that does it right is left alone.
    """

    def __init__(self, file: MmprojFile) -> None:
        self.path = file.path
        self.table = file.floats('v.position_embd.weight')
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)
        self._seen: npt.NDArray[np.float32] | None = None
        self._missing: npt.NDArray[np.float32] | None = None
        self._learned = False

    def _on_node(self, tensor: int, ask: bool, _: Any) -> bool:
        """Say whether a node is wanted; when it is computed, whether to go on."""
        if _name(tensor) != POSITIONS_NODE:
            return not ask
        if ask:
            return not self._learned or self._missing is not None
        cells = np.empty_like(self.table)
        _get(tensor, cells.ctypes.data, 0, cells.nbytes)
        if self._missing is None:
            self._seen = cells
            return False
        cells += self._missing
        _set(tensor, cells.ctypes.data, 0, cells.nbytes)
        return True

    def learn(self) -> None:
        """
        Find out from the grey tile what is missing.

        :raises ModelFileError: the file holds numbers that are none
        :raises ModelMismatch: libmtmd does something else altogether
        """
        if self._seen is None:
            raise self._unknown()
        if not np.isfinite(self._seen).all() or not np.isfinite(self.table).all():
            raise ModelFileError(
                self.path, 'it is damaged: it holds numbers that are not finite; fetch it again'
            )
        patches_first, patches_last, table = self._seen[:-1], self._seen[1:], self.table

        def spread(cells: npt.NDArray[np.float32], positions: npt.NDArray[np.float32]) -> float:
            """Measure how much the patches of the grey tile differ without these positions."""
            return float(np.ptp(cells - positions, axis=0).max())

        shifted = spread(patches_first, table[:-1])
        right = min(spread(patches_first, table[1:]), spread(patches_last, table[1:]))
        if min(shifted, right) > 1e-3 * np.abs(self._seen).max():
            raise self._unknown()
        if shifted < right:
            self._missing = np.roll(table, -1, axis=0) - table
        self._learned = True

    def _unknown(self) -> ModelMismatch:
        return ModelMismatch(
            f'{self.path}: this version of llama-cpp-python treats the positions '
            'of InternVL in a way that is not known here; use the ONNX encoder '
            'of the model'
        )


def _load_vocabulary() -> Any:
    """
    Load the smallest language model that libmtmd takes: a vocabulary of three letters.

    libmtmd writes marks such as ``<img>`` around a picture, and for that asks for a vocabulary.
    Nothing is done with the marks here, so they may come out as nothing.
    """

    def text(value: str) -> bytes:
        return struct.pack('<Q', len(value)) + value.encode()

    def array(*values: str) -> bytes:
        return struct.pack('<IIQ', 9, 8, len(values)) + b''.join(map(text, values))

    values = {
        'general.architecture': struct.pack('<I', 8) + text('llama'),
        'tokenizer.ggml.model': struct.pack('<I', 8) + text('gpt2'),
        'tokenizer.ggml.pre': struct.pack('<I', 8) + text('default'),
        'tokenizer.ggml.tokens': array('a', 'b', 'ab'),
        'tokenizer.ggml.merges': array('a b'),
        'tokenizer.ggml.bos_token_id': struct.pack('<II', 4, 0),
        'tokenizer.ggml.eos_token_id': struct.pack('<II', 4, 0),
    }
    params = lib.llama_model_default_params()
    params.vocab_only = True
    with tempfile.NamedTemporaryFile(suffix='.gguf') as file:
        file.write(
            b'GGUF'
            + struct.pack('<IQQ', 3, 0, len(values))
            + b''.join(text(key) + value for key, value in values.items())
        )
        file.flush()
        model = lib.llama_model_load_from_file(os.fsencode(file.name), params)
    if not model:
        raise InferenceError(
            'llama.cpp cannot load a vocabulary of three tokens; this version of '
            'llama-cpp-python is not supported'
        )
    return model
