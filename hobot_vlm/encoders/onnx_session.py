"""
ONNX graphs in ONNX Runtime, on any of its execution providers.

A session is ONNX Runtime's own ``InferenceSession``; this file knows how to get one, and nothing
of what the graph computes.
"""

from __future__ import annotations

from pathlib import Path
import re
from typing import Any

from .onnx_graph import OnnxGraph
from .onnx_weights import outside_paths
from ..errors import BackendMissing, ModelFileError

CPU = 'CPUExecutionProvider'

#: not for the robot: sends what it is given to a server
REMOTE = ('AzureExecutionProvider',)

SUFFIX = 'ExecutionProvider'


def providers() -> dict[str, str]:
    """
    Give the execution providers of the installed build by the names that ``encoder_device`` has.

    :return: 'cpu', 'cuda', 'coreml' … -> 'CPUExecutionProvider' …; empty without ONNX Runtime
    """
    try:
        import onnxruntime
    except ImportError:
        return {}
    return {
        name.removesuffix(SUFFIX).lower(): name
        for name in onnxruntime.get_available_providers()
        if name not in REMOTE
    }


def check_onnx(path: Path) -> str:
    """
    Check that an ONNX file is whole and takes its weights from nowhere else.

    :return: what to do about a file that cannot be loaded, for messages
    :raises ModelFileError: it is not
    """
    if not path.is_file():
        raise ModelFileError(path, 'there is no such file; expected a vision encoder (.onnx)')
    cure = (
        f'expected a whole ONNX file (this one has {path.stat().st_size} bytes), its external '
        'data beside it, and operators that ONNX Runtime knows: fetch or export it again'
    )
    try:
        outside = outside_paths(path)
    except OSError as exc:
        raise ModelFileError(path, f'it cannot be read: {exc.strerror}; {cure}') from exc
    except ValueError as exc:
        raise ModelFileError(path, f'it is not an ONNX file, or was cut short; {cure}') from exc
    if outside:
        raise ModelFileError(
            path, f'its weights lie outside its folder, in {outside[0]!r}; {cure}'
        )
    return cure


def open_session(path: Path, graph: OnnxGraph | None, device: str, threads: int, cure: str) -> Any:
    """
    Load a graph.

    :param path: the file that it is in, or that it was made from
    :param graph: what was made from that file; None where it is in the file
    :param device: a name that ``providers`` gives
    :param cure: what to do about a file that cannot be loaded
    :raises BackendMissing: no ONNX Runtime, or the provider does not start
    :raises ModelFileError: ONNX Runtime refuses the graph
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise BackendMissing(
            f'ONNX Runtime, which {path.name} needs, is not installed', 'pip install onnxruntime'
        ) from exc
    wanted = providers()[device]
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # whatever it would print, it also raises
    settings.intra_op_num_threads = threads
    # Threads that wait for the next picture would otherwise burn the decoder's cores.
    settings.add_session_config_entry('session.force_spinning_stop', '1')
    # Memory goes back when it is free: what is packed for the CPU is no longer needed as it was,
    # and nobody else may use what a run took.
    settings.add_session_config_entry('session.use_device_allocator_for_initializers', '1')
    settings.enable_cpu_mem_arena = False
    model: str | bytes = str(path)
    if graph is not None:
        large = graph.large()
        settings.add_external_initializers(
            list(large), [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in large.values()]
        )
        model = graph.model(without_large=True)
    try:
        session = onnxruntime.InferenceSession(
            model, settings, providers=list({wanted: 0, CPU: 0})
        )
    except Exception as exc:  # ONNX Runtime's errors have no other base
        raise ModelFileError(
            path, f'ONNX Runtime {onnxruntime.__version__} cannot load it: {reason(exc)}; {cure}'
        ) from exc
    if session.get_providers()[0] != wanted:  # it goes on with the CPU without a word
        raise BackendMissing(
            f"ONNX Runtime's {wanted} does not start on this machine",
            f'see that the libraries and the driver that {device} needs are installed, or use '
            'encoder_device auto',
        )
    return session


def reason(exc: Exception) -> str:
    """Give the first line of what ONNX Runtime says, without its error codes."""
    first = (str(exc).splitlines() or [type(exc).__name__])[0]
    return re.sub(r'^(.* : )?(Load model from .* failed: ?)?', '', first).strip().rstrip('.')
