"""
Vision encoders compiled for the BPU of D-Robotics' RDK boards: .hbm and .bin files.

Two runtimes give access to the chip, ``hbm_runtime`` and the older ``hobot_dnn.pyeasy_dnn``; each
has its class below, which speaks plain arrays. Nothing here is imported before a file is opened,
since neither runtime exists away from the boards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import EncoderOptions, VisionEncoder
from .pixels import (
    check_embeddings,
    check_tiles,
    image_layout,
    LARGEST_SIDE,
    PixelFormat,
    Quantisation,
)
from ..errors import BackendMissing, ConfigError, InferenceError, ModelFileError, ModelMismatch
from ..values import ImageTiles

#: number formats by the names that the runtimes give them
DTYPES = {
    'F32': np.float32,
    'F16': np.float16,
    'S8': np.int8,
    'U8': np.uint8,
    'S16': np.int16,
    'U16': np.uint16,
    'S32': np.int32,
    'float32': np.float32,
    'float16': np.float16,
    'int8': np.int8,
    'uint8': np.uint8,
    'int16': np.int16,
    'uint16': np.uint16,
    'int32': np.int32,
}
INPUT_DTYPES = ('float32', 'float16', 'int8', 'uint8', 'int16')


class BpuEncoder(VisionEncoder):
    """
    A vision encoder with its projector, compiled for the BPU; it takes one tile at a time.

    Accepted: one input of pixels, (1, 3, side, side) or (1, side, side, 3), as float32, float16,
    int8, uint8 or int16, quantised or (uint8) raw; one output of embeddings, floats or quantised
    integers, (1, tokens, n_embd) or (tokens, n_embd). In an output of four axes, those of size 1
    count for nothing, and n_embd is the larger one of the other two, whichever comes first.
    """

    usual_tiles = 1  # each one takes the BPU of an X5 one to three seconds

    runtime = 'BPU'
    elsewhere = True

    def __init__(self, path: str | Path, options: EncoderOptions) -> None:
        self.path = Path(path)
        self._runtime: _HbmRuntime | _EasyDnn | None = _open(self.path, options)
        try:
            self._pixels = self._read_pixels(self._runtime.inputs)
            self.tile_size = self._pixels.tile_size
            self._output, self._turned = self._read_output(self._runtime.outputs)
            rows, columns = _two_axes(self._output.shape)
            self.tokens, self.n_embd = (columns, rows) if self._turned else (rows, columns)
        except Exception:
            self.close()
            raise

    def encode(self, tiles: ImageTiles) -> npt.NDArray[np.float32]:
        """
        Encode the tiles of a picture one by one.

        :return: float32 (tiles, tokens, n_embd), C order
        :raises InferenceError: the BPU failed, or gave something else than embeddings
        """
        check_tiles(tiles, self.tile_size)
        embeddings = np.empty((len(tiles.pixels), self.tokens, self.n_embd), np.float32)
        for index, target in enumerate(embeddings):
            target[...] = self._run(self._pixels.batch(tiles, index, index + 1))
        check_embeddings(
            embeddings,
            f'the vision encoder {self.path}',
            'fetch the file again, or use the one that was compiled for this board',
        )
        return embeddings

    def close(self) -> None:
        """Free the runtime, and with it the memory of the BPU; twice is harmless."""
        self._runtime = None

    def _run(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Encode one tile."""
        if self._runtime is None:
            raise InferenceError(f'the vision encoder {self.path} is closed: open it again')
        try:
            found = self._runtime.run(pixels)
        except Exception as exc:  # what the runtimes raise is not documented
            raise InferenceError(
                f'the vision encoder {self.path} failed on the BPU: {exc}'
            ) from exc
        output = self._output
        stored = None if found.dtype != output.dtype else _cut(found, output.shape)
        if stored is None:
            raise InferenceError(
                f'the BPU runtime gave {found.dtype} {found.shape} for the output {output.name} '
                f'of {self.path}: expected {output.dtype} {output.shape}. pyeasy_dnn cannot give '
                'every kind of output; hbm_runtime (RDK OS 3.5 or newer) can'
            )
        # The array may lie in memory of the BPU, so what is kept is always a copy.
        numbers = (
            output.quantisation.dequantise(stored)
            if output.quantisation and stored.dtype.kind in 'iu'
            else stored.astype(np.float32)
        )
        table = numbers.reshape(_two_axes(output.shape))
        return table.T if self._turned else table

    def _read_pixels(self, inputs: Sequence[_Tensor]) -> PixelFormat:
        """Read layout, side and number format of the input of pixels."""
        if len(inputs) != 1:
            raise self._mismatch(f'it has {len(inputs)} inputs')
        entry = inputs[0]
        layout = image_layout(entry.shape[1:]) if len(entry.shape) == 4 else None
        if layout is None or entry.shape[0] != 1:
            raise self._mismatch('its input is not one picture')
        channels_first, height, width = layout
        if height != width or not 1 <= height <= LARGEST_SIDE:
            raise self._mismatch(f'its pictures are {width} x {height}, not square')
        if entry.dtype is None or entry.dtype.name not in INPUT_DTYPES:
            raise self._mismatch(f'its input is {entry.kind}')
        quantisation = entry.quantisation if entry.dtype.kind in 'iu' else None
        if quantisation is None and entry.dtype.name in ('int8', 'int16'):
            raise self._mismatch(f'its input is {entry.kind} without a scale')
        if (
            quantisation is not None
            and quantisation.scale.size > 1
            and quantisation.axis != (1 if channels_first else 3)
        ):
            raise self._mismatch('the scale of its input belongs to no channel')
        return PixelFormat(height, channels_first, entry.dtype, quantisation)

    def _read_output(self, outputs: Sequence[_Tensor]) -> tuple[_Tensor, bool]:
        """Find the embeddings, and tell whether n_embd comes before tokens."""
        if len(outputs) != 1:
            raise self._mismatch(f'it has {len(outputs)} outputs')
        entry = outputs[0]
        axes = _two_axes(entry.shape)
        if not axes or min(entry.shape) < 1:
            raise self._mismatch('its output cannot be embeddings')
        if entry.dtype is None:
            raise self._mismatch(f'its output is {entry.kind}')
        if entry.dtype.kind in 'iu' and entry.quantisation is None:
            raise self._mismatch(f'its output is {entry.kind} without a scale')
        return entry, len(entry.shape) == 4 and axes[0] > axes[1]

    def _mismatch(self, problem: str) -> ModelMismatch:
        assert self._runtime is not None
        inputs, outputs = (
            '; '.join(f'{t.name} {t.kind} {t.shape}' for t in tensors) or 'none'
            for tensors in (self._runtime.inputs, self._runtime.outputs)
        )
        return ModelMismatch(
            f'model file {self.path} is not a vision encoder that can be used: {problem}. It has '
            f'the inputs {inputs} and the outputs {outputs}. Looked for one input of pixels, '
            '(1, 3, side, side) or (1, side, side, 3), float32, float16, uint8, or int8 or int16 '
            'with a scale, and one output, (1, tokens, n_embd), floats or integers with a scale; '
            'give the encoder that belongs to the language model'
        )


