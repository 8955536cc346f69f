"""
Stand-ins for a BPU board: a chip that computes for real, behind the interfaces of its runtimes.

The chip runs an ONNX graph on ONNX Runtime and stores numbers as a compiled model would: quantised
inputs and outputs, gaps between rows, either order of axes. The two runtimes on top have the
names, types and habits of ``hbm_runtime`` and ``hobot_dnn.pyeasy_dnn``, and nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import enum
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
import weakref

import numpy as np
import onnxruntime

MAGIC = b'HBM-for-tests\n'


@dataclass
class Compiled:
    """
    What the compiler adds to a graph (float32 in, (1, 3, side, side); embeddings out).

    :param scales: one number, or one per index of the axis; empty: not quantised
    :param output_shape: how the chip shows the embeddings (same numbers in the same order)
    :param turned: n_embd before tokens
    :param padding: elements that the output has more in memory, per axis
    """

    side: int = 16
    input_shape: tuple[int, ...] = (1, 3, 16, 16)
    input_dtype: str = 'float32'
    input_scale: tuple[float, ...] = ()
    input_zero: tuple[int, ...] = ()
    input_axis: int = 1
    output_shape: tuple[int, ...] = (1, 4, 12)
    output_dtype: str = 'float32'
    output_scale: tuple[float, ...] = ()
    output_zero: tuple[int, ...] = ()
    output_axis: int = 2
    turned: bool = False
    padding: tuple[int, ...] = ()
    quant_type: str = 'SCALE'
    extra_input: bool = False

    def __post_init__(self) -> None:
        # runtimes hold scales as float32
        self.input_scale = tuple(float(np.float32(scale)) for scale in self.input_scale)
        self.output_scale = tuple(float(np.float32(scale)) for scale in self.output_scale)

    def write(self, path: Path, graph: bytes) -> Path:
        """Write the file that the stand-in runtimes load."""
        path.write_bytes(MAGIC + json.dumps(asdict(self)).encode() + b'\n' + graph)
        return path


class Chip:
    """A loaded model."""

    def __init__(self, path: str) -> None:
        data = Path(path).read_bytes()
        if not data.startswith(MAGIC):
            raise RuntimeError('hbDNNInitializeFromFiles failed, error code: -6000129')
        description, graph = data[len(MAGIC) :].split(b'\n', 1)
        known = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in json.loads(description).items()
        }
        self.model = Compiled(**known)
        self._session = onnxruntime.InferenceSession(graph, providers=['CPUExecutionProvider'])
        self._memory: np.ndarray | None = None

    def execute(self, stored: np.ndarray) -> np.ndarray:
        """Run, and give a view without the padding of memory that the next run overwrites."""
        model = self.model
        # 1) what the stored numbers mean
        pixels = stored
        if model.input_scale:
            pixels = (
                stored.astype(np.float64) - along(model.input_zero, 4, model.input_axis)
            ) * along(model.input_scale, 4, model.input_axis)
        if model.input_shape[1] != 3:
            pixels = pixels.transpose(0, 3, 1, 2)
        takes = self._session.get_inputs()[0]
        kind = np.uint8 if takes.type == 'tensor(uint8)' else np.float32
        result = self._session.run(None, {takes.name: np.ascontiguousarray(pixels, kind)})[0]
        # 2) how the chip stores the result
        if model.turned:
            result = result.transpose(0, 2, 1)
        result = result.reshape(model.output_shape)
        rank = result.ndim
        if model.output_scale:
            limits = np.iinfo(model.output_dtype)
            result = np.clip(
                np.rint(
                    result.astype(np.float64) / along(model.output_scale, rank, model.output_axis)
                    + along(model.output_zero, rank, model.output_axis)
                ),
                limits.min,
                limits.max,
            )
        if self._memory is not None:
            self._memory.fill(77)
        padding = model.padding or (0,) * rank
        self._memory = np.full(np.add(model.output_shape, padding), 99, model.output_dtype)
        view = self._memory[tuple(slice(n) for n in model.output_shape)]
        view[...] = result
        return view


def along(values: tuple[float, ...], rank: int, axis: int) -> np.ndarray:
    """Shape numbers to run along an axis."""
    shape = [1] * rank
    shape[axis] = -1
    return np.array(values or (0,), np.float64).reshape(shape)


class hbDNNDataType(enum.Enum):  # noqa: N801  (its name there)
    """Number formats; the values are arbitrary."""

    S8, U8, F16, S16, U16, F32, S32, NV12 = range(8)


class hbDNNQuantiType(enum.Enum):  # noqa: N801  (its name there)
    """Kinds of quantisation; SHIFT exists in the X5's library."""

    NONE, SHIFT, SCALE = range(3)


