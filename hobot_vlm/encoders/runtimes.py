"""
Which runtimes can run an encoder file on this machine, by the names that ``encoder_device`` has.

This file knows what is installed and who reads which file; it measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from . import EncoderOptions, mmproj_graph, onnx_session, openvino_session, VisionEncoder
from .mmproj_file import MmprojFile
from .onnx import OnnxEncoder
from .onnx_graph import OnnxGraph
from ..errors import BackendMissing, ConfigError

#: name -> how to get the runtime; names of ONNX Runtime's execution providers that are not here
#: are known where an installed build has them
CURES = {
    'cpu': 'pip install onnxruntime',
    'cpu-int8': 'pip install onnxruntime',
    'openvino': openvino_session.CURE,
    'libmtmd': 'pip install llama-cpp-python (0.3.36 or later, with its default settings)',
    'cuda': 'pip uninstall onnxruntime; pip install onnxruntime-gpu',
    'tensorrt': 'pip uninstall onnxruntime; pip install onnxruntime-gpu tensorrt',
    'migraphx': 'pip uninstall onnxruntime; pip install onnxruntime-migraphx',
    'dml': 'pip uninstall onnxruntime; pip install onnxruntime-directml (Windows)',
    'qnn': 'pip uninstall onnxruntime; pip install onnxruntime-qnn',
    'coreml': 'pip install onnxruntime (macOS)',
    'xnnpack': 'build ONNX Runtime with --use_xnnpack',
    'bpu': 'use an RDK board; there, pip install hbm_runtime',
}
#: name -> modules of which any brings the runtime, where their presence tells enough
MODULES = {
    'libmtmd': ('llama_cpp.mtmd_cpp',),
    'bpu': ('hbm_runtime', 'hobot_dnn', 'hobot_dnn_rdkx5'),
}
#: execution providers that compute on this CPU, or do so where nobody tells them otherwise
ON_CPU = ('cpu', 'xnnpack', 'openvino', 'dnnl', 'acl', 'armnn', 'azure')


@dataclass(frozen=True)
class Candidate:
    """
    A runtime that can run a file.

    :param device: its name as ``encoder_device`` has it
    :param runtime: its name for people
    :param version: changes when its speed may
    """

    device: str
    runtime: str
    version: str
    open: Callable[[], VisionEncoder]


def available() -> dict[str, str]:
    """Tell for each runtime that is known whether it is there: '' if so, or how to get it."""
    here = {*onnx_session.providers(), *(['openvino'] if openvino_session.installed() else [])}
    here |= {'cpu-int8'} if 'cpu' in here else set()
    here |= {device for device, modules in MODULES.items() if any(map(_importable, modules))}
    return dict.fromkeys(sorted(here), '') | {
        name: cure for name, cure in CURES.items() if name not in here
    }


def candidates(path: Path, options: EncoderOptions) -> tuple[list[Candidate], dict[str, str]]:
    """
    Give the runtimes for a file, the one that the others are compared with first.

    :return: them, and for others why this file is not for them
    :raises ModelFileError: the file is damaged
    :raises ModelMismatch: it is an encoder of an unknown family
    """
    return READERS[path.suffix.lower()](path, options)


def named(path: Path, found: list[Candidate], unfit: dict[str, str], device: str) -> Candidate:
    """
    Give the runtime of a name.

    :raises BackendMissing: it is not installed
    :raises ConfigError: there is none of that name, or the file is not for it
    """
    for candidate in found:
        if candidate.device == device:
            return candidate
    names = ', '.join(['auto', *(candidate.device for candidate in found)])
    if device in unfit:
        raise ConfigError(
            f'encoder_device is {device!r}, and {path.name} cannot run there: {unfit[device]}; '
            f'expected one of {names}',
            'encoder_device',
        )
    cure = available().get(device)
    if cure:
        raise BackendMissing(f'encoder_device is {device!r}, which is not installed here', cure)
    what = 'a runtime that is not known' if cure is None else f'nothing that reads *{path.suffix}'
    raise ConfigError(
        f'encoder_device is {device[:40]!r}, {what}; expected for this file one of {names}',
        'encoder_device',
    )


def _for_onnx(path: Path, options: EncoderOptions) -> tuple[list[Candidate], dict[str, str]]:
    cure = onnx_session.check_onnx(path)
    found = [_onnx_runtime(path, device, _no_graph, options, cure) for device in _providers()]
    if openvino_session.installed():
        found.append(_openvino(path, _no_graph, options, cure))
    if not found:
        raise BackendMissing(
            f'ONNX Runtime, which {path.name} needs, is not installed', CURES['cpu']
        )
    return found, {'cpu-int8': 'it is made from a quantised mmproj file'}


def _for_mmproj(path: Path, options: EncoderOptions) -> tuple[list[Candidate], dict[str, str]]:
    file = MmprojFile(path)
    why = mmproj_graph.fits(file)
    found, unfit = [], {}
    cure = 'fetch the file again, or use encoder_device libmtmd'
    devices = _providers()
    if why:
        unfit = dict.fromkeys([*devices, 'cpu-int8', 'openvino'], why)
    else:
        blocks, rows, plain = (
            partial(mmproj_graph.build, file, form)
            for form in (mmproj_graph.BLOCKS, mmproj_graph.ROWS, mmproj_graph.PLAIN)
        )
        for device in devices:
            make = blocks if device == 'cpu' else plain
            found.append(_onnx_runtime(path, device, make, options, cure))
            if device == 'cpu' and file.in_blocks():
                found.append(_onnx_runtime(path, 'cpu-int8', rows, options, cure))
        if openvino_session.installed():
            found.append(_openvino(path, blocks, options, cure))
        if not file.in_blocks():
            unfit['cpu-int8'] = 'its weights are not quantised'
    # on the GPU it is another runtime, as far as speed goes
    version = _version('llama-cpp-python') + (' gpu' if options.gpu else '')
    found.append(Candidate('libmtmd', 'libmtmd', version, partial(_libmtmd, path, options)))
    return found, unfit


def _providers() -> list[str]:
    """Give the execution providers, the CPU first; OpenVINO's only where the package is not."""
    found = onnx_session.providers()
    if openvino_session.installed():
        found.pop('openvino', None)
    return sorted(found, key=lambda device: device != 'cpu')


