"""
How the libraries that run models were built: checked in another process, which may crash.

llama.cpp that was compiled for another processor ends its process with the first instruction that
this one does not have; ``vlm doctor`` is to say so and live.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import json
import platform
import signal
import subprocess
import sys
from typing import Any

#: seconds after which a library is given up: the slowest board imports them in ten
TIMEOUT = 60

LLAMA = """
import json, llama_cpp
from llama_cpp import llama_cpp as lib
print(json.dumps({'version': llama_cpp.__version__,
    'features': lib.llama_print_system_info().decode(),
    'gpu': bool(lib.llama_supports_gpu_offload())}))
"""
ONNX = """
import json, onnxruntime
print(json.dumps({'version': onnxruntime.__version__,
    'providers': onnxruntime.get_available_providers()}))
"""

RUNTIMES = """
import json
from hobot_vlm.vlm import runtimes
print(json.dumps(runtimes()))
"""

#: flag of /proc/cpuinfo -> what llama.cpp calls it, where it makes a model faster
FEATURES = {
    'avx2': 'AVX2',
    'fma': 'FMA',
    'f16c': 'F16C',
    'avx512f': 'AVX512',
    'asimddp': 'DOTPROD',
    'i8mm': 'MATMUL_INT8',
    'sve': 'SVE',
}
REBUILD = 'pip install --force-reinstall --no-cache-dir --no-binary :all: --no-deps '
REBUILD += 'llama-cpp-python'

Found = tuple[str, str, str, str]


def check(flags: Sequence[str], gpu: bool) -> Iterator[Found]:
    """
    Check llama.cpp, ONNX Runtime and what else runs encoders.

    :param flags: what the processor can do, in the words of /proc/cpuinfo
    :param gpu: whether there is an NVIDIA GPU
    :return: topic, status, text and cure of each finding
    """
    llama = probe(LLAMA)
    if isinstance(llama, str):
        cure = REBUILD if 'signal' in llama else 'pip install llama-cpp-python'
        yield 'llama.cpp', 'bad', llama, cure
    else:
        yield from _llama(llama, flags, gpu)
    onnx = probe(ONNX)
    if isinstance(onnx, str):
        text = f'{onnx}; encoders of the kind .onnx do not run, the demo model is one'
        yield 'ONNX Runtime', 'warn', text, 'pip install onnxruntime'
        return
    names = [name.removesuffix('ExecutionProvider') for name in onnx['providers']]
    yield 'ONNX Runtime', 'ok', f'{onnx["version"]}, runs on {", ".join(names)}', ''
    runtimes = probe(RUNTIMES)
    if not isinstance(runtimes, str):
        yield _runtimes(runtimes, gpu)


def _llama(llama: dict[str, Any], flags: Sequence[str], gpu: bool) -> Iterator[Found]:
    built = {
        name.split(':')[-1].strip()
        for name, equals, value in (f.partition('=') for f in llama['features'].split('|'))
        if equals and value.strip() == '1'
    }
    missing = [name for flag, name in FEATURES.items() if flag in flags and name not in built]
    used = ', '.join(name for name in FEATURES.values() if name in built)
    if missing:
        text = f'{llama["version"]}, built without {", ".join(missing)}, which this CPU has'
        yield 'llama.cpp', 'warn', text, f'CMAKE_ARGS=-DGGML_NATIVE=ON {REBUILD}'
    else:
        yield 'llama.cpp', 'ok', f'{llama["version"]}, built for this CPU ({used or "plain"})', ''
    if llama['gpu']:
        yield 'GPU', 'ok', 'llama.cpp can use it: n_gpu_layers', ''
    elif gpu:
        text = 'there is one, and llama.cpp is built without it'
        yield 'GPU', 'warn', text, f'CMAKE_ARGS=-DGGML_CUDA=ON {REBUILD}'


def _runtimes(runtimes: dict[str, str], gpu: bool) -> Found:
    """Say what can run a vision encoder, and what else would be worth it here."""
    text = f'{", ".join(name for name, cure in runtimes.items() if not cure)} (encoder_device)'
    pc = platform.machine() in ('x86_64', 'AMD64')  # which OpenVINO is made for
    for name, worth in (('cuda', gpu), ('openvino', pc)):
        if worth and runtimes.get(name):
            text = f'{text}; {name} may be faster'
            return 'encoder runtimes', 'ok', text, runtimes[name]
    return 'encoder runtimes', 'ok', text, ''


def probe(code: str) -> dict[str, Any] | str:
    """Run code in another process; give the object that it prints, or say what went wrong."""
    try:
        done = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return f'not loaded after {TIMEOUT} s'
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f'loading it ends with the signal {name}: it was built for another processor'
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ['it cannot be loaded']
        return lines[-1][:200]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