KINDS = {
    'int8': 'S8',
    'uint8': 'U8',
    'float16': 'F16',
    'int16': 'S16',
    'uint16': 'U16',
    'float32': 'F32',
    'int32': 'S32',
    'NV12': 'NV12',
}


class QuantParams:
    """How a tensor is quantised."""

    def __init__(self, kind: str, scale: tuple[float, ...], zero: tuple[int, ...], axis: int):
        self.quant_type = hbDNNQuantiType[kind if scale else 'NONE']
        self.scale = np.array(scale, np.float32)
        self.zero_point = np.array(zero, np.int32)
        self.axis = axis


def hbm_runtime(
    cores: int = 1, wide: bool = False, broken: str = '', loads: tuple[str, ...] = ('.hbm', '.bin')
) -> tuple[ModuleType, list[Any]]:
    """
    Make the module ``hbm_runtime``.

    :param wide: give outputs with their padding instead of strides that step over it
    :param broken: what a run fails with
    :param loads: the kinds of files that this board's runtime knows
    :return: the module, and weak references to the runtimes that it makes
    """
    made: list[Any] = []

    class HB_HBMRuntime:  # noqa: N801  (its name there)
        """A loaded file; what is not documented does not exist."""

        def __init__(self, model_file: str):
            if not isinstance(model_file, str):
                raise TypeError('incompatible constructor arguments')
            if not model_file.endswith(loads):
                raise RuntimeError(f'hbDNNInitializeFromFiles failed for {model_file}')
            self.__chip = Chip(model_file)
            self.__params: dict[str, Any] = {}
            made.append(weakref.ref(self))

        def __tensors(self, inputs: Any, output: Any) -> dict[str, dict[str, Any]]:
            names = (
                {'pixels': inputs, 'more': inputs}
                if self.__chip.model.extra_input
                else {'pixels': inputs}
            )
            return {'vit': names if inputs is not None else {'features': output}}

        model_names = property(lambda self: ['vit'])
        input_names = property(lambda self: {'vit': list(self.__tensors(0, None)['vit'])})
        output_names = property(lambda self: {'vit': ['features']})
        input_shapes = property(
            lambda self: self.__tensors(list(self.__chip.model.input_shape), None)
        )
        output_shapes = property(
            lambda self: self.__tensors(None, list(self.__chip.model.output_shape))
        )
        input_dtypes = property(
            lambda self: self.__tensors(hbDNNDataType[KINDS[self.__chip.model.input_dtype]], None)
        )
        output_dtypes = property(
            lambda self: self.__tensors(None, hbDNNDataType[KINDS[self.__chip.model.output_dtype]])
        )
        input_quants = property(
            lambda self: self.__tensors(
                QuantParams(
                    self.__chip.model.quant_type,
                    self.__chip.model.input_scale,
                    self.__chip.model.input_zero,
                    self.__chip.model.input_axis,
                ),
                None,
            )
        )
        output_quants = property(
            lambda self: self.__tensors(
                None,
                QuantParams(
                    self.__chip.model.quant_type,
                    self.__chip.model.output_scale,
                    self.__chip.model.output_zero,
                    self.__chip.model.output_axis,
                ),
            )
        )
        sched_params = property(lambda self: {'vit': SimpleNamespace(**self.__params)})

        def set_scheduling_params(
            self,
            priority: dict[str, int] | None = None,
            bpu_cores: dict[str, list[int]] | None = None,
        ) -> None:
            for name, chosen in (('priority', priority), ('bpu_cores', bpu_cores)):
                if chosen is not None:
                    self.__params[name] = chosen['vit']
            if not 0 <= self.__params.get('priority', 0) <= 255:
                raise RuntimeError('priority out of range [0, 255]')
            if any(core not in range(cores) for core in self.__params.get('bpu_cores', [])):
                raise RuntimeError('Invalid BPU core')

        def run(
            self, multi_input_tensors: dict[str, dict[str, np.ndarray]]
        ) -> dict[str, dict[str, np.ndarray]]:
            if broken:
                raise RuntimeError(broken)
            model = self.__chip.model
            fed = multi_input_tensors['vit']['pixels']
            if fed.dtype != model.input_dtype or fed.shape != model.input_shape:
                raise ValueError(f'Mismatch in tensor dimensions or type: {fed.dtype} {fed.shape}')
            view = self.__chip.execute(np.ascontiguousarray(fed))
            return {'vit': {'features': view.base if wide else view}}

    module = ModuleType('hbm_runtime')
    module.__dict__.update(
        HB_HBMRuntime=HB_HBMRuntime,
        QuantParams=QuantParams,
        hbDNNDataType=hbDNNDataType,
        hbDNNQuantiType=hbDNNQuantiType,
    )
    return module, made