def _onnx_runtime(
    path: Path,
    device: str,
    make: Callable[[], OnnxGraph | None],
    options: EncoderOptions,
    cure: str,
) -> Candidate:
    provider = device.removesuffix('-int8')
    runtime = f'onnxruntime {provider.upper()}' + ', 8-bit rows' * (device != provider)

    def load() -> VisionEncoder:
        session = onnx_session.open_session(path, make(), provider, options.threads, cure)
        return OnnxEncoder(path, session, runtime, provider not in ON_CPU)

    return Candidate(device, runtime, _version('onnxruntime'), load)


def _openvino(
    path: Path, make: Callable[[], OnnxGraph | None], options: EncoderOptions, cure: str
) -> Candidate:
    def load() -> VisionEncoder:
        session = openvino_session.OpenVinoSession(path, make(), options.threads, cure)
        return OnnxEncoder(path, session, 'openvino CPU')

    return Candidate('openvino', 'openvino CPU', _version('openvino'), load)


def _for_bpu(path: Path, options: EncoderOptions) -> tuple[list[Candidate], dict[str, str]]:
    def load() -> VisionEncoder:
        from .bpu import BpuEncoder

        return BpuEncoder(path, options)

    return [Candidate('bpu', 'BPU', '', load)], {}


def _libmtmd(path: Path, options: EncoderOptions) -> VisionEncoder:
    from .mmproj import MmprojEncoder

    return MmprojEncoder(path, options)


def _no_graph() -> None:
    """Say that the graph is in the file itself."""


#: suffix of an encoder file -> what gives the runtimes that read it
READERS: dict[str, Callable[[Path, EncoderOptions], tuple[list[Candidate], dict[str, str]]]] = {
    '.bin': _for_bpu,
    '.hbm': _for_bpu,
    '.onnx': _for_onnx,
    '.gguf': _for_mmproj,
}


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(package: str) -> str:
    """Give the version of a package; its builds go by several names."""
    for name in (package, f'{package}-gpu', f'{package}-openvino'):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ''
