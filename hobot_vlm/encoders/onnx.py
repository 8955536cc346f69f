"""
Vision encoders as ONNX graphs, whichever runtime they are loaded in.

What goes in and comes out is read from the graph: own exports (one input of pixels) and the
published SmolVLM2 encoders (a leading picture axis and a mask) need no configuration. The file is
not trusted: whatever stands in it, a bad one ends in an error that says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path
import threading
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import router, VisionEncoder
from .onnx_session import reason
from .onnx_weights import weights_beside
from .pixels import check_embeddings, check_tiles, image_layout, LARGEST_SIDE, PixelFormat
from ..errors import InferenceError, ModelMismatch
from ..machine import return_free_memory
from ..values import ImageTiles

#: Most tiles in one run. The attention of a usual encoder takes 50 MB a tile, and a CPU gains
#: nothing from larger batches.
MOST_TILES = 16

#: Seconds; a run that takes longer also took memory that is worth giving back, which itself takes
#: some milliseconds.
LONG = 0.1

#: SmolVLM's tile, for graphs with a picture axis that leave height and width open. The published
#: ones do, although their position table fits this size alone.
SMOLVLM_SIDE = 512

PIXEL_TYPES: dict[str, np.dtype[Any]] = {
    'tensor(float)': np.dtype(np.float32),
    'tensor(float16)': np.dtype(np.float16),
    'tensor(uint8)': np.dtype(np.uint8),
}
MASK_TYPES: dict[str, np.dtype[Any]] = {
    'tensor(bool)': np.dtype(np.bool_),
    'tensor(int64)': np.dtype(np.int64),
    'tensor(int32)': np.dtype(np.int32),
    'tensor(uint8)': np.dtype(np.uint8),
    'tensor(float)': np.dtype(np.float32),
}
OUTPUT_TYPES = ('tensor(float)', 'tensor(float16)')
OUTPUT_NAMES = ('image_features', 'image_embeds', 'embeddings')

#: Seconds in which a tile must be done: some, and more with the weights that it passes. An encoder
#: of 1.2 GB takes 35 s a tile on the slowest board, a tenth of what it gets.
RUN_SECONDS, RUN_SECONDS_PER_BYTE = 10.0, 250e-9

Axis = Any  # what ONNX Runtime says of an axis: its size, its name, or None


class OnnxEncoder(VisionEncoder):
    """
    A vision encoder with its projector in one ONNX graph.

    Accepted: pixels as float32, float16 or uint8 (raw, normalised by the graph) in
    (tiles, 3, side, side), (tiles, side, side, 3) or (batch, images, 3, side, side); masks, which
    are filled with ones; embeddings as float32 or float16 in (tiles, tokens, n_embd),
    (tokens, n_embd) of one tile, or (batch, images, tokens, n_embd). With the outputs of
    ``router`` the tiles of a picture have embeddings as it decides.

    :param path: the file that the graph is in, or was made from
    :param session: the loaded graph: of ONNX Runtime, or with its face
    :param elsewhere: it does not run on this CPU
    """

    def __init__(self, path: Path, session: Any, runtime: str, elsewhere: bool = False) -> None:
        self.path, self.runtime, self.elsewhere = path, runtime, elsewhere
        self._session = session
        self._seconds = RUN_SECONDS + RUN_SECONDS_PER_BYTE * weight_bytes(path)
        self._running: Any = None  # what ends the run that is on its way
        self._stopped: Any = None  # and that of the last one that was stopped
        try:
            self._pixels, self._masks = self._find_inputs()
            self.tile_size = self._pixels.format.tile_size
            self._output, self.tokens, self.n_embd = self._find_output()
            self.routed = router.is_routed([item.name for item in session.get_outputs()])
            if self.routed or not self.tokens or not self.n_embd:
                self._measure()
            self.tokens = 0 if self.routed else self.tokens
            return_free_memory()  # loading took twice of what is needed
        except Exception:
            self.close()
            raise

    def encode(self, tiles: ImageTiles) -> npt.NDArray[np.float32]:
        """
        Encode all tiles of a picture, as one batch where the graph's batch axis is free.

        :return: float32 (tiles, tokens, n_embd), C order; with a router, as if it left all as is
        :raises InferenceError: ONNX Runtime failed, or gave something else than embeddings
        """
        return self._encode(tiles)[0]

    def encode_each(self, tiles: ImageTiles) -> list[npt.NDArray[np.float32]]:
        fine, *more = self._encode(tiles)
        if not more:
            return list(fine)
        coarse, gate = more
        return [coarse[i] if small else fine[i] for i, small in enumerate(router.compressed(gate))]

    def _encode(self, tiles: ImageTiles) -> list[npt.NDArray[np.float32]]:
        """Give what all runs together give: the embeddings, and what a router goes by."""
        check_tiles(tiles, self.tile_size)
        began = perf_counter()
        total, most = len(tiles.pixels), self._pixels.batch or MOST_TILES
        parts = [
            self._run(tiles, start, min(start + most, total)) for start in range(0, total, most)
        ]
        if perf_counter() - began > LONG:
            return_free_memory()
        found = [np.concatenate(part) for part in zip(*parts, strict=True)]
        for embeddings in found[:2]:
            check_embeddings(
                embeddings,
                f'the vision encoder {self.path}',
                'a float16 or quantised encoder can overflow: use the float32 file',
            )
        return found

    def stop(self) -> None:
        """End a run that is on its way, from any thread; it raises InferenceError."""
        if (running := self._running) is not None:
            self._stopped = running
            running.terminate = True

    def close(self) -> None:
        """Free the session; twice is harmless."""
        self._session = None

    def _run(self, tiles: ImageTiles, start: int, stop: int) -> list[npt.NDArray[np.float32]]:
        """
        Encode tiles ``start`` to ``stop`` in one run.

        :return: float32 (tiles, tokens, n_embd); and with a router what it goes by
        """
        session = self._session
        if session is None:
            raise InferenceError(f'the vision encoder {self.path} is closed: open it again')
        batch = self._pixels.format.batch(tiles, start, stop, self._pixels.batch)
        size = len(batch)
        feeds = {self._pixels.name: batch.reshape(self._pixels.lead(size) + batch.shape[1:])}
        for mask in self._masks:
            feeds[mask.name] = np.ones(mask.shape_for(self._pixels, size), mask.dtype)
        limit = self._seconds * size
        options = self._running = _run_options()
        clock = threading.Timer(limit, setattr, (options, 'terminate', True))
        clock.daemon = True
        clock.start()
        try:
            found, *more = session.run(
                [self._output, *(router.OUTPUTS if self.routed else ())], feeds, options
            )
        except Exception as exc:  # ONNX Runtime's errors have no other base
            why = f'failed on {size} tiles: {reason(exc)}'
            if options.terminate:
                why = (
                    'was stopped'
                    if self._stopped is options
                    else f'had not ended after {limit:.0f} s on {size} tiles: export it again'
                )
            raise InferenceError(f'the vision encoder {self.path} {why}') from exc
        finally:
            clock.cancel()
            self._running = None
        shape = found.shape
        tokens = shape[-2] if len(shape) > 1 else 0
        if not (
            len(shape) in (2, 3, 4)
            and math.prod(shape[:-2]) == size
            and tokens == (self.tokens or tokens)
            and shape[-1] == (self.n_embd or shape[-1])
            and found.size
        ):
            raise InferenceError(
                f'the vision encoder {self.path} gave an array of shape {shape} for {size} tiles: '
                f'expected ({size}, {self.tokens or "tokens"}, {self.n_embd or "n_embd"})'
            )
        results = [
            np.ascontiguousarray(each[: stop - start], np.float32)
            for each in (found.reshape(size, *shape[-2:]), *more)
        ]
        if more and (wrong := router.check(*results)):
            raise InferenceError(f'the vision encoder {self.path} gave {wrong}: export it again')
        return results

    def _measure(self) -> None:
        """Find the shape of the embeddings by encoding one black tile."""
        black = np.zeros((1, self.tile_size, self.tile_size, 3), np.uint8)
        half = (0.5, 0.5, 0.5)
        try:
            found = self._run(ImageTiles(black, 0, 0, True, half, half), 0, 1)[0]
        except InferenceError as exc:
            raise self._mismatch(str(exc)) from exc
        self.tokens, self.n_embd = found.shape[1:]

    def _find_inputs(self) -> tuple[_Pixels, list[_Mask]]:
        """Tell the input of pixels from the masks."""
        pixels, masks = [], []
        for entry in self._session.get_inputs():
            if entry.type == 'tensor(bool)' or 'mask' in entry.name.lower():
                if entry.type not in MASK_TYPES or len(entry.shape) not in (2, 3, 4):
                    raise self._mismatch(f'the mask {entry.name} is of no known kind')
                masks.append(_Mask(entry.name, MASK_TYPES[entry.type], tuple(entry.shape)))
            else:
                pixels.append(entry)
        if len(pixels) != 1:
            raise self._mismatch(f'it has {len(pixels)} inputs that are no masks')
        return self._read_pixels(pixels[0]), masks

    def _read_pixels(self, entry: Any) -> _Pixels:
        """Read layout, side and number format of the input of pixels."""
        shape = tuple(entry.shape)
        if any(isinstance(size, int) and size < 1 for size in shape):
            raise self._mismatch(f'the input {entry.name} has an axis without elements')
        if entry.type not in PIXEL_TYPES:
            raise self._mismatch(f'the input {entry.name} is {entry.type}')
        layout = image_layout(shape[-3:]) if len(shape) in (4, 5) else None
        if layout is None or (len(shape) == 5 and not layout[0]):
            raise self._mismatch(f'the input {entry.name} is no picture')
        channels_first, height, width = layout
        if isinstance(height, int) and isinstance(width, int) and height != width:
            raise self._mismatch(f'its pictures are {width} x {height}, not square')
        side = next((size for size in (height, width) if isinstance(size, int)), None)
        if side is None:
            side = self._side_from_metadata()
        if side is None and len(shape) == 5:
            side = SMOLVLM_SIDE
        if side is None:
            raise self._mismatch(
                f'the height and width of {entry.name} are open: export it with fixed sizes, or '
                "put the side of a tile in pixels into the file's metadata_props under 'side'"
            )
        lead = shape[:-3]
        if side > LARGEST_SIDE or math.prod(n for n in lead if isinstance(n, int)) > MOST_TILES:
            raise self._mismatch(
                f'the input {entry.name} is too large: at most {MOST_TILES} '
                f'tiles of {LARGEST_SIDE} x {LARGEST_SIDE} pixels'
            )
        return _Pixels(
            entry.name, PixelFormat(side, channels_first, PIXEL_TYPES[entry.type]), lead
        )

    def _side_from_metadata(self) -> int | None:
        text = self._session.get_modelmeta().custom_metadata_map.get('side')
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) < 8 and int(text)):
            raise self._mismatch(
                f'its metadata says that side is {text[:20]!r}, expected the '
                'side of a tile in pixels'
            )
        return int(text)

    def _find_output(self) -> tuple[str, int, int]:
        """Give name, tokens and n_embd of the embeddings; 0 for what only a run tells."""
        outputs = self._session.get_outputs()
        fitting = [entry for entry in outputs if entry.type in OUTPUT_TYPES]
        if len(fitting) > 1:
            fitting = [entry for entry in fitting if entry.name in OUTPUT_NAMES]
        if len(fitting) != 1:
            raise self._mismatch('none of its outputs, or more than one, can be the embeddings')
        shape = tuple(fitting[0].shape)
        if shape and (len(shape) not in (2, 3, 4) or 0 in shape):
            raise self._mismatch(f'the output {fitting[0].name} cannot be embeddings')
        # An output of which nothing is known has an empty shape.
        tokens, n_embd = (size if isinstance(size, int) else 0 for size in shape[-2:] or (0, 0))
        return fitting[0].name, tokens, n_embd

    def _mismatch(self, problem: str) -> ModelMismatch:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        return ModelMismatch(
            f'model file {self.path} is not a vision encoder that can be used: {problem}. It has '
            f'the inputs {_describe(inputs)} and the outputs {_describe(outputs)}. Looked for one '
            'input of pixels, float32, float16 or uint8, (tiles, 3, side, side), (tiles, side, '
            'side, 3) or (batch, images, 3, side, side), besides masks, and one output of floats, '
            '(tiles, tokens, n_embd); give the encoder that belongs to the language model'
        )


@dataclass(frozen=True)
class _Pixels:
    """
    The input of pixels.

    :param axes: those before the picture: (tiles) or (batch, images), sizes or names
    """

    name: str
    format: PixelFormat
    axes: tuple[Axis, ...]

    @property
    def batch(self) -> int:
        """Tiles that a run must have; 0 where the graph leaves it open."""
        fixed = [size for size in self.axes if isinstance(size, int)]
        tiles = math.prod(fixed)
        return tiles if tiles > 1 or len(fixed) == len(self.axes) else 0

    def lead(self, tiles: int) -> tuple[int, ...]:
        """Spread tiles over the axes before the picture; the last open one takes them all."""
        sizes = [size if isinstance(size, int) else 1 for size in self.axes]
        for axis in reversed(range(len(sizes))):
            if not isinstance(self.axes[axis], int):
                sizes[axis] = tiles // math.prod(sizes)
                break
        return tuple(sizes)


@dataclass(frozen=True)
class _Mask:
    """An input that says which pixels, or which pictures, are real: all are."""

    name: str
    dtype: np.dtype[Any]
    axes: tuple[Axis, ...]

    def shape_for(self, pixels: _Pixels, tiles: int) -> tuple[int, ...]:
        """Give the shape that goes with a number of tiles; fixed axes stay as they are."""
        side = pixels.format.tile_size
        placed: tuple[int, ...] = (tiles, side, side)
        if len(self.axes) != 3:
            placed = (*pixels.lead(tiles), 1)[:2] + (side, side)
        return tuple(
            size if isinstance(size, int) else open_size
            for size, open_size in zip(self.axes, placed, strict=False)
        )


def weight_bytes(path: Path) -> int:
    """Give the size of a file and, for ONNX, of the weights beside it."""
    files = (path, *weights_beside(path))
    return sum(file.stat().st_size for file in files if file.is_file())


def _run_options() -> Any:
    """Make what ends one run when its ``terminate`` is set."""
    try:
        import onnxruntime
    except ImportError:  # OpenVINO alone
        return SimpleNamespace(terminate=False)
    return onnxruntime.RunOptions()


def _describe(entries: Sequence[Any]) -> str:
    words = []
    for entry in entries:
        sizes = ', '.join('?' if size is None else str(size) for size in entry.shape)
        words.append(f'{entry.name} {entry.type} ({sizes})')
    return '; '.join(words) or 'none'
