"""
ONNX graphs in OpenVINO, with the face of an ONNX Runtime session.

Knows OpenVINO; nothing of what the graph computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_graph import OnnxGraph
from ..errors import BackendMissing, ModelFileError

CURE = "pip install 'hobot_vlm[openvino]' (or: pip install openvino)"

#: milliseconds between two looks at whether a run is to end
LOOK_MS = 50

#: OpenVINO's names of number formats -> ONNX Runtime's
TYPES = {
    'f32': 'tensor(float)',
    'f16': 'tensor(float16)',
    'u8': 'tensor(uint8)',
    'boolean': 'tensor(bool)',
    'i64': 'tensor(int64)',
    'i32': 'tensor(int32)',
}


def installed() -> bool:
    """Tell whether the package is there and its libraries load."""
    try:
        import openvino  # noqa: F401
    except (ImportError, OSError):
        return False
    return True


@dataclass(frozen=True)
class _Entry:
    """An input or output, as ONNX Runtime describes it: an open size is None."""

    name: str
    type: str
    shape: list[int | None]


@dataclass(frozen=True)
class _Meta:
    custom_metadata_map: dict[str, str]


class OpenVinoSession:
    """
    A compiled graph.

    :raises BackendMissing: OpenVINO is not installed
    :raises ModelFileError: it refuses the graph
    """

    def __init__(self, path: Path, graph: OnnxGraph | None, threads: int, cure: str) -> None:
        try:
            import openvino
        except (ImportError, OSError) as exc:
            raise BackendMissing('OpenVINO is not installed', CURE) from exc
        settings: dict[str, Any] = {'PERFORMANCE_HINT': 'LATENCY'}
        if threads:
            settings['INFERENCE_NUM_THREADS'] = threads
        try:
            core = openvino.Core()
            model = core.read_model(str(path) if graph is None else graph.model())
            # bfloat16 where the CPU multiplies it in hardware: OpenVINO chooses by itself.
            compiled = core.compile_model(model, 'CPU', settings)
        except Exception as exc:  # OpenVINO's errors have no other base
            raise ModelFileError(
                path, f'OpenVINO {openvino.__version__[:8]} cannot load it: {_reason(exc)}; {cure}'
            ) from exc
        self._request = compiled.create_infer_request()
        self._inputs, self._outputs = (
            [_entry(port) for port in ports] for ports in (compiled.inputs, compiled.outputs)
        )

    def get_inputs(self) -> list[_Entry]:
        """Describe the inputs."""
        return self._inputs

    def get_outputs(self) -> list[_Entry]:
        """Describe the outputs."""
        return self._outputs

    def get_modelmeta(self) -> _Meta:
        """Give what the file says about itself; OpenVINO does not keep it."""
        return _Meta({})

    def run(self, outputs: Sequence[str], feeds: dict[str, Any], options: Any) -> list[Any]:
        """
        Run the graph.

        :param options: ends the run when its ``terminate`` is set
        """
        self._request.start_async(feeds, share_inputs=True)
        while not self._request.wait_for(LOOK_MS):
            if options.terminate:
                self._request.cancel()
        return [np.array(self._request.get_tensor(name).data) for name in outputs]


def _entry(port: Any) -> _Entry:
    kind = port.get_element_type().get_type_name()
    sizes = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
    return _Entry(port.get_any_name(), TYPES.get(kind, kind), sizes)


def _reason(exc: Exception) -> str:
    """Give the last line that says something; before it come places in OpenVINO's sources."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines or [type(exc).__name__])[-1][:200].rstrip('.')