def pyeasy_dnn(
    x5_build: bool = False,
    outputs: tuple[str, ...] = ('float32', 'int8', 'int16', 'int32'),
    layout: str = 'NONE',
) -> tuple[ModuleType, list[Any]]:
    """
    Make the module ``pyeasy_dnn``.

    :param x5_build: D-Robotics' build for the X5: it takes the elements of an array for bytes,
        changes pictures where they lie, and gives every output four axes
    :param outputs: formats of outputs that it knows; others come out as int8
    :return: the module, and the arguments of every call of forward
    """
    calls: list[Any] = []

    class Tensor:
        """An input or output."""

        def __init__(
            self,
            name: str,
            shape: tuple[int, ...],
            dtype: str,
            scale: tuple[float, ...],
            buffer: np.ndarray | None = None,
        ):
            self.name = name
            self.properties = SimpleNamespace(
                shape=tuple(shape),
                dtype=dtype,
                tensor_type=dtype,
                layout=layout,
                scale_data=np.array(scale, np.float32),
            )
            self.buffer = buffer

    class Model:
        """A loaded model."""

        def __init__(self, path: str):
            self._chip = Chip(path)
            model = self._chip.model
            self.name = 'vit'
            self.inputs = [
                Tensor('pixels', model.input_shape, model.input_dtype, model.input_scale)
            ]
            self.outputs = [
                Tensor('features', model.output_shape, model.output_dtype, model.output_scale)
            ]

        def forward(self, arg: np.ndarray, **kwargs: int) -> list[Tensor]:
            assert set(kwargs) <= {'core_id', 'priority'}
            calls.append(kwargs)
            model = self._chip.model
            if x5_build:
                memory = np.zeros(model.input_shape, model.input_dtype)
                count = arg.size
                memory.reshape(-1).view(np.uint8)[:count] = np.frombuffer(arg.tobytes(), np.uint8)[
                    :count
                ]
                arg[...] = 0
            else:
                assert arg.dtype == model.input_dtype and arg.shape == model.input_shape
                memory = arg
            buffer = self._chip.execute(memory)
            buffer = buffer.base if model.padding else buffer
            if x5_build:
                buffer = buffer.reshape(buffer.shape + (1,) * (4 - buffer.ndim))
            if model.output_dtype not in outputs:
                buffer = buffer.view(np.int8)
            return [
                Tensor(
                    'features',
                    model.output_shape,
                    model.output_dtype,
                    model.output_scale,
                    buffer.copy(),
                )
            ]

    if x5_build:
        Model.__module__ = 'dnnpy'
    module = ModuleType('pyeasy_dnn')
    module.__dict__.update(load=lambda path: [Model(path)], Model=Model, pyDNNTensor=Tensor)
    return module, calls