@dataclass(frozen=True)
class _Tensor:
    """
    An input or output as the runtime describes it.

    :param kind: the runtime's name of the number format
    :param dtype: the same for numpy, None where it has none
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    quantisation: Quantisation | None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The number format, None where numpy has none (NV12 and other picture formats)."""
        found = DTYPES.get(self.kind)
        return None if found is None else np.dtype(found)


class _HbmRuntime:
    """A model in ``hbm_runtime``: RDK S100, and X5 from RDK OS 3.5."""

    def __init__(self, module: Any, path: Path, options: EncoderOptions) -> None:
        self._runtime = runtime = module.HB_HBMRuntime(str(path))
        self._model = model = runtime.model_names[0]
        self.inputs = self._tensors('input')
        self.outputs = self._tensors('output')
        scheduling: dict[str, Any] = {'priority': {model: options.bpu_priority}}
        if options.bpu_cores:
            scheduling['bpu_cores'] = {model: list(options.bpu_cores)}
        try:
            runtime.set_scheduling_params(**scheduling)
        except Exception as exc:
            raise ConfigError(
                f'the BPU refuses bpu_priority {options.bpu_priority} and bpu_cores '
                f'{options.bpu_cores}: {exc}; expected a priority of 0 to 255 and cores that this '
                'board has (RDK X5 and S100: 0)',
                'bpu_cores',
            ) from exc

    def run(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Feed the input and give the output, which may have gaps between its rows."""
        answer = self._runtime.run({self._model: {self.inputs[0].name: pixels}})
        return np.asarray(answer[self._model][self.outputs[0].name])

    def _tensors(self, side: str) -> list[_Tensor]:
        model = self._model
        shapes, kinds = (
            getattr(self._runtime, f'{side}_{what}')[model] for what in ('shapes', 'dtypes')
        )
        quants = getattr(self._runtime, f'{side}_quants', {}).get(model, {})
        return [
            _Tensor(
                name,
                tuple(int(n) for n in shapes[name]),
                _word(kinds[name]),
                self._quantisation(name, shapes[name], quants.get(name)),
            )
            for name in getattr(self._runtime, f'{side}_names')[model]
        ]

    @staticmethod
    def _quantisation(name: str, shape: Sequence[int], params: Any) -> Quantisation | None:
        how = 'NONE' if params is None else _word(params.quant_type)
        if how == 'NONE':
            return None
        if how != 'SCALE':
            raise ModelMismatch(f'{name} is quantised by {how}: expected SCALE')
        return _quantisation(name, shape, params.scale, params.zero_point, params.axis)


class _EasyDnn:
    """A model in ``pyeasy_dnn``, as in the RDK X5's system before 3.5."""

    def __init__(self, module: Any, path: Path, options: EncoderOptions) -> None:
        self._model = module.load(str(path))[0]
        self.inputs = [self._tensor(tensor) for tensor in self._model.inputs]
        self.outputs = [self._tensor(tensor) for tensor in self._model.outputs]
        # Only what the user chose is passed on. Cores are counted from 1, 0 is any.
        self._how: dict[str, int] = {}
        if options.bpu_priority:
            self._how['priority'] = options.bpu_priority
        if len(options.bpu_cores) == 1:
            self._how['core_id'] = options.bpu_cores[0] + 1
        # D-Robotics' build for the X5, whose types live in a module of that name, copies as many
        # bytes as the array has elements: it needs to be shown bytes.
        self._as_bytes = type(self._model).__module__ == 'dnnpy'

    def run(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Feed the input and give the output, which may be padded."""
        fed = pixels.view(np.uint8).reshape(-1, 1, 1) if self._as_bytes else pixels
        outputs = self._model.forward(fed, **self._how)
        if not outputs:
            raise RuntimeError('forward gave no outputs')
        return np.asarray(outputs[0].buffer)

    @staticmethod
    def _tensor(tensor: Any) -> _Tensor:
        properties = tensor.properties
        shape = tuple(int(n) for n in properties.shape)
        scale = np.array(getattr(properties, 'scale_data', ()), np.float64)  # runtime's memory
        quantisation = None
        if scale.size:
            # The axis is not told: the last one that fits, unless the channels come first.
            fitting = [axis for axis, size in enumerate(shape) if size == scale.size]
            first = getattr(properties, 'layout', '') == 'NCHW' and 1 in fitting
            axis = 1 if first else (fitting or [len(shape) - 1])[-1]
            quantisation = _quantisation(tensor.name, shape, scale, (), axis)
        return _Tensor(tensor.name, shape, str(properties.dtype), quantisation)


def _word(member: Any) -> str:
    """Give the name of a member of the runtime's enumerations."""
    return str(getattr(member, 'name', member)).rsplit('.', 1)[-1]


def _quantisation(
    name: str, shape: Sequence[int], scale: Any, zero_point: Any, axis: int
) -> Quantisation:
    """
    Check what a runtime says of a quantised tensor.

    :raises ModelMismatch: it makes no sense
    """
    scale = np.array(scale, np.float64).reshape(-1)
    zero_point = np.array(zero_point, np.float64).reshape(-1)
    if not zero_point.size:
        zero_point = np.zeros(1)
    if scale.size == 1 or not -len(shape) <= axis < len(shape):
        axis = len(shape) - 1
    axis %= len(shape)
    sizes = (1, shape[axis])
    if (
        scale.size not in sizes
        or zero_point.size not in sizes
        or not np.isfinite(scale).all()
        or (scale <= 0).any()
    ):
        raise ModelMismatch(
            f'the scale of {name} {tuple(shape)} cannot be used: {scale.size} '
            f'numbers for axis {axis}, expected 1 or {shape[axis]}, above zero'
        )
    count = max(scale.size, zero_point.size)
    return Quantisation(np.broadcast_to(scale, count), np.broadcast_to(zero_point, count), axis)


def _two_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Give the two axes of the embeddings of one tile, or nothing where there are not two."""
    if len(shape) in (2, 3):
        return tuple(shape[-2:]) if math.prod(shape[:-2]) == 1 else ()
    if len(shape) != 4:
        return ()
    real = [size for size in shape if size != 1]
    return tuple(([1, 1] + real)[-2:]) if len(real) <= 2 else ()


def _cut(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any] | None:
    """Cut the padding off; None where the array cannot hold the shape."""
    wide, valid = array.shape, shape
    if len(wide) != len(valid):
        # pyeasy_dnn gives four axes whatever the model has
        wide = tuple(size for size in wide if size != 1)
        valid = tuple(size for size in valid if size != 1)
    if len(wide) != len(valid) or any(map(int.__lt__, wide, valid)):
        return None
    return array.reshape(wide)[tuple(slice(size) for size in valid)].reshape(shape)


def _open(path: Path, options: EncoderOptions) -> _HbmRuntime | _EasyDnn:
    """
    Load a file with the runtime that this machine has.

    :raises BackendMissing: it has none for this kind of file
    :raises ModelFileError: no runtime can load it
    """
    if not path.is_file():
        raise ModelFileError(
            path,
            'there is no such file; expected a vision encoder compiled for the BPU (.hbm, .bin)',
        )
    runtimes: list[tuple[str, Any]] = [('hbm_runtime', _HbmRuntime)]
    if path.suffix.lower() == '.bin':
        runtimes += [('hobot_dnn.pyeasy_dnn', _EasyDnn), ('hobot_dnn_rdkx5.pyeasy_dnn', _EasyDnn)]
    failures = []
    for name, runtime in runtimes:
        try:
            module = import_module(name)
        except (ImportError, OSError):  # OSError: the chip's libraries are missing
            continue
        try:
            opened: _HbmRuntime | _EasyDnn = runtime(module, path, options)
            return opened
        except (ConfigError, ModelMismatch):
            raise
        except Exception as exc:  # what the runtimes raise is not documented
            failures.append(f'{name}: {str(exc) or type(exc).__name__}')
    if failures:
        raise ModelFileError(
            path,
            f'the BPU cannot load it ({"; ".join(failures)}); expected a whole file that '
            'was compiled for this board (.bin for RDK X5, .hbm for RDK S100)',
        )
    names = ', '.join(name for name, _ in runtimes)
    raise BackendMissing(
        f'{path.name} runs on the BPU of an RDK board, and this machine has no runtime for it '
        f'({names})',
        'on an RDK board: sudo apt install hobot-spdev (`vlm doctor` says what else is missing); '
        'anywhere else give an .onnx encoder or an mmproj .gguf of the same model in '
        'model_file_name',
    )
